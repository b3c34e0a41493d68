"""Read a third-party weights file, or a folder of timm or transformers with `config.json` and weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import timm

from simmim_bench.checkpoints.checkpoint import FAULTS, Checkpoint, StateDict
from simmim_bench.checkpoints.fit import shorten
from simmim_bench.checkpoints.third_party.compare import check_same_features
from simmim_bench.checkpoints.third_party.encoders import Found, find_encoder
from simmim_bench.checkpoints.third_party.external import import_timm_network, input_of
from simmim_bench.checkpoints.third_party.folder import INDEX, find_weights, read_weights
from simmim_bench.checkpoints.third_party.hints import NO_HINTS, Hints
from simmim_bench.checkpoints.third_party.importer import NOT_NEEDED, import_state
from simmim_bench.checkpoints.third_party.statistics import (
    IMAGENET,
    PixelStatistics,
    configured_statistics,
    statistics_of,
)
from simmim_bench.checkpoints.third_party.timm import (
    Geometry,
    build_named,
    build_timm,
    identifying_weight,
    read_geometry,
    recorded_model,
)
from simmim_bench.checkpoints.third_party.transformers import configured_pixels, read_configuration
from simmim_bench.checkpoints.third_party.weights import as_pair, config_entries, table_of
from simmim_bench.errors import DataError, UsageError
from simmim_bench.models.shapes import shapes_only
from simmim_bench.models.spec import BackboneSpec
from simmim_bench.untrusted.json_text import read_json

# Method of an encoder by a part of its entry or prefix.
METHODS = {
    "teacher": "DINO",
    "student": "DINO",
    "base_encoder": "MoCo v3",
    "momentum_encoder": "MoCo v3",
    "encoder_q": "MoCo",
    "encoder_k": "MoCo",
}
# Methods whose files count epochs from 1 (DINO: main_dino.py, line 282; MoCo v3: main_moco.py, line 311).
FROM_ONE = {"DINO", "iBOT", "MoCo v3", "MoCo"}

MOST_EPOCHS = 10**6  # a larger number in a file is none of epochs


@dataclass(frozen=True)
class Evidence:
    """What a configuration says of a checkpoint.

    Attributes:
        geometry: sizes that the weights do not show.
        model: timm's model with the weights, whose features are compared; None without.
        statistics: normalisation of the input; None if unknown.
        warning: what the configuration leaves open.
        method: pretraining method; empty if the configuration does not show it.
        norm_eps: epsilon of a ViT's LayerNorms; None for the usual one.
        is_certain: whether `model` computes what the weights were trained in, rather than a model of the same name.
    """

    geometry: Geometry = field(default_factory=Geometry)
    model: Any = None
    statistics: PixelStatistics | None = None
    warning: str = ""
    method: str = ""
    norm_eps: float | None = None
    is_certain: bool = True


def read_third_party(path: Path, hints: Hints = NO_HINTS) -> Checkpoint:
    """Read a weights file, an index of shards, or a folder with `config.json` and weights.

    Args:
        hints: what the file does not show.

    Raises:
        UsageError: A hint does not apply to the weights.
        DataError: The file is damaged, of no known kind, does not hold a complete backbone, or leaves open how its
            weights are used.
    """
    folder = path if path.is_dir() else path.parent if path.name.endswith(INDEX) else None
    file = find_weights(path) if path.is_dir() else path
    config: dict[str, Any] = {}
    if folder is not None and (folder / "config.json").is_file():
        config = read_json(folder / "config.json", "configuration", finite=False)
        if not isinstance(config, dict):
            raise DataError(f"{folder / 'config.json'} is not a JSON object; use another copy.")
    content, metadata, sha256 = read_weights(file)
    found = find_encoder(content, str(path), hints, _identifying(folder, config, content, hints))
    rest = {**found.rest, **metadata}
    method = _method(found)
    try:
        evidence = _evidence(folder, config, found, hints)
        pretrained_windows = _pretrained_windows(rest)
        provenance = {**_provenance(rest, from_one=method in FROM_ONE), **found.provenance()}
        statistics = hints.statistics or evidence.statistics or configured_statistics(rest)
        size = table_of(config, "pretrained_cfg").get("input_size")
        size = as_pair(size[1:]) if size else None
    except UsageError:
        raise
    except FAULTS as error:
        raise DataError(
            f"the configuration of {path} has a value that it cannot have ({type(error).__name__}: "
            f"{shorten([str(error)])}); use another copy."
        ) from error
    geometry = evidence.geometry
    if hints.num_heads and geometry.num_heads and hints.num_heads != geometry.num_heads:
        raise _contradiction("--num-heads", hints.num_heads, geometry.num_heads, path, hints)
    try:
        checkpoint = import_state(
            found.state,
            name=str(path),
            label=_label(path),
            sha256=sha256,
            img_size=hints.img_size or geometry.img_size,
            window_size=hints.window_size or geometry.window_size,
            num_heads=hints.num_heads or geometry.num_heads,
            pretrained_windows=geometry.pretrained_windows or pretrained_windows,
            norm_eps=evidence.norm_eps,
            statistics=statistics,
            provenance=provenance,
            rest=rest,
            method=evidence.method or method,
            warning=" ".join(filter(None, [found.warning, evidence.warning])),
        )
        _check_hints(hints, path, checkpoint.spec.family)
        if evidence.model is not None:
            checkpoint = check_same_features(checkpoint, evidence.model)
    except DataError:
        if evidence.model is not None:
            _check_sizes(hints, evidence, path)
        if evidence.model is None or not evidence.is_certain:
            raise
        # Another family, or a variant: timm's own code computes it.
        described = hints.timm_model is None and "architecture" in config  # timm has read all
        family = "vit" if geometry.num_heads else "swin" if geometry.window_size else ""
        _check_hints(hints, path, family or "network that timm builds")
        checkpoint = import_timm_network(
            evidence.model,
            name=str(path),
            label=_label(path),
            sha256=sha256,
            extra=[] if described else _spare_entries(found, evidence.model, str(path)),
            provenance={
                **_tag(config),
                **provenance,
                **({"method": method} if method else {}),
            },
            mean=statistics.mean if statistics else None,
            std=statistics.std if statistics else None,
        )
        checkpoint = replace(
            checkpoint, warning=" ".join(filter(None, [found.warning, evidence.warning]))
        )
    checkpoint = replace(checkpoint, unread=tuple(sorted({*checkpoint.unread, *found.unread})))
    if evidence.model is None and _has_no_position(checkpoint.spec):
        raise DataError(
            f"{path} holds a ViT without position embedding or position bias, such as one with rotary positions, which "
            f"no weight shows; use simmim-bench convert {path} DST --timm-model NAME to compare it with timm's model."
        )
    if size and checkpoint.spec.is_convolutional:  # no weight depends on the image size
        checkpoint = replace(checkpoint, spec=checkpoint.spec.at(size))
    return checkpoint


def _method(found: Found) -> str:
    """Return the pretraining method that an encoder's place or the weights beside it show; empty if they show none."""
    method = next((METHODS[p] for p in found.encoder.parts if p in METHODS), "")
    if method == "DINO" and "masked_embed" in found.state:
        return "iBOT"
    token = found.state.get("mask_token")
    scaled = any(key.endswith(".ls1.gamma") for key in found.state)
    if method in ("DINO", "") and token is not None and token.ndim == 2 and scaled:
        return "DINOv2"  # dinov2/models/vision_transformer.py; timm drops the mask token
    if not method and any("decoder_embed." in key for key in found.unread):
        return "MAE"  # transformers', MMPretrain's, solo-learn's and lightly's, whose decoder is beside the encoder
    return method


