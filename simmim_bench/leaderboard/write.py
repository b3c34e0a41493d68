"""Write the leaderboard's files: tables, the HTML page, and the table inside other documents.

The texts of the tables and documents are rendered separately, so that a check can compare them with the files.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from simmim_bench.errors import DataError
from simmim_bench.files import finish_writing, write_together
from simmim_bench.leaderboard.board import Board, select_columns
from simmim_bench.leaderboard.compact import compact_table
from simmim_bench.leaderboard.page import render_page
from simmim_bench.leaderboard.page_data import page_data
from simmim_bench.leaderboard.published import add_published
from simmim_bench.leaderboard.reported import ReportedRow, select_scores
from simmim_bench.leaderboard.reported_tables import reported_to_markdown
from simmim_bench.leaderboard.small_set_tables import (
    small_sets_to_csv,
    small_sets_to_latex,
    small_sets_to_markdown,
)
from simmim_bench.leaderboard.tables import (
    insert_table,
    to_csv,
    to_json,
    to_latex,
    to_markdown,
)
from simmim_bench.untrusted.paths import check_below

COMPACT = "leaderboard compact"  # name in the markers of the short table


def render_tables(
    board: Board, out: Path, reported: Sequence[ReportedRow] = (), extra: Collection[str] = ()
) -> dict[Path, str]:
    """Return the text of every table by the path of its file in `out`.

    Args:
        extra: names of the extra columns that the tables show; see `Column.extra`.
    """
    shown = select_columns(add_published(board, reported), extra)
    reported = select_scores(reported, shown.columns)
    parts = [to_markdown(shown), small_sets_to_markdown(board)]
    parts.append(reported_to_markdown(reported, shown.columns) if reported else "")
    latex = [to_latex(shown), small_sets_to_latex(board)]
    texts = {
        out / "LEADERBOARD.md": "\n".join(filter(None, parts)),
        out / "leaderboard.csv": to_csv(shown, reported),
        out / "leaderboard.json": to_json(shown),
        out / "leaderboard.tex": "\n".join(filter(None, latex)),
    }
    if board.small_sets:
        texts[out / "small_sets.csv"] = small_sets_to_csv(board)
    return texts


def render_documents(
    board: Board,
    paths: Iterable[Path],
    reported: Sequence[ReportedRow] = (),
    extra: Collection[str] = (),
) -> dict[Path, str]:
    """Return the text of existing documents with the table inserted between their markers.

    Published results are not listed there, except next to the scores that aim at them. A document with the markers
    `<!-- leaderboard compact: begin -->` and `... end -->` receives the short table of the first group there.

    Raises:
        DataError: a document does not exist.
        UsageError: a document has no markers.
    """
    shown = select_columns(add_published(board, reported), extra)
    table = "\n".join(filter(None, [to_markdown(shown), small_sets_to_markdown(board)]))
    texts = {}
    for path in paths:
        if not path.is_file():
            raise DataError(f"document {path} does not exist.")
        text = path.read_text(encoding="utf-8")
        if f"<!-- {COMPACT}: begin -->" in text:
            text = insert_table(text, compact_table(shown, path), path, COMPACT)
        if f"<!-- {COMPACT}: begin -->" not in text or "<!-- leaderboard: begin -->" in text:
            text = insert_table(text, table, path)
        texts[path] = text
    return texts


def write_leaderboard(
    board: Board,
    out: Path,
    *,
    reported: Sequence[ReportedRow] = (),
    into: Iterable[Path] = (),
    extra: Collection[str] = (),
) -> list[str]:
    """Write the tables and the page into a folder, and the table into documents, all or none.

    The page has all columns.

    Args:
        out: folder of the tables and of `leaderboard.html`.
        reported: published results, listed separately.
        into: existing documents with markers for the table.
        extra: names of the extra columns that the tables show.

    Returns:
        The problems that the page lists: of records, and of the files that only the page shows.

    Raises:
        DataError: a document does not exist, a file cannot be written, or a link leads out of the folder.
        UsageError: a document has no markers.
    """
    finish_writing(out)  # the documents are read next
    texts = render_tables(board, out, reported, extra)
    page = page_data(add_published(board, reported), reported)
    texts[out / "leaderboard.html"] = render_page(page)
    for path in texts:  # the folder may be of a contributor
        check_below(out, path, "leaderboard")
    write_together(texts | render_documents(board, into, reported, extra), out)
    problems: list[str] = page["problems"]
    return problems
