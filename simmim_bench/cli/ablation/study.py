"""An ablation study: its grid of cells, and one step per cell and seed.

A step pretrains one cell of the grid and transfers the result, in a separate process. Cells that change the
same settings share a run directory, OUT/CHANGES/seedN, whatever axis they are on.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from simmim_bench.errors import DataError, UsageError, nearest
from simmim_bench.runs.options import RunOptions
from simmim_bench.tasks import TaskVariant, variants

if TYPE_CHECKING:
    from pretrain.recipes import PretrainRecipe
    from pretrain.step import PretrainStep
    from simmim_bench.display import Display
    from simmim_bench.distributed import DistContext
    from simmim_bench.results.ablation import AblationCell, Grid
    from simmim_bench.runs.status import RunStatus
    from transfer.launch import ResolvedTransfer, TransferRequest


@dataclass(frozen=True, kw_only=True)
class AblationStudy:
    """A validated request of `simmim-bench ablate`.

    Attributes:
        grid: the cells, the recipe's own first.
        recipe, named: the pretraining recipe with and without the overrides.
        transfer_data: the transfer's data set; `transfer_recipe` and `transfer_overrides` likewise.
        words: the arguments of `simmim-bench` that repeat the request, without cell and seed.
        recipe_words: those of `simmim-bench pretrain` that choose the recipe of the first cell.
    """

    arch: str
    grid: Grid
    recipe: Any
    named: Any
    data: Path
    task: str
    transfer_data: Path
    transfer_recipe: str | None
    transfer_overrides: tuple[str, ...]
    seeds: tuple[int, ...]
    out: Path
    words: tuple[str, ...]
    recipe_words: tuple[str, ...]

    @property
    def variant(self) -> TaskVariant:
        """The transfer task with its options."""
        return variants()[self.task]

    @property
    def metric(self) -> str:
        """The score of a cell: the task's first column in the leaderboard."""
        return next(c.metric for c in self.variant.task.columns if c.task == self.task)

    @property
    def transfer_recipe_name(self) -> str:
        """The recipe of every cell's transfer, random weights included: the one given, or the recipe's default."""
        from simmim_bench.models.archs import find_spec
        from simmim_bench.recipe import find_recipe
        from transfer.recipes import RECIPES, default_recipe

        if self.transfer_recipe is not None:
            return find_recipe(RECIPES, self.transfer_recipe).name
        return default_recipe(self.variant.task.name, find_spec(self.arch), self.named.name).name

    @property
    def results(self) -> Path:
        """The folder of the table and the figure."""
        return self.out / "-".join(self.grid.axes)

    def request(self) -> TransferRequest:
        """Build the request of a cell's transfer."""
        from transfer.launch import TransferRequest

        return TransferRequest(
            task=self.variant.task.name,
            task_options=self.variant.options,
            options=RunOptions(
                data=self.transfer_data,
                recipe=self.transfer_recipe_name,
                overrides=self.transfer_overrides,
                resume=True,
            ),
        )

    def steps(self) -> Iterator[AblationStep]:
        """Yield all steps, seed by seed, so that the whole grid is first done with one seed."""
        for seed in self.seeds:
            for cell in (*self.grid.cells, None):
                yield AblationStep(self, cell, seed)


