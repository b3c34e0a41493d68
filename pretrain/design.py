"""The design of a SimMIM model apart from its backbone: encoder input, head, target and loss, and their validation.

`SimMIM` is built from a `Design`, which comes from a recipe's fields or a checkpoint's provenance. The defaults are
those of the paper (arXiv 2111.09886); the alternatives are those of its section 4.1 and of other masked-image methods.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from simmim_bench.errors import UsageError
from simmim_bench.models.spec import BackboneSpec

Head = Literal["linear", "mlp", "conv", "inverse_swin_t", "inverse_swin_b"]
TargetName = Literal[
    "pixels", "patch_norm", "bins", "clusters", "tokens", "teacher_features", "teacher_pixels"
]
Loss = Literal["l1", "smooth_l1", "l2"]
Scope = Literal["masked", "all"]
EncoderInput = Literal["tokens", "zeros", "visible"]

CLASS_TARGETS = ("bins", "clusters", "tokens")  # their loss is the cross-entropy
TEACHER_TARGETS = ("teacher_features", "teacher_pixels")
TARGETS_WITH_PIXEL_LOSS = (
    "tokens",
    *TEACHER_TARGETS,
)  # targets that `pixel_weight` may be combined with
# Ours: BEiT's 8,192 (arXiv 2106.08254, section 2.2) need more images than a tokenizer is fitted on here.
DEFAULT_TOKENS = 512
# Ours: outputs per cell of the last map; a linear head on 1,024 channels then has 67 million weights.
MAX_CELL_OUTPUTS = 65536
MAX_TOKEN_STRIDE = 16  # BEiT: one token per patch of 16 pixels (arXiv 2106.08254, section 2.1)
MIN_TOKENS_PER_SIDE = 8  # ours: along the shorter side of an image


@dataclass(frozen=True, kw_only=True)
class Design:
    """What a SimMIM model consists of besides its encoder.

    Attributes:
        head: "linear" (a 1x1 convolution), "mlp" (two of them), "conv" (transposed convolutions), or an inverse
            Swin-T or Swin-B (SimMIM, table 2).
        aggregate: the head receives all feature levels of the encoder instead of the last one.
        target: "pixels"; "patch_norm", pixels normalised by their patch, as in MAE; "bins", the index of one of `bins`
            intervals for each channel; "clusters", the index of the nearest of `clusters` colours of the data;
            "tokens", the visual tokens of a tokenizer, as in BEiT; "teacher_features", a teacher's features of the
            whole image; "teacher_pixels", the reconstruction of the same masked image by a SimMIM teacher.
        norm_target: side in pixels of the square around each pixel that normalises it; 0 for plain pixels.
        target_size: points along the shorter side of the predicted image or of its tokens; 0 for full resolution, and
            for tokens the coarsest grid that suits the backbone.
        bins: equal intervals of a channel's range.
        clusters: colours, determined by k-means on the training images.
        tokens: vocabulary of a tokenizer that is fitted on the training images.
        tokenizer: a checkpoint of a run with target=tokens, whose tokenizer is used, or "module:function", a
            user-defined function that returns one (`targets/models.py`); None to fit a tokenizer.
        teacher: CKPT of the teacher; teacher_pixels needs one with a SimMIM head.
        pixel_weight: weight of an auxiliary pixel loss with a separate head, added to the loss of tokens or of a
            teacher's targets; 0 for none.
        loss: distance to the target; classes use the cross-entropy instead.
        scope: the loss averages over what is hidden ("masked") or over everything ("all").
        encoder_input: "tokens": hidden patches become mask tokens; "zeros": hidden pixels become zero, the mean
            colour; "visible": a ViT encodes the visible patches alone, followed by a light decoder, as in MAE.
    """

    head: Head = "linear"
    aggregate: bool = False
    target: TargetName = "pixels"
    norm_target: int = 0
    target_size: int = 0
    bins: int = 8
    clusters: int = 512
    tokens: int = DEFAULT_TOKENS
    tokenizer: str | None = None
    teacher: str | None = None
    pixel_weight: float = 0.0
    loss: Loss = "l1"
    scope: Scope = "masked"
    encoder_input: EncoderInput = "tokens"

    def __post_init__(self) -> None:
        if self.norm_target and self.target != "pixels":
            raise UsageError(
                f"norm_target {self.norm_target} needs target pixels; use -o norm_target=0 with target {self.target}."
            )
        if self.loss != "l1" and self.target in CLASS_TARGETS and not self.pixel_weight:
            raise UsageError(
                f"loss {self.loss} is a distance, but target {self.target} consists of classes, whose loss is the "
                "cross-entropy; remove -o loss=..."
            )
        self._check_tokens()
        self._check_teacher()
        if self.pixel_weight and self.target not in TARGETS_WITH_PIXEL_LOSS:
            raise UsageError(
                f"pixel_weight {self.pixel_weight:g} adds a pixel loss to targets "
                f"{', '.join(TARGETS_WITH_PIXEL_LOSS)}; use -o pixel_weight=0 with target {self.target}."
            )

    def _check_tokens(self) -> None:
        if self.tokenizer is not None and self.target != "tokens":
            raise UsageError(
                f"tokenizer {self.tokenizer} needs target tokens, but the target is {self.target}; use "
                "-o target=tokens or remove -o tokenizer=..."
            )
        if self.tokens != DEFAULT_TOKENS and (
            self.target != "tokens" or self.tokenizer is not None
        ):
            reason = (
                f"the target is {self.target}"
                if self.tokenizer is None
                else f"tokenizer {self.tokenizer} is given"
            )
            raise UsageError(
                f"tokens {self.tokens} is the vocabulary of a tokenizer to be fitted, but {reason}; remove "
                "-o tokens=..."
            )
        if self.tokenizer is not None and self.target_size:
            raise UsageError(
                f"target_size {self.target_size} applies to a tokenizer to be fitted, but tokenizer {self.tokenizer} "
                "is given, which has a fixed stride; remove -o target_size=..."
            )

    def _check_teacher(self) -> None:
        if self.teacher is not None and self.target not in TEACHER_TARGETS:
            raise UsageError(
                f"teacher {self.teacher} needs target {' or '.join(TEACHER_TARGETS)}, but the target is "
                f"{self.target}; use one of them as -o target=... or remove -o teacher=..."
            )
        if self.teacher is None and self.target in TEACHER_TARGETS:
            raise UsageError(
                f"target {self.target} needs a teacher; add -o teacher=CKPT: a run or checkpoint directory, a weights "
                "file or timm:NAME."
            )
        if self.target == "teacher_features" and self.target_size:
            raise UsageError(
                f"target_size {self.target_size} applies to image targets; target teacher_features has the resolution "
                "of the last feature map: remove -o target_size=..."
            )


@dataclass(frozen=True, kw_only=True)
class TargetModelInfo:
    """Metadata of a teacher or tokenizer: enough to rebuild its student without it.

    Attributes:
        name: CKPT or module:function as the user specified it.
        label: description for logs.
        sha256: hash of the weights.
        channels: channels of a teacher's last feature map or image; vocabulary of a tokenizer.
        stride: side in pixels of the square that one output point covers.
        kept: the weights are stored with the student's: those of a tokenizer that this project fitted.
    """

    name: str
    label: str
    sha256: str
    channels: int
    stride: int
    kept: bool = False


def read_design(provenance: Mapping[str, Any]) -> Design:
    """Return the design in a checkpoint's provenance; official files state `norm_target` at most.

    Raises:
        TypeError: the design has a field that this version does not know.
    """
    return Design(**provenance.get("design", {"norm_target": provenance.get("norm_target", 0)}))


def target_sizes(spec: BackboneSpec) -> list[int]:
    """Return the values of `target_size` that a backbone supports, from the finest, all pixels."""
    sides = [s for s in range(1, spec.stride + 1) if not spec.stride % s]
    return [min(spec.img_size) // s for s in sides if not any(size % s for size in spec.img_size)]


def read_target_model(provenance: Mapping[str, Any]) -> TargetModelInfo | None:
    """Return the metadata of the teacher or tokenizer in a checkpoint's provenance; None if it had none.

    Raises:
        TypeError: the metadata has a field that this version does not know, or lacks one.
    """
    info = provenance.get("target_model")
    return None if info is None else TargetModelInfo(**info)


def _reduced_stride(design: Design, spec: BackboneSpec, model: TargetModelInfo | None) -> int:
    """Return the side of the square of pixels that one point of the reduced image averages."""
    if not design.target_size:
        return 1
    possible = target_sizes(spec)
    if design.target_size not in possible:
        raise UsageError(
            f"target_size {design.target_size} does not divide img_size {spec.img_size} into points that tile "
            f"{spec.arch}'s cells of {spec.stride} pixels; use one of {', '.join(map(str, possible))}."
        )
    return min(spec.img_size) // design.target_size


def _token_stride(design: Design, spec: BackboneSpec, model: TargetModelInfo | None) -> int:
    """Return a given tokenizer's stride, or the largest that suits the backbone and leaves enough tokens."""
    if model is not None:
        if spec.stride % model.stride:
            fitting = [s for s in range(1, spec.stride + 1) if not spec.stride % s]
            raise UsageError(
                f"tokenizer {model.name} has a stride of {model.stride} pixels, whose tokens do not tile {spec.arch}'s "
                f"cells of {spec.stride} pixels; use a tokenizer of stride {', '.join(map(str, fitting))}."
            )
        return model.stride
    if design.target_size:
        return _reduced_stride(design, spec, model)
    shorter = min(spec.img_size)
    enough = [
        side
        for side in range(1, MAX_TOKEN_STRIDE + 1)
        if not spec.stride % side and shorter >= MIN_TOKENS_PER_SIDE * side
    ]
    return max(enough, default=1)


