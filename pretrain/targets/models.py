"""Load the models that targets come from: teachers and tokenizers, by the name in a design.

`load_target_model` returns the frozen model, which maps images (B, C, H, W), normalised as the student's, and hidden
pixels (B, H, W) to the student's target, and the metadata that is stored with the student.

`-o teacher=CKPT` takes any checkpoint for teacher_features, and one with a SimMIM head for teacher_pixels.
`-o tokenizer=CKPT` takes a run with target=tokens, or a checkpoint of one. `-o tokenizer=module:function` names a
user-defined function, which is imported and called without arguments. It must return an `nn.Module` that maps images
(B, 3, H, W), pixels in [0, 1], to integer ids (B, H / stride, W / stride) in [0, vocabulary), with the attributes
`vocabulary` and `stride` (pixels per side of a token). An optional method `decode` maps ids back to images for
visualisation. Every process calls the function, also when a run is resumed, with torch's, NumPy's and Python's global
generators at the same fixed seed, so that random weights are the same; a function with another generator must seed it.
"""

from __future__ import annotations

import hashlib
import importlib
import math
import random
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn

from pretrain.design import Design, TargetModelInfo
from pretrain.simmim import SimMIM, load_simmim
from pretrain.targets.tokens import TokenTarget
from simmim_bench.backbones import load_backbone, open_checkpoint
from simmim_bench.checkpoints.checkpoint import IMAGENET_MEAN, IMAGENET_STD, Checkpoint
from simmim_bench.errors import UsageError
from simmim_bench.models.build import Backbone
from simmim_bench.models.spec import BackboneSpec
from simmim_bench.training.precision import full_precision

FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
# CKPT may be random:ARCH or timm:NAME, which look like module:function.
CKPT_PREFIXES = ("random", "timm", "hub", "py")
# Not the seed of the run: runs with several seeds are compared on the same tokens.
USER_TOKENIZER_SEED = 0


class TargetSource(NamedTuple):
    """A model that a target comes from, and the metadata of it that is stored with the student."""

    known: TargetModelInfo
    model: nn.Module


class Renormalise(nn.Module):
    """Convert images from the student's normalisation to another model's."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.own = (mean, std)
        self.set_student(IMAGENET_MEAN, IMAGENET_STD)

    def set_student(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Set the student's normalisation."""
        student_mean, student_std, model_mean, model_std = (
            torch.tensor(x).view(-1, 1, 1) for x in (mean, std, *self.own)
        )
        self.register_buffer("scale", student_std / model_std)
        self.register_buffer("shift", (student_mean - model_mean) / model_std)

    scale: Tensor
    shift: Tensor

    def forward(self, images: Tensor) -> Tensor:
        """Convert (B, C, H, W) to the other model's normalisation."""
        return images * self.scale + self.shift

    def inverse(self, images: Tensor) -> Tensor:
        """Convert (B, C, H, W) to the student's normalisation."""
        return (images - self.shift) / self.scale


