"""What a suite is asked to do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class SuiteOptions:
    """What a suite is to do.

    Attributes:
        data_sets: folders by `imagenet`, `coco`, `ade20k`; the tasks of one that is left out are not done.
        baseline: "random" for a row of random weights of each arch.
        tasks: names, or lists of names with commas; empty for all.
        seeds: N for all tasks, TASK=N for one.
        seed: the first seed.
        recipes: TASK=NAME.
        overrides: TASK.KEY=VALUE.
        accumulate, grad_checkpointing: of `coco`.
        label_maps: of `ade20k`.
    """

    ckpts: tuple[str, ...]
    data_sets: dict[str, Path]
    out: Path = Path("runs")
    baseline: str | None = None
    tasks: tuple[str, ...] = ()
    seeds: tuple[str, ...] = ()
    seed: int = 0
    recipes: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    accumulate: int | None = None
    grad_checkpointing: bool = False
    label_maps: bool = False