def _cell_stride(design: Design, spec: BackboneSpec, model: TargetModelInfo | None) -> int:
    return spec.stride


_STRIDES: dict[str, Callable[[Design, BackboneSpec, TargetModelInfo | None], int]] = {
    "tokens": _token_stride,
    "teacher_features": _cell_stride,
}


def target_stride(design: Design, spec: BackboneSpec, model: TargetModelInfo | None = None) -> int:
    """Return the side in pixels of the square that one predicted point covers.

    Raises:
        UsageError: the points do not tile the image or the cells of the last feature map.
    """
    return _STRIDES.get(design.target, _reduced_stride)(design, spec, model)


def point_channels(design: Design, in_chans: int, model: TargetModelInfo | None = None) -> int:
    """Return how many numbers are predicted at each point; 0 for the features of a teacher not yet loaded."""
    return {
        "bins": in_chans * design.bins,
        "clusters": design.clusters,
        "tokens": design.tokens if model is None else model.channels,
        "teacher_features": 0 if model is None else model.channels,
    }.get(design.target, in_chans)


def check_design(design: Design, spec: BackboneSpec, model: TargetModelInfo | None = None) -> None:
    """Check that a backbone supports a design.

    Args:
        model: metadata of the teacher or tokenizer, if it has been loaded.

    Raises:
        UsageError: it does not; the message names what to use instead.
    """
    if design.encoder_input == "visible" and spec.family != "vit":
        layers = "convolutions" if spec.is_convolutional else "windows"
        raise UsageError(
            f"encoder_input visible needs a ViT, as the {layers} of {spec.arch} need every patch; use "
            "-o encoder_input=tokens or zeros, or --arch vit_..."
        )
    stride = target_stride(design, spec, model)
    outputs = (spec.stride // stride) ** 2 * point_channels(design, spec.in_chans, model)
    if outputs > MAX_CELL_OUTPUTS:
        raise UsageError(
            f"target {design.target} has {outputs:,} outputs per {spec.stride}-pixel cell of {spec.arch}; at most "
            f"{MAX_CELL_OUTPUTS:,} are allowed: use a smaller -o target_size=... or fewer -o bins=, clusters= or "
            "tokens=."
        )