def _label(path: Path) -> str:
    return path.name if path.is_dir() else path.stem


def _identifying(
    folder: Path | None, config: Mapping[str, Any], content: Mapping[str, Any], hints: Hints
) -> str | None:
    """Return the name of a weight of the timm model that the hints, the folder or the file names; None without one."""
    if hints.timm_model is not None:
        return identifying_weight(hints.timm_model, {})
    if folder is not None and isinstance(config.get("architecture"), str):
        return identifying_weight(config["architecture"], table_of(config, "model_args"))
    try:
        recorded = recorded_model(content)
    except FAULTS:
        return None
    return None if recorded is None else identifying_weight(*recorded)


def _spare_entries(found: Found, model: Any, name: str) -> list[str]:
    """Return the entries of an encoder that its timm model does not have: those of a classifier, and derived buffers.

    Raises:
        DataError: the model does not have further entries.
    """
    own = {*model.state_dict(), *(key for key, _ in model.named_buffers())}
    extra = [key for key in found.state if key not in own]
    if not extra:
        return []
    arch = model.pretrained_cfg["architecture"]
    with shapes_only():
        classifier = {*timm.create_model(arch, num_classes=1).state_dict()} - own
    unknown = [key for key in extra if key not in classifier and NOT_NEEDED.search(key) is None]
    if unknown:
        raise DataError(
            f"{name} holds {len(unknown)} weights that timm's {arch} does not have: {shorten(unknown)}; the file holds "
            "another model."
        )
    return extra


