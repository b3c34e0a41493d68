"""Claims about the strategies of masking, and the distance from what is hidden to what is visible."""

from __future__ import annotations

import itertools
import json
import math
import random
import typing
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch.utils.data import TensorDataset

from pretrain import train as run
from pretrain.build import check_sizes
from pretrain.masking.avg_dist import average_distance, recipe_average_distance
from pretrain.masking.content import (
    REGIONS,
    UNIT_FEATURES,
    region_map,
    unit_colours,
    unit_positions,
    unit_textures,
)
from pretrain.masking.masks import (
    STRATEGIES,
    hidden_patches,
    mask_generator,
    sample_masks,
    upsample_mask,
)
from pretrain.masking.strategies import MaskRequest
from pretrain.recipes import POCKET, Masking
from pretrain.simmim import SimMIM, load_simmim
from simmim_bench.checkpoints.checkpoint import IMAGENET_MEAN, IMAGENET_STD
from simmim_bench.cli.main import cli
from simmim_bench.data.datasets import ImageDataset
from simmim_bench.data.decode import normalise, random_crop_flip
from simmim_bench.data.loader import EpochLoader
from simmim_bench.data.sources import any_images
from simmim_bench.errors import UsageError
from simmim_bench.models.archs import BackboneSpec

NAMES = sorted(STRATEGIES)


