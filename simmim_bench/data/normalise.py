"""Normalise batches of decoded images on a device."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor


def normalise(
    images: Tensor, mean: Sequence[float], std: Sequence[float], device: torch.device
) -> Tensor:
    """Move a batch (B, C, H, W) to a device and normalise it.

    Args:
        images: uint8, which are divided by 255 first, or float32 in the unit of mean and standard deviation.
        mean, std: one value per channel.
    """
    if images.dtype != torch.uint8:
        return normalise_like_torchvision(images.to(device, non_blocking=True), mean, std)
    scale, shift = _scale_and_shift(tuple(mean), tuple(std), device)
    return images.to(device, non_blocking=True).float().mul_(scale).add_(shift)


def normalise_like_torchvision(
    images: Tensor, mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    """Normalise images (B, C, H, W) or (C, H, W) by the operations of torchvision's `ToTensor` and `Normalize`.

    The result has their bits on a CPU. On a GPU it differs from theirs by rounding: torch multiplies by 1 / 255 there.

    Args:
        images: uint8, which are divided by 255 first, or float32 in the unit of mean and standard deviation.
        mean, std: one value per channel.
    """
    means, stds = _per_channel(tuple(mean), tuple(std), images.device)
    if images.dtype != torch.uint8:
        return images.sub(means).div_(stds)
    return images.float().div_(255).sub_(means).div_(stds)


@lru_cache(maxsize=16)
def _per_channel(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation, kept on the device: copying them makes the host wait."""
    return (
        torch.tensor(mean, device=device).view(-1, 1, 1),
        torch.tensor(std, device=device).view(-1, 1, 1),
    )


@lru_cache(maxsize=16)
def _scale_and_shift(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return the factor and the offset of pixels, kept on the device: copying them makes the host wait."""
    scale = 1 / (255 * torch.tensor(std, device=device)).view(-1, 1, 1)
    shift = -torch.tensor(mean, device=device).view(-1, 1, 1) * scale * 255
    return scale, shift
