"""One transfer as a task's runner receives it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from simmim_bench.checkpoints.checkpoint import Checkpoint
from simmim_bench.recipe import Recipe
from simmim_bench.tasks import record_name

AnyRecipe = TypeVar("AnyRecipe", bound=Recipe)


@dataclass(frozen=True, kw_only=True)
class TransferJob(Generic[AnyRecipe]):
    """What to transfer, onto what, under which protocol.

    Attributes:
        task: a task of `simmim-bench transfer`, a key of `simmim_bench.tasks.TASKS`.
        checkpoint: the backbone to transfer.
        data: the data set's folder, in the task's layout.
        data_name: the data set's name in the record; None without one.
        data_title: what tables call the data set; None for the name of its folder.
        recipe: the resolved protocol.
        deviates: every difference from the named recipe, kept in the record.
        options: the task's own options by parameter name, such as `fraction` of `fewshot`; see
            `simmim_bench.tasks`. One that was not given is absent or None.
    """

    task: str
    checkpoint: Checkpoint
    data: Path
    recipe: AnyRecipe
    deviates: dict[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    data_name: str | None = None
    data_title: str | None = None

    @property
    def fraction(self) -> float:
        """Fraction of the training images that the task learns from, in (0, 1]."""
        text = self.options.get("fraction")
        return 1.0 if text is None else float(str(text).rstrip("%")) / 100

    @property
    def data_set(self) -> dict[str, str]:
        """The data set as records identify it: `root`, and `name` and `title` if it has them."""
        given = {"name": self.data_name, "title": self.data_title, "root": str(self.data)}
        return {key: value for key, value in given.items() if value is not None}

    @property
    def record_name(self) -> str:
        """The task as records and the leaderboard name it, such as `fewshot-1%`."""
        return record_name(self.task, self.options)
