"""Read `timm:NAME`, build the model that a configuration names, and compare a checkpoint's features with it.

No weight of a ViT without position table depends on its attention heads, and none of a Swin V2 on its window, so
that both are read from timm's model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from simmim_bench.checkpoints.checkpoint import Checkpoint, StateDict
from simmim_bench.checkpoints.fit import shorten
from simmim_bench.checkpoints.third_party.compare import check_same_features
from simmim_bench.checkpoints.third_party.external import hash_sums, import_timm_network
from simmim_bench.checkpoints.third_party.importer import READABLE, import_state
from simmim_bench.checkpoints.third_party.statistics import PixelStatistics
from simmim_bench.checkpoints.third_party.weights import as_pair, config_entries, table_of
from simmim_bench.errors import DataError, UsageError, nearest
from simmim_bench.models.build import network_arguments
from simmim_bench.models.external_spec import ExternalSpec
from simmim_bench.models.shapes import shapes_only
from simmim_bench.models.spec import MOST_BLOCKS
from simmim_bench.models.timm_network import create_network, create_with_weights
from simmim_bench.untrusted import text

# Arguments of `timm.create_model` by which a configuration would name further files, or memory to build the model in.
LOADING = {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"}
PLACING = {"device", "dtype"}
LARGEST_ARGUMENT = 1 << 14  # a width or an image's side
LARGEST_EXCESS = 10_000_000  # weights of a model that a file may lack, such as those of its head


@dataclass(frozen=True)
class Geometry:
    """Sizes of a timm model that its weights do not show; None or empty if it has none.

    Attributes:
        img_size: (H, W) of the images.
        num_heads: attention heads of a ViT.
        window_size: nominal side of a Swin's attention window.
        pretrained_windows: (h, w) that scale the position bias of every Swin V2 stage.
    """

    img_size: tuple[int, int] | None = None
    num_heads: int | None = None
    window_size: int | None = None
    pretrained_windows: tuple[tuple[int, int], ...] = ()


def read_timm(ckpt: str) -> Checkpoint:
    """Read `timm:NAME`, one of timm's pretrained models, which timm downloads and caches.

    Raises:
        UsageError: timm has no pretrained model of that name.
        DataError: The model cannot be downloaded, or its family is not supported.
    """
    import timm

    name = ckpt.removeprefix("timm:")
    known = timm.list_models(pretrained=True)
    if name not in known and name not in {n.split(".")[0] for n in known}:
        arch, dot, _ = name.partition(".")
        near = nearest(name, known) if dot else nearest(arch, {n.split(".")[0] for n in known})
        raise UsageError(f"timm has no pretrained model '{name}'; {near[:300]}")
    try:
        model = timm.create_model(name, pretrained=True)
    except Exception as error:  # the hub's client raises many types without a network
        raise DataError(
            f"{ckpt} cannot be downloaded ({type(error).__name__}); download it on a machine with a network "
            "and pass the file."
        ) from error
    return import_timm(model, ckpt, name)


def import_timm(model: Any, ckpt: str, label: str) -> Checkpoint:
    """Build a checkpoint from a timm model with its weights.

    A model of one of simmim-bench's families becomes its own backbone; any other, and a variant of which simmim-bench
    computes other features, stays timm's.

    Raises:
        DataError: The model does not map images to features.
    """
    try:
        return _import_own_family(model, ckpt, label)
    except DataError:
        provenance = _own_provenance(model)
        return import_timm_network(model, name=ckpt, label=label, provenance=provenance)


def _own_provenance(model: Any) -> dict[str, Any]:
    """Return the provenance of timm's own weights: the tag tells those of an architecture apart."""
    return {"method": "timm", "tag": model.pretrained_cfg.get("tag", "")}


def _import_own_family(model: Any, ckpt: str, label: str) -> Checkpoint:
    """Build a checkpoint of one of simmim-bench's families from a timm model.

    Raises:
        DataError: The model's family is not supported, or simmim-bench computes other features.
    """
    cfg = model.pretrained_cfg
    state = model.state_dict()
    geometry = read_geometry(model)
    if hasattr(model, "blocks") and geometry.num_heads is None:
        raise DataError(
            f"{ckpt} is timm's {type(model).__name__}, which simmim-bench does not have; {READABLE}"
        )
    checkpoint = import_state(
        state,
        name=ckpt,
        label=label,
        sha256=hash_sums(state),
        img_size=geometry.img_size or as_pair(cfg["input_size"][1:]),
        num_heads=geometry.num_heads,
        window_size=geometry.window_size,
        pretrained_windows=geometry.pretrained_windows,
        statistics=PixelStatistics(tuple(cfg["mean"]), tuple(cfg["std"])),
        provenance=_own_provenance(model),
    )
    return check_same_features(checkpoint, model)


