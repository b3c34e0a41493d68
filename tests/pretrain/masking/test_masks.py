"""Check the masking strategies, and masks in recipes and in the model."""

from __future__ import annotations

import itertools
import math
import random
import typing
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from support.pretraining import synthetic_photographs

from pretrain.build import check_sizes
from pretrain.masking.avg_dist import average_distance
from pretrain.masking.masks import (
    STRATEGIES,
    hidden_patches,
    mask_generator,
    sample_masks,
    upsample_mask,
)
from pretrain.recipes import POCKET, Masking
from pretrain.simmim import SimMIM
from simmim_bench.cli.main import cli
from simmim_bench.errors import UsageError
from simmim_bench.models.spec import BackboneSpec

NAMES = sorted(STRATEGIES)


def sample_unit_masks(
    masking: str, count: int, rows: int, columns: int, ratio: float, unit: int = 4, seed: int = 0
) -> torch.Tensor:
    """Sample masks at the resolution of units, (count, rows, columns)."""
    size = (rows * unit, columns * unit)
    if masking == "pixels":
        size, unit = (rows, columns), 1
    return sample_masks(
        count,
        size,
        masking=masking,
        mask_patch_size=unit,
        patch_size=unit,
        mask_ratio=ratio,
        generator=[mask_generator(seed, 0, i) for i in range(count)],
        images=synthetic_photographs(count, size),
    )


def test_recipe_and_visualize_command_list_every_strategy() -> None:
    assert set(STRATEGIES) == set(typing.get_args(Masking))
    option: Any = next(p for p in cli.commands["visualize"].params if p.name == "masking")
    assert set(option.type.choices) == {*STRATEGIES, "centre", "boxes"}


@pytest.mark.parametrize("masking", NAMES)
def test_every_strategy_hides_exactly_the_ceiling_of_the_ratio(masking: str) -> None:
    grids = [(1, 1), (1, 7), (6, 6), (9, 2), (3, 50)]
    for (rows, columns), ratio in itertools.product(grids, [0.001, 0.1, 0.34, 0.6, 0.85, 0.999]):
        masks = sample_unit_masks(masking, 3, rows, columns, ratio)
        assert masks.shape == (3, rows, columns)
        assert set(masks.unique().tolist()) <= {0.0, 1.0}
        assert (masks.sum((1, 2)) == math.ceil(ratio * rows * columns)).all()


@pytest.mark.parametrize("masking", sorted({*NAMES} - {"pixels"}))
def test_units_of_whole_patches_are_hidden_completely_or_not_at_all(masking: str) -> None:
    images = synthetic_photographs(5, (96, 64))
    masks = sample_masks(
        5,
        (96, 64),
        masking=masking,
        mask_patch_size=16,
        patch_size=8,
        mask_ratio=0.6,
        images=images,
    )
    assert masks.shape == (5, 12, 8)
    units = masks.view(5, 6, 2, 4, 2)
    assert torch.equal(units.amax((2, 4)), units.amin((2, 4)))
    assert (units.amax((2, 4)).sum((1, 2)) == 15).all()


