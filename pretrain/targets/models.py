"""The models that targets come from: teachers and tokenizers, read as a design names them.

In: a design and the student's backbone. Out: the frozen model, which maps images (B, C, H, W), normalised as
the student has them, and hidden pixels (B, H, W) to what the student is to predict; and what is kept of it
with the student.

`-o teacher=CKPT` is any checkpoint for teacher_features, one with a SimMIM head for teacher_pixels.
`-o tokenizer=CKPT` is a run with target=tokens, or a checkpoint of one. `-o tokenizer=module:function` is a
user's own function, imported and called without arguments. It gives an `nn.Module` that maps images
(B, 3, H, W), pixels in [0, 1], to integer ids (B, H / stride, W / stride) in [0, vocabulary), and has the
attributes `vocabulary` and `stride` (pixels a side of one token); where it has a method `decode`, that maps
ids back to images and draws them. Every process calls the function anew, and again on resuming, each time with
torch's, NumPy's and Python's global generators at the same fixed seed, so that weights drawn from these are
the same; a function with a generator of its own must seed it.
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

from pretrain.design import Design, TargetModel
from pretrain.simmim import SimMIM, load_simmim
from pretrain.targets.tokens import Tokens
from simmim_bench.backbones import load_backbone
from simmim_bench.checkpoints.checkpoint import IMAGENET_MEAN, IMAGENET_STD, Checkpoint
from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.errors import UsageError
from simmim_bench.models.archs import BackboneSpec
from simmim_bench.models.build import Backbone
from simmim_bench.training.precision import full_precision

FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
NAMES = ("random", "timm")  # what a checkpoint's name may begin with before a colon
USERS_SEED = 0  # not the run's: runs of several seeds compare on the same tokens


class TargetSource(NamedTuple):
    """A model that a target comes from, and what is kept of it with the student."""

    known: TargetModel
    model: nn.Module


class Renormalised(nn.Module):
    """Images normalised for the student, as another model wants them."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        our_mean, our_std, their_mean, their_std = (
            torch.tensor(x).view(-1, 1, 1) for x in (IMAGENET_MEAN, IMAGENET_STD, mean, std)
        )
        self.register_buffer("scale", our_std / their_std)
        self.register_buffer("shift", (our_mean - their_mean) / their_std)

    scale: Tensor
    shift: Tensor

    def forward(self, images: Tensor) -> Tensor:
        """Give (B, C, H, W) in the other model's normalisation."""
        return images * self.scale + self.shift

    def back(self, images: Tensor) -> Tensor:
        """Give (B, C, H, W) in the student's."""
        return (images - self.shift) / self.scale


