"""The result of a check, and the text and exit code of many."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import click

from simmim_bench.errors import DataError, MissingFrameworkError

Severity = Literal["ok", "warning", "problem"]
# Problems of these groups are not about data or checkpoints: they have an exit code of their own.
INSTALLED = ("frameworks", "machine")
COLOURS = {"ok": "green", "warning": "yellow", "problem": "red"}
SHOWN_ITEMS = 5  # --json lists all
NAME_WIDTH = 16  # columns


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The result of one check.

    Attributes:
        group: "frameworks", "machine", a data layout, "checkpoint" or "estimate".
        said: the result, in words.
        remedy: how to fix it; None where there is nothing to fix, or `said` or an item already says how.
        items: the names or messages that `said` only counts.
        facts: the figures, for `--json`.
    """

    group: str
    name: str
    state: Severity
    said: str
    remedy: str | None = None
    items: Sequence[str] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)


def exit_code(findings: Iterable[Finding]) -> int:
    """Return 0 without a problem, 3 for a problem of a framework or the machine, else 4."""
    groups = {finding.group for finding in findings if finding.state == "problem"}
    if groups & set(INSTALLED):
        return MissingFrameworkError.exit_code
    return DataError.exit_code if groups else 0


def describe(findings: Sequence[Finding]) -> Iterator[str]:
    """Yield the lines of the report, group by group."""
    for group, members in itertools.groupby(findings, lambda finding: finding.group):
        yield click.style(group, bold=True)
        for finding in members:
            state = click.style(f"{finding.state:<8}", fg=COLOURS[finding.state])
            yield f"  {state} {finding.name:<{NAME_WIDTH}} {finding.said}".rstrip()
            left = " " * (12 + NAME_WIDTH)
            yield from (f"{left}- {item}" for item in finding.items[:SHOWN_ITEMS])
            if finding.items[SHOWN_ITEMS:]:
                yield f"{left}- ... and {len(finding.items) - SHOWN_ITEMS} more; --json lists all"
            if finding.remedy is not None:
                yield f"{left}fix: {finding.remedy}"
        yield ""
    counts = [
        f"{count} {state}{'s' if count > 1 else ''}"
        for state in ("problem", "warning")
        if (count := sum(finding.state == state for finding in findings))
    ]
    yield ", ".join(counts) or "no problem found"