@pytest.mark.parametrize(("masking", "unit"), [("pixels", 16), ("random", 4), ("block", 4)])
def test_units_smaller_than_a_patch_give_masks_of_pixels(masking: str, unit: int) -> None:
    masks = sample_masks(
        2, (32, 48), masking=masking, mask_patch_size=unit, patch_size=16, mask_ratio=0.5
    )
    assert masks.shape == (2, 32, 48)
    assert (masks.mean((1, 2)) == 0.5).all()
    cells = 1 if masking == "pixels" else unit
    blocks = masks.view(2, 32 // cells, cells, 48 // cells, cells)
    assert torch.equal(blocks.amax((2, 4)), blocks.amin((2, 4)))


@pytest.mark.parametrize("masking", NAMES)
def test_mask_depends_on_its_image_and_generator_only(masking: str) -> None:
    images = synthetic_photographs(6, (48, 32))

    def masks_of(
        chosen: list[int], generators: torch.Generator | list[torch.Generator]
    ) -> torch.Tensor:
        return sample_masks(
            len(chosen),
            (48, 32),
            masking=masking,
            mask_patch_size=8,
            patch_size=8,
            mask_ratio=0.6,
            generator=generators,
            images=images[chosen],
        )

    own = [[mask_generator(3, 1, i) for i in range(6)] for _ in range(3)]
    whole = masks_of([*range(6)], own[0])
    assert torch.equal(whole[2:5], masks_of([2, 3, 4], own[1][2:5]))
    assert torch.equal(whole[[5, 0]], masks_of([5, 0], [own[2][5], own[2][0]]))
    assert not torch.equal(
        whole, masks_of([*range(6)], [mask_generator(3, 2, i) for i in range(6)])
    )
    # With one generator for all: the split into batches does not matter either.
    at_once = masks_of([*range(6)], torch.Generator().manual_seed(0))
    one = torch.Generator().manual_seed(0)
    assert torch.equal(at_once, torch.cat([masks_of([0, 1], one), masks_of([2, 3, 4, 5], one)]))


def naive_random(rows: int, columns: int, hidden: int, rng: random.Random) -> np.ndarray:
    mask = np.zeros((rows, columns))
    for unit in rng.sample(range(rows * columns), hidden):
        mask[unit // columns, unit % columns] = 1
    return mask


def naive_square(rows: int, columns: int, hidden: int, rng: random.Random) -> np.ndarray:
    side = math.ceil(math.sqrt(hidden))
    assert side <= min(rows, columns)
    wide = side if side * (side - 1) < hidden else side - 1
    top, left = rng.randint(0, rows - side), rng.randint(0, columns - wide)
    mask = np.zeros((rows, columns))
    for x, y in itertools.product(range(wide), range(side)):
        if mask.sum() < hidden:
            mask[top + y, left + x] = 1
    return mask


def naive_block(rows: int, columns: int, hidden: int, rng: random.Random) -> np.ndarray:
    mask = np.zeros((rows, columns))
    smallest = round(16 / 196 * rows * columns)
    while mask.sum() < hidden:
        for _ in range(10):
            area = rng.uniform(smallest, max(smallest, hidden - mask.sum()))
            aspect = math.exp(rng.uniform(math.log(0.3), math.log(1 / 0.3)))
            height, width = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
            if height <= rows and width <= columns:
                break
        height, width = min(height, rows), min(width, columns)
        top, left = rng.randint(0, rows - height), rng.randint(0, columns - width)
        for y, x in itertools.product(range(height), range(width)):
            if mask.sum() < hidden:
                mask[top + y, left + x] = 1
    return mask


NAIVE: dict[str, Callable[[int, int, int, random.Random], np.ndarray]] = {
    "random": naive_random,
    "pixels": naive_random,
    "square": naive_square,
    "block": naive_block,
}


@pytest.mark.heavy
@pytest.mark.parametrize(("rows", "columns", "ratio"), [(6, 6, 0.6), (7, 9, 0.25)])
@pytest.mark.parametrize("masking", NAIVE)
def test_unit_and_pair_frequencies_equal_a_naive_simulation(
    masking: str, rows: int, columns: int, ratio: float
) -> None:
    count, rng = 3000, random.Random(1)
    found = sample_unit_masks(masking, count, rows, columns, ratio, unit=1).numpy()
    hidden = math.ceil(ratio * rows * columns)
    naive = np.stack([NAIVE[masking](rows, columns, hidden, rng) for _ in range(count)])

    def frequencies(masks: np.ndarray) -> tuple[np.ndarray, ...]:
        horizontal = masks[:, :, 1:] * masks[:, :, :-1]
        vertical = masks[:, 1:] * masks[:, :-1]
        return masks.mean(0), horizontal.mean(0), vertical.mean(0)

    # The standard deviation of the difference of two frequencies is at most 0.013; four and a half of them.
    for one, other in zip(frequencies(found), frequencies(naive), strict=True):
        assert np.abs(one - other).max() < 0.058
    sizes = {"img_size": (rows * 4, columns * 4)}
    distances = [
        average_distance(torch.from_numpy(masks[:600]), **sizes) for masks in (found, naive)
    ]
    assert distances[0] == pytest.approx(distances[1], rel=0.06)


def test_random_units_are_those_of_the_smallest_numbers() -> None:
    own = [torch.Generator().manual_seed(i) for i in range(20)]
    masks = sample_masks(
        20, (192, 192), mask_patch_size=32, patch_size=32, mask_ratio=0.6, generator=own
    )
    for i, mask in enumerate(masks):
        noise = torch.rand(36, generator=torch.Generator().manual_seed(i)).tolist()
        smallest = sorted(range(36), key=noise.__getitem__)[:22]
        assert mask.flatten().nonzero().flatten().tolist() == sorted(smallest)


def test_square_positions_are_equally_likely() -> None:
    masks = sample_unit_masks("square", 4000, 6, 8, 9 / 48, unit=1).bool()
    places: dict[tuple[int, int], int] = {}
    for mask in masks:
        y, x = mask.nonzero().amin(0).tolist()
        assert mask[y : y + 3, x : x + 3].all()
        places[y, x] = places.get((y, x), 0) + 1
    assert set(places) == set(itertools.product(range(4), range(6)))
    # Chi squared with 23 degrees of freedom exceeds 58 for one in ten thousand seeds.
    expected = 4000 / 24
    assert sum((n - expected) ** 2 / expected for n in places.values()) < 58


@pytest.mark.parametrize(
    ("grid", "hidden", "box"),
    [((6, 6), 22, (5, 5)), ((6, 6), 20, (5, 4)), ((3, 50), 60, (3, 20)), ((50, 3), 61, (21, 3))],
)
def test_inexact_square_omits_units_of_its_last_line_only(
    grid: tuple[int, int], hidden: int, box: tuple[int, int]
) -> None:
    masks = sample_unit_masks("square", 50, *grid, (hidden - 0.5) / (grid[0] * grid[1]), unit=1)
    for mask in masks.bool():
        low, high = mask.nonzero().amin(0), mask.nonzero().amax(0) + 1
        assert tuple((high - low).tolist()) == box
        inside = mask[low[0] : high[0], low[1] : high[1]]
        lacking = (~inside).nonzero()
        assert len(lacking) == box[0] * box[1] - hidden
        if len(lacking):
            assert min(len(line.unique()) for line in lacking.T) == 1
            assert not inside[-1, -1]


def test_single_block_has_the_size_and_aspect_ratio_of_beit() -> None:
    # A grid of 28 x 28 units, of which the smallest block, 64 units, is hidden.
    found = sample_unit_masks("block", 1000, 28, 28, 63.5 / 784, unit=1).bool()
    aspects = []
    for mask in found:
        low, high = mask.nonzero().amin(0), mask.nonzero().amax(0) + 1
        height, width = (high - low).tolist()
        if height * width == 64:  # its sides may be rounded to another area
            aspects.append(height / width)
    assert len(aspects) > 60
    assert min(aspects) >= 0.25  # 4 x 16, as 16 / 0.3 rounds
    assert max(aspects) <= 4
    assert np.mean(np.array(aspects) > 1) == pytest.approx(np.mean(np.array(aspects) < 1), abs=0.2)


def test_upsampled_mask_covers_the_pixels_of_every_patch() -> None:
    mask = torch.tensor([[[0.0, 1.0, 0.0]]])
    assert torch.equal(
        upsample_mask(mask, (2, 6)), torch.tensor([[[0.0, 0, 1, 1, 0, 0], [0, 0, 1, 1, 0, 0]]])
    )


def test_default_masking_leaves_recipe_hash_unchanged() -> None:
    assert POCKET.masking == "random"
    # The hash of the pocket recipe before the field was added.
    assert POCKET.sha256() == "4de96403081ffae9e59525fac0ab2d372eb44c46406c112ac1833fe5c137e800"
    assert replace(POCKET, masking="block").sha256() != POCKET.sha256()


def test_unit_sizes_are_checked() -> None:
    for changes in ({"masking": "pixels"}, {"mask_patch_size": 2}, {"mask_patch_size": 16}):
        check_sizes(replace(POCKET, **changes))
    with pytest.raises(UsageError, match="mask_patch_size 10 is not a multiple of patch_size 4"):
        check_sizes(replace(POCKET, mask_patch_size=10))
    with pytest.raises(UsageError, match="img_size 32 is not a multiple of mask_patch_size 3"):
        check_sizes(replace(POCKET, mask_patch_size=3))


def test_patch_is_hidden_if_all_its_pixels_are() -> None:
    masks = (torch.rand(3, 12, 8, generator=torch.Generator().manual_seed(0)) < 0.7).float()
    masks[:, 4:6, 2:4] = 1
    patches = hidden_patches(masks, 2)
    for b, y, x in itertools.product(range(3), range(6), range(4)):
        assert patches[b, y, x] == masks[b, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].all()


def test_pixel_masks_hide_pixels_from_the_encoder_and_select_them_for_the_loss(
    tiny_spec: BackboneSpec,
) -> None:
    model = SimMIM(tiny_spec).eval()
    images = torch.randn(2, 3, *tiny_spec.img_size)
    sizes: dict[str, Any] = {
        "mask_patch_size": 1,
        "patch_size": tiny_spec.patch_size,
        "mask_ratio": 0.6,
    }
    mask = sample_masks(2, tiny_spec.img_size, masking="pixels", **sizes)
    output, hidden = model(images, mask), mask.unsqueeze(1)
    other = model(images + hidden * torch.randn_like(images), mask)
    assert torch.equal(output.features, other.features)
    shown = model(images + (1 - hidden) * 7, mask)
    assert not torch.allclose(output.features, shown.features)
    distance = (images - output.reconstruction).abs().mean(1)
    assert output.loss.item() == pytest.approx(distance[mask.bool()].mean().item(), rel=1e-5)
    output.loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_mask_of_patches_is_equivalent_to_its_mask_of_pixels(
    tiny_spec: BackboneSpec,
) -> None:
    model = SimMIM(tiny_spec).eval()
    images = torch.randn(2, 3, *tiny_spec.img_size)
    mask = sample_masks(
        2, tiny_spec.img_size, mask_patch_size=16, patch_size=tiny_spec.patch_size, mask_ratio=0.6
    )
    of_patches, of_pixels = (
        model(images, mask),
        model(images, upsample_mask(mask, tiny_spec.img_size)),
    )
    for one, other in zip(of_patches, of_pixels, strict=True):
        assert torch.allclose(one, other, atol=1e-6)
