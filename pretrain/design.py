"""The choices that SimMIM leaves open: what the encoder sees, which head predicts what, under which loss.

In: a recipe's fields, or what a checkpoint says of itself. Out: a `Design`, from which `SimMIM` builds its
parts. SimMIM's own ablations are the paper's section 4.1; its defaults are the defaults here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from simmim_bench.errors import UsageError
from simmim_bench.models.archs import BackboneSpec

Head = Literal["linear", "mlp", "conv", "inverse_swin_t", "inverse_swin_b"]
TargetName = Literal[
    "pixels", "patch_norm", "bins", "clusters", "tokens", "teacher_features", "teacher_pixels"
]
Loss = Literal["l1", "smooth_l1", "l2"]
Scope = Literal["masked", "all"]
EncoderInput = Literal["tokens", "zeros", "visible"]

CLASSES = ("bins", "clusters", "tokens")  # targets whose loss is the cross-entropy
OF_A_TEACHER = ("teacher_features", "teacher_pixels")
BESIDE_PIXELS = ("tokens", *OF_A_TEACHER)  # targets that pixels may be predicted beside
TOKENS = 512  # ours: BEiT's 8,192 (arXiv 2106.08254, section 2.2) want more pictures than a fit here looks at
# Ours: numbers that one cell of the last map may predict; a linear head of 1,024 channels then has 67 million weights.
LARGEST_CELL = 65536
LARGEST_TOKEN = 16  # BEiT's patches of 16 pixels have a token each (arXiv 2106.08254, section 2.1)
FEWEST_TOKENS = 8  # ours: along the shorter side of a picture


@dataclass(frozen=True, kw_only=True)
class Design:
    """What a SimMIM model is made of besides its encoder.

    Attributes:
        head: "linear" (a 1x1 convolution), "mlp" (two of them), "conv" (transposed convolutions), or a
            Swin-T or Swin-B turned round (SimMIM, table 2).
        aggregate: give the head all feature levels of the encoder, not the last alone.
        target: "pixels"; "patch_norm", pixels normalised by their patch, as MAE's; "bins", which of `bins`
            each channel falls into; "clusters", which of `clusters` colours of the data is nearest;
            "tokens", the visual tokens of a tokenizer, as BEiT's; "teacher_features", a teacher's features
            of the whole image; "teacher_pixels", what a SimMIM teacher reconstructs of the same masked one.
        norm_target: predict pixels normalised by a square of so many pixels around them; 0 for plain ones.
        target_size: pixels of the shorter side of the reduced image that is predicted, or its tokens; 0
            for all of them, of tokens for as many as suit the backbone.
        bins: equal parts of a channel's range.
        clusters: colours, found by k-means on the training images.
        tokens: vocabulary of a tokenizer that is fitted on the training images.
        tokenizer: a checkpoint of a run with target=tokens, whose tokenizer is taken, or "module:function",
            a function of the user's that gives one (`target_models.py`); None to fit one.
        teacher: what a target of a teacher comes from: any CKPT, for teacher_pixels one with a SimMIM head.
        pixel_weight: of SimMIM's pixel loss, with a head of its own, beside that of tokens or a teacher; 0
            for none.
        loss: distance to the target; classes have the cross-entropy.
        scope: "masked": what is hidden counts in the loss; "all": everything does.
        encoder_input: "tokens": mask tokens where it is hidden; "zeros": patches of zeros, the mean
            colour; "visible": the visible patches alone, a ViT's, with a light decoder, as MAE's.
    """

    head: Head = "linear"
    aggregate: bool = False
    target: TargetName = "pixels"
    norm_target: int = 0
    target_size: int = 0
    bins: int = 8
    clusters: int = 512
    tokens: int = TOKENS
    tokenizer: str | None = None
    teacher: str | None = None
    pixel_weight: float = 0.0
    loss: Loss = "l1"
    scope: Scope = "masked"
    encoder_input: EncoderInput = "tokens"

    def __post_init__(self) -> None:
        if self.norm_target and self.target != "pixels":
            raise UsageError(
                f"norm_target {self.norm_target} is for target pixels; target {self.target} takes -o norm_target=0."
            )
        if self.loss != "l1" and self.target in CLASSES and not self.pixel_weight:
            raise UsageError(
                f"loss {self.loss} is a distance; target {self.target} is of classes and has the cross-entropy: "
                "leave -o loss=... out."
            )
        self._check_tokens()
        self._check_teacher()
        if self.pixel_weight and self.target not in BESIDE_PIXELS:
            raise UsageError(
                f"pixel_weight {self.pixel_weight:g} adds a pixel loss to targets {', '.join(BESIDE_PIXELS)}; "
                f"target {self.target} takes -o pixel_weight=0."
            )

    def _check_tokens(self) -> None:
        if self.tokenizer is not None and self.target != "tokens":
            raise UsageError(
                f"tokenizer {self.tokenizer} is for target tokens, and the target is {self.target}; give "
                "-o target=tokens, or leave -o tokenizer=... out."
            )
        if self.tokens != TOKENS and (self.target != "tokens" or self.tokenizer is not None):
            why = f"the target is {self.target}" if self.tokenizer is None else "one is given"
            raise UsageError(
                f"tokens {self.tokens} is the vocabulary of a tokenizer that is fitted, and {why}; leave "
                "-o tokens=... out."
            )
        if self.tokenizer is not None and self.target_size:
            raise UsageError(
                f"target_size {self.target_size} is for a tokenizer that is fitted; a given one has a stride of "
                "its own: leave -o target_size=... out."
            )

    def _check_teacher(self) -> None:
        if self.teacher is not None and self.target not in OF_A_TEACHER:
            raise UsageError(
                f"teacher {self.teacher} is for targets {' and '.join(OF_A_TEACHER)}, and the target is "
                f"{self.target}; give one of them as -o target=..., or leave -o teacher=... out."
            )
        if self.teacher is None and self.target in OF_A_TEACHER:
            raise UsageError(
                f"target {self.target} needs a teacher; give -o teacher=CKPT: a run or checkpoint directory, a "
                "weights file or timm:NAME."
            )
        if self.target == "teacher_features" and self.target_size:
            raise UsageError(
                f"target_size {self.target_size} is for targets of an image; teacher_features has the cells of "
                "the last map: leave -o target_size=... out."
            )


@dataclass(frozen=True, kw_only=True)
class TargetModel:
    """What is known of a teacher or tokenizer: enough to rebuild its student without it.

    Attributes:
        name: as the user gave it.
        label: what it is, in words.
        sha256: of its weights.
        channels: of a teacher's last map or picture; of a tokenizer, the vocabulary.
        stride: pixels a side of what one point of its output stands for.
        kept: its weights are kept with the student's: those of a tokenizer of ours.
    """

    name: str
    label: str
    sha256: str
    channels: int
    stride: int
    kept: bool = False


def design_of(provenance: Mapping[str, Any]) -> Design:
    """Read the design that a checkpoint was made with; official files tell of `norm_target` at most.

    Raises:
        TypeError: a field that this version does not know.
    """
    return Design(**provenance.get("design", {"norm_target": provenance.get("norm_target", 0)}))


def target_sizes(spec: BackboneSpec) -> list[int]:
    """Give the `target_size`s that a backbone can have, from the finest: all pixels."""
    sides = [s for s in range(1, spec.stride + 1) if not spec.stride % s]
    return [min(spec.img_size) // s for s in sides if not any(size % s for size in spec.img_size)]


def target_model_of(provenance: Mapping[str, Any]) -> TargetModel | None:
    """Read what a checkpoint knows of its teacher or tokenizer; None where it had none.

    Raises:
        TypeError: a field that this version does not know, or one that is missing.
    """
    known = provenance.get("target_model")
    return None if known is None else TargetModel(**known)


def _reduced_stride(design: Design, spec: BackboneSpec, model: TargetModel | None) -> int:
    """Give the side of a pixel of the reduced image."""
    if not design.target_size:
        return 1
    possible = target_sizes(spec)
    if design.target_size not in possible:
        raise UsageError(
            f"target_size {design.target_size} does not divide img_size {spec.img_size} into points that make "
            f"up {spec.arch}'s cells of {spec.stride} pixels; use one of {', '.join(map(str, possible))}."
        )
    return min(spec.img_size) // design.target_size


def _token_stride(design: Design, spec: BackboneSpec, model: TargetModel | None) -> int:
    """Give a tokenizer's own stride, or the largest that suits the backbone and leaves enough tokens."""
    if model is not None:
        if spec.stride % model.stride:
            fitting = [s for s in range(1, spec.stride + 1) if not spec.stride % s]
            raise UsageError(
                f"tokenizer {model.name} has a stride of {model.stride} pixels, whose tokens do not make up "
                f"{spec.arch}'s cells of {spec.stride}; use one of stride {', '.join(map(str, fitting))}."
            )
        return model.stride
    if design.target_size:
        return _reduced_stride(design, spec, model)
    shorter = min(spec.img_size)
    enough = [
        side
        for side in range(1, LARGEST_TOKEN + 1)
        if not spec.stride % side and shorter >= FEWEST_TOKENS * side
    ]
    return max(enough, default=1)