def photographs(count: int, size: tuple[int, int], seed: int = 0) -> torch.Tensor:
    """Smooth fields of colour with some noise: what an image has of regions and textures."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 5, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size, mode="bilinear")
    return smooth + 0.1 * torch.rand(count, 3, *size, generator=generator)


def draw(
    masking: str, count: int, rows: int, columns: int, ratio: float, unit: int = 4, seed: int = 0
) -> torch.Tensor:
    """Draw masks of whole units, (count, rows, columns)."""
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
        images=photographs(count, size),
    )


def test_recipe_and_visualize_command_list_every_strategy() -> None:
    assert set(STRATEGIES) == set(typing.get_args(Masking))
    shown = next(p for p in cli.commands["visualize"].params if p.name == "masking").type.choices
    assert set(shown) == {*STRATEGIES, "centre", "boxes"}


@pytest.mark.parametrize("masking", NAMES)
def test_every_strategy_hides_exactly_the_ceiling_of_the_ratio(masking: str) -> None:
    grids = [(1, 1), (1, 7), (6, 6), (9, 2), (3, 50)]
    for (rows, columns), ratio in itertools.product(grids, [0.001, 0.1, 0.34, 0.6, 0.85, 0.999]):
        masks = draw(masking, 3, rows, columns, ratio)
        assert masks.shape == (3, rows, columns)
        assert set(masks.unique().tolist()) <= {0.0, 1.0}
        assert (masks.sum((1, 2)) == math.ceil(ratio * rows * columns)).all()


@pytest.mark.parametrize("masking", sorted({*NAMES} - {"pixels"}))
def test_units_of_whole_patches_are_hidden_completely_or_not_at_all(masking: str) -> None:
    images = photographs(5, (96, 64))
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
    images = photographs(6, (48, 32))

    def masks_of(chosen: list[int], generators: object) -> torch.Tensor:
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
    # In turn from one generator: how the images are cut into batches does not matter either.
    at_once = masks_of([*range(6)], torch.Generator().manual_seed(0))
    one = torch.Generator().manual_seed(0)
    assert torch.equal(at_once, torch.cat([masks_of([0, 1], one), masks_of([2, 3, 4, 5], one)]))


@pytest.mark.parametrize("masking", ["regions", "multimodal"])
def test_pixel_scale_and_autocast_do_not_change_masks(masking: str) -> None:
    pixels = (photographs(8, (48, 64)) * 255 / 1.1).byte()
    sizes = {"mask_patch_size": 8, "patch_size": 8, "mask_ratio": 0.6}

    def masks_of(images: torch.Tensor) -> torch.Tensor:
        own = [mask_generator(0, 0, i) for i in range(8)]
        return sample_masks(8, (48, 64), masking=masking, generator=own, images=images, **sizes)

    normalised = normalise(pixels, IMAGENET_MEAN, IMAGENET_STD, torch.device("cpu"))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(masks_of(pixels), masks_of(normalised))


# What is hidden where: against simulations of the definition, with other random numbers and loops.


def naive_random(rows: int, columns: int, hidden: int, draws: random.Random) -> np.ndarray:
    mask = np.zeros((rows, columns))
    for unit in draws.sample(range(rows * columns), hidden):
        mask[unit // columns, unit % columns] = 1
    return mask


def naive_square(rows: int, columns: int, hidden: int, draws: random.Random) -> np.ndarray:
    side = math.ceil(math.sqrt(hidden))
    assert side <= min(rows, columns)
    wide = side if side * (side - 1) < hidden else side - 1
    top, left = draws.randint(0, rows - side), draws.randint(0, columns - wide)
    mask = np.zeros((rows, columns))
    for x, y in itertools.product(range(wide), range(side)):
        if mask.sum() < hidden:
            mask[top + y, left + x] = 1
    return mask


def naive_block(rows: int, columns: int, hidden: int, draws: random.Random) -> np.ndarray:
    mask = np.zeros((rows, columns))
    smallest = round(16 / 196 * rows * columns)
    while mask.sum() < hidden:
        for _ in range(10):
            area = draws.uniform(smallest, max(smallest, hidden - mask.sum()))
            aspect = math.exp(draws.uniform(math.log(0.3), math.log(1 / 0.3)))
            height, width = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
            if height <= rows and width <= columns:
                break
        height, width = min(height, rows), min(width, columns)
        top, left = draws.randint(0, rows - height), draws.randint(0, columns - width)
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


@pytest.mark.parametrize(("rows", "columns", "ratio"), [(6, 6, 0.6), (7, 9, 0.25)])
@pytest.mark.parametrize("masking", NAIVE)
def test_unit_and_pair_frequencies_equal_a_naive_simulation(
    masking: str, rows: int, columns: int, ratio: float
) -> None:
    count, draws = 3000, random.Random(1)
    found = draw(masking, count, rows, columns, ratio, unit=1).numpy()
    hidden = math.ceil(ratio * rows * columns)
    naive = np.stack([NAIVE[masking](rows, columns, hidden, draws) for _ in range(count)])

    def shares(masks: np.ndarray) -> tuple[np.ndarray, ...]:
        beside = masks[:, :, 1:] * masks[:, :, :-1]
        below = masks[:, 1:] * masks[:, :-1]
        return masks.mean(0), beside.mean(0), below.mean(0)

    # Standard deviation of the difference of two shares is 0.013 at most; four and a half of them.
    for one, other in zip(shares(found), shares(naive), strict=True):
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
    masks = draw("square", 4000, 6, 8, 9 / 48, unit=1).bool()
    places = {}
    for mask in masks:
        y, x = mask.nonzero().amin(0).tolist()
        assert mask[y : y + 3, x : x + 3].all()
        places[y, x] = places.get((y, x), 0) + 1
    assert set(places) == set(itertools.product(range(4), range(6)))
    # Chi squared of 23 degrees of freedom is below 58 but for once in ten thousand seeds.
    expected = 4000 / 24
    assert sum((n - expected) ** 2 / expected for n in places.values()) < 58


@pytest.mark.parametrize(
    ("grid", "hidden", "box"),
    [((6, 6), 22, (5, 5)), ((6, 6), 20, (5, 4)), ((3, 50), 60, (3, 20)), ((50, 3), 61, (21, 3))],
)
def test_inexact_square_omits_units_of_its_last_line_only(
    grid: tuple[int, int], hidden: int, box: tuple[int, int]
) -> None:
    masks = draw("square", 50, *grid, (hidden - 0.5) / (grid[0] * grid[1]), unit=1)
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
    # As many units as the smallest block has: 28 x 28 of them, 64 in a block.
    found = draw("block", 1000, 28, 28, 63.5 / 784, unit=1).bool()
    aspects = []
    for mask in found:
        low, high = mask.nonzero().amin(0), mask.nonzero().amax(0) + 1
        height, width = (high - low).tolist()
        if height * width == 64:  # else its rounded sides gave more or fewer units
            aspects.append(height / width)
    assert len(aspects) > 60
    assert min(aspects) >= 0.25  # 4 x 16, as 16 / 0.3 rounds
    assert max(aspects) <= 4
    assert np.mean(np.array(aspects) > 1) == pytest.approx(np.mean(np.array(aspects) < 1), abs=0.2)


# What follows the image.


def naive_region_map(image: np.ndarray, cells: tuple[int, int]) -> np.ndarray:
    """K-means, cell by cell, of an image whose sides the cells divide."""
    height, width = cells
    scale = image.shape[1] // height, image.shape[2] // width
    colour = np.zeros((height, width, 3))
    for y, x in itertools.product(range(height), range(width)):
        part = image[:, y * scale[0] : (y + 1) * scale[0], x * scale[1] : (x + 1) * scale[1]]
        colour[y, x] = part.mean((1, 2))
    colour = (colour - colour.mean((0, 1))) / colour.std((0, 1))
    spacing = math.sqrt(height * width / 16)
    place = [[[0.5 * y / spacing, 0.5 * x / spacing] for x in range(width)] for y in range(height)]
    features = np.concatenate([colour, place], axis=2)
    seeds = round(height / spacing), round(width / spacing)
    centres = [
        features[(2 * i + 1) * height // (2 * seeds[0]), (2 * j + 1) * width // (2 * seeds[1])]
        for i in range(seeds[0])
        for j in range(seeds[1])
    ]
    labels = np.zeros(cells, int)
    for step in range(6):
        for y, x in itertools.product(range(height), range(width)):
            labels[y, x] = np.argmin([((features[y, x] - c) ** 2).sum() for c in centres])
        if step < 5:
            centres = [
                features[labels == i].mean(0) if (labels == i).any() else c
                for i, c in enumerate(centres)
            ]
    return labels


def test_regions_equal_a_naive_k_means() -> None:
    image = photographs(1, (48, 64), seed=3)
    found = region_map(image, (12, 16))[0].numpy()
    assert np.array_equal(found, naive_region_map(image[0].double().numpy(), (12, 16)))


def test_region_lies_on_one_side_of_an_edge() -> None:
    image = torch.zeros(1, 3, 64, 96)
    image[:, 0, :, 48:] = 1
    labels = region_map(image, (16, 24))[0]
    assert not {*labels[:, :12].unique().tolist()} & {*labels[:, 12:].unique().tolist()}
    assert labels.max() < 2 * REGIONS


def test_uniformly_coloured_fields_are_hidden_completely() -> None:
    colours = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(0))
    images = torch.nn.functional.interpolate(colours[None], (64, 64)).expand(20, -1, -1, -1)
    masks = sample_masks(
        20,
        (64, 64),
        masking="regions",
        mask_patch_size=4,
        patch_size=4,
        mask_ratio=0.6,
        images=images,
        generator=torch.Generator().manual_seed(0),
    )
    shares = masks.view(20, 4, 4, 4, 4).mean((2, 4)).flatten(1)
    # ceil(0.6 * 256) = 154 units: nine fields of 16 and, row by row, 10 units of another.
    assert ((shares == 1).sum(1) == 9).all()
    assert ((shares > 0).sum(1) == 10).all()
    assert len(masks.flatten(1).unique(dim=0)) > 10


def test_at_most_one_region_is_partially_hidden() -> None:
    images = photographs(6, (64, 96), seed=5)
    masks = sample_masks(
        6,
        (64, 96),
        masking="regions",
        mask_patch_size=8,
        patch_size=8,
        mask_ratio=0.55,
        images=images,
    )
    labels = region_map(images, (24, 36))  # three by three cells a unit: 32 on the longer side
    for mask, cells in zip(masks, labels, strict=True):
        region_of = np.zeros((8, 12), int)
        for y, x in itertools.product(range(8), range(12)):
            part = cells[3 * y : 3 * y + 3, 3 * x : 3 * x + 3].flatten().tolist()
            region_of[y, x] = min({*part}, key=lambda n, part=part: (-part.count(n), n))
        shares = [mask.numpy()[region_of == n].mean() for n in np.unique(region_of)]
        assert sum(0 < share < 1 for share in shares) <= 1


def test_unit_features_are_colour_position_and_contrast() -> None:
    image = photographs(1, (16, 24), seed=7)
    units = image[0].view(3, 4, 4, 6, 4).permute(1, 3, 0, 2, 4).reshape(24, 3, 16)
    colour = units.mean(2)
    standard = (colour - colour.mean(0)) / colour.std(0, correction=0)
    assert torch.allclose(unit_colours(image, (4, 6))[0], standard, atol=1e-4)
    contrast = units.var(2, correction=0) / image[0].flatten(1).var(1, correction=0)
    assert torch.allclose(unit_textures(image, (4, 6))[0, :, 0], contrast.mean(1), atol=1e-4)
    assert unit_positions(image, (4, 6))[0, 13].tolist() == [2, 1]


def naive_multimodal(
    image: torch.Tensor, grid: tuple[int, int], hidden: int, seed: int
) -> set[int]:
    """Take units one at a time, by the definition, from the same random numbers."""
    units = grid[0] * grid[1]
    noise = torch.rand(6, units, generator=torch.Generator().manual_seed(seed)).tolist()
    taken: set[int] = set()
    for turn in range(6):
        feature = [*UNIT_FEATURES.values()][turn % 3](image[None], grid)[0].tolist()
        visible = [u for u in range(units) if u not in taken]
        first = min(visible, key=noise[turn].__getitem__)

        def unlike(u: int, feature: list = feature, first: int = first, turn: int = turn) -> tuple:
            gaps = [abs(a - b) for a, b in zip(feature[u], feature[first], strict=True)]
            return max(gaps), noise[turn][u]

        share = math.ceil((hidden - len(taken)) / (6 - turn))
        taken.update(sorted(visible, key=unlike)[:share])
    return taken


@pytest.mark.parametrize("hidden", [1, 4, 29, 48])
def test_multimodal_masks_equal_a_naive_loop(hidden: int) -> None:
    images = photographs(4, (48, 64), seed=9)
    masks = STRATEGIES["multimodal"](
        MaskRequest(
            rows=6,
            columns=8,
            hidden=hidden,
            generators=[torch.Generator().manual_seed(i) for i in range(4)],
            images=images,
        )
    )
    for i, mask in enumerate(masks):
        found = {*mask.flatten().nonzero().flatten().tolist()}
        assert found == naive_multimodal(images[i], (6, 8), hidden, i)


def test_first_round_hides_units_of_the_same_colour_anywhere() -> None:
    for seed in range(20):
        noise = torch.rand(6, 36, generator=torch.Generator().manual_seed(seed))
        first = int(noise[0].argmin())
        red = [first, (first + 11) % 36, (first + 22) % 36]
        colours = torch.zeros(1, 3, 36)
        colours[:, 0, red] = 1
        request = MaskRequest(
            rows=6,
            columns=6,
            hidden=18,  # three in each round
            generators=[torch.Generator().manual_seed(seed)],
            images=upsample_mask(colours.view(3, 6, 6), (48, 48))[None],
        )
        assert STRATEGIES["multimodal"](request).flatten()[red].all()


@pytest.mark.parametrize("masking", ["regions", "multimodal"])
def test_image_of_one_colour_has_a_valid_mask(masking: str) -> None:
    masks = sample_masks(
        2,
        (32, 32),
        masking=masking,
        mask_patch_size=8,
        patch_size=4,
        mask_ratio=0.5,
        images=torch.full((2, 3, 32, 32), 200, dtype=torch.uint8),
    )
    assert masks.isfinite().all()
    assert (masks.mean((1, 2)) == 0.5).all()


# How far what is hidden is from what is visible.


@pytest.mark.parametrize("cells", [(4, 6), (12, 18)])
def test_average_distance_equals_a_naive_loop(cells: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(4)
    masks = (torch.rand(3, *cells, generator=generator) < 0.7).float()
    scale = 12 // cells[0]
    distances = []
    for mask in masks.tolist():
        pixels = [*itertools.product(range(12), range(18))]
        shown = [p for p in pixels if not mask[p[0] // scale][p[1] // scale]]
        for y, x in set(pixels) - set(shown):
            distances.append(min(math.hypot(y - v, x - u) for v, u in shown))
    assert average_distance(masks, (12, 18)) == pytest.approx(np.mean(distances))


def test_distance_of_a_half_hidden_image_is_the_mean_over_its_columns() -> None:
    mask = torch.zeros(1, 2, 2)
    mask[:, :, 1] = 1
    assert average_distance(mask, (40, 40)) == pytest.approx((20 + 1) / 2)
    assert average_distance(1 - mask, (40, 40)) == pytest.approx((20 + 1) / 2)
    assert average_distance(torch.zeros(1, 2, 2), (40, 40)) == 0
    assert average_distance(torch.ones(1, 2, 2), (40, 40)) == math.inf


def test_distances_of_simmims_best_masks_are_in_its_best_range() -> None:
    """Its AvgDist is best at 10 to 20 of 192 pixels; its best masks are of 32-pixel units at 0.5 and 0.6."""

    def distance(unit: int, ratio: float, masking: str = "random") -> float:
        masks = sample_masks(
            60,
            (192, 192),
            masking=masking,
            mask_patch_size=unit,
            patch_size=4,
            mask_ratio=ratio,
            generator=torch.Generator().manual_seed(0),
        )
        return average_distance(masks, (192, 192))

    for ratio in (0.4, 0.5, 0.6):
        assert 10 < distance(32, ratio) < 20
    for unit in (4, 8, 16):
        assert distance(unit, 0.6) < 10
    assert distance(64, 0.6) > 20  # worse than 32
    assert distance(32, 0.6, "square") > 20


def test_upsampled_mask_covers_the_pixels_of_every_patch() -> None:
    mask = torch.tensor([[[0.0, 1.0, 0.0]]])
    assert torch.equal(
        upsample_mask(mask, (2, 6)), torch.tensor([[[0.0, 0, 1, 1, 0, 0], [0, 0, 1, 1, 0, 0]]])
    )


# Recipes and runs.


def test_default_masking_leaves_recipe_hash_unchanged() -> None:
    assert POCKET.masking == "random"
    # What the pocket recipe hashed to before there was a choice.
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
    sizes = {"mask_patch_size": 1, "patch_size": tiny_spec.patch_size, "mask_ratio": 0.6}
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


def pretrain(out: Path, data: Path, *more: str) -> int:
    common = ["--recipe", "pocket", "-o", "batch_size=30", "--quiet"]
    places = ["--arch", "vit_pocket", "--data", str(data), "--out", str(out)]
    result = CliRunner().invoke(cli, ["pretrain", *places, *common, *more])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code


@pytest.mark.parametrize("masking", NAMES)
def test_run_stores_the_average_distance_of_its_masks(
    masking: str, tmp_path: Path, pocket: Path
) -> None:
    more = ["-o", f"masking={masking}", "-o", "epochs=2", "-o", "warmup_epochs=1"]
    assert pretrain(tmp_path / "run", pocket / "imagenet" / "val", *more) == 0
    meta = tmp_path / "run" / "checkpoints" / "last" / "meta.json"
    kept = json.loads(meta.read_text())["provenance"]
    assert f"{masking} masks avg_dist=" in (tmp_path / "run" / "log.txt").read_text()
    assert math.isfinite(kept["held_out_loss"])
    if masking != "random":
        assert kept["recipe"]["deviates"]["masking"] == masking

    # The masks of the first epoch, under the images as the loader gives them.
    recipe = replace(POCKET, masking=masking)
    crop = partial(random_crop_flip, img_size=recipe.img_size, crop_scale=recipe.crop_scale)
    dataset = ImageDataset(any_images(pocket / "imagenet" / "val"), crop)
    loader = EpochLoader(dataset, batch_size=len(dataset), num_workers=0, seed=0)
    pixels, _, indices = next(iter(loader.epoch(0)))
    masks = sample_masks(
        len(dataset),
        recipe.img_size,
        masking=masking,
        mask_patch_size=recipe.mask_patch_size,
        patch_size=4,
        mask_ratio=recipe.mask_ratio,
        generator=[mask_generator(0, 0, int(i)) for i in indices],
        images=pixels,
    )
    assert kept["avg_dist"] == pytest.approx(average_distance(masks, recipe.img_size), abs=1e-3)


def test_resumed_run_with_content_masks_equals_an_uninterrupted_one(
    tmp_path: Path, pocket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(Exception):
        pass

    more = ["-o", "masking=regions", "-o", "epochs=2", "-o", "warmup_epochs=1"]
    assert pretrain(tmp_path / "whole", pocket / "imagenet" / "val", *more) == 0
    original = run.write_checkpoint

    def die_after_one_epoch(*args: object, **kwargs: object) -> None:
        original(*args, **kwargs)  # type: ignore[arg-type]
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(run, "write_checkpoint", die_after_one_epoch)
        with pytest.raises(Killed):
            pretrain(tmp_path / "cut", pocket / "imagenet" / "val", *more)
    assert pretrain(tmp_path / "cut", pocket / "imagenet" / "val", *more, "--resume") == 0
    whole, again = (load_simmim(str(tmp_path / name)).state_dict() for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_average_distance_is_infinite_if_everything_is_hidden() -> None:
    dataset = TensorDataset(torch.zeros(3, 3, 32, 32, dtype=torch.uint8), torch.zeros(3))
    assert recipe_average_distance(replace(POCKET, mask_ratio=0.99), 4, dataset, seed=0) == math.inf
