"""Recognise torchvision's classifiers, build them, and read from their weights how they are evaluated."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn
from torchvision import models
from torchvision.transforms import InterpolationMode

from simmim_bench.checkpoints.checkpoint import StateDict
from simmim_bench.errors import DataError, UsageError, nearest
from simmim_bench.models.shapes import shapes_only
from simmim_bench.results.record import ScoredModel
from transfer.evaluate.classifier import Classifier, head_name
from transfer.evaluate.preprocessing import Preprocessing

# Their pretrained weights expect a transformed input, which the weights do not show (transform_input).
LEFT_OUT = ("googlenet", "inception_v3")
BUFFERS = (
    *("running_mean", "running_var", "num_batches_tracked"),
    *("relative_position_index", "relative_coords_table"),
)
PUBLISHED_CLASSES = 1000


@functools.cache
def names() -> tuple[str, ...]:
    """Return the names of torchvision's classifiers."""
    found = models.list_models(module=torchvision.models)
    return tuple(name for name in found if name not in LEFT_OUT)


def published_as(sha256: str) -> str | None:
    """Return the model of a file that torchvision publishes, by the file's hash.

    The name of every published file ends with the first eight digits of its SHA-256.
    """
    return next(
        (name for name in names() for weights in _weights(name) if _is_hash_of(weights, sha256)),
        None,
    )


def recognise(state: StateDict, classes: int) -> str | None:
    """Return the model whose weights have the names and shapes of a state dict; None if there is none.

    Args:
        classes: outputs of the state dict's head.
    """
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    count = sum(v.numel() for k, v in state.items() if not k.endswith(BUFFERS))
    # The number of parameters with ImageNet's classes, which torchvision publishes, finds the candidates.
    head = head_name(state)
    if head is None:
        return None
    in_head = sum(value.numel() for name, value in state.items() if name.startswith(head))
    count += (PUBLISHED_CLASSES - classes) * in_head // classes
    position = state.get("encoder.pos_embedding")
    slack = 0 if position is None else 2 * position.numel()  # a ViT's depends on its image size
    for name in names():
        published = {weights.meta["num_params"] for weights in _weights(name)}
        if min(abs(number - count) for number in published) > slack:
            continue
        try:
            model = _build_on_meta(name, state, classes)
        except ValueError:  # the sizes of another ViT
            continue
        if {k: tuple(v.shape) for k, v in model.state_dict().items()} == shapes:
            return name
    return None


def _build_on_meta(name: str, state: StateDict, classes: int) -> nn.Module:
    """Build a model without memory for its weights where its code can."""
    try:
        with shapes_only():
            return _build(name, state, classes)
    except NotImplementedError:  # RegNet computes with tensors while it is built
        return _build(name, state, classes)


def load_file(
    path: Path,
    state: StateDict,
    name: str,
    classes: int,
    sha256: str,
    img_size: tuple[int, int] | None = None,
) -> Classifier:
    """Load a weights file into torchvision's model of a name.

    Args:
        state: the file's weights.
        classes: outputs of the file's head.
        sha256: of the file; determines which of the model's published weights it holds.
        img_size: (H, W) to evaluate at; None for that of the weights.

    Raises:
        UsageError: torchvision has no such model, or it takes one image size only.
        DataError: the weights are not those of the model.
    """
    if name not in names():
        raise UsageError(f"torchvision has no classifier '{name}'; {nearest(name, names())[:300]}")
    try:
        model = _build(name, state, classes)
        model.load_state_dict(state)
    except (RuntimeError, ValueError) as error:
        raise DataError(
            f"{path} does not hold torchvision's {name}: {' '.join(str(error).split())[:300]}"
        ) from error
    side = getattr(
        model, "image_size", None
    )  # a ViT's, whose positions torchvision does not resize
    if side is not None and img_size not in (None, (side, side)):
        raise UsageError(
            f"torchvision's {name} of {path} takes images of {side} pixels only; remove -o img_size."
        )
    return Classifier(
        model=model,
        num_classes=classes,
        described=ScoredModel(
            label=path.stem,
            name=str(path),
            sha256=sha256,
            arch=name,
            params=_params_without_head(model),
            provenance={"method": "torchvision", "label": path.stem},
        ),
        preprocessing=_preprocessing(path, name, sha256, side, img_size),
        code="torchvision",
    )


def _params_without_head(model: nn.Module) -> int:
    head = head_name(model.state_dict())
    assert head is not None
    return sum(p.numel() for name, p in model.named_parameters() if not name.startswith(head))


def _build(name: str, state: StateDict, classes: int) -> nn.Module:
    """Build a model with random weights; a ViT for the image size of its position embedding.

    Raises:
        ValueError: the sizes of a ViT do not fit together.
    """
    arguments: dict[str, Any] = {"num_classes": classes}
    position, kernel = state.get("encoder.pos_embedding"), state.get("conv_proj.weight")
    if name.startswith("vit_"):
        if position is None or kernel is None:
            raise ValueError("no ViT")
        arguments["image_size"] = math.isqrt(position.shape[1] - 1) * kernel.shape[2]
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return models.get_model(name, weights=None, **arguments)
        except AssertionError as error:  # torchvision asserts the sizes of a ViT
            raise ValueError(str(error)) from error


def _weights(name: str) -> Iterator[Any]:
    """Yield the published weights of a model, the oldest first."""
    yield from models.get_model_weights(name)


def _is_hash_of(weights: Any, sha256: str) -> bool:
    digits = weights.url.rpartition("-")[2].partition(".")[0]
    return bool(digits) and sha256.startswith(digits)


def _preprocessing(
    path: Path, name: str, sha256: str, side: int | None, img_size: tuple[int, int] | None
) -> Preprocessing:
    """Return the preprocessing of a file's published weights, else of the model's first ones of the image size."""
    known = list(_weights(name))
    weights = next((w for w in known if _is_hash_of(w, sha256)), None)
    warning = ""
    if weights is None:
        fitting = [w for w in known if side in (None, w.transforms().crop_size[0])]
        weights = (fitting or known)[0]
        warning = (
            f"{path} is none of torchvision's published files of {name}; images are preprocessed as for {weights}. "
            "Set -o img_size, test_crop_ratio, interpolation, mean or std if it was trained for others."
        )
    transforms = weights.transforms()
    crop, resized = transforms.crop_size[0], transforms.resize_size[0]
    default = (crop, crop) if side is None else (side, side)
    return Preprocessing(
        img_size=img_size or default,
        test_crop_ratio=crop / resized,
        interpolation=_interpolation(transforms.interpolation),
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
        source=f"torchvision's {weights}",
        warning=warning,
    )


def _interpolation(mode: InterpolationMode) -> Any:
    return mode.value
