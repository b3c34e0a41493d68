"""Check SimMIM's AvgDist, and runs with every masking strategy."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch.utils.data import TensorDataset

from pretrain.masking.avg_dist import average_distance, recipe_average_distance
from pretrain.masking.masks import STRATEGIES, mask_generator, sample_masks
from pretrain.recipes import POCKET
from pretrain.simmim import load_simmim
from simmim_bench.checkpoints.checkpoint import write_checkpoint
from simmim_bench.cli.main import cli
from simmim_bench.data.datasets import ImageDataset
from simmim_bench.data.loader import EpochLoader
from simmim_bench.data.pretraining_images import any_images, split_training_images
from simmim_bench.data.random_crop import random_crop_flip

NAMES = sorted(STRATEGIES)


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
    """SimMIM's AvgDist is best at 10 to 20 of 192 pixels; its best masks have units of 32 pixels at 0.5 and 0.6."""

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


def pretrain(out: Path, data: Path, *more: str) -> int:
    common = ["--recipe", "pocket", "-o", "batch_size=28", "--quiet"]
    places = ["--arch", "vit_pocket", "--data", str(data), "--out", str(out)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pretrain.evaluation.held_out.HELD_OUT_IMAGES", 4)  # for speed
        result = CliRunner().invoke(cli, ["pretrain", *places, *common, *more])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code


@pytest.mark.heavy
@pytest.mark.parametrize("masking", NAMES)
def test_run_stores_the_average_distance_of_its_masks(
    masking: Any, tmp_path: Path, pocket: Path
) -> None:
    more = ["-o", f"masking={masking}", "-o", "epochs=2", "-o", "warmup_epochs=1"]
    assert pretrain(tmp_path / "run", pocket / "imagenet" / "val", *more) == 0
    meta = tmp_path / "run" / "checkpoints" / "last" / "meta.json"
    kept = json.loads(meta.read_text())["provenance"]
    assert f"{masking} masks avg_dist=" in (tmp_path / "run" / "log.txt").read_text()
    assert math.isfinite(kept["held_out_loss"])
    if masking != "random":
        assert kept["recipe"]["deviates"]["masking"] == masking

    # The masks of the first epoch, for the images that the loader returns.
    recipe = replace(POCKET, masking=masking)
    crop = partial(random_crop_flip, img_size=recipe.img_size, crop_scale=recipe.crop_scale)
    images, _ = split_training_images(any_images(pocket / "imagenet" / "val"), None)
    dataset = ImageDataset(images, crop)
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


@pytest.mark.heavy
def test_resumed_run_with_content_masks_equals_an_uninterrupted_one(
    tmp_path: Path, pocket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(Exception):
        pass

    more = ["-o", "masking=regions", "-o", "epochs=2", "-o", "warmup_epochs=1"]
    assert pretrain(tmp_path / "whole", pocket / "imagenet" / "val", *more) == 0

    def die_after_one_epoch(*args: Any, **kwargs: Any) -> None:
        write_checkpoint(*args, **kwargs)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("pretrain.checkpoints.write_checkpoint", die_after_one_epoch)
        with pytest.raises(Killed):
            pretrain(tmp_path / "cut", pocket / "imagenet" / "val", *more)
    assert pretrain(tmp_path / "cut", pocket / "imagenet" / "val", *more, "--resume") == 0
    whole, again = (load_simmim(str(tmp_path / name)).state_dict() for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_average_distance_is_infinite_if_everything_is_hidden() -> None:
    dataset: Any = TensorDataset(torch.zeros(3, 3, 32, 32, dtype=torch.uint8), torch.zeros(3))
    assert recipe_average_distance(replace(POCKET, mask_ratio=0.99), 4, dataset, seed=0) == math.inf
