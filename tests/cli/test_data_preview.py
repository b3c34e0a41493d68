"""`data preview`: the grid shows the crops and masks that a run's loader feeds."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from support.cli import fails, run

from pretrain.masking.masks import sample_image_mask
from pretrain.recipes import POCKET
from simmim_bench.data.datasets import ImageDataset
from simmim_bench.data.loader import EpochLoader
from simmim_bench.data.pretraining_images import any_images
from simmim_bench.data.random_crop import RandomCropFlip


def read_tiles(path: Path, columns: int) -> np.ndarray:
    """Return the tiles of a grid of images of 32 pixels, (rows, columns, 32, 32, 3)."""
    pixels = np.array(Image.open(path))
    rows = (len(pixels) - 4) // 164
    assert pixels.shape == (4 + 164 * rows, 4 + 164 * columns, 3)
    return np.stack([
        [pixels[4 + 164 * r :, 4 + 164 * c :][:160:5, :160:5] for c in range(columns)]
        for r in range(rows)
    ])  # fmt: skip


def test_a_preview_of_pretraining_shows_what_the_loader_feeds(tmp_path: Path, few: Path) -> None:
    out = tmp_path / "grid.png"
    command = ("data", "preview", "pretrain", "--arch", "vit_pocket", "--data", few, "--out", out)
    code, text, _ = run(*command, "--count", 3, "--epochs", 2, "--seed", 5)
    assert code == 0
    assert "  3 " in text
    tiles = read_tiles(out, 5)
    assert len(tiles) == 3
    dataset = ImageDataset(any_images(few), RandomCropFlip(POCKET.img_size, POCKET.crop_scale))
    loader = EpochLoader(
        dataset,
        batch_size=12,
        num_workers=0,
        seed=5,
        per_image=partial(sample_image_mask, POCKET, 4),
    )
    for epoch in (0, 1):
        (batch,) = loader.epoch(epoch)
        pixels, _, indices, masks = batch
        place = indices.tolist().index(8)  # the third of three among twelve
        crop = pixels[place].permute(1, 2, 0).numpy()
        assert np.abs(tiles[2, 1 + 2 * epoch].astype(int) - crop).max() <= 1
        hidden = (tiles[2, 2 + 2 * epoch] == 128).all(-1)
        repeats = 32 // masks.shape[-1]
        mask = masks[place].repeat_interleave(repeats, 0).repeat_interleave(repeats, 1)
        assert torch.equal(torch.from_numpy(hidden), mask)


def test_a_preview_of_a_task_shows_the_scored_crop_and_augmentations(
    tmp_path: Path, few: Path
) -> None:
    out = tmp_path / "grid.png"
    command = ("data", "preview", "imagenet", "--arch", "vit_pocket", "--data", few, "--out", out)
    code, text, _ = run(*command, "--count", 2, "-o", "test_crop_ratio=1.0")
    assert code == 0
    tiles = read_tiles(out, 4)
    assert np.abs(tiles[:, 0].astype(int) - tiles[:, 1]).max() <= 1  # all of a square image
    assert (tiles[:, 2] != tiles[:, 3]).any()
    assert text.count(str(few / "train")) == 2
    knn = ("data", "preview", "knn", "--arch", "vit_pocket", "--data", few, "--out", out)
    assert run(*knn, "--count", 2)[0] == 0
    # Two tiles an image: three images fill a row of the grid.
    assert Image.open(out).size == (4 + 164 * 4, 4 + 164)
    missing = tmp_path / "missing"
    assert "does not exist" in fails(4, *command[:6], missing, "--out", missing / "x.png")
    assert not missing.exists()