def _cell_stride(design: Design, spec: BackboneSpec, model: TargetModel | None) -> int:
    return spec.stride


_STRIDES: dict[str, Callable[[Design, BackboneSpec, TargetModel | None], int]] = {
    "tokens": _token_stride,
    "teacher_features": _cell_stride,
}


def target_stride(design: Design, spec: BackboneSpec, model: TargetModel | None = None) -> int:
    """Say how many pixels a side one predicted point stands for.

    Raises:
        UsageError: the image cannot be reduced so, or cells of the last map are coarser.
    """
    return _STRIDES.get(design.target, _reduced_stride)(design, spec, model)


def point_channels(design: Design, in_chans: int, model: TargetModel | None = None) -> int:
    """Say how many numbers are predicted at each point; 0 for features of a teacher not yet read."""
    return {
        "bins": in_chans * design.bins,
        "clusters": design.clusters,
        "tokens": design.tokens if model is None else model.channels,
        "teacher_features": 0 if model is None else model.channels,
    }.get(design.target, in_chans)


def check_design(design: Design, spec: BackboneSpec, model: TargetModel | None = None) -> None:
    """Refuse a design that a backbone cannot have.

    Args:
        model: the teacher or tokenizer, where it is known by now.

    Raises:
        UsageError: with what to give instead.
    """
    if design.encoder_input == "visible" and spec.family != "vit":
        parts = "convolutions" if spec.is_convolutional else "windows"
        raise UsageError(
            f"encoder_input visible is for a ViT: the {parts} of {spec.arch} need every patch. Use "
            "-o encoder_input=tokens or zeros, or --arch vit_..."
        )
    stride = target_stride(design, spec, model)
    numbers = (spec.stride // stride) ** 2 * point_channels(design, spec.in_chans, model)
    if numbers > LARGEST_CELL:
        raise UsageError(
            f"target {design.target} has {numbers:,} numbers for each {spec.stride}-pixel cell of {spec.arch}, "
            f"{LARGEST_CELL:,} is the most; give a smaller -o target_size=... or fewer -o bins=, clusters= or "
            "tokens=."
        )
