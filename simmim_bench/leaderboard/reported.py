"""Published results, beside which one's own stand, clearly apart: nothing of theirs can be recomputed here.

In: `reported.json`, one published figure an entry with its protocol and source. Out: rows with the columns of
the leaderboard.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from simmim_bench.tasks import columns

# What says that two published figures are of one model.
MODEL = ("method", "backbone", "params_m", "data", "epochs", "img_size")


@dataclass(frozen=True)
class Figure:
    """One published score.

    Attributes:
        value: percent.
        confidence: "high": read in the repository or a paper of the method's authors, or in a paper whose
            authors ran the comparison; "medium": a quotation, or a run by a third party.
    """

    value: float
    protocol: str
    source: str
    confidence: str
    note: str | None


@dataclass(frozen=True)
class ReportedRow:
    """One published model with its figures, in the order of `simmim_bench.tasks.columns()`.

    Attributes:
        data: what it was pretrained on, and at which size in pixels and for how many epochs, where the source
            says so.
        params_m: millions of weights.
    """

    method: str
    backbone: str
    params_m: float | None
    data: str | None
    epochs: int | str | None
    img_size: int | None
    figures: tuple[Figure | None, ...]

    @property
    def label(self) -> str:
        """The row's name."""
        epochs = f"{self.epochs} epochs" if isinstance(self.epochs, int) else self.epochs
        known = [str(text) for text in (self.data, epochs) if text]
        return f"{self.method}, {self.backbone}" + (f" ({', '.join(known)})" if known else "")


def read_reported() -> list[ReportedRow]:
    """Give all published rows, by method and backbone; a model with several protocols has several rows."""
    text = resources.files("simmim_bench.leaderboard").joinpath("reported.json").read_text("utf-8")
    models: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for entry in json.loads(text):
        models.setdefault(tuple(entry[key] for key in MODEL), []).append(entry)
    return [
        ReportedRow(**dict(zip(MODEL, model, strict=True)), figures=figures)
        for model, entries in models.items()
        for figures in _variants(entries)
    ]


def _variants(entries: Sequence[dict[str, Any]]) -> list[tuple[Figure | None, ...]]:
    """Spread a model's figures over as many rows as a task has protocols; figures of one stay together."""
    protocols: dict[str, list[tuple[str, str]]] = {}
    rows: dict[int, dict[tuple[str, str], Figure]] = {}
    for entry in entries:
        known = protocols.setdefault(entry["task"], [])
        protocol = (entry["protocol"], entry["source"])
        column = (entry["task"], entry["metric"])
        if protocol not in known:
            known.append(protocol)
        number = known.index(protocol)
        while column in rows.setdefault(number, {}):  # one source may print two values
            number += len(entries)
        rows[number][column] = Figure(
            entry["value"],
            entry["protocol"],
            entry["source"],
            entry["confidence"],
            entry["note"],
        )
    return [
        tuple(rows[number].get((column.task, column.metric)) for column in columns())
        for number in sorted(rows)
    ]
