"""Find the published score that a reproduced score aims at, for the tables to list both.

Two such scores share everything but the code and the seed: the recipe that the published score names, without
deviations; the published weights, or a checkpoint of the pretraining recipe that the published score names, on as many
images and after as many epochs; and the size of the validation set. The published fine-tuned weights may be evaluated
instead. For any other score, no difference is shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from simmim_bench.leaderboard.board import Board
from simmim_bench.leaderboard.reported import ReportedRow, ReportedScore
from simmim_bench.leaderboard.rows import ScoreCell
from simmim_bench.results.record import Record
from simmim_bench.tasks import TASKS

# Architectures of the published backbones whose scores name a recipe, or may name one.
ARCHS = {
    "ViT-S/16": "vit_s",
    "ViT-B/16": "vit_b",
    "ViT-B/8": "vit_b",
    "ViT-L/16": "vit_l",
    "ViT-S/14": "vit_s",
    "ViT-B/14": "vit_b",
    "ViT-L/14": "vit_l",
    "ViT-H/14": "vit_h",
    "Swin-T": "swin_t",
    "Swin-S": "swin_s",
    "Swin-B": "swin_b",
    "Swin-L": "swin_l",
    "SwinV2-B": "swinv2_b",
    "ConvNeXt-T": "convnext_t",
    "ConvNeXt-S": "convnext_s",
    "ConvNeXt-B": "convnext_b",
    "ResNet-50": "resnet50",
    "ResNet-101": "resnet101",
}
# Images of the pretraining data sets: ILSVRC 2012, train (arXiv 1409.0575, table 2).
PRETRAINING_IMAGES = {"IN1K": 1_281_167}
# Images of the validation sets by layout: ILSVRC 2012 (arXiv 1409.0575, table 2), COCO's val2017 (cocodataset.org) and
# ADE20K (arXiv 1608.05442).
VALIDATION_IMAGES = {"imagenet": 50_000, "coco": 5_000, "ade20k": 2_000}
LAYOUTS = {column.task: task.data for task in TASKS.values() for column in task.columns}


def add_published(board: Board, rows: Sequence[ReportedRow]) -> Board:
    """Return a board whose cells have their published counterparts.

    Args:
        rows: all published rows.
    """
    groups = []
    for group in board.groups:
        ours = [
            replace(
                row,
                cells=tuple(
                    cell and replace(cell, published=_find_counterpart(cell, i, board, rows))
                    for i, cell in enumerate(row.cells)
                ),
            )
            for row in group.rows
        ]
        groups.append(replace(group, rows=tuple(ours)))
    return replace(board, groups=tuple(groups))


def _find_counterpart(
    cell: ScoreCell, column: int, board: Board, rows: Sequence[ReportedRow]
) -> ReportedScore | None:
    """Return the published score of a cell's recipe and checkpoint, if there is one."""
    record = board.records[cell.records[0]]  # all records of a cell have these in common
    if cell.deviates or not cell.is_sound or not _has_validation_images(record):
        return None
    scores = ((row, score) for row in rows if (score := row.scores[column]) is not None)
    return next((score for row, score in scores if _is_counterpart(record, row, score)), None)


def _is_counterpart(record: Record, row: ReportedRow, score: ReportedScore) -> bool:
    """Return whether a published score is of the model of a record."""
    if record.command[:2] == ["simmim-bench", "evaluate"]:
        return _has_label(record.checkpoint, score.finetuned)
    same_recipe = score.recipe == record.recipe["name"]
    return same_recipe and _is_published_checkpoint(record.checkpoint, row, score)


def _has_validation_images(record: Record) -> bool:
    """Return whether a record's data set has as many images as the published validation set."""
    return record.expected == VALIDATION_IMAGES.get(LAYOUTS.get(record.task, ""))


def _is_published_checkpoint(
    checkpoint: Mapping[str, Any], row: ReportedRow, score: ReportedScore
) -> bool:
    """Return whether a record's checkpoint is a published model, or was pretrained by its recipe."""
    provenance = checkpoint["provenance"]
    if checkpoint["arch"] != ARCHS.get(row.backbone):
        return False
    if _has_label(checkpoint, score.checkpoints):
        # An intermediate checkpoint has the tag of the last one.
        return provenance.get("epochs") in (None, row.epochs)
    recipe, data = provenance.get("recipe"), provenance.get("data")
    return (
        isinstance(recipe, Mapping)
        and isinstance(data, Mapping)
        and recipe.get("name") == score.pretraining_recipe
        and not recipe.get("deviates")
        and not provenance.get("init_from")
        and provenance.get("epochs") == row.epochs
        and data.get("images") == PRETRAINING_IMAGES.get(str(row.data))
    )


def _has_label(checkpoint: Mapping[str, Any], labels: Sequence[str]) -> bool:
    """Return whether a checkpoint has one of some labels; official SimMIM files also have theirs as a tag."""
    names = (checkpoint["label"], checkpoint["provenance"].get("tag"))
    return any(name in labels for name in names)
