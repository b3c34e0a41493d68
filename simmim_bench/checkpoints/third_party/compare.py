"""Compare the features of a checkpoint with those of timm's model."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from simmim_bench.checkpoints.checkpoint import Checkpoint
from simmim_bench.checkpoints.load import restore_backbone
from simmim_bench.errors import DataError
from simmim_bench.models.swin import pad_before_shift
from simmim_bench.untrusted import text

# Largest difference of the features, relative to their norm. float32 leaves about 1e-6, an approximated GELU 2e-4.
FEATURE_TOLERANCE = 3e-5


@torch.no_grad()
def check_same_features(checkpoint: Checkpoint, theirs: Any) -> Checkpoint:
    """Check that simmim-bench's backbone computes the same features as timm's model.

    Variants of a network differ in operations without weights, such as anti-aliased downsampling, the activation or
    the number of attention heads.

    Returns:
        The checkpoint, with a warning if timm's Swin pads maps that its windows do not divide, which it does
        otherwise (`pad_before_shift`).

    Raises:
        DataError: The features differ.
    """
    spec = checkpoint.spec
    generator = torch.Generator().manual_seed(0)
    size = (64, 64) if spec.is_convolutional else spec.img_size
    image = torch.randn(1, spec.in_chans, *size, generator=generator)
    ours = restore_backbone(checkpoint).eval()
    # The dtype of the weights is that of the file.
    theirs = theirs.float().eval()
    try:
        wanted = (_pooled_blocks if spec.family == "vit" else _pooled)(theirs, image)
    except (AssertionError, RuntimeError) as error:
        raise DataError(
            f"{checkpoint.name} holds weights for images of {size[0]}x{size[1]} pixels, but timm's model is for "
            f"another size ({text.describe_error(error)}); give the size in config.json."
        ) from error
    found = (ours.forward_pooled if spec.family == "vit" else ours.forward_features)(image)
    difference = relative_norm(found, wanted)
    if spec.pads_windows and not difference <= FEATURE_TOLERANCE:
        padded = copy.deepcopy(theirs)
        pad_before_shift(padded)
        timms = difference
        difference = relative_norm(found, _pooled(padded, image))
        if difference <= FEATURE_TOLERANCE:
            height, width = spec.img_size
            message = (
                f"windows of {spec.window_size} do not divide the maps of {checkpoint.name} for {height}x{width} "
                f"pixels. timm shifts such a map before it pads it, so that its features differ by {timms:.1e} of "
                "their size. If timm trained the weights, use an img_size that the windows divide."
            )
            return replace(checkpoint, warning=f"{checkpoint.warning} {message}".strip())
    if not difference <= FEATURE_TOLERANCE:
        raise DataError(
            f"{checkpoint.name} is a variant of {spec.arch}: timm's model computes other features with "
            "these weights; use a plain model."
        )
    return checkpoint


def relative_norm(found: Tensor, wanted: Tensor) -> float:
    """Return the norm of the difference divided by that of `wanted`; infinite for different shapes."""
    if found.shape != wanted.shape:
        return float("inf")
    return float((found - wanted).norm() / wanted.norm().clamp(min=1e-12))


def _pooled(theirs: Any, image: Tensor) -> Tensor:
    """Return the pooled features (B, C) of a timm model; of a Swin, the mean of its last map."""
    tokens: Tensor = theirs.forward_features(image)
    if getattr(theirs, "output_fmt", "") == "NHWC":
        return tokens.mean((1, 2))
    pooled: Tensor = theirs.forward_head(tokens, pre_logits=True)
    return pooled.flatten(1)


def _pooled_blocks(theirs: Any, image: Tensor) -> Tensor:
    """Return the mean patch token and the class token of every block of a timm ViT: (B, blocks, 2, C)."""
    blocks = theirs.forward_intermediates(image, intermediates_only=True, return_prefix_tokens=True)
    return torch.stack([torch.stack([x.mean((2, 3)), t[:, 0]], 1) for x, t in blocks], dim=1)