class FeatureTeacher(nn.Module):
    """A backbone's last feature map, layer-normalised without weights."""

    def __init__(self, backbone: Backbone, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.backbone, self.seen = backbone, Renormalised(mean, std)

    def forward(self, images: Tensor, hidden: Tensor) -> Tensor:
        """Give (B, D, h, w) of the images, whole."""
        features = self.backbone.forward_maps(self.seen(images))[-1].float()
        channels_last = features.permute(0, 2, 3, 1)
        normed = nn.functional.layer_norm(channels_last, channels_last.shape[-1:], eps=1e-6)
        return normed.permute(0, 3, 1, 2)


class PixelTeacher(nn.Module):
    """A SimMIM model's reconstruction, with what its own target leaves out of an image put back."""

    def __init__(self, model: SimMIM, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.model, self.seen = model, Renormalised(mean, std)

    def forward(self, images: Tensor, hidden: Tensor) -> Tensor:
        """Give (B, C, H, W) as the teacher paints the images without their hidden pixels.

        A teacher whose own target is normalised, by surroundings or by patch, is lent their means and
        deviations in the whole image: of the hidden pixels, it is told these.
        """
        seen = self.seen(images)
        found = self.model(seen, hidden).reconstruction
        return self.seen.back(self.model.drawn.denormalise(found, seen))


class UserTokenizer(nn.Module):
    """A user's tokenizer, its answers checked."""

    def __init__(self, name: str, model: nn.Module, vocabulary: int, stride: int) -> None:
        super().__init__()
        self.name, self.model, self.vocabulary, self.stride = name, model, vocabulary, stride
        self.pixels = Renormalised((0.0,), (1.0,))

    def forward(self, images: Tensor, hidden: Tensor) -> Tensor:
        """Give the ids (B, 1, h, w) of the images, whole.

        Raises:
            UsageError: they are of another shape, no integers, or outside of the vocabulary.
        """
        with full_precision(images.device):
            ids = self.model(self.pixels(images.float()).clamp(0, 1))
        wanted = (len(images), *(side // self.stride for side in images.shape[2:]))
        if not isinstance(ids, Tensor) or tuple(ids.shape) != wanted:
            shape = tuple(ids.shape) if isinstance(ids, Tensor) else f"a {type(ids).__name__}"
            raise UsageError(
                f"tokenizer {self.name} gives {shape} for images {tuple(images.shape)}; with its stride of "
                f"{self.stride} it must give ids {wanted}."
            )
        if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
            raise UsageError(
                f"tokenizer {self.name} gives {ids.dtype}; it must give integers, such as torch.int64."
            )
        low, high = (int(x) for x in ids.aminmax())
        if low < 0 or high >= self.vocabulary:
            raise UsageError(
                f"tokenizer {self.name} gives ids from {low} to {high}; with its vocabulary of "
                f"{self.vocabulary} they must be from 0 to {self.vocabulary - 1}."
            )
        return ids.long().unsqueeze(1)

    def decode(self, ids: Tensor) -> Tensor | None:
        """Give the images (B, C, H, W) of ids (B, h, w), in [0, 1]; None where the tokenizer cannot."""
        if not hasattr(self.model, "decode"):
            return None
        with full_precision(ids.device):
            images = self.model.decode(ids)  # type: ignore[operator]
        height, width = (side * self.stride for side in ids.shape[1:])
        if not isinstance(images, Tensor) or tuple(images.shape) != (len(ids), 3, height, width):
            shape = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
            raise UsageError(
                f"decode of tokenizer {self.name} gives {shape} for ids {tuple(ids.shape)}; it must give "
                f"images {(len(ids), 3, height, width)}."
            )
        return images


def load_target_model(design: Design, spec: BackboneSpec, unit: int) -> TargetSource | None:
    """Read the teacher or tokenizer that a design names; None where it needs none.

    Args:
        unit: pixels a side of what the student's masks are made of (`masking_unit`).

    Raises:
        UsageError: it does not fit the student, or the user's function does not give what it should.
        DataError: it cannot be read.
    """
    load = LOADERS.get(design.target)
    source = None if load is None else load(design, spec, unit)
    if source is not None:
        source.model.requires_grad_(False).eval()
    return source


def _feature_teacher(design: Design, spec: BackboneSpec, unit: int) -> TargetSource:
    checkpoint = _read_teacher(design, spec)
    stride = checkpoint.spec.stride
    if any(side % stride for side in spec.img_size):
        raise UsageError(
            f"img_size {spec.img_size} is not a multiple of the stride {stride} of teacher {checkpoint.name}; "
            f"use {tuple(-(-side // stride) * stride for side in spec.img_size)}."
        )
    backbone = load_backbone(checkpoint, img_size=spec.img_size)
    known = _known(checkpoint, channels=backbone.feature_levels[-1].channels, stride=stride)
    return TargetSource(known, FeatureTeacher(backbone, checkpoint.mean, checkpoint.std))


def _pixel_teacher(design: Design, spec: BackboneSpec, unit: int) -> TargetSource:
    checkpoint = _read_teacher(design, spec)
    model = load_simmim(checkpoint)
    if model.spec.img_size != spec.img_size:
        raise UsageError(
            f"teacher {checkpoint.name} reconstructs images of {model.spec.img_size} pixels, not of "
            f"{spec.img_size}; give -o img_size={'x'.join(map(str, model.spec.img_size))}."
        )
    if not model.drawn.draws:
        raise UsageError(
            f"teacher {checkpoint.name} predicts {model.target.describe()}, which are no pixels; use "
            "-o target=teacher_features, or a teacher that reconstructs."
        )
    patch = model.spec.patch_size
    # Every strategy hides as many units in each image: of whole units, patches are as many too.
    if model.design.encoder_input == "visible" and unit % patch:
        raise UsageError(
            f"teacher {checkpoint.name} sees visible patches of {patch} pixels alone, and the student's masks, of "
            f"units of {unit}, hide parts of these; use -o mask_patch_size={math.lcm(patch, spec.patch_size)} and any "
            "masking but pixels, or a teacher with encoder_input tokens or zeros."
        )
    known = _known(checkpoint, channels=spec.in_chans, stride=1)
    return TargetSource(known, PixelTeacher(model, checkpoint.mean, checkpoint.std))


def _read_teacher(design: Design, spec: BackboneSpec) -> Checkpoint:
    assert design.teacher is not None
    checkpoint = read_checkpoint(design.teacher)
    if checkpoint.spec.in_chans != spec.in_chans:
        raise UsageError(
            f"teacher {design.teacher} is for images of {checkpoint.spec.in_chans} channels, not "
            f"{spec.in_chans}; use another."
        )
    return checkpoint


def _known(checkpoint: Checkpoint, *, channels: int, stride: int) -> TargetModel:
    return TargetModel(
        name=checkpoint.name,
        label=checkpoint.label,
        sha256=checkpoint.sha256,
        channels=channels,
        stride=stride,
    )


def _tokenizer(design: Design, spec: BackboneSpec, unit: int) -> TargetSource | None:
    name = design.tokenizer
    if name is None:
        return None
    named = FUNCTION.fullmatch(name) and name.split(":")[0] not in NAMES
    return _user_tokenizer(name) if named and not Path(name).exists() else _our_tokenizer(name)


def _our_tokenizer(name: str) -> TargetSource:
    checkpoint = read_checkpoint(name)
    model = load_simmim(checkpoint)
    if not isinstance(model.target, Tokens):
        raise UsageError(
            f"{name} holds no tokenizer: it predicts {model.target.describe()}. Give a run with "
            "-o target=tokens whose tokenizer was fitted, or module:function."
        )
    tokenizer = model.target.tokenizer
    known = TargetModel(
        name=name,
        label=f"the tokenizer of {checkpoint.label}",
        sha256=_hash(tokenizer),
        channels=tokenizer.vocabulary,
        stride=tokenizer.stride,
        kept=True,
    )
    return TargetSource(known, tokenizer)


def _user_tokenizer(name: str) -> TargetSource:
    module, _, function = name.partition(":")
    try:
        with _seeded(USERS_SEED):
            made = getattr(importlib.import_module(module), function)()
    except Exception as error:  # whatever the user's code raises
        raise UsageError(
            f"tokenizer {name} cannot be made ({type(error).__name__}: {error}); give module:function, importable "
            "from here (PYTHONPATH), of a function without arguments, or a run with -o target=tokens."
        ) from error
    if not isinstance(made, nn.Module):
        raise UsageError(
            f"tokenizer {name} gives a {type(made).__name__}; it must give a torch.nn.Module."
        )
    vocabulary, stride = (_whole_number(name, made, key) for key in ("vocabulary", "stride"))
    known = TargetModel(
        name=name, label=name, sha256=_hash(made), channels=vocabulary, stride=stride
    )
    return TargetSource(known, UserTokenizer(name, made, vocabulary, stride))


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed torch's, NumPy's and Python's global generators for the block; put the CPU's back after it."""
    of_numpy, of_python = np.random.get_state(), random.getstate()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            np.random.seed(seed)
            random.seed(seed)
            yield
    finally:
        np.random.set_state(of_numpy)
        random.setstate(of_python)


def _whole_number(name: str, tokenizer: nn.Module, key: str) -> int:
    least = {"vocabulary": 2, "stride": 1}[key]
    value = getattr(tokenizer, key, None)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UsageError(
            f"tokenizer {name} has {key} {value!r}; it must be a whole number of {least} or more."
        )
    return value


def _hash(module: nn.Module) -> str:
    """Give the SHA-256 of a module's weights."""
    state = {key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}
    return hashlib.sha256(save({key: value.clone() for key, value in state.items()})).hexdigest()


LOADERS: dict[str, Callable[[Design, BackboneSpec, int], TargetSource | None]] = {
    "tokens": _tokenizer,
    "teacher_features": _feature_teacher,
    "teacher_pixels": _pixel_teacher,
}
