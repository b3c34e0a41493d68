"""Differences between the rows of a study and its reference row, with 95 % intervals, as Markdown and JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from simmim_bench.cli.studies.results import StudyResults
from simmim_bench.leaderboard.comparable import Table
from simmim_bench.leaderboard.compare import ColumnDifference, adjust, compare_in
from simmim_bench.leaderboard.forest import format_interval
from simmim_bench.leaderboard.text_tables import escape_markdown

LEVEL = 0.05
# By the name of the table and that of the row, a difference for every column that can be compared.
Differences = Mapping[str, Mapping[str, Sequence[ColumnDifference]]]


def compare_with(results: StudyResults, reference: str) -> Differences:
    """Compare every row with the reference, row minus reference, in every table that has both.

    The p-values are adjusted for all differences of a table.

    Args:
        reference: name of a row; "random" for the row of random weights of each row's architecture.
    """
    found: dict[str, dict[str, list[ColumnDifference]]] = {}
    archs = {row.name: row.members[0].checkpoint.spec.arch for row in results.rows}
    for table in results.tables:
        labels = dict(_labels(results, table))
        of_table = {}
        for name, label in labels.items():
            of_arch = (
                f"{reference} {archs[name]}"  # of baselines where rows have several architectures
            )
            other = labels.get(reference, labels.get(of_arch))
            if other is None or other == label:
                continue
            compared = compare_in(table, label, other)
            differences = [one for one in compared if isinstance(one, ColumnDifference)]
            if differences:
                of_table[name] = differences
        adjusted = iter(adjust([one for row in of_table.values() for one in row]))
        if of_table:
            found[table.name] = {name: [next(adjusted) for _ in r] for name, r in of_table.items()}
    return found


def _labels(results: StudyResults, table: Table) -> Iterator[tuple[str, str]]:
    """Yield the name in the study and the label of every row of a table that has one row for it."""
    inside = {one.label for row in table.rows.values() for one in row.pretrainings}
    names = {
        label: results.row_name(row) for label, row in table.rows.items() if label not in inside
    }
    for label, name in names.items():
        if list(names.values()).count(name) == 1:
            yield name, label


def difference_lines(results: StudyResults, tables: Differences, reference: str) -> list[str]:
    """Return the section of the differences; empty where nothing can be compared."""
    if not tables:
        return []
    lines = [f"## Differences to {escape_markdown(reference)}", ""]
    for name, rows in tables.items():
        lines += [f"### {escape_markdown(name)}", ""] if len(tables) > 1 else []
        lines += [*_table_lines(rows), ""]
    lines.append(
        "Percentage points with 95 % intervals over the same images, and over pretrainings or seeds where a row has "
        "several."
    )
    all_found = [one for rows in tables.values() for row in rows.values() for one in row]
    if tested := sum(one.p_adjusted is not None for one in all_found):
        lines.append(
            f"Bold: p < {LEVEL} after Holm's adjustment for the differences of a table, {tested} in all; the intervals "
            "are not adjusted."
        )
    if any(len(row.members) == 1 and row.members[0].source for row in results.rows):
        lines.append("A row of one pretraining is about its checkpoint, not about its method.")
    if any(one.difference.without_units for one in all_found):
        lines.append(
            "Images alone: one pretraining or seed, whose spread is unknown; another one may reverse the difference."
        )
    return [*lines, ""]


def _table_lines(rows: Mapping[str, Sequence[ColumnDifference]]) -> list[str]:
    titles = list(dict.fromkeys(one.title for row in rows.values() for one in row))
    lines = [f"| row | {' | '.join(map(escape_markdown, titles))} |"]
    lines.append("| --- |" + " ---: |" * len(titles))
    for row, differences in rows.items():
        by_title = {one.title: _format_difference(one) for one in differences}
        cells = [by_title.get(title, "") for title in titles]
        lines.append(f"| {escape_markdown(row)} | {' | '.join(cells)} |")
    return lines


def _format_difference(one: ColumnDifference) -> str:
    if one.difference.without_units:
        return f"images alone: {format_interval(one)}"
    significant = one.p_adjusted is not None and one.p_adjusted < LEVEL
    return f"**{format_interval(one)}**" if significant else format_interval(one)


def plain_differences(tables: Differences) -> list[dict[str, Any]]:
    """Return the differences as plain JSON."""
    return [
        {
            "table": table,
            "row": row,
            "column": one.title,
            "points": one.difference.points,
            "low": one.difference.low,
            "high": one.difference.high,
            "p_holm": one.p_adjusted,
            "units": list(one.difference.units),
            "images": one.difference.images,
            "images_alone": one.difference.without_units,
        }
        for table, rows in tables.items()
        for row, of_row in rows.items()
        for one in of_row
    ]