def read_geometry(model: Any) -> Geometry:
    """Return the sizes of a timm ViT or Swin; those of other models are empty."""
    img_size = getattr(getattr(model, "patch_embed", None), "img_size", None)
    known = Geometry(img_size=None if img_size is None else as_pair(img_size))
    blocks, stages = getattr(model, "blocks", None), getattr(model, "layers", None)
    if blocks is not None and hasattr(blocks[0], "attn"):
        return replace(known, num_heads=getattr(blocks[0].attn, "num_heads", None))
    if stages is None or not hasattr(stages[0], "blocks"):
        return known
    attention = [stage.blocks[0].attn for stage in stages]
    scales = tuple(as_pair(getattr(a, "pretrained_window_size", 0)) for a in attention)
    return replace(
        known,
        # A window is at most the map of its stage (`BackboneSpec.stage_windows`).
        window_size=max(max(as_pair(a.window_size)) for a in attention),
        pretrained_windows=scales if any(map(any, scales)) else (),
    )


def check_arguments(
    arguments: Mapping[str, Any], create: Callable[[], Any], state: StateDict, what: str
) -> None:
    """Check the arguments of a file for a timm model, before they are passed to timm.

    Args:
        create: builds the model.
        state: the weights that it should have.
        what: what describes the model, for error messages.

    Raises:
        DataError: an argument loads a file, timm cannot build the model, or it is much larger than the weights.
    """
    refused = sorted((LOADING | PLACING) & set(arguments))
    if refused or not all(_is_possible(key, value) for key, value in arguments.items()):
        raise DataError(
            f"{what} has arguments that no model of timm has: "
            f"{shorten(refused or list(map(str, arguments)))}; remove them."
        )
    try:
        with shapes_only():  # without memory
            model = create()
            # A Swin's attention masks are buffers that grow with the image.
            size = sum(v.numel() for v in (*model.parameters(), *model.buffers()))
    except Exception as error:  # timm raises many types for an unknown architecture or argument
        raise cannot_build(what, error) from error
    if size > LARGEST_EXCESS + 2 * sum(value.numel() for value in state.values()):
        raise DataError(
            f"{what} has {size:,} weights, many more than the weights file; use another copy."
        )


def check_network(spec: ExternalSpec, state: StateDict) -> None:
    """Check that timm builds the network of a checkpoint directory, and that it is as large as the weights.

    Raises:
        ValueError: timm has no such architecture.
        DataError: an argument loads a file, timm cannot build the network, or it is much larger than the weights.
    """
    import timm

    if not timm.is_model(spec.source):
        raise ValueError(f"timm has no architecture {ascii(spec.source)[:80]}")
    arguments = network_arguments(spec)
    check_arguments(
        arguments,
        lambda: create_network(spec.source, **arguments),
        state,
        f"the network {spec.source}",
    )


def identifying_weight(name: str, arguments: Mapping[str, Any]) -> str | None:
    """Return the name of a weight by which a timm model is found in a file; None if timm does not build the model."""
    import timm

    arch = name.split(".")[0]
    possible = all(_is_possible(key, value) for key, value in arguments.items())
    if not timm.is_model(arch) or (LOADING | PLACING) & set(arguments) or not possible:
        return None
    try:
        with shapes_only():
            model = timm.create_model(arch, pretrained=False, **arguments)
    except Exception:  # timm raises many types for an unknown argument
        return None
    # The longest name is not the end of another one.
    return max((name for name, _ in model.named_parameters()), key=len, default=None)


def _is_possible(key: str, value: Any) -> bool:
    """Return whether the numbers of an argument are those of a model, which has few blocks in all its stages."""
    values = value if isinstance(value, list | tuple) else [value]
    flat = [v for entry in values for v in (entry if isinstance(entry, list | tuple) else [entry])]
    numbers = [abs(number) for number in flat if isinstance(number, int | float)]
    if re.search("depth|layers|blocks", key):
        return len(flat) <= MOST_BLOCKS and sum(numbers) <= MOST_BLOCKS
    return all(number <= LARGEST_ARGUMENT for number in numbers)