def _check_hints(hints: Hints, path: Path, family: str) -> None:
    """Check that the hints apply to the family of the weights.

    Raises:
        UsageError: One does not.
    """
    if hints.num_heads is not None and family != "vit":
        raise UsageError(f"--num-heads applies to a ViT, but {path} holds a {family}; remove it.")
    if hints.window_size is not None and family not in ("swin", "swinv2"):
        raise UsageError(
            f"--source-window-size applies to a Swin, but {path} holds a {family}; remove it."
        )


def _check_sizes(hints: Hints, evidence: Evidence, path: Path) -> None:
    """Check that sizes which a user passes are those of timm's model of the weights.

    Raises:
        UsageError: one is not.
    """
    window_size = evidence.geometry.window_size
    if hints.window_size and window_size and hints.window_size != window_size:
        raise _contradiction("--source-window-size", hints.window_size, window_size, path, hints)
    img_size = evidence.geometry.img_size or input_of(evidence.model)[0]
    if hints.img_size and hints.timm_model is None and hints.img_size != img_size:
        raise _contradiction("--source-img-size", hints.img_size, img_size, path, hints)


def _contradiction(
    option: str, passed: object, known: object, path: Path, hints: Hints
) -> UsageError:
    """Return the error for an option that contradicts the model of the weights."""
    model = f"timm's {hints.timm_model}" if hints.timm_model else f"the configuration of {path}"
    return UsageError(f"{option} {passed} contradicts {model}, which has {known}; remove it.")


def _has_no_position(spec: BackboneSpec) -> bool:
    """Return whether a ViT treats its patches as a set."""
    return spec.family == "vit" and not spec.rel_pos_bias and not spec.abs_pos_embed


def _evidence(folder: Path | None, config: dict[str, Any], found: Found, hints: Hints) -> Evidence:
    """Return what the hints, the folder's configuration or the training code's arguments say of the weights."""
    cfg = table_of(config, "pretrained_cfg")
    statistics = statistics_of(cfg.get("mean"), cfg.get("std"))
    if hints.timm_model is not None:
        size = {} if hints.img_size is None else {"img_size": hints.img_size}
        model = build_named(hints.timm_model, found.state, size)
        return Evidence(read_geometry(model), model, statistics or _timm_statistics(found, model))
    if folder is not None and "architecture" in config:
        model = _folder_model(folder, found.state, table_of(config, "model_args"))
        return Evidence(read_geometry(model), model, statistics)
    if folder is not None and "model_type" in config:
        return _transformers_evidence(folder, config, hints)
    arguments = table_of(config, "model_args")
    if arguments:  # a configuration without architecture
        heads = arguments.get("num_heads")
        geometry = Geometry(
            img_size=as_pair(arguments["img_size"]) if arguments.get("img_size") else None,
            num_heads=heads if isinstance(heads, int) else None,
            window_size=_as_window(arguments.get("window_size")),
            pretrained_windows=_as_windows(arguments.get("pretrained_window_sizes")),
        )
        return Evidence(geometry, None, statistics)
    recorded = recorded_model(found.rest)
    if recorded is not None:
        # timm's train.py saves both names; other code may have another model of its name.
        is_certain = found.rest.get("arch") == config_entries(found.rest.get("args")).get("model")
        try:
            model = _recorded_model(found, *recorded)
        except DataError:
            if is_certain:
                raise
            return Evidence(statistics=statistics)
        return Evidence(
            read_geometry(model),
            model,
            statistics or _timm_statistics(found, model),
            is_certain=is_certain,
        )
    return Evidence(statistics=statistics)


