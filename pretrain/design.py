"""The choices that SimMIM leaves open: what the encoder sees, which head predicts what, under which loss.

In: a recipe's fields, or what a checkpoint says of itself. Out: a `Design`, from which `SimMIM` builds its
parts. SimMIM's own ablations are the paper's section 4.1; its defaults are the defaults here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from simmim_bench.archs import BackboneSpec
from simmim_bench.errors import UsageError

Head = Literal["linear", "mlp", "conv", "inverse_swin_t", "inverse_swin_b"]
TargetName = Literal["pixels", "patch_norm", "bins", "clusters"]
Loss = Literal["l1", "smooth_l1", "l2"]
Scope = Literal["masked", "all"]
EncoderInput = Literal["tokens", "zeros", "visible"]

CLASSES = ("bins", "clusters")  # targets whose loss is the cross-entropy
# Ours: numbers that one cell of the last map may predict; a linear head of 1,024 channels then has 67 million weights.
LARGEST_CELL = 65536


@dataclass(frozen=True, kw_only=True)
class Design:
    """What a SimMIM model is made of besides its encoder.

    Attributes:
        head: "linear" (a 1x1 convolution), "mlp" (two of them), "conv" (transposed convolutions), or a
            Swin-T or Swin-B turned round (SimMIM, table 2).
        aggregate: give the head all feature levels of the encoder, not the last alone.
        target: "pixels"; "patch_norm", pixels normalised by their patch, as MAE's; "bins", which of `bins`
            each channel falls into; "clusters", which of `clusters` colours of the data is nearest.
        norm_target: predict pixels normalised by a square of so many pixels around them; 0 for plain ones.
        target_size: pixels of the shorter side of the reduced image that is predicted; 0 for all of them.
        bins: equal parts of a channel's range.
        clusters: colours, found by k-means on the training images.
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
    loss: Loss = "l1"
    scope: Scope = "masked"
    encoder_input: EncoderInput = "tokens"

    def __post_init__(self) -> None:
        if self.norm_target and self.target != "pixels":
            raise UsageError(
                f"norm_target {self.norm_target} is for target pixels; target {self.target} takes -o norm_target=0."
            )
        if self.loss != "l1" and self.target in CLASSES:
            raise UsageError(
                f"loss {self.loss} is a distance; target {self.target} is of classes and has the cross-entropy: "
                "leave -o loss=... out."
            )


def design_of(provenance: Mapping[str, Any]) -> Design:
    """Read the design that a checkpoint was made with; official files tell of `norm_target` at most.

    Raises:
        TypeError: a field that this version does not know.
    """
    return Design(**provenance.get("design", {"norm_target": provenance.get("norm_target", 0)}))


def target_stride(design: Design, spec: BackboneSpec) -> int:
    """Say how many pixels a side one predicted point stands for.

    Raises:
        UsageError: the image cannot be reduced so, or cells of the last map are coarser.
    """
    if not design.target_size:
        return 1
    shorter = min(spec.img_size)
    sides = [s for s in range(1, spec.stride + 1) if not spec.stride % s]
    possible = [shorter // s for s in sides if not any(size % s for size in spec.img_size)]
    if design.target_size not in possible:
        raise UsageError(
            f"target_size {design.target_size} does not divide img_size {spec.img_size} into points that make "
            f"up {spec.arch}'s cells of {spec.stride} pixels; use one of {', '.join(map(str, possible))}."
        )
    return shorter // design.target_size


def point_channels(design: Design, in_chans: int) -> int:
    """Say how many numbers are predicted at each point."""
    return {"bins": in_chans * design.bins, "clusters": design.clusters}.get(
        design.target, in_chans
    )


def check_design(design: Design, spec: BackboneSpec) -> None:
    """Refuse a design that a backbone cannot have.

    Raises:
        UsageError: with what to give instead.
    """
    if design.encoder_input == "visible" and spec.family != "vit":
        parts = "convolutions" if spec.is_convolutional else "windows"
        raise UsageError(
            f"encoder_input visible is for a ViT: the {parts} of {spec.arch} need every patch. Use "
            "-o encoder_input=tokens or zeros, or --arch vit_..."
        )
    stride = target_stride(design, spec)
    numbers = (spec.stride // stride) ** 2 * point_channels(design, spec.in_chans)
    if numbers > LARGEST_CELL:
        raise UsageError(
            f"target {design.target} has {numbers:,} numbers for each {spec.stride}-pixel cell of {spec.arch}, "
            f"{LARGEST_CELL:,} is the most; give a smaller -o target_size=... or fewer -o bins= or clusters=."
        )
