"""Build classifiers with timm, and read from timm's configuration how they are evaluated."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import timm
import torch
from timm.data import resolve_data_config
from timm.models import VisionTransformer, clean_state_dict
from torch import nn

from simmim_bench.checkpoints.checkpoint import Checkpoint, StateDict
from simmim_bench.checkpoints.third_party.statistics import statistics_of
from simmim_bench.checkpoints.third_party.timm import cannot_build, check_arguments
from simmim_bench.checkpoints.third_party.weights import as_pair, table_of
from simmim_bench.checkpoints.torch_file import read_content
from simmim_bench.data.pixel_format import PixelFormat
from simmim_bench.errors import DataError, UsageError, nearest
from simmim_bench.files import sha256_file, sha256_json
from simmim_bench.models.timm_network import create_with_weights
from simmim_bench.recipe_limits import LIMITS
from simmim_bench.results.record import ScoredModel
from simmim_bench.untrusted.json_text import read_json
from simmim_bench.untrusted.text import shorten, visible
from transfer.evaluate.classifier import Classifier, no_head
from transfer.evaluate.preprocessing import Preprocessing
from transfer.evaluate.recipes import CropMode, Interpolation

LARGEST_SIDE = 4096  # pixels of an image; timm's largest published size is 1024
ImageSize = tuple[int, int] | None


def load_pretrained(ckpt: str, img_size: ImageSize = None) -> Classifier:
    """Load `timm:NAME`, whose weights timm downloads and caches.

    Raises:
        UsageError: timm has no pretrained model of that name.
        DataError: the model cannot be downloaded, or has no head.
    """
    name = ckpt.removeprefix("timm:")
    known = timm.list_models(pretrained=True)
    if name not in known and name not in {tagged.split(".")[0] for tagged in known}:
        raise UsageError(f"timm has no pretrained model '{name}'; {nearest(name, known)[:300]}")
    try:
        model = _create(name, img_size, timm.create_model, pretrained=True)
    except Exception as error:  # the hub's client raises many types without a network
        raise DataError(
            f"{ckpt} cannot be downloaded ({type(error).__name__}); download it on a machine with a network "
            "and pass the file with --model."
        ) from error
    # As `read_checkpoint` hashes it: there is no file of a known name.
    sha256 = sha256_json({k: v.double().sum().item() for k, v in model.state_dict().items()})
    return _classifier(model, ckpt=ckpt, label=name, arch=name, sha256=sha256, img_size=img_size)


def load_folder(folder: Path, img_size: ImageSize = None) -> Classifier:
    """Load a folder with timm's `config.json` and `model.safetensors`.

    Raises:
        DataError: timm cannot build the model, or it has no head.
    """
    file, named = folder / "config.json", f"local-dir:{folder}"
    what = f"the model of {file}"
    config = read_json(file, "timm's config", finite=False)
    weights = folder / "model.safetensors"
    if not isinstance(config, dict):
        raise DataError(f"{file} is not a JSON object; use another copy.")
    if not weights.is_file():
        raise DataError(
            f"{folder} has timm's config.json but no model.safetensors; use a complete folder."
        )
    state = clean_state_dict(dict(read_content(weights)[0]))
    check_arguments(
        table_of(config, "model_args"),
        lambda: _create(named, None, timm.create_model),
        state,
        what,
    )
    try:
        model = _create(named, img_size, create_with_weights, state=state)
    except Exception as error:  # timm raises many types for an unknown architecture or argument
        raise cannot_build(what, error) from error
    return _classifier(
        model,
        ckpt=str(folder),
        label=folder.name,
        arch=str(config.get("architecture")),
        sha256=sha256_file(weights),
        img_size=img_size,
    )


def load_file(
    path: Path, state: StateDict, name: str, classes: int, img_size: ImageSize = None
) -> Classifier:
    """Load a weights file into timm's model of a name.

    Args:
        state: the file's weights.
        name: such as `vit_base_patch16_224.augreg_in1k`; its tag determines the preprocessing.
        classes: outputs of the file's head.

    Raises:
        UsageError: timm has no model of that name.
        DataError: the weights are not those of the model.
    """
    arch = name.split(".")[0]
    if not timm.is_model(arch):
        raise UsageError(f"timm has no model '{name}'; {nearest(arch, timm.list_models())[:300]}")
    try:
        model = _create(
            name,
            img_size,
            create_with_weights,
            state=state,
            num_classes=classes,
            pretrained_cfg_overlay={"num_classes": classes},
        )
    except Exception as error:  # timm raises many types for weights that do not fit
        raise DataError(
            f"{path} does not hold timm's {name}: {' '.join(str(error).split())[:300]}"
        ) from error
    return _classifier(
        model,
        ckpt=str(path),
        label=path.stem,
        arch=arch,
        sha256=sha256_file(path),
        img_size=img_size,
    )


def build_token_vit(state: StateDict, classes: int, heads: int) -> VisionTransformer | None:
    """Build timm's ViT that classifies by its class token, if a state dict holds exactly such a model.

    It is DeiT's, and that of timm's plain ViTs: a norm before the pooling, and a learned absolute position.

    Args:
        classes: outputs of the state dict's head.
        heads: attention heads, which the weights do not show.

    Returns:
        The model with the weights; None for another model.
    """
    needed = ("cls_token", "pos_embed", "norm.weight", "patch_embed.proj.weight", "head.weight")
    if any(name not in state for name in needed):
        return None
    kernel, tokens = state["patch_embed.proj.weight"], state["pos_embed"].shape[1]
    dim, patch = len(kernel), kernel.shape[2]
    # DeiT's position embedding includes the class token; timm's "no_embed_class" has none for it.
    side = math.isqrt(tokens)
    blocks = [int(m[1]) for k in state if (m := re.match(r"blocks\.(\d+)\.", k)) is not None]
    if not blocks or tokens - side**2 not in (0, 1):
        return None
    model = VisionTransformer(
        img_size=side * patch,
        patch_size=patch,
        in_chans=kernel.shape[1],
        num_classes=classes,
        global_pool="token",
        embed_dim=dim,
        depth=1 + max(blocks),
        num_heads=heads,
        mlp_ratio=len(state["blocks.0.mlp.fc1.weight"]) / dim,
        init_values=1.0 if "blocks.0.ls1.gamma" in state else None,
        no_embed_class=tokens == side**2,
    )
    try:
        model.load_state_dict(state)
    except RuntimeError:  # other names or shapes: another model
        return None
    return model


def of_token_vit(
    path: Path, model: VisionTransformer, checkpoint: Checkpoint, img_size: ImageSize
) -> Classifier:
    """Return the classifier of a file without configuration whose model is `build_token_vit`'s.

    Its preprocessing is DeiT's (facebookresearch/deit: datasets.py, `build_transform`), with the mean and std of the
    file if it records them. timm's AugReg ViTs have the same weights by name, but mean and std 0.5.

    Args:
        checkpoint: the same file as a backbone.
    """
    side = model.patch_embed.img_size[0]
    warning = (
        f"{path} does not show how its input was normalised: DeiT has ImageNet's mean and std, which are "
        "used; timm's AugReg ViTs have 0.5. Name the model with --model timm:NAME, or set -o mean=0.5,0.5,0.5 "
        "-o std=0.5,0.5,0.5."
    )
    if img_size is not None:
        model.set_input_size(img_size)
    return Classifier(
        model=model,
        num_classes=model.num_classes,
        described=_describe(
            model,
            ckpt=str(path),
            label=path.stem,
            arch=_vit_name(model, side),
            sha256=checkpoint.sha256,
        ),
        preprocessing=Preprocessing(
            img_size=img_size or (side, side),
            test_crop_ratio=224 / 256 if side <= 224 else 1.0,
            mean=checkpoint.mean,
            std=checkpoint.std,
            pixel_format=checkpoint.pixel_format,
            source="DeiT: datasets.py",
            warning=warning if checkpoint.warning else "",
        ),
        code="timm",
    )


def _vit_name(model: VisionTransformer, side: int) -> str:
    """Return a name for a ViT that no configuration names."""
    patch = model.patch_embed.patch_size[0]
    return f"vit_{model.embed_dim}x{len(model.blocks)}_patch{patch}_{side}"


def _create(
    name: str, img_size: ImageSize, create: Callable[..., nn.Module], **arguments: Any
) -> nn.Module:
    """Create a model, at another image size where one is given and the model has position tables.

    Args:
        create: timm's `create_model` or `create_with_weights`.
    """
    if img_size is None:
        return create(name, **arguments)
    try:
        return create(name, img_size=img_size, **arguments)
    except TypeError:  # a convolutional network has no such argument and takes any size
        return create(name, **arguments)


def _classifier(
    model: nn.Module, *, ckpt: str, label: str, arch: str, sha256: str, img_size: ImageSize
) -> Classifier:
    """Return the classifier of a model with timm's configuration.

    Raises:
        DataError: the model has no head, or is evaluated in a way that is not supported.
    """
    classes = int(getattr(model, "num_classes", 0))
    if not classes:
        raise no_head(ckpt)
    preprocessing = _preprocessing(ckpt, model, img_size)
    size = preprocessing.img_size
    trained: Any = getattr(model, "pretrained_cfg", {}).get("input_size")
    if img_size is None and trained and size != tuple(trained[1:]):
        resize: Any = getattr(
            model, "set_input_size", None
        )  # of models with position tables or windows
        if resize is not None:
            try:
                resize(size)
            except (AssertionError, RuntimeError, ValueError) as error:
                raise cannot_build(f"{ckpt} for images of {size[0]}x{size[1]}", error) from error
    return Classifier(
        model=model,
        num_classes=classes,
        described=_describe(model, ckpt=ckpt, label=label, arch=arch, sha256=sha256),
        preprocessing=preprocessing,
        code="timm",
    )


def _preprocessing(ckpt: str, model: nn.Module, img_size: ImageSize) -> Preprocessing:
    """Return the preprocessing of a model's configuration, which may be a file's.

    Raises:
        DataError: a value is not supported, or none of its kind.
    """
    try:
        # As timm's own validate.py: some models are published with scores at a larger size than they were trained with.
        config = resolve_data_config({}, model=model, use_test_size=True)
        channels, *sides = config["input_size"]
        size, ratio = as_pair(sides), config["crop_pct"]
        statistics = statistics_of(config["mean"], config["std"])
        for key, allowed in (("crop_mode", CropMode), ("interpolation", Interpolation)):
            if config[key] not in get_args(allowed):
                raise ValueError(f"{key} is not one of {', '.join(get_args(allowed))}")
        low, high = LIMITS["test_crop_ratio"]
        if not low <= ratio <= high:
            raise ValueError(f"crop_pct is not a number from {low:g} to {high:g}")
        if not 0 < min(size) <= max(size) <= LARGEST_SIDE:
            raise ValueError(f"its images have sides of more than {LARGEST_SIDE:,} pixels, or none")
        if statistics is None or len(statistics.mean) not in (1, channels):
            raise ValueError(f"mean and std are not {channels} numbers each")
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{ckpt} is evaluated in a way that is not supported ({visible(shorten(str(error)))}); correct the "
            "pretrained_cfg in its config.json."
        ) from error
    return Preprocessing(
        pixel_format=PixelFormat(channels),
        img_size=img_size or size,
        test_crop_ratio=ratio,
        crop_mode=config["crop_mode"],
        interpolation=config["interpolation"],
        mean=statistics.mean,
        std=statistics.std,
        source="timm's pretrained_cfg",
    )


@torch.no_grad()
def _describe(model: Any, *, ckpt: str, label: str, arch: str, sha256: str) -> ScoredModel:
    head = model.get_classifier()
    heads = head if isinstance(head, tuple | list) else (head,)
    in_heads = sum(p.numel() for module in heads for p in module.parameters())
    return ScoredModel(
        label=label,
        name=ckpt,
        sha256=sha256,
        arch=arch,
        params=sum(p.numel() for p in model.parameters()) - in_heads,
        provenance={"method": "timm", "label": label},
    )
