"""Load published results, which the leaderboard lists separately because they cannot be recomputed here.

`reported.json` has one entry per published score, with its protocol and source, and with the recipe that follows
this protocol where there is one. The scores are arranged in rows with the leaderboard's columns.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from typing import Any

from simmim_bench.methods import ListedCheckpoint
from simmim_bench.tasks import Column, columns

# Published scores with equal values of these keys belong to the same model.
MODEL_KEYS = ("method", "backbone", "params_m", "data", "epochs", "img_size")


@dataclass(frozen=True)
class ReportedScore:
    """One published score.

    Attributes:
        value: percent.
        confidence: "high" for a score read in the repository or a paper of the method's authors, or in a paper
            whose authors ran the comparison; "medium" for a quotation, or a run by a third party.
        recipe: name of the transfer recipe with the protocol of this score; None if there is none. Of the
            published scores of one checkpoint under one protocol, only one names the recipe: the one that
            was made with the code that the recipe follows.
        pretraining_recipe: name of the recipe that pretrains this score's checkpoint; None if there is none.
        checkpoints: labels of the published pretrained weights that the score was made from: the stem of the
            file, or timm's name.
        finetuned: labels of the published fine-tuned weights with this score.
    """

    value: float
    protocol: str
    source: str
    confidence: str
    note: str | None
    recipe: str | None = None
    pretraining_recipe: str | None = None
    checkpoints: tuple[str, ...] = ()
    finetuned: tuple[str, ...] = ()


@dataclass(frozen=True)
class ReportedRow:
    """One published model with its scores, in the order of `simmim_bench.tasks.columns()` or those selected.

    Attributes:
        params_m: number of parameters in millions.
        data: pretraining data set; None where the source does not name it, as for the two that follow.
        epochs: pretraining epochs.
        img_size: pretraining image size in pixels.
    """

    method: str
    backbone: str
    params_m: float | None
    data: str | None
    epochs: int | str | None
    img_size: int | None
    scores: tuple[ReportedScore | None, ...]

    @property
    def label(self) -> str:
        """The row's label, such as `SimMIM, Swin-L (IN1K, 800 epochs)`."""
        epochs = f"{self.epochs} epochs" if isinstance(self.epochs, int) else self.epochs
        known = [str(text) for text in (self.data, epochs) if text]
        return f"{self.method}, {self.backbone}" + (f" ({', '.join(known)})" if known else "")

    @property
    def recipes(self) -> list[str]:
        """Names of the transfer recipes of the scores, without duplicates."""
        return [*dict.fromkeys(s.recipe for s in self.scores if s is not None and s.recipe)]


def read_reported() -> list[ReportedRow]:
    """Load all published rows; a model that was scored under several protocols has several rows."""
    text = resources.files("simmim_bench.leaderboard").joinpath("reported.json").read_text("utf-8")
    entries_by_model: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for entry in json.loads(text):
        entries_by_model.setdefault(tuple(entry[key] for key in MODEL_KEYS), []).append(entry)
    return [
        ReportedRow(**dict(zip(MODEL_KEYS, model, strict=True)), scores=scores)
        for model, entries in entries_by_model.items()
        for scores in _split_by_protocol(entries)
    ]


def linked_scores(
    rows: Sequence[ReportedRow], recipe: str
) -> Iterator[tuple[Column, ReportedRow, ReportedScore]]:
    """Yield the published scores that a recipe aims at, as a transfer or as a pretraining recipe."""
    for row in rows:
        for column, score in zip(columns(), row.scores, strict=True):
            if score is not None and recipe in (score.recipe, score.pretraining_recipe):
                yield column, row, score


def rows_of_listed(rows: Sequence[ReportedRow], listed: ListedCheckpoint) -> list[ReportedRow]:
    """Return the published rows with scores of a listed checkpoint: those that it names, of its image size."""
    return [
        row
        for row in rows
        if row.label in listed.published and row.img_size in (None, listed.img_size)
    ]


def select_scores(rows: Sequence[ReportedRow], shown: Sequence[Column]) -> list[ReportedRow]:
    """Return the rows with the scores of some columns; rows without a score there are left out."""
    chosen = [columns().index(column) for column in shown]
    narrowed = [replace(row, scores=tuple(row.scores[i] for i in chosen)) for row in rows]
    return [row for row in narrowed if any(score is not None for score in row.scores)]


def _split_by_protocol(
    entries: Sequence[dict[str, Any]],
) -> list[tuple[ReportedScore | None, ...]]:
    """Distribute a model's scores over rows, so that a row has one protocol and source per task.

    The n-th protocol of every task goes into the n-th row; scores of one protocol stay in one row.
    """
    protocols: dict[str, list[tuple[str, str]]] = {}
    rows: dict[int, dict[tuple[str, str], ReportedScore]] = {}
    for entry in entries:
        known = protocols.setdefault(entry["task"], [])
        protocol = (entry["protocol"], entry["source"])
        column = (entry["task"], entry["metric"])
        if protocol not in known:
            known.append(protocol)
        number = known.index(protocol)
        # One source may report two values for the same protocol; the second goes into a further row.
        while column in rows.setdefault(number, {}):
            number += len(entries)
        rows[number][column] = ReportedScore(
            entry["value"],
            entry["protocol"],
            entry["source"],
            entry["confidence"],
            entry["note"],
            entry.get("recipe"),
            entry.get("pretraining_recipe"),
            tuple(entry.get("checkpoints", ())),
            tuple(entry.get("finetuned", ())),
        )
    shown = columns()
    return [
        tuple(rows[number].get((column.task, column.metric)) for column in shown)
        for number in sorted(rows)
    ]
