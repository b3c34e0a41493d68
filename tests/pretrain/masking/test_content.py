"""Check the masking strategies that depend on the image: regions and multi-modal masks."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from support.pretraining import synthetic_photographs

from pretrain.masking.content import (
    REGIONS,
    UNIT_FEATURES,
    region_map,
    unit_colours,
    unit_positions,
    unit_textures,
)
from pretrain.masking.masks import STRATEGIES, mask_generator, sample_masks, upsample_mask
from pretrain.masking.strategies import MaskRequest
from simmim_bench.checkpoints.checkpoint import IMAGENET_MEAN, IMAGENET_STD
from simmim_bench.data.normalise import normalise


def naive_region_map(image: np.ndarray, cells: tuple[int, int]) -> np.ndarray:
    """K-means, cell by cell, on an image whose size is a multiple of the cells."""
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


@pytest.mark.parametrize("masking", ["regions", "multimodal"])
def test_pixel_scale_and_autocast_do_not_change_masks(masking: str) -> None:
    pixels = (synthetic_photographs(8, (48, 64)) * 255 / 1.1).byte()

    def masks_of(images: torch.Tensor) -> torch.Tensor:
        own = [mask_generator(0, 0, i) for i in range(8)]
        return sample_masks(
            8,
            (48, 64),
            masking=masking,
            mask_patch_size=8,
            patch_size=8,
            mask_ratio=0.6,
            generator=own,
            images=images,
        )

    normalised = normalise(pixels, IMAGENET_MEAN, IMAGENET_STD, torch.device("cpu"))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(masks_of(pixels), masks_of(normalised))


def test_regions_equal_a_naive_k_means() -> None:
    image = synthetic_photographs(1, (48, 64), seed=3)
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
    fractions = masks.view(20, 4, 4, 4, 4).mean((2, 4)).flatten(1)
    # ceil(0.6 * 256) = 154 units: nine fields of 16 units and, row by row, 10 units of another field.
    assert ((fractions == 1).sum(1) == 9).all()
    assert ((fractions > 0).sum(1) == 10).all()
    assert len(masks.flatten(1).unique(dim=0)) > 10


def test_at_most_one_region_is_partially_hidden() -> None:
    images = synthetic_photographs(6, (64, 96), seed=5)
    masks = sample_masks(
        6,
        (64, 96),
        masking="regions",
        mask_patch_size=8,
        patch_size=8,
        mask_ratio=0.55,
        images=images,
    )
    labels = region_map(
        images, (24, 36)
    )  # 3 x 3 cells per unit, as 32 cells are the target for the longer side
    for mask, cells in zip(masks, labels, strict=True):
        region_of = np.zeros((8, 12), int)
        for y, x in itertools.product(range(8), range(12)):
            part = cells[3 * y : 3 * y + 3, 3 * x : 3 * x + 3].flatten().tolist()
            region_of[y, x] = max(sorted({*part}), key=part.count)  # the first of equals
        fractions = [mask.numpy()[region_of == n].mean() for n in np.unique(region_of)]
        assert sum(0 < fraction < 1 for fraction in fractions) <= 1


def test_unit_features_are_colour_position_and_contrast() -> None:
    image = synthetic_photographs(1, (16, 24), seed=7)
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
    """Select units one at a time by the definition, with the same random numbers."""
    units = grid[0] * grid[1]
    noise = torch.rand(6, units, generator=torch.Generator().manual_seed(seed)).tolist()
    selected: set[int] = set()
    for turn in range(6):
        feature = [*UNIT_FEATURES.values()][turn % 3](image[None], grid)[0].tolist()
        visible = [u for u in range(units) if u not in selected]
        first = min(visible, key=noise[turn].__getitem__)

        def distance_to_seed(
            u: int, feature: list[list[float]] = feature, first: int = first, turn: int = turn
        ) -> tuple[float, float]:
            gaps = [abs(a - b) for a, b in zip(feature[u], feature[first], strict=True)]
            return max(gaps), noise[turn][u]

        count = math.ceil((hidden - len(selected)) / (6 - turn))
        selected.update(sorted(visible, key=distance_to_seed)[:count])
    return selected


@pytest.mark.parametrize("hidden", [1, 4, 29, 48])
def test_multimodal_masks_equal_a_naive_loop(hidden: int) -> None:
    images = synthetic_photographs(4, (48, 64), seed=9)
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
            hidden=18,  # three per round
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