class FeatureTeacher(nn.Module):
    """A backbone's last feature map, layer-normalised without weights."""

    def __init__(self, backbone: Backbone, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.backbone, self.renormalise = backbone, Renormalise(mean, std)

    def forward(self, images: Tensor, hidden: Tensor) -> Tensor:
        """Return the features (B, D, h, w) of the unmasked images."""
        features = self.backbone.forward_maps(self.renormalise(images))[-1].float()
        channels_last = features.permute(0, 2, 3, 1)
        normed = nn.functional.layer_norm(channels_last, channels_last.shape[-1:], eps=1e-6)
        return normed.permute(0, 3, 1, 2)


class PixelTeacher(nn.Module):
    """A SimMIM model's reconstruction, with its target's normalisation undone."""

    def __init__(self, model: SimMIM, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.model, self.renormalise = model, Renormalise(mean, std)

    def forward(self, images: Tensor, hidden: Tensor) -> Tensor:
        """Return the teacher's reconstruction (B, C, H, W) of the masked images.

        If the teacher's target is normalised, by surroundings or by patch, its reconstruction is denormalised with the
        statistics of the unmasked image: the only information about the hidden pixels that the teacher receives.
        """
        inputs = self.renormalise(images)
        reconstruction = self.model(inputs, hidden).reconstruction
        denormalised = self.model.reconstruction_target.denormalise(reconstruction, inputs)
        return self.renormalise.inverse(denormalised)


class UserTokenizer(nn.Module):
    """A user-defined tokenizer, whose outputs are checked."""

    def __init__(self, name: str, model: nn.Module, vocabulary: int, stride: int) -> None:
        super().__init__()
        self.name, self.model, self.vocabulary, self.stride = name, model, vocabulary, stride
        self.to_unit_range = Renormalise((0.0,), (1.0,))

    def forward(self, images: Tensor, hidden: Tensor) -> Tensor:
        """Return the token ids (B, 1, h, w) of the unmasked images.

        Raises:
            UsageError: the ids have another shape, are not integers, or are outside the vocabulary.
        """
        with full_precision(images.device):
            ids = self.model(self.to_unit_range(images.float()).clamp(0, 1))
        expected = (len(images), *(side // self.stride for side in images.shape[2:]))
        if not isinstance(ids, Tensor) or tuple(ids.shape) != expected:
            shape = tuple(ids.shape) if isinstance(ids, Tensor) else f"a {type(ids).__name__}"
            raise UsageError(
                f"tokenizer {self.name} returned {shape} for images {tuple(images.shape)}; with its stride of "
                f"{self.stride} it must return ids {expected}."
            )
        if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
            raise UsageError(
                f"tokenizer {self.name} returned {ids.dtype}; it must return integers, such as torch.int64."
            )
        low, high = (int(x) for x in ids.aminmax())
        if low < 0 or high >= self.vocabulary:
            raise UsageError(
                f"tokenizer {self.name} returned ids from {low} to {high}; with its vocabulary of "
                f"{self.vocabulary} they must be from 0 to {self.vocabulary - 1}."
            )
        return ids.long().unsqueeze(1)

    def decode(self, ids: Tensor) -> Tensor | None:
        """Decode ids (B, h, w) to images (B, C, H, W) in [0, 1]; None if the tokenizer has no `decode`."""
        if not hasattr(self.model, "decode"):
            return None
        with full_precision(ids.device):
            images = self.model.decode(ids)  # type: ignore[operator]
        height, width = (side * self.stride for side in ids.shape[1:])
        if not isinstance(images, Tensor) or tuple(images.shape) != (len(ids), 3, height, width):
            shape = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
            raise UsageError(
                f"decode of tokenizer {self.name} returned {shape} for ids {tuple(ids.shape)}; it must return "
                f"images {(len(ids), 3, height, width)}."
            )
        return images


def load_target_model(
    design: Design,
    spec: BackboneSpec,
    unit: int,
    statistics: tuple[Sequence[float], Sequence[float]] = (IMAGENET_MEAN, IMAGENET_STD),
) -> TargetSource | None:
    """Load the teacher or tokenizer that a design names; None if it names none.

    Args:
        spec: the student's backbone.
        unit: side in pixels of the student's masking unit (`masking_unit`).
        statistics: the student's mean and standard deviation.

    Raises:
        UsageError: the model does not fit the student, or a user-defined function does not return a valid tokenizer.
        DataError: the checkpoint cannot be read.
    """
    load = LOADERS.get(design.target)
    source = None if load is None else load(design, spec, unit)
    if source is not None:
        for module in source.model.modules():
            if isinstance(module, Renormalise):
                module.set_student(*statistics)
        source.model.requires_grad_(False).eval()
    return source


def _load_feature_teacher(design: Design, spec: BackboneSpec, unit: int) -> TargetSource:
    checkpoint = _read_teacher(design, spec)
    stride = checkpoint.spec.stride
    if any(side % stride for side in spec.img_size):
        raise UsageError(
            f"img_size {spec.img_size} is not a multiple of the stride {stride} of teacher {checkpoint.name}; "
            f"use {tuple(-(-side // stride) * stride for side in spec.img_size)}."
        )
    backbone = load_backbone(checkpoint, img_size=spec.img_size)
    known = _info(checkpoint, channels=backbone.feature_levels[-1].channels, stride=stride)
    return TargetSource(known, FeatureTeacher(backbone, checkpoint.mean, checkpoint.std))


def _load_pixel_teacher(design: Design, spec: BackboneSpec, unit: int) -> TargetSource:
    checkpoint = _read_teacher(design, spec)
    model = load_simmim(checkpoint)
    if model.spec.img_size != spec.img_size:
        raise UsageError(
            f"teacher {checkpoint.name} reconstructs images of {model.spec.img_size} pixels, but the student has "
            f"{spec.img_size}; use -o img_size={'x'.join(map(str, model.spec.img_size))}."
        )
    if not model.reconstruction_target.can_visualize:
        raise UsageError(
            f"teacher {checkpoint.name} predicts {model.target.describe()}, which cannot be converted to pixels; use "
            "-o target=teacher_features, or a teacher that predicts pixels."
        )
    patch = model.spec.patch_size
    # Every strategy hides the same number of units in each image, and thus of patches if units are whole patches.
    if model.design.encoder_input == "visible" and unit % patch:
        raise UsageError(
            f"teacher {checkpoint.name} encodes visible patches of {patch} pixels only, but the student's masking "
            f"units of {unit} pixels hide parts of them; use -o mask_patch_size={math.lcm(patch, spec.patch_size)} and "
            "any masking but pixels, or a teacher with encoder_input tokens or zeros."
        )
    known = _info(checkpoint, channels=spec.in_chans, stride=1)
    return TargetSource(known, PixelTeacher(model, checkpoint.mean, checkpoint.std))


def _read_teacher(design: Design, spec: BackboneSpec) -> Checkpoint:
    assert design.teacher is not None
    checkpoint = open_checkpoint(design.teacher)
    if checkpoint.spec.in_chans != spec.in_chans:
        raise UsageError(
            f"teacher {design.teacher} needs images of {checkpoint.spec.in_chans} channels, but the student has "
            f"{spec.in_chans}; use a teacher of {spec.in_chans} channels."
        )
    if checkpoint.value_range != "uint8":
        raise UsageError(
            f"teacher {design.teacher} takes {checkpoint.pixel_format}, but the student's images are of 8 bits; use "
            "another teacher."
        )
    return checkpoint


def _info(checkpoint: Checkpoint, *, channels: int, stride: int) -> TargetModelInfo:
    return TargetModelInfo(
        name=checkpoint.name,
        label=checkpoint.label,
        sha256=checkpoint.sha256,
        channels=channels,
        stride=stride,
    )


def _load_tokenizer(design: Design, spec: BackboneSpec, unit: int) -> TargetSource | None:
    name = design.tokenizer
    if name is None:
        return None
    named = FUNCTION.fullmatch(name) and name.split(":")[0] not in CKPT_PREFIXES
    return (
        _load_user_tokenizer(name)
        if named and not Path(name).exists()
        else _load_fitted_tokenizer(name)
    )


def _load_fitted_tokenizer(name: str) -> TargetSource:
    checkpoint = open_checkpoint(name)
    model = load_simmim(checkpoint)
    if not checkpoint.pixel_format.is_rgb:
        raise UsageError(
            f"tokenizer {name} takes {checkpoint.pixel_format}, but the student's are RGB images of 8 bits; use "
            "another tokenizer."
        )
    if not isinstance(model.target, TokenTarget):
        raise UsageError(
            f"{name} contains no tokenizer: it predicts {model.target.describe()}; use a run with "
            "-o target=tokens whose tokenizer was fitted, or module:function."
        )
    tokenizer = model.target.tokenizer
    known = TargetModelInfo(
        name=name,
        label=f"the tokenizer of {checkpoint.label}",
        sha256=_hash(tokenizer),
        channels=tokenizer.vocabulary,
        stride=tokenizer.stride,
        kept=True,
    )
    return TargetSource(known, tokenizer)


def _load_user_tokenizer(name: str) -> TargetSource:
    module, _, function = name.partition(":")
    try:
        with _seeded(USER_TOKENIZER_SEED):
            built = getattr(importlib.import_module(module), function)()
    except Exception as error:  # the user's code may raise anything
        raise UsageError(
            f"tokenizer {name} cannot be built ({type(error).__name__}: {error}); use module:function, importable "
            "from the current PYTHONPATH, of a function without arguments, or a run with -o target=tokens."
        ) from error
    if not isinstance(built, nn.Module):
        raise UsageError(
            f"tokenizer {name} returned a {type(built).__name__}; it must return a torch.nn.Module."
        )
    vocabulary, stride = (_read_integer(name, built, key) for key in ("vocabulary", "stride"))
    known = TargetModelInfo(
        name=name, label=name, sha256=_hash(built), channels=vocabulary, stride=stride
    )
    return TargetSource(known, UserTokenizer(name, built, vocabulary, stride))


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed torch's, NumPy's and Python's global generators for the block; restore the CPU generators afterwards."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            np.random.seed(seed)
            random.seed(seed)
            yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)


def _read_integer(name: str, tokenizer: nn.Module, key: str) -> int:
    minimum = {"vocabulary": 2, "stride": 1}[key]
    value = getattr(tokenizer, key, None)
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise UsageError(
            f"tokenizer {name} has {key} {value!r}; it must be an integer of {minimum} or more."
        )
    return value


def _hash(module: nn.Module) -> str:
    """Return the SHA-256 of a module's weights."""
    state = {key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}
    return hashlib.sha256(save({key: value.clone() for key, value in state.items()})).hexdigest()


LOADERS: dict[str, Callable[[Design, BackboneSpec, int], TargetSource | None]] = {
    "tokens": _load_tokenizer,
    "teacher_features": _load_feature_teacher,
    "teacher_pixels": _load_pixel_teacher,
}
