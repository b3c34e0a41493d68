"""`simmim-bench transfer shift`: score a trained classifier on further validation sets."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import click

from simmim_bench.cli.options import open_display
from simmim_bench.cli.transfer_summary import images_se
from simmim_bench.data.named import DataSet
from simmim_bench.errors import UsageError
from simmim_bench.runs.options import RunOptions
from simmim_bench.shift_sets import SHIFT_SETS, SHIFT_TASK

SHIFT_SUMMARY = (  # lines of at most 50 characters, as those of the other tasks
    "score a trained classifier on further validation",
    "sets, NAME=DIR each; see below",
)


def shift_table() -> str:
    """Return the shift sets and the layout of each, as plain text."""
    width = max(len(shift.full_name) for shift in SHIFT_SETS.values()) + 2
    lines = [
        f"{shift.name:<8}{shift.full_name:<{width}}{shift.folders}" for shift in SHIFT_SETS.values()
    ]
    return "\n".join(
        [*lines, f"{'other':<8}{'your own':<{width}}CLASS/*, classes of the classifier"]
    )


def refuse_options(*, seeds: int, **given: Any) -> None:
    """Refuse the options that `shift` does not take: it trains and samples nothing.

    Raises:
        UsageError: one of them was given.
    """
    for name, value in {"seeds": seeds if seeds > 1 else None, **given}.items():
        if value:
            raise UsageError(
                f"--{name.replace('_', '-')} does not apply to {SHIFT_TASK}, which scores a trained classifier; "
                "remove it."
            )


def print_shift_scores(
    ckpt: str, model: str | None, data_sets: tuple[DataSet, ...], options: RunOptions
) -> None:
    """Score a classifier on further validation sets, and print the scores."""
    from simmim_bench.distributed import init_distributed
    from simmim_bench.results.scored_runs import read_scored_runs
    from simmim_bench.training.determinism import deterministic_algorithms
    from transfer.shift.run import ShiftRequest, run_shift, shift_dirs

    request = ShiftRequest(ckpt=ckpt, data_sets=data_sets, options=options, model=model)
    with deterministic_algorithms(options.deterministic), init_distributed() as dist:
        display = open_display(options.quiet or not dist.is_main)
        records = run_shift(request, display=display, dist=dist)
    if not dist.is_main:
        return
    lines, plain = [], {}
    for data_set, record, run_dir in zip(data_sets, records, shift_dirs(request), strict=True):
        scores = read_scored_runs([run_dir]).scores()
        plain[str(data_set.name)] = {**dataclasses.asdict(record), "images_se": images_se(scores)}
        shown = "; ".join(f"{metric} {score}" for metric, score in scores.items())
        count = f"{record.evaluated:,} of {record.expected:,} images"
        partial = "" if record.status == "reproduced" else f"  (partial: {count})"
        lines.append(f"{data_set.name}: {shown}{partial}")
    click.echo(json.dumps(plain) if options.as_json else "\n".join(lines))
