"""Build the leaderboard of the records below some folders: `simmim_bench.leaderboard(...)` and `leaderboard build`."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import compress
from os import PathLike
from pathlib import Path
from typing import Any

from simmim_bench.display import Display
from simmim_bench.errors import UsageError, nearest
from simmim_bench.html import escape_html, html_table
from simmim_bench.leaderboard.board import Board, select_columns
from simmim_bench.leaderboard.find import FoundRecords, find_records
from simmim_bench.leaderboard.group_names import group_titles
from simmim_bench.leaderboard.published import add_published
from simmim_bench.leaderboard.reported import read_reported
from simmim_bench.leaderboard.small_set_tables import small_sets_to_markdown
from simmim_bench.leaderboard.tables import explain_board, to_json, to_markdown
from simmim_bench.leaderboard.text_tables import text_rows
from simmim_bench.leaderboard.write import write_leaderboard
from simmim_bench.library import as_library
from simmim_bench.shift_sets import SHIFT_TASK
from simmim_bench.untrusted.text import visible


@dataclass(frozen=True)
class Leaderboard:
    """A leaderboard, as a table in a notebook, as Markdown, or as rows of a DataFrame.

    Attributes:
        board: the groups of rows, and the records that they were built from.
        path: the written page, leaderboard.html; None where nothing was written.
    """

    board: Board = field(repr=False)
    path: Path | None = None

    def rows(self) -> list[dict[str, Any]]:
        """Return one flat row per checkpoint or method and group of protocols, in the tables' order.

        Keys are `data` and `group` (of the protocols), `label`, `arch` and `checkpoint` (hash). For each column there
        are the score, such as `linear/top1`, with `linear/top1 std` over seeds and `linear/top1 images ±`; None where a
        value is missing.
        """
        names = group_titles(self.board)
        rows = json.loads(to_json(self.board))["rows"]
        return [{"data": names[row["group"]], **_flatten(row)} for row in rows]

    def to_markdown(self) -> str:
        """Return the tables as Markdown, as they are inserted into documents."""
        parts = [to_markdown(self.board), small_sets_to_markdown(self.board)]
        return "\n".join(filter(None, parts))

    def __str__(self) -> str:
        return self.to_markdown()

    def _repr_html_(self) -> str:
        """Return the tables as HTML, for a notebook; columns without a score are left out."""
        tables, names = [], group_titles(self.board)
        for group in self.board.groups:
            rows = text_rows(group.rows, overall=self.board.overall)
            used = [any(row.cells[i] for row in group.rows) for i in range(len(self.board.columns))]
            keep = [True] * self.board.overall + used
            titles = ["mean rank"] * self.board.overall + [c.title for c in self.board.columns]
            shown = [list(compress(row.cells, keep)) for row in rows]
            cells = [
                [row.label, *("\n".join(cell.lines) for cell in line)]
                for row, line in zip(rows, shown, strict=True)
            ]
            best = [
                (i, j)
                for i, line in enumerate(shown, 1)
                for j, cell in enumerate(line, 1)
                if cell.best
            ]
            name = f"Group {group.name}: {names[group.name]}"
            head = ["checkpoint", *compress(titles, keep)]
            tables.append(html_table([head, *cells], caption=name, bold=best))
        notes = (*explain_board(self.board), *self.board.problems)
        return "".join([*tables, *(f"<small>{escape_html(note)}</small><br>" for note in notes)])


def _flatten(row: dict[str, Any]) -> dict[str, Any]:
    flat = {key: row[key] for key in ("group", "label", "arch", "checkpoint")}
    for title, score in row["scores"].items():
        values = score or {}
        flat[title] = values.get("mean")
        flat[f"{title} std"] = values.get("std")
        flat[f"{title} images ±"] = values.get("images_se")
    return flat


@as_library()
def build_leaderboard(
    *roots: str | PathLike[str],
    out: str | PathLike[str] | None = None,
    into: Iterable[str | PathLike[str]] = (),
    reported: bool = True,
    overall: bool = False,
    columns: Collection[str] = (),
    quiet: bool = False,
) -> Leaderboard:
    """Build the leaderboard of the records below some folders; with `out`, write its tables and page.

    A record that is damaged is left out, with a warning.

    Args:
        roots: folders of runs; by default runs/.
        out: folder that receives leaderboard.html, LEADERBOARD.md, leaderboard.csv, .json and .tex; None for no files.
        into: Markdown documents with the markers of the table, which is inserted.
        reported: show published results next to the records that follow the same recipe.
        overall: show the mean rank over the tasks.
        columns: extra columns: "shift" for V2, ReaL, A, R, Sketch and C.
        quiet: no progress.

    Returns:
        The leaderboard, which a notebook shows as a table; `rows()` has its numbers.

    Raises:
        DataError: a folder does not exist or has no record, or a file cannot be written.
        UsageError: an unknown column, or a document without markers.

    Example:
        >>> sb.leaderboard("runs", out="leaderboard")
    """
    for name in columns:
        if name != SHIFT_TASK:
            raise UsageError(f"columns: unknown {name!r}; {nearest(name, [SHIFT_TASK])}")
    folders = [Path(root).expanduser() for root in roots] or [Path("runs")]
    documents = [Path(path).expanduser() for path in into]
    target = None if out is None else Path(out).expanduser()
    if documents and target is None:
        raise UsageError("--into needs --out, the folder of the tables; pass it.")
    found = find_with_warnings(folders, _warn)
    return build_board(
        found,
        out=target,
        into=documents,
        reported=reported,
        overall=overall,
        columns=columns,
        display=Display(quiet=quiet),
        warn=_warn,
    )


def build_board(
    found: FoundRecords,
    *,
    out: Path | None,
    into: Sequence[Path] = (),
    reported: bool = True,
    overall: bool = False,
    columns: Collection[str] = (),
    display: Display,
    warn: Callable[[str], None],
) -> Leaderboard:
    """Build the board of some records with published scores, and write it where `out` is given.

    Args:
        display: shows the progress of reading predictions.
        warn: receives a sentence for each file that cannot be read.
    """
    board = read_board(found, overall=overall, display=display, warn=warn)
    published = read_reported() if reported else []
    if out is not None:
        for problem in write_leaderboard(board, out, reported=published, into=into, extra=columns):
            if problem not in board.problems:
                warn(visible(problem))
    shown = select_columns(add_published(board, published), columns)
    return Leaderboard(shown, None if out is None else out / "leaderboard.html")


def find_with_warnings(roots: Iterable[Path], warn: Callable[[str], None]) -> FoundRecords:
    """Read the records below some folders, and warn of the damaged ones.

    Raises:
        DataError: see `find_records`.
    """
    found = find_records(roots)
    for problem in found.problems:
        warn(visible(problem))
    return found


def read_board(
    found: FoundRecords, *, overall: bool, display: Display, warn: Callable[[str], None]
) -> Board:
    """Build the board of some records, with a progress bar while the predictions are read."""
    with display.task("predictions", len(found.records)) as task:
        board = found.board(overall=overall, advance=task.advance)
    for problem in board.problems:
        if problem not in found.problems:
            warn(visible(problem))
    return board


def _warn(problem: str) -> None:
    warnings.warn(problem, stacklevel=5)  # the caller of `build_leaderboard`
