"""Check pixel and class targets, their losses and their constant-prediction baselines, against naive loops."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from support.pretraining import MEAN, STD, half_masks, pixel_mask, smooth_images
from support.tiny import TINY
from torch import Tensor

from pretrain.design import Design
from pretrain.evaluation.monitor import trivial_loss
from pretrain.targets.base import Target
from pretrain.targets.classes import ClusterTarget
from pretrain.targets.pixels import PixelTarget
from pretrain.targets.table import TARGETS

FEW: dict[str, Any] = {"clusters": 6}


def target_of(family: str = "vit", **changes: Any) -> Target:
    design = Design(**changes)
    return TARGETS[design.target](design, TINY[family], None)


def test_patch_norm_equals_a_naive_loop() -> None:
    spec, images = TINY["vit"], smooth_images(TINY["vit"])
    found = target_of(target="patch_norm").from_images(images)
    for b in range(2):
        for y in range(0, 32, 4):
            for x in range(0, 32, 4):
                patch = images[b, :, y : y + 4, x : x + 4].double().numpy()
                expected = (patch - patch.mean()) / np.sqrt(patch.var(ddof=1) + 1e-6)
                np.testing.assert_allclose(
                    found[b, :, y : y + 4, x : x + 4], expected, rtol=1e-4, atol=1e-5
                )
    assert spec.stride == 4


@pytest.mark.parametrize("changes", [{"target": "patch_norm"}, {"norm_target": 7}])
def test_denormalising_a_target_restores_the_image(changes: dict[str, Any]) -> None:
    images = smooth_images(TINY["swin"])
    target = target_of("swin", **changes)
    torch.testing.assert_close(target.denormalise(target.from_images(images), images), images)


@pytest.mark.parametrize("size", [4, 16])
def test_reduced_target_is_the_mean_of_every_square(size: int) -> None:
    spec = TINY["vit"].at((32, 64))
    images = smooth_images(spec)
    target = PixelTarget(Design(target_size=8 if size == 4 else 16), spec)
    side = 32 // target.from_images(images).shape[2]
    found = target.from_images(images)
    for y, x in ((0, 0), (1, 5), (7, 15)):
        square = images[1, :, y * side : (y + 1) * side, x * side : (x + 1) * side]
        torch.testing.assert_close(found[1, :, y, x], square.mean((1, 2)))
    visualised = target.to_pixels(found)
    assert visualised.shape == images.shape
    assert torch.equal(visualised[:, :, side, :side], found[:, :, 1, :1].expand(-1, -1, side))


def test_bins_equal_a_closed_form() -> None:
    for count in (8, 256):
        levels = torch.randint(256, (1, 3, 32, 32), generator=torch.Generator().manual_seed(0))
        target = target_of(target="bins", bins=count)
        found = target.from_images((levels / 255 - MEAN) / STD)
        assert torch.equal(found, (levels * count // 255).clamp(max=count - 1))


def test_clusters_are_nearest_colours_and_palette_is_a_fixed_point() -> None:
    target = target_of(target="clusters", **FEW)
    assert isinstance(target, ClusterTarget)
    images = smooth_images(TINY["vit"], 4)
    target.fit(images.split(1), seed=0)
    palette = target.palette.double().numpy()
    found = target.from_images(images)
    colours = (images * STD + MEAN).double().numpy()
    for y, x in ((0, 0), (3, 30), (17, 8)):
        distances = [np.sum((colours[2, :, y, x] - colour) ** 2) for colour in palette]
        assert found[2, 0, y, x] == int(np.argmin(distances))
    # Fixed point of Lloyd's algorithm: every colour is the mean of the points nearest to it.
    points = colours.transpose(0, 2, 3, 1).reshape(-1, 3)
    for number in range(FEW["clusters"]):
        own = points[found.flatten().numpy() == number]
        np.testing.assert_allclose(own.mean(0), palette[number], atol=2e-2)


def test_palette_depends_on_images_and_seed_only() -> None:
    images = smooth_images(TINY["vit"], 4)
    palettes = []
    for seed in (0, 0, 1):
        target = target_of(target="clusters", **FEW)
        target.fit(images.split(1), seed=seed)
        palettes.append(target.state_dict()["palette"])
    assert torch.equal(palettes[0], palettes[1])
    assert not torch.equal(palettes[0], palettes[2])


@pytest.mark.parametrize("kind", ["bins", "clusters"])
def test_cross_entropy_equals_a_naive_loop(kind: str) -> None:
    spec, images, mask = TINY["vit"], smooth_images(TINY["vit"]), half_masks(TINY["vit"])
    target = target_of(target=kind, bins=5, target_size=16, **FEW)
    target.fit(images.split(1), seed=0)
    groups, classes = (3, 5) if kind == "bins" else (1, 6)
    expected = target.from_images(images)
    prediction = torch.randn(2, groups * classes, 16, 16)
    total, count = 0.0, 0
    hidden = pixel_mask(mask, spec)
    for b in range(2):
        for y in range(16):
            for x in range(16):
                if not hidden[b, 2 * y, 2 * x]:
                    continue
                for g in range(groups):
                    logits = prediction[b, g * classes : (g + 1) * classes, y, x].double()
                    total -= logits.log_softmax(0)[expected[b, g, y, x]].item()
                    count += 1
    found = target.loss(prediction, expected, hidden.unsqueeze(1))
    assert found.item() == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize("kind", ["bins", "clusters"])
def test_certain_prediction_is_visualised_as_its_classes(kind: str) -> None:
    images = smooth_images(TINY["vit"])
    target = target_of(target=kind, bins=64, clusters=200)
    target.fit(images.split(1), seed=0)
    classes = target.from_images(images)
    certain = torch.nn.functional.one_hot(classes, 64 if kind == "bins" else 200)
    prediction = certain.permute(0, 1, 4, 2, 3).flatten(1, 2) * 100.0
    visualised = target.to_pixels(prediction) * STD + MEAN
    gap = (visualised - (images * STD + MEAN)).abs()
    assert gap.max() <= 0.5 / 64 + 1e-6 if kind == "bins" else gap.mean() < 0.05


@pytest.mark.parametrize("loss", ["l1", "smooth_l1", "l2"])
def test_distances_equal_a_naive_loop(loss: str) -> None:
    spec, images, mask = TINY["vit"], smooth_images(TINY["vit"]), half_masks(TINY["vit"])
    prediction = torch.randn_like(images)
    naive = {
        "l1": abs,
        "l2": lambda gap: gap * gap,
        "smooth_l1": lambda gap: gap * gap / 2 if abs(gap) < 1 else abs(gap) - 0.5,
    }[loss]
    for scope in ("masked", "all"):
        hidden = pixel_mask(mask, spec)
        counted = (hidden > 0) | (scope == "all")
        gaps = (prediction - images).permute(0, 2, 3, 1)[counted].flatten().tolist()
        target = target_of(loss=loss, scope=scope)
        found = target.loss(prediction, target.from_images(images), hidden.unsqueeze(1))
        expected = math.fsum(naive(gap) for gap in gaps) / len(gaps)
        assert found.item() == pytest.approx(expected, rel=1e-5)


def test_half_hidden_point_has_half_the_weight() -> None:
    target = target_of("swin", target_size=2)  # points of 16 pixels, patches of 2
    images = smooth_images(TINY["swin"])
    hidden = torch.zeros(2, 1, 32, 32)
    hidden[:, :, :8, :16], hidden[:, :, 16:, 16:] = 1, 1
    prediction = torch.randn(2, 3, 2, 2)
    gap = (prediction - target.from_images(images)).abs().mean(1)
    expected = (0.5 * gap[:, 0, 0] + gap[:, 1, 1]).sum() / 3
    assert target.loss(prediction, target.from_images(images), hidden).item() == pytest.approx(
        expected.item(), rel=1e-4
    )


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"loss": "l2"},
        {"loss": "smooth_l1"},
        {"target": "patch_norm", "loss": "smooth_l1"},
        {"norm_target": 7},
        {"target_size": 8, "loss": "l2"},
        {"target": "bins", "bins": 4},
        {"target": "clusters", "clusters": 3, "target_size": 16},
    ],
)
def test_no_constant_prediction_beats_the_trivial_loss(changes: dict[str, Any]) -> None:
    images = smooth_images(TINY["vit"], 3) * 2  # beyond the quadratic range of the smooth L1
    target = target_of(scope="all", **changes)
    target.fit(images.split(1), seed=0)
    trivial = trivial_loss(target, images.split(1))
    expected, hidden = target.from_images(images), torch.ones(3, 1, 32, 32)

    def loss_of(constant: Tensor) -> Tensor:
        shape = (3, target.channels, *expected.shape[-2:])
        return target.loss(constant.view(1, -1, 1, 1).expand(shape), expected, hidden)

    # The best constant by another method: gradient descent.
    constant = torch.zeros(target.channels, requires_grad=True)
    optimizer = torch.optim.Adam([constant], 0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 300)
    for _ in range(300):
        optimizer.zero_grad()
        loss_of(constant).backward()
        optimizer.step()
        schedule.step()
    assert trivial == pytest.approx(loss_of(constant).item(), rel=1e-3)
    assert trivial <= loss_of(constant).item() * (1 + 1e-4)
