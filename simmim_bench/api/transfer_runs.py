"""Run transfers and read their scores, for the Python interface and the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simmim_bench.api.arguments import check_ckpt, check_data, check_transfer
from simmim_bench.api.display import open_display
from simmim_bench.api.transfer_result import TransferResult
from simmim_bench.errors import BenchError, UsageError
from simmim_bench.imports import without_collection
from simmim_bench.library import is_library_call
from simmim_bench.runs.options import RunOptions
from simmim_bench.shift_sets import SHIFT_TASK
from simmim_bench.tasks import TASKS, check_options, given_options

if TYPE_CHECKING:
    from simmim_bench.data.named import DataSet
    from simmim_bench.display import Display
    from simmim_bench.distributed import DistContext
    from transfer.launch import TransferPlan

    Pair = tuple[TransferPlan, TransferPlan | None]


@dataclass(frozen=True)
class Transfers:
    """The results of a transfer to one or several data sets.

    Attributes:
        failure: the error of a comparison with the baseline, to be raised once the scores are shown.
        is_main: whether this process is rank 0; the results of others have no uncertainty.
    """

    results: list[TransferResult]
    failure: BenchError | None = None
    is_main: bool = True


def run_transfers(
    task: str,
    ckpt: str,
    data_sets: Sequence[DataSet],
    options: RunOptions,
    *,
    seeds: int = 1,
    baseline: str | None = None,
    model: str | None = None,
    task_options: Mapping[str, Any],
) -> Transfers:
    """Transfer a checkpoint with the options of a command line.

    Args:
        options: those of the first data set.
        task_options: see `TransferRequest`.

    Raises:
        UsageError, DataError, MissingFrameworkError, DivergedError: see `transfer`.
    """
    if task in TASKS:
        check_options(task, given_options(task_options))
    check_data(task, data_sets)
    if task == SHIFT_TASK:
        given = {"baseline": baseline, "seed": options.seed, **task_options}
        _refuse_options({"seeds": seeds if seeds > 1 else None, **given})
        return _run_shift(ckpt, model, data_sets, options)
    if model is not None:
        raise UsageError(f"--model is only for {SHIFT_TASK}, not for {task}; remove it.")
    check_transfer(task, ckpt, options.recipe, options.overrides)
    if baseline not in (None, "random"):
        check_ckpt(str(baseline))
    with without_collection():
        from simmim_bench.distributed import init_distributed
        from simmim_bench.training.determinism import deterministic_algorithms
        from transfer.launch import (
            TransferRequest,
            check_run_dirs,
            plan_baseline,
            plan_transfer,
            requests_by_data_set,
            run_plan,
        )

    general = TransferRequest(task=task, options=options, task_options=task_options)
    checkpoint, pairs = None, list["Pair"]()
    for request in requests_by_data_set(general, data_sets):
        range_of_seeds = range(options.seed, options.seed + seeds)
        ours = plan_transfer(
            request, ckpt, range_of_seeds, checkpoint=checkpoint, resume=options.resume
        )
        checkpoint = ours.transfer.checkpoint
        other = None if baseline is None else plan_baseline(request, ours, baseline)
        pairs.append((ours, other))
    with deterministic_algorithms(options.deterministic), init_distributed() as dist:
        display = open_display(options.quiet or not dist.is_main)
        # Check the baselines' directories first, so that none can fail after hours of training.
        for plan in (plan for pair in pairs for plan in pair if plan is not None):
            if dist.is_main:
                check_run_dirs(plan)
        for ours, other in pairs:
            if options.out is None:
                display.log(f"{task}: out={ours.run_dirs[0]}")
            run_plan(ours, display=display, dist=dist)
            if other is not None:
                run_plan(other, display=display, dist=dist)
        _finish_together(dist)
    if not dist.is_main:
        folders = {ours.transfer.request.options.data_name: ours.run_dirs for ours, _ in pairs}
        return _unscored(folders)
    return _read_results(pairs, display, shows_paths=options.as_json or is_library_call())


def _read_results(pairs: Sequence[Pair], display: Display, *, shows_paths: bool) -> Transfers:
    """Read the scores of all runs, and compare each checkpoint with its baseline.

    Args:
        shows_paths: whether to log where the records are.
    """
    from simmim_bench.results.scored_runs import read_scored_runs
    from transfer.compare import compare_runs

    results, failure = list[TransferResult](), None
    count = sum(len(plan.run_dirs) for pair in pairs for plan in pair if plan is not None)
    # Matching the detections of COCO takes about ten seconds per run.
    with display.task("uncertainty", count) as progress:
        for ours, other in pairs:
            runs, above = read_scored_runs(ours.run_dirs, progress.advance), {}
            if other is not None:
                try:
                    above = compare_runs(runs, read_scored_runs(other.run_dirs, progress.advance))
                except BenchError as error:
                    failure = error
            # The command line prints the path on stdout, unless that is JSON.
            for path, record in runs.records.items() if shows_paths else ():
                display.log(f"{record.task}: record={path}")
            name = ours.transfer.request.options.data_name
            results.append(TransferResult(name, runs, "" if other is None else other.ckpt, above))
    return Transfers(results, failure)


def _refuse_options(given: Mapping[str, Any]) -> None:
    """Refuse the options that `shift` does not take: it trains and samples nothing.

    Raises:
        UsageError: one of them was given.
    """
    for name, value in given.items():
        if value:
            raise UsageError(
                f"--{name.replace('_', '-')} does not apply to {SHIFT_TASK}, which scores a trained classifier; "
                "remove it."
            )


def _run_shift(
    ckpt: str, model: str | None, data_sets: Sequence[DataSet], options: RunOptions
) -> Transfers:
    """Score a classifier on further validation sets."""
    with without_collection():
        from simmim_bench.distributed import init_distributed
        from simmim_bench.results.scored_runs import read_scored_runs
        from simmim_bench.training.determinism import deterministic_algorithms
        from transfer.shift.run import ShiftRequest, run_shift, shift_dirs

    request = ShiftRequest(ckpt=ckpt, data_sets=data_sets, options=options, model=model)
    with deterministic_algorithms(options.deterministic), init_distributed() as dist:
        display = open_display(options.quiet or not dist.is_main)
        run_shift(request, display=display, dist=dist)
        _finish_together(dist)
    folders = dict(zip((one.name for one in data_sets), shift_dirs(request), strict=True))
    if not dist.is_main:
        return _unscored({name: [folder] for name, folder in folders.items()})
    return Transfers(
        [TransferResult(name, read_scored_runs([folder])) for name, folder in folders.items()]
    )


def _finish_together(dist: DistContext) -> None:
    """Wait for rank 0, which writes the records that every process of a library call reads."""
    if is_library_call():
        dist.barrier()


def _unscored(folders: Mapping[str | None, Sequence[Path]]) -> Transfers:
    """Return the results of a process that is not rank 0: in a library call the records, else nothing."""
    from simmim_bench.files import wait_for_file
    from simmim_bench.results.record import read_record
    from simmim_bench.results.scored_runs import ScoredRuns

    results = []
    for name, run_dirs in folders.items() if is_library_call() else ():
        paths = [run_dir / "record.json" for run_dir in run_dirs]
        for path in paths:
            wait_for_file(path)
        runs = ScoredRuns({path: read_record(path) for path in paths}, {}, "computed by rank 0")
        results.append(TransferResult(name, runs))
    return Transfers(results, is_main=False)
