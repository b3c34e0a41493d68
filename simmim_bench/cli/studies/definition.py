"""A study as its file describes it: data sets, checkpoints, baselines, tasks and figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MOST_SEEDS = 100
LARGEST_SEED = 2**32 - 1
IMAGES = "images"  # a layout for pretraining alone
BASELINES = ("random",)
FIGURES = ("epochs", "width", "images", "cost")


@dataclass(frozen=True, kw_only=True)
class Subset:
    """A data set for pretraining that is a part of another one's training images.

    Attributes:
        source: the folder of the other one.
        count: number of images.
        seed: of their choice.
        folder: where the study writes it.
    """

    source: Path
    count: int
    seed: int
    folder: Path


@dataclass(frozen=True, kw_only=True)
class StudyCheckpoint:
    """A row's checkpoints: to train, one per seed, or a given one.

    Attributes:
        key: its name in the file, which stands for several rows where a setting varies.
        place: where the file describes them, for errors.
        ckpt: CKPT of a given one; None for those to train, which the other fields describe.
        task: the task that trains random weights with labels; None to pretrain without.
        data: the images to train on.
        teacher, init_from: name of another row, or a CKPT.
        tasks: the names of the tasks that score it; None for all of the study.
    """

    name: str
    key: str
    place: str
    ckpt: str | None = None
    arch: str = ""
    task: str | None = None
    recipe: str | None = None
    overrides: tuple[str, ...] = ()
    data: Path = Path()
    seeds: tuple[int, ...] = ()
    teacher: str | None = None
    init_from: str | None = None
    tasks: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class StudyTask:
    """A task of every row.

    Attributes:
        name: the task as records name it.
        place: where the file describes it, for errors.
        recipes: a recipe's name by architecture; "" is for all others.
        seeds: number of seeds for each checkpoint.
        data: the names of its data sets.
        options: of the task, such as `accumulate`.
    """

    name: str
    place: str
    recipes: Mapping[str, str] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()
    seeds: int = 1
    data: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study file, validated.

    Attributes:
        out: the folder of all runs, the leaderboard and the report.
        data: folders by layout, by the name of the data set.
        subsets: those of the data sets that the study writes itself.
        seed: the first seed of the tasks.
        figures: the figures of the report; those that the rows do not vary are left out.
        reference: name of the row that the others are compared with; None for the first checkpoint.
    """

    path: Path
    out: Path
    data: Mapping[str, Mapping[str, Path]]
    subsets: tuple[Subset, ...]
    checkpoints: tuple[StudyCheckpoint, ...]
    baselines: tuple[str, ...]
    tasks: tuple[StudyTask, ...]
    seed: int
    figures: tuple[str, ...]
    reference: str | None

    def with_layout(self, layout: str) -> list[str]:
        """Return the names of the data sets in a layout."""
        return [name for name, folders in self.data.items() if layout in folders]