def _recorded_model(found: Found, name: str, arguments: Mapping[str, Any]) -> Any:
    """Build the model that training code recorded, for the recorded image size or, if that is only the data's, its own.

    Raises:
        DataError: timm cannot build the model, or it has other weights.
    """
    try:
        return build_named(name, found.state, arguments)
    except DataError:
        if "img_size" not in arguments:
            raise
        kept = {key: value for key, value in arguments.items() if key != "img_size"}
        try:
            return build_named(name, found.state, kept)
        except DataError:
            pass
        raise


def _timm_statistics(found: Found, model: Any) -> PixelStatistics:
    """Return the normalisation that a file records, or else that of timm's model."""
    cfg = model.pretrained_cfg
    recorded = configured_statistics(found.rest)
    return recorded or PixelStatistics(tuple(cfg["mean"]), tuple(cfg["std"]))


def _folder_model(folder: Path, state: StateDict, arguments: Mapping[str, Any]) -> Any:
    """Build the model of a timm folder, with the size of its position tables if the configuration has another."""
    position = state.get("pos_embed")
    try:
        return build_timm(folder, state, arguments=arguments)
    except DataError:
        if position is None or "patch_embed.proj.weight" not in state:
            raise
        side = int((position.shape[1]) ** 0.5) * state["patch_embed.proj.weight"].shape[2]
        return build_timm(folder, state, (side, side), arguments)


def _transformers_evidence(folder: Path, config: dict[str, Any], hints: Hints) -> Evidence:
    """Return what the configuration of a folder of transformers says."""
    configuration = read_configuration(config, folder)
    statistics, warning = configured_pixels(folder), ""
    if statistics is None and hints.statistics is None:
        statistics = IMAGENET
        warning = (
            f"{folder} has no preprocessor_config.json with image_mean and image_std; ImageNet's are used. To set "
            f"them: simmim-bench convert {folder} DST --mean 0.5 0.5 0.5 --std 0.5 0.5 0.5 (Google's ViT)."
        )
    return Evidence(
        configuration.geometry,
        None,
        statistics,
        warning,
        configuration.method,
        configuration.norm_eps,
    )


def _tag(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the tag of the weights that a timm folder's configuration names; empty without."""
    tag = table_of(config, "pretrained_cfg").get("tag")
    return {"tag": shorten([tag])} if tag and isinstance(tag, str) else {}


def _as_windows(sizes: Any) -> tuple[tuple[int, int], ...]:
    """Return the pretraining windows (h, w) of a list of sizes; empty if all are zero."""
    return tuple(as_pair(s) for s in sizes) if sizes and any(sizes) else ()


def _as_window(size: Any) -> int | None:
    """Return the side of an attention window of a configuration; None without."""
    return as_pair(size)[0] if size else None


def _pretrained_windows(rest: Mapping[str, Any]) -> tuple[tuple[int, int], ...]:
    """Return the pretraining windows of a Swin V2 from the official config."""
    model = table_of(table_of(rest, "config"), "MODEL")
    swin = table_of(model, "SWINV2") if model.get("TYPE") == "swinv2" else {}
    return _as_windows(swin.get("PRETRAINED_WINDOW_SIZES"))


def _provenance(rest: Mapping[str, Any], *, from_one: bool) -> dict[str, Any]:
    """Return the completed epochs, and the tag and target of the configuration, as far as a file has them.

    Args:
        from_one: whether the file counts epochs from 1.
    """
    found: dict[str, Any] = {}
    epoch = rest.get("epoch")
    if type(epoch) is int and 0 <= epoch < MOST_EPOCHS:
        found["epochs"] = epoch + (0 if from_one else 1)
    config = table_of(rest, "config")
    if isinstance(config.get("TAG"), str):
        found["tag"] = shorten([config["TAG"]])
    target = table_of(table_of(table_of(config, "MODEL"), "SIMMIM"), "NORM_TARGET")
    if target.get("ENABLE"):
        found["norm_target"] = as_pair(target["PATCH_SIZE"])[0]
    return found
