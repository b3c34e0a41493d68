"""Render published results as Markdown tables, one per task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from simmim_bench.leaderboard.reported import ReportedRow
from simmim_bench.leaderboard.text_tables import MISSING, escape_markdown
from simmim_bench.tasks import LAYOUTS, Column, find_variant


def reported_to_markdown(rows: Sequence[ReportedRow], shown: Sequence[Column]) -> str:
    """Return published results as separate, collapsed Markdown tables, one per task, with recipes and sources.

    Args:
        shown: the columns of the rows' scores.
    """
    sources: list[str] = []
    parts = []
    for task in dict.fromkeys(column.task for column in shown):
        indices = [i for i, column in enumerate(shown) if column.task == task]
        titles = [shown[i].title for i in indices]
        lines = [
            "| published | " + " | ".join(titles) + " | recipe | source |",
            "| --- |" + " ---: |" * len(indices) + " --- | --- |",
        ]
        of_task = [replace(row, scores=tuple(row.scores[i] for i in indices)) for row in rows]
        listed = [row for row in of_task if any(score is not None for score in row.scores)]
        lines += [_reported_line(row, sources) for row in listed]
        if listed:
            heading = f"#### Published: {', '.join(titles)}{_on_published_data(task)}\n\n"
            parts.append(heading + "\n".join(lines))
    references = [f"{number}. {escape_markdown(s)}" for number, s in enumerate(sources, 1)]
    return (
        "<details><summary>Published results, copied from the sources listed below. They were not reproduced "
        "here, and their protocols differ. A recipe is named where one follows the protocol.</summary>\n\n"
        + "\n\n".join([*parts, "\n".join(references)])
        + "\n\n</details>\n"
    )


def _reported_line(row: ReportedRow, sources: list[str]) -> str:
    """Return the line of a published row; its sources are cited by number, and new ones appended."""
    cited = [score.source for score in row.scores if score is not None]
    sources += [source for source in dict.fromkeys(cited) if source not in sources]
    numbers = sorted({sources.index(source) + 1 for source in cited})
    texts = [f"{score.value:.1f}" if score is not None else MISSING for score in row.scores]
    texts += [", ".join(row.recipes) or MISSING, ", ".join(map(str, numbers))]
    return "| " + " | ".join([escape_markdown(row.label), *texts]) + " |"


def _on_published_data(task: str) -> str:
    """Return the data set of a task's published scores, such as ` on COCO`; empty where the column names it."""
    variant = find_variant(task)
    return "" if variant is None else f" on {LAYOUTS[variant.task.data].title}"
