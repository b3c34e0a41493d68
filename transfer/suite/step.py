"""A step of a suite: the work of one process, and the command that runs it alone."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from simmim_bench.checkpoints.without_weights import read_without_weights
from simmim_bench.data.named import DataSet
from simmim_bench.errors import DataError
from simmim_bench.runs.status import RunStatus, status_to_overwrite
from simmim_bench.tasks import OPTIONS
from transfer.launch import (
    ResolvedTransfer,
    TransferRequest,
    resolve_transfer,
    transfer_status,
)
from transfer.tasks import runner_of


@dataclass(frozen=True, kw_only=True)
class SuiteStep:
    """The work of one process: a task of a checkpoint, with one seed or several.

    Attributes:
        name: the task as records name it.
        transfer: the checkpoint without its weights, the recipe and the options.
        run_dirs: the run directory of each seed.
        log: file with the process's output.
        split_by_seed: whether every seed of the task is a step of its own.
        row: what messages name the checkpoint; empty for CKPT.
        provisional: the checkpoint may not exist yet; `transfer` has one without weights in its place.
    """

    name: str
    ckpt: str
    transfer: ResolvedTransfer
    seeds: tuple[int, ...]
    run_dirs: tuple[Path, ...]
    log: Path
    split_by_seed: bool
    row: str = ""
    provisional: bool = False

    def __str__(self) -> str:
        return f"{self.title} of {self.shown_ckpt}{self.only_seed}"

    @property
    def shown_ckpt(self) -> str:
        """What messages name the checkpoint."""
        return self.row or self.ckpt

    @property
    def kind(self) -> str:
        """The task, recipe and architecture, with which duration and memory go."""
        transfer = self.transfer
        own = f" {transfer.recipe.sha256()[:8]}" if transfer.deviates else ""
        return f"{self.name} {transfer.recipe.name}{own} {transfer.checkpoint.spec.arch}"

    @property
    def title(self) -> str:
        """The task, and the data set if it has a name, such as `knn on pets`."""
        data = self.transfer.request.options.data_name
        return self.name if data is None else f"{self.name} on {data}"

    @property
    def only_seed(self) -> str:
        """The step's seed in parentheses, where every seed of the task is a step of its own."""
        return f" (seed {self.seeds[0]})" if self.split_by_seed else ""

    @property
    def exclusive_resource(self) -> str | None:
        """The checkpoint whose frozen features the step shares with others; one step computes them."""
        return self.ckpt if runner_of(self.transfer.recipe).shares_features else None

    def statuses(self) -> list[tuple[RunStatus, str]]:
        """Return the status of each seed's run, and why it is blocked where it is."""
        transfer = self.transfer
        if self.provisional:
            try:
                checkpoint = read_without_weights(self.ckpt)
            except DataError:  # it does not exist yet
                return [("to do", "")] * len(self.seeds)
            transfer = resolve_transfer(transfer.request, self.ckpt, checkpoint)
        return [
            transfer_status(transfer, run_dir, seed)
            for run_dir, seed in zip(self.run_dirs, self.seeds, strict=True)
        ]

    def statuses_to_overwrite(self) -> list[tuple[RunStatus, str]]:
        """Return the status of each seed's run once an earlier run there is removed."""
        return [status_to_overwrite(run_dir) for run_dir in self.run_dirs]

    def arguments(self) -> list[str]:
        """Return the arguments of `simmim-bench` for the seeds that are left, from first to last."""
        states = [state for state, _ in self.statuses()]
        left = [i for i, state in enumerate(states) if state != "done"] or [0, len(states) - 1]
        first, last = left[0], left[-1]
        out = ["--out", str(self.run_dirs[first])]
        if first < last:
            out = ["--out", str(self.run_dirs[first].parent), "--seeds", str(last - first + 1)]
        words = command_words(self.transfer.request, self.ckpt)
        return [*words, "--seed", str(self.seeds[first]), *out, "--resume"]

    def command(self) -> str:
        """Return the command that runs the step alone, ready to be pasted into a shell."""
        return shlex.join(["simmim-bench", *self.arguments()])


def command_words(request: TransferRequest, ckpt: str) -> list[str]:
    """Return the arguments of `simmim-bench` that repeat a request, without seeds and --out."""
    options = request.options
    data = DataSet(options.data, options.data_name)
    words = ["transfer", request.task, "--ckpt", ckpt, "--data", str(data)]
    words += ["--data-name", options.data_title] if options.data_title else []
    words += ["--recipe", options.recipe] if options.recipe else []
    words += [word for override in options.overrides for word in ("-o", override)]
    words += ["--deterministic"] if options.deterministic else []
    words += [word for name in options.loggers for word in ("--log", name)]
    for name, value in request.task_options.items():
        words += OPTIONS[name].words(value)
    return words
