"""What the doctor has found: one `Finding` a thing looked at, and the exit code of them all.

In: findings of engines, machine, data sets, a checkpoint, an estimate. Out: lines for people, plain values
for scripts, an exit code.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import click

from simmim_bench.errors import DataError, MissingFrameworkError

Severity = Literal["ok", "warning", "problem"]
INSTALLED = ("engines", "machine")  # groups whose problems are not of what the user gave
COLOURS = {"ok": "green", "warning": "yellow", "problem": "red"}
SHOWN = 5  # of many names; --json has them all
NAMES = 16  # columns


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        group: "engines", "machine", "imagenet", "coco", "ade20k", "checkpoint" or "estimate".
        said: what was found, in words.
        remedy: what to do about it; None where `said` or an item says so itself, or nothing is to be done.
        items: the names or messages that `said` counts.
        facts: the figures, for scripts.
    """

    group: str
    name: str
    state: Severity
    said: str
    remedy: str | None = None
    items: Sequence[str] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)


def exit_code(findings: Iterable[Finding]) -> int:
    """Give 0 where nothing is worse than a warning, 3 where an engine has a problem, else 4."""
    groups = {finding.group for finding in findings if finding.state == "problem"}
    if groups & set(INSTALLED):
        return MissingFrameworkError.exit_code
    return DataError.exit_code if groups else 0


def describe(findings: Sequence[Finding]) -> Iterator[str]:
    """Give the lines that a person reads, group by group."""
    for group, members in itertools.groupby(findings, lambda finding: finding.group):
        yield click.style(group, bold=True)
        for finding in members:
            state = click.style(f"{finding.state:<8}", fg=COLOURS[finding.state])
            yield f"  {state} {finding.name:<{NAMES}} {finding.said}".rstrip()
            left = " " * (12 + NAMES)
            yield from (f"{left}- {item}" for item in finding.items[:SHOWN])
            if finding.items[SHOWN:]:
                yield f"{left}- ... and {len(finding.items) - SHOWN} more; --json has them all"
            if finding.remedy is not None:
                yield f"{left}mend it: {finding.remedy}"
        yield ""
    counts = [
        f"{count} {state}{'s' if count > 1 else ''}"
        for state in ("problem", "warning")
        if (count := sum(finding.state == state for finding in findings))
    ]
    yield ", ".join(counts) or "all fine"
