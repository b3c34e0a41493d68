"""Tiny segmentation data, and runs of dense probes on it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from simmim_bench.checkpoints.checkpoint import Checkpoint
from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.display import Display
from simmim_bench.results.record import Record
from simmim_bench.runs.context import RunContext
from simmim_bench.runs.run_dir import open_run
from transfer.dense.recipes import (
    ADE20K_KNN_POCKET,
    ADE20K_LOGISTIC_POCKET,
    DenseKnnRecipe,
    DenseLogisticRecipe,
    DenseRecipe,
)
from transfer.dense.run import run_dense
from transfer.job import TransferJob

KNN: DenseKnnRecipe = replace(ADE20K_KNN_POCKET, img_size=(32, 32))
LOGISTIC: DenseLogisticRecipe = replace(ADE20K_LOGISTIC_POCKET, img_size=(32, 32))


def probe(
    path: Path,
    data: Path,
    recipe: DenseRecipe,
    ckpt: str | Checkpoint = "random:vit_pocket",
    seed: int = 0,
    **options: Any,
) -> Record:
    """Run a dense probe in this process and return its record."""
    job = TransferJob(
        task="ade20k",
        checkpoint=ckpt if isinstance(ckpt, Checkpoint) else read_checkpoint(ckpt),
        data=data,
        recipe=recipe,
        deviates={},
        options=options,
    )
    with open_run(
        path, recipe=recipe, deviates={}, arguments={}, display=Display(quiet=True)
    ) as run:
        record = run_dense(RunContext(run=run, seed=seed), job)
    assert record is not None
    return record


def write_data(
    root: Path, images: dict[str, list[tuple[np.ndarray, np.ndarray]]], classes: int
) -> Path:
    """Write pairs of an image (H, W, 3) and a label map (H, W) of some splits in ADE20K's layout."""
    for split, pairs in images.items():
        for folder in ("images", "annotations"):
            (root / folder / split).mkdir(parents=True, exist_ok=True)
        for number, (image, labels) in enumerate(pairs):
            Image.fromarray(image).save(root / "images" / split / f"{number}.png")
            Image.fromarray(labels).save(root / "annotations" / split / f"{number}.png")
    (root / "classes.txt").write_text("".join(f"class {k}\n" for k in range(classes)))
    return root
