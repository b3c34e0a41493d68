"""A small COCO recipe, runs of it, and access to annotation files, which the detection tests share."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from pycocotools.coco import COCO

from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.display import Display
from simmim_bench.results.record import Record
from simmim_bench.runs.context import RunContext
from simmim_bench.runs.run_dir import open_run
from transfer.detection.coco_layout import CocoSplit
from transfer.detection.data import ErrorUnwrappingLoader, train_loader, training_stream
from transfer.detection.own_recipes import COCO_POCKET
from transfer.detection.recipes import CocoRecipe
from transfer.detection.run import run_coco
from transfer.job import TransferJob

ARCHS = (
    "random:vit_pocket",
    "random:swin_pocket",
    "random:convnext_pocket",
    "random:resnet_pocket",
)
RECIPE = replace(
    COCO_POCKET,
    max_iters=4,
    warmup_iters=0,
    batch_size=2,
    neck_channels=16,
    box_head_dim=16,
    post_nms_topk=(8, 4),
    drop_path_rate=0.1,
    score_threshold=0.0,
)


def run(
    out: Path,
    data: Path,
    recipe: CocoRecipe = RECIPE,
    *,
    arch: str = ARCHS[0],
    display: Display | None = None,
    resume: bool = False,
    **options: Any,
) -> Record:
    """Run a transfer in this process and return its record."""
    with open_run(
        out,
        recipe=recipe,
        deviates={},
        arguments={},
        display=display or Display(quiet=True),
        resume=resume,
    ) as opened:
        job = TransferJob(
            task="coco",
            checkpoint=read_checkpoint(arch),
            data=data,
            recipe=recipe,
            deviates={},
            options=options,
        )
        record = run_coco(RunContext(run=opened, seed=3, resume=resume), job)
    assert record is not None
    return record


def batches(
    split: CocoSplit, recipe: CocoRecipe, seed: int, first_iter: int
) -> ErrorUnwrappingLoader:
    """Return the loader of a split's training batches."""
    return train_loader(training_stream(split, recipe, seed), recipe, first_iter)


def annotations_of(data: Path, split: str = "train") -> Path:
    """Return the annotation file of a split."""
    return data / "annotations" / f"instances_{split}2017.json"


def change(path: Path, edit: Callable[[Any], object]) -> None:
    """Edit the content of a JSON file in place."""
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def read_quietly(path: Path) -> COCO:
    """Read an annotation file with pycocotools, without its prints."""
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(path))