@dataclass(frozen=True)
class AblationStep:
    """One cell with one seed: a pretraining and its transfer. Without a cell, a transfer of random weights."""

    study: AblationStudy
    cell: AblationCell | None
    seed: int

    def __str__(self) -> str:
        return f"{self.name}, seed {self.seed}"

    @property
    def name(self) -> str:
        """The cell's name."""
        from simmim_bench.results.ablation import NO_PRETRAINING

        return NO_PRETRAINING if self.cell is None else self.cell.name

    @property
    def folder(self) -> Path:
        """The folder of the step's two runs."""
        changes = "random" if self.cell is None else _folder_name(self.cell.changes) or "own"
        return self.study.out / changes / f"seed{self.seed}"

    @property
    def pretraining(self) -> Path:
        """The run directory of the pretraining."""
        return self.folder / "pretrain"

    @property
    def pretrain_step(self) -> PretrainStep | None:
        """The pretraining as a step of its own; None without a cell."""
        from pretrain.step import PretrainStep

        if self.cell is None:
            return None
        changes = (f"{key}={value}" for key, value in self.cell.changes.items())
        return PretrainStep(
            title=f"pretraining of {self}",
            recipe=cast("PretrainRecipe", self.cell.recipe),
            named=self.study.named,
            words=(*self.study.recipe_words, *(word for text in changes for word in ("-o", text))),
            data=self.study.data,
            seed=self.seed,
            out=self.pretraining,
            log=self.log,
        )

    @property
    def transfer(self) -> Path:
        """The run directory of the transfer."""
        return self.folder / self.study.task.replace("%", "pct")

    @property
    def ckpt(self) -> str:
        """The CKPT that is transferred."""
        return f"random:{self.study.arch}" if self.cell is None else str(self.pretraining)

    @property
    def log(self) -> Path:
        """The file with the process's output."""
        return self.folder / "ablate.log"

    @property
    def exclusive_resource(self) -> str | None:
        """None: steps share nothing."""
        return None

    def arguments(self) -> list[str]:
        """Return the arguments of `simmim-bench` that run the step alone."""
        return [*self.study.words, "--cell", self.name, "--seed", str(self.seed)]

    def statuses(self) -> list[tuple[RunStatus, str]]:
        """Return the status of the pretraining and of the transfer, and why one is blocked."""
        from simmim_bench.checkpoints.without_weights import read_without_weights
        from transfer.launch import resolve_transfer, transfer_status

        found = list[tuple["RunStatus", str]]()
        pretraining = self.pretrain_step
        if pretraining is not None:
            found += pretraining.statuses()
            if found[0][0] != "done":
                return [*found, ("to do", "")]
        try:
            checkpoint = read_without_weights(self.ckpt)
            transfer = resolve_transfer(self.study.request(), self.ckpt, checkpoint)
        except DataError as error:
            return [*found, ("blocked", str(error))]
        return [*found, transfer_status(transfer, self.transfer, self.seed)]

    def run(self, display: Display, dist: DistContext) -> None:
        """Run what is left of the step, in this process."""
        from transfer.launch import resolve_transfer, run_transfer

        features = self.folder / "features"
        pretraining = self.pretrain_step
        if pretraining is not None:
            pretraining.run(display, dist)
        request = self.study.request()
        if "features" in self.study.variant.task.options:
            request = request.with_option("features", features)
        transfer: ResolvedTransfer = resolve_transfer(request, self.ckpt)
        run_transfer(transfer, self.transfer, seed=self.seed, display=display, dist=dist)
        if dist.is_main:  # no other step uses this cell's features
            shutil.rmtree(features, ignore_errors=True)


def choose_steps(study: AblationStudy, names: Sequence[str]) -> list[AblationStep]:
    """Return the steps of the named cells, of the recipe's own and of random weights; all without names.

    Raises:
        UsageError: an unknown cell.
    """
    steps = list(study.steps())
    known = list(dict.fromkeys(step.name for step in steps))
    for name in names:
        if name not in known:
            raise UsageError(f"--cells: unknown cell '{name}'; {nearest(name, known)}")
    wanted = {*names, known[0], known[-1]} if names else set(known)
    return [step for step in steps if step.name in wanted]


def step_state(statuses: Sequence[tuple[RunStatus, str]]) -> str:
    """Return the status of a whole step, in words."""
    found = [state for state, _ in statuses]
    for state in ("blocked", "running elsewhere"):
        if state in found:
            return state
    if all(state == "done" for state in found):
        return "done"
    return "to do" if all(state == "to do" for state in found) else "resumable"


def step_json(step: AblationStep, statuses: Sequence[tuple[RunStatus, str]]) -> dict[str, Any]:
    """Return the plain form of a step and its status."""
    return {
        "cell": step.name,
        "changes": {} if step.cell is None else step.cell.changes,
        "seed": step.seed,
        "run": str(step.folder),
        "state": step_state(statuses),
    }


def plan_text(plan: Sequence[dict[str, Any]], left_out: dict[str, str]) -> str:
    """Return the grid as plain text: one line per cell, with the status of each seed."""
    from simmim_bench.results.ablation import NO_PRETRAINING, describe_changes, describe_left_out

    names = list(dict.fromkeys(one["cell"] for one in plan))
    width = max(map(len, names))
    lines = []
    for name in names:
        of_cell = [one for one in plan if one["cell"] == name]
        seeds = ", ".join(f"seed {one['seed']} {one['state']}" for one in of_cell)
        changes = "" if name == NO_PRETRAINING else describe_changes(of_cell[0]["changes"])
        lines.append(f"{name:<{width}}  {seeds}  {changes}".rstrip())
    lines += describe_left_out(left_out)
    left = sum(one["state"] != "done" for one in plan)
    return "\n".join([*lines, "", f"{left} of {len(plan)} steps to do"])


def _folder_name(changes: dict[str, Any]) -> str:
    """Convert the settings that a cell changes to a folder's name."""
    texts = (f"{key}={value}" for key, value in changes.items())
    return re.sub(r"[^\w.=+-]+", "-", "+".join(texts))
