"""A small ADE20K recipe, runs of it, and access to their files, which the segmentation tests share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.display import Display
from simmim_bench.results.record import Record
from simmim_bench.runs.context import RunContext
from simmim_bench.runs.run_dir import open_run
from transfer.job import TransferJob
from transfer.segmentation.ade20k_layout import SegmentationSplit, find_split
from transfer.segmentation.recipes import ADE20K_POCKET, Ade20kRecipe
from transfer.segmentation.run import run_ade20k

ARCHS = ("vit_pocket", "swin_pocket")
CLASS_NAMES = ["x"] * 16
RECIPE = replace(
    ADE20K_POCKET, max_iters=4, warmup_iters=0, batch_size=2, head_channels=16, drop_path_rate=0.1
)


def transfer(
    path: Path,
    data: Path,
    recipe: Ade20kRecipe = RECIPE,
    *,
    ckpt: str = "random:vit_pocket",
    seed: int = 3,
    resume: bool = False,
    display: Display | None = None,
    **options: Any,
) -> Record:
    """Run a transfer in this process and return its record."""
    job = TransferJob(
        task="ade20k",
        checkpoint=read_checkpoint(ckpt),
        data=data,
        recipe=recipe,
        deviates={},
        options=options,
    )
    with open_run(
        path,
        recipe=recipe,
        deviates={},
        arguments={},
        display=display or Display(quiet=True),
        resume=resume,
    ) as run:
        record = run_ade20k(RunContext(run=run, seed=seed, resume=resume), job)
    assert record is not None
    return record


def entries(run: Path) -> np.ndarray:
    """Read the stored confusion counts: image, true class, predicted class, pixels."""
    with np.load(run / "predictions/confusion.npz") as stored:
        return stored["entries"]


def split_of(data: Path, name: str) -> SegmentationSplit:
    return find_split(data, name)


def build_loaders(*arguments: Any, **keywords: Any) -> Any:
    """Import and call our `build_loaders`, which needs MMSegmentation."""
    from transfer.segmentation.data import build_loaders

    return build_loaders(*arguments, **keywords)


def segmentor(ckpt: str, recipe: Ade20kRecipe, classes: int = 5, seed: int = 0) -> Any:
    """Build the model of a recipe."""
    from transfer.segmentation.model import build_segmentor

    return build_segmentor(read_checkpoint(ckpt), recipe, classes, seed)


def assert_counts_every_labelled_pixel(run: Path, data: Path) -> None:
    """Check the stored counts against the labelled pixels of every validation image."""
    masks = sorted((data / "annotations/validation").glob("*.png"))
    stored = entries(run)
    for index, mask in enumerate(masks):
        labelled = int((np.asarray(Image.open(mask)) > 0).sum())
        assert stored[stored[:, 0] == index, 3].sum() == labelled
