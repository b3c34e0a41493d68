"""Made-up validation sets whose images spell their class, and the model that reads it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path

import torch
from torch import Tensor, nn

from simmim_bench.data.named import DataSet
from simmim_bench.display import Display
from simmim_bench.results.record import ScoredModel
from simmim_bench.runs.context import RunContext
from simmim_bench.runs.run_dir import RunDir
from transfer.evaluate.classifier import Classifier
from transfer.evaluate.preprocessing import Preprocessing
from transfer.evaluate.recipes import EVALUATE_IMAGENET
from transfer.shift.classifier import ShiftClassifier, StoredPredictions
from transfer.shift.scores import Score, ShiftScore

RECIPE = dataclasses.replace(EVALUATE_IMAGENET, img_size=(8, 8), num_workers=0)


def write_image(path: Path, code: int) -> None:
    """Write an image of one colour that spells a number below 1024."""
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = bytes((8 * (code // 32) + 4, 8 * (code % 32) + 4, 128))
    path.write_bytes(b"P6 8 8 255\n" + colour * 64)


def write_classes(root: Path, codes: Iterable[tuple[str, int]]) -> Path:
    """Write one image per class folder; `codes` has the folder's name and the number that the image spells."""
    for name, code in codes:
        write_image(root / name / "0.ppm", code)
    return root


class Reader(nn.Module):
    """Return rows of a table of logits (1024, K), by the number that an image spells."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = table

    def forward(self, images: Tensor) -> Tensor:
        codes = (images.mean((2, 3)) * 255 / 8).floor().long()
        return self.table[codes[:, 0] * 32 + codes[:, 1]]


def reader(
    classes: Sequence[str],
    table: Tensor | None = None,
    *,
    stored: StoredPredictions | None = None,
) -> ShiftClassifier:
    """Build a classifier on these images; by default, the spelt number is the class that it predicts."""
    table = torch.eye(1024, len(classes)) if table is None else table
    source = Classifier(
        model=Reader(table),
        num_classes=len(classes),
        described=ScoredModel(
            label="reader", name="reader", sha256="0" * 64, arch="x", params=1, provenance={}
        ),
        preprocessing=Preprocessing(
            img_size=(8, 8), test_crop_ratio=1.0, mean=(0.0,) * 3, std=(1.0,) * 3, source="test"
        ),
        code="test",
    )
    return ShiftClassifier(
        ckpt="reader",
        task="evaluate",
        model=source.model,
        classes=tuple(classes),
        scored=source.described,
        sha256="0" * 64,
        named=RECIPE,
        recipe=RECIPE,
        seed=0,
        source=source,
        stored=stored,
    )


def scored(
    score: Score, folder: Path, classifier: ShiftClassifier, data_set: DataSet
) -> ShiftScore:
    """Score a set in a run directory that gets predictions and a log."""
    (folder / "predictions").mkdir(parents=True)
    with closing(RunDir(folder, Display(quiet=True))) as run:
        found = score(RunContext(run=run, seed=0), classifier, data_set)
    assert found is not None
    return found
