"""Check the metrics of reconstructions and features against naive loops and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from pretrain.evaluation.metrics import ReconstructionMetrics, effective_rank, ssim_map


def random_batch(count: int = 3, side: int = 24, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 3, side, side, generator=generator)
    predicted = images + 0.4 * torch.randn(images.shape, generator=generator)
    hidden = (torch.rand(count, 1, side, side, generator=generator) < 0.6).float()
    return predicted, images, hidden


def naive_ssim(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Compute the SSIM of Wang et al. of two (H, W) images, window by window."""
    offsets = np.arange(11) - 5
    gauss = np.exp(-(offsets**2) / (2 * 1.5**2))
    weights = np.outer(gauss, gauss) / gauss.sum() ** 2
    a, b = (np.pad(x, 5, mode="reflect") for x in (one, other))
    found = np.empty_like(one)
    for y in range(one.shape[0]):
        for x in range(one.shape[1]):
            p, q = a[y : y + 11, x : x + 11], b[y : y + 11, x : x + 11]
            mp, mq = (weights * p).sum(), (weights * q).sum()
            vp, vq = (weights * (p - mp) ** 2).sum(), (weights * (q - mq) ** 2).sum()
            covariance = (weights * (p - mp) * (q - mq)).sum()
            found[y, x] = ((2 * mp * mq + 1e-4) * (2 * covariance + 9e-4)) / (
                (mp**2 + mq**2 + 1e-4) * (vp + vq + 9e-4)
            )
    return found


@pytest.mark.heavy
def test_ssim_equals_its_definition_window_by_window() -> None:
    predicted, images, _ = random_batch(1)
    ours = ssim_map(predicted.clamp(0, 1), images)[0, 1]
    expected = naive_ssim(
        predicted[0, 1].clamp(0, 1).double().numpy(), images[0, 1].double().numpy()
    )
    assert ours.numpy() == pytest.approx(expected, abs=1e-4)


def test_metrics_average_hidden_pixels_per_image() -> None:
    predicted, images, hidden = random_batch()
    metrics = ReconstructionMetrics()
    metrics.update(predicted[:2], images[:2], hidden[:2])
    metrics.update(predicted[2:], images[2:], hidden[2:])
    l1, psnr, ssim = [], [], []
    for p, x, h in zip(predicted.numpy(), images.numpy(), hidden.numpy(), strict=True):
        where = np.broadcast_to(h > 0, x.shape)
        pasted = np.where(where, p.clip(0, 1), x)
        l1.append(np.abs(pasted - x)[where].mean())
        psnr.append(-10 * math.log10(((pasted - x)[where] ** 2).mean()))
        maps = np.stack([naive_ssim(a, b) for a, b in zip(pasted, x, strict=True)])
        ssim.append(maps[where].mean())
    values = metrics.compute()
    assert values["masked_l1"] == pytest.approx(np.mean(l1), rel=1e-5)
    assert values["psnr"] == pytest.approx(np.mean(psnr), rel=1e-5)
    assert values["ssim"] == pytest.approx(np.mean(ssim), abs=1e-4)
    # Predictions of visible pixels are ignored.
    again = ReconstructionMetrics()
    again.update(torch.where(hidden > 0, predicted, 7.0), images, hidden)
    assert again.compute() == pytest.approx(values)


def test_perfect_reconstruction_and_images_without_hidden_pixels() -> None:
    _, images, hidden = random_batch()
    metrics = ReconstructionMetrics()
    assert metrics.compute() == {}
    metrics.update(images, images, torch.zeros_like(hidden))
    assert metrics.compute() == {}
    hidden[0] = 0
    metrics.update(images, images, hidden)
    assert metrics.compute() == pytest.approx({"masked_l1": 0.0, "psnr": 100.0, "ssim": 1.0})


def test_effective_rank_counts_directions() -> None:
    assert effective_rank(torch.ones(50, 8)) == pytest.approx(1.0)
    assert effective_rank(torch.zeros(5, 3)) == pytest.approx(1.0)
    assert effective_rank(3 * torch.eye(6)) == pytest.approx(6.0)
    # Two directions, one three times as strong: the entropy of (3/4, 1/4).
    two = torch.diag(torch.tensor([3.0, 1.0, 0.0, 0.0]))
    expected = math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert effective_rank(two) == pytest.approx(expected)
    noise = torch.randn(400, 16, generator=torch.Generator().manual_seed(0))
    assert 15 < effective_rank(noise) < 16
