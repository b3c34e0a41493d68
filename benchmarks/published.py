"""A short table of published scores for the README, from the reported results that the leaderboard lists in full."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from simmim_bench.leaderboard.reported import ReportedRow, read_reported
from simmim_bench.leaderboard.text_tables import MISSING, plain_table
from simmim_bench.tasks import columns

TITLES = ("fine-tuned top-1", "linear", "k-NN", "detection box AP", "mask AP", "segmentation mIoU")


@dataclass(frozen=True)
class Model:
    """A published model: the rows of the reported results that are its own authors' and of these epochs."""

    method: str
    backbone: str
    epochs: tuple[int | None, ...]


MODELS = (
    Model("SimMIM", "ViT-B/16", (800,)),
    Model("SimMIM", "Swin-B", (800,)),
    Model("MAE", "ViT-B/16", (1600,)),
    Model("BEiT", "ViT-B/16", (800,)),
    Model("DINO", "ViT-B/16", (None, 400)),
)


def markdown() -> str:
    """Return the table; a column's score is the first one that the results list with high confidence."""
    reported = read_reported()
    lines = []
    for model in MODELS:
        scores = [f"_{value:.1f}_" if value else MISSING for value in scores_of(model, reported)]
        lines.append([f"{model.method}, {model.backbone}", *scores])
    titles = ["published, ImageNet-1K without labels", *TITLES]
    return plain_table(titles, lines, right=range(1, len(titles)))


def scores_of(model: Model, reported: Sequence[ReportedRow]) -> list[float | None]:
    """Return a model's published score in every column of the table, in percent."""
    rows = [
        row
        for row in reported
        if (row.method, row.backbone) == (model.method, model.backbone)
        and row.epochs in model.epochs
        and (row.data or "").startswith("IN1K")
        and "labels" not in (row.data or "")
    ]
    order = [column.title for column in columns()]
    found = []
    for title in TITLES:
        scores = (row.scores[order.index(title)] for row in rows)
        sure = (s.value for s in scores if s is not None and s.confidence == "high")
        found.append(next(sure, None))
    return found