def build_timm(
    folder: Path,
    state: StateDict,
    img_size: tuple[int, int] | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> Any:
    """Build the model that a timm folder's `config.json` describes, with the folder's weights.

    Args:
        state: the weights.
        img_size: (H, W) of their position tables, if it is not that of the configuration.
        arguments: those that `config.json` has for the model.

    Raises:
        DataError: timm cannot build the model, or the weights are not its weights.
    """
    import timm

    size = {} if img_size is None else {"img_size": img_size}
    named = f"local-dir:{folder}"
    what = f"the model of {folder / 'config.json'}"
    check_arguments(
        arguments or {},
        lambda: timm.create_model(named, pretrained=False, **size),
        state,
        what,
    )
    try:
        model = timm.create_model(named, pretrained=False, **size)
        loaded = model.load_state_dict(state, strict=False)
        if loaded.missing_keys or loaded.unexpected_keys:
            # With the classes of a configuration, timm would drop the head and load the rest without a check.
            overlay = {"num_classes": model.num_classes}
            model = create_with_weights(named, state, pretrained_cfg_overlay=overlay, **size)
    except Exception as error:  # timm raises many types for an unknown architecture or argument
        raise cannot_build(what, error) from error
    return model


def cannot_build(what: str, error: Exception) -> DataError:
    """Return the error of a model that timm cannot build."""
    return DataError(f"timm cannot build {what}: {text.describe_error(error)}; use another copy.")


def build_named(name: str, state: StateDict, arguments: Mapping[str, Any]) -> Any:
    """Build timm's model of a name with the weights of a file, which may hold further entries.

    Raises:
        UsageError: timm has no model of that name.
        DataError: timm cannot build the model, or a weight is missing or has another shape.
    """
    import timm

    arch = name.split(".")[0]
    if not timm.is_model(arch):
        raise UsageError(f"timm has no model '{name}'; {nearest(arch, timm.list_models())[:300]}")
    classes = [v.shape[0] for k, v in state.items() if k in ("head.weight", "head.fc.weight")]
    settings = {"pretrained": False, "num_classes": sum(classes), **arguments}
    check_arguments(
        arguments, lambda: timm.create_model(name, **settings), state, f"the model '{name}'"
    )
    try:
        model = timm.create_model(name, **settings)
        missing = model.load_state_dict(state, strict=False).missing_keys
    except Exception as error:
        raise DataError(
            f"the weights are not those of timm's {name}: {text.describe_error(error)}"
        ) from error
    if missing:
        raise DataError(f"the weights are not those of timm's {name}, which also has {missing[0]}")
    return model


def recorded_model(rest: Mapping[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """Return the timm model and arguments that training code recorded beside the weights; None without.

    timm's train.py saves `arch` and `args` (timm/utils/checkpoint_saver.py), DeiT `args.model`. As timm's train.py,
    the model takes `--model-kwargs`, `--gp` and `--bn-eps`, and the channels of `--in-chans` or `--input-size`.

    Raises:
        ValueError: the recorded size is none.
    """
    import timm

    args = config_entries(rest.get("args"))
    for name in (rest.get("arch"), args.get("model")):
        if isinstance(name, str) and timm.is_model(name):
            size = args.get("img_size") or args.get("input_size")  # DeiT's argument is input_size
            *channels, _, _ = (
                size if isinstance(size, list | tuple) and len(size) > 2 else (3, 0, 0)
            )
            passed = {
                "in_chans": args.get("in_chans") or channels[0],
                "global_pool": args.get("gp"),
                "bn_eps": args.get("bn_eps"),
            }
            passed = {
                k: v for k, v in passed.items() if v is not None and (k, v) != ("in_chans", 3)
            }
            arguments = {**passed, **table_of(args, "model_kwargs")}
            if size is None:
                return name, arguments
            sides = as_pair(size[-2:] if isinstance(size, list | tuple) else size)
            sized = {"img_size": sides, **arguments}
            # A convolutional network has no such argument.
            return name, arguments if identifying_weight(name, sized) is None else sized
    return None
