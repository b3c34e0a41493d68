"""What `simmim-bench transfer shift` prints: the table of its help, and the scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from simmim_bench.api.transfer_result import TransferResult, images_se
from simmim_bench.shift_sets import SHIFT_SETS

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


def summarise_shift(results: Sequence[TransferResult]) -> tuple[list[str], dict[str, Any]]:
    """Return the scores of each set as lines and as JSON."""
    lines, plain = [], {}
    for result in results:
        record, scores = result.runs.first, result.runs.scores()
        plain[str(result.name)] = {**dataclasses.asdict(record), "images_se": images_se(scores)}
        shown = "; ".join(f"{metric} {score}" for metric, score in scores.items())
        count = f"{record.evaluated:,} of {record.expected:,} images"
        partial = "" if record.status == "reproduced" else f"  (partial: {count})"
        lines.append(f"{result.name}: {shown}{partial}")
    return lines, plain
