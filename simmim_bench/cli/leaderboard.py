"""`simmim-bench leaderboard build | check | show | compare | keep`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from simmim_bench.cli.options import PATH, open_display, scoring_recipes
from simmim_bench.errors import DataError, DriftError
from simmim_bench.shift_sets import SHIFT_TASK

if TYPE_CHECKING:
    from simmim_bench.leaderboard.board import Board
    from simmim_bench.leaderboard.find import FoundRecords
    from simmim_bench.leaderboard.reported import ReportedRow


@click.group()
def leaderboard() -> None:
    """Build, check or print the leaderboard of the records below some folders, compare rows, or export records.

    There is one row per checkpoint, or per method where it was pretrained with several seeds. Rows under other
    recipes or on other data are in groups of their own. "seeds ±" is the standard deviation over seeds, "images ±"
    the standard error from the finite number of images. Bold scores cannot be distinguished from the best of
    their column: the 95 % interval of the difference includes 0. Named data sets (transfer --data NAME=DIR) have a
    table per task and recipe: one column per data set, and a mean where a row is complete.

    \b
      simmim-bench leaderboard build runs --into README.md
      simmim-bench leaderboard check runs --into README.md
      simmim-bench leaderboard compare "SimMIM pocket" random runs
      simmim-bench leaderboard keep runs --out benchmarks/records/mine
    """


_roots = click.argument("roots", nargs=-1, type=PATH, default=(Path("runs"),))
_table_folder = click.option(
    "--out",
    type=PATH,
    default=Path("leaderboard"),
    show_default=True,
    help="Folder of the tables.",
)
_documents = click.option(
    "--into",
    multiple=True,
    type=PATH,
    metavar="FILE",
    help="A Markdown document with the table between <!-- leaderboard: begin --> and "
    "<!-- leaderboard: end -->, or a short one of the first group, whose scores link to their records, between "
    "<!-- leaderboard compact: begin --> and <!-- leaderboard compact: end -->; may be repeated.",
)
_published = click.option(
    "--reported/--no-reported",
    default=True,
    show_default=True,
    help="Show published results next to the records, clearly separated.",
)

_overall = click.option(
    "--overall",
    is_flag=True,
    help="Show the mean rank of the sound rows over the tasks, one vote per task. Without, there is no rank over all "
    "tasks: their scales differ.",
)
_columns = click.option(
    "--columns",
    "extra",
    multiple=True,
    type=click.Choice([SHIFT_TASK]),
    help="Show extra columns in the tables: shift for V2, ReaL, A, R, Sketch and C. The page has all.",
)


def _warn(problem: str) -> None:
    click.echo(f"warning: {problem}", err=True)


def _find(roots: tuple[Path, ...]) -> FoundRecords:
    """Read the records, and warn of the damaged ones."""
    from simmim_bench.leaderboard.build import find_with_warnings

    return find_with_warnings(roots, _warn)


def _build(found: FoundRecords, *, overall: bool = False, warn: bool = True) -> Board:
    """Build the board, with a progress bar while the predictions are read, and warn of the damaged ones."""
    from simmim_bench.leaderboard.build import read_board

    report = _warn if warn else (lambda problem: None)
    return read_board(found, overall=overall, display=open_display(False), warn=report)


def _read_published(wanted: bool) -> list[ReportedRow]:
    from simmim_bench.leaderboard.reported import read_reported

    return read_reported() if wanted else []


@leaderboard.command("build")
@_roots
@_table_folder
@_documents
@_published
@_overall
@_columns
def leaderboard_build(
    roots: tuple[Path, ...],
    out: Path,
    into: tuple[Path, ...],
    reported: bool,
    overall: bool,
    extra: tuple[str, ...],
) -> None:
    """Write tables and page from the records below ROOTS, by default runs/.

    The files are LEADERBOARD.md, leaderboard.csv, .json, .tex (booktabs), and leaderboard.html, a single
    file that works offline; and small_sets.csv where data sets have names. A damaged record is reported and left out.
    """
    from simmim_bench.leaderboard.build import build_board
    from simmim_bench.leaderboard.small_set_tables import print_small_sets
    from simmim_bench.leaderboard.tables import print_table

    built = build_board(
        _find(roots),
        out=out,
        into=into,
        reported=reported,
        overall=overall,
        columns=extra,
        display=open_display(False),
        warn=_warn,
    )
    print_table(built.board)
    print_small_sets(built.board)
    click.echo(str(built.path))


@leaderboard.command("check")
@_roots
@_table_folder
@_documents
@_published
@_overall
@_columns
def leaderboard_check(
    roots: tuple[Path, ...],
    out: Path,
    into: tuple[Path, ...],
    reported: bool,
    overall: bool,
    extra: tuple[str, ...],
) -> None:
    """Recompute every score from its predictions, and compare hashes and tables.

    The check covers predictions, COCO's annotations, recipes (against what their names mean now),
    checkpoints that still exist, and the tables; it loads no checkpoint. Exit code 6 when anything differs
    or a record is damaged; every difference is named.
    """
    from simmim_bench.files import finish_writing
    from simmim_bench.leaderboard.check import check_files, check_records
    from simmim_bench.leaderboard.find import find_records
    from simmim_bench.leaderboard.write import render_documents, render_tables

    finish_writing(out)
    found = find_records(roots)
    problems = list(found.problems)
    with open_display(False).task("records", len(found.records)) as task:
        problems += check_records(found.records, scoring_recipes(), task.advance)
    # What cannot be read is among the problems already.
    board, published = _build(found, overall=overall, warn=False), _read_published(reported)
    wanted = render_tables(board, out, published, extra)
    wanted |= render_documents(board, into, published, extra)
    problems += check_files(wanted)
    if problems:
        raise DriftError("\n       ".join(problems))
    click.echo(f"verified: {len(found.records)} records, {len(wanted)} tables.")


@leaderboard.command("show")
@_roots
@click.option("--json", "as_json", is_flag=True, help="Print groups and rows as JSON.")
@click.option(
    "--against",
    type=PATH,
    metavar="FILE",
    help="Print instead the changes since an earlier leaderboard.json, as Markdown.",
)
@_overall
@_columns
def leaderboard_show(
    roots: tuple[Path, ...],
    as_json: bool,
    against: Path | None,
    overall: bool,
    extra: tuple[str, ...],
) -> None:
    """Print the table of the records below ROOTS."""
    from simmim_bench.leaderboard.board import select_columns
    from simmim_bench.leaderboard.changes import changes_to_markdown
    from simmim_bench.leaderboard.published import add_published
    from simmim_bench.leaderboard.small_set_tables import print_small_sets
    from simmim_bench.leaderboard.tables import print_table, to_json
    from simmim_bench.untrusted.json_text import read_json

    board = _build(_find(roots), overall=overall)
    board = select_columns(add_published(board, _read_published(True)), extra)
    if against is not None:
        before = read_json(against, "leaderboard")
        click.echo(changes_to_markdown(before, board, against), nl=False)
    elif as_json:
        click.echo(to_json(board), nl=False)
    else:
        print_table(board)
        print_small_sets(board)


@leaderboard.command("compare")
@click.argument("a")
@click.argument("b")
@_roots
@click.option("--json", "as_json", is_flag=True, help="Print the differences as JSON.")
@click.option(
    "--plot",
    type=PATH,
    metavar="FILE",
    help="Write a forest plot as well; the name ends in .svg or .png.",
)
def leaderboard_compare(
    a: str, b: str, roots: tuple[Path, ...], as_json: bool, plot: Path | None
) -> None:
    """Compare rows A and B: differences in every column that both have, with 95 % intervals.

    A and B are labels or parts of labels, CKPT as in the runs, or the first digits of a checkpoint's hash.
    A difference is A - B on the same images under the same protocol. Its interval covers other images and
    other seeds, or other pretrainings where a row is of a method with several. A is higher or lower if the
    interval excludes 0. p (Holm) is the p-value adjusted for the number of comparisons.

    \b
      simmim-bench leaderboard compare "SimMIM pocket" random runs
      simmim-bench leaderboard compare runs/mine e0a13c8e runs --plot forest.svg
    """
    import json

    from simmim_bench.leaderboard.compare import compare_rows, plain_comparison
    from simmim_bench.leaderboard.forest import check_plot_path, plot_comparison, print_comparison

    if plot is not None:
        check_plot_path(plot)
    comparison = compare_rows(_build(_find(roots)), a, b)
    if as_json:
        click.echo(json.dumps(plain_comparison(comparison), indent=1, ensure_ascii=False))
    else:
        print_comparison(comparison)
    if plot is not None:
        plot_comparison(comparison, plot)
        click.echo(str(plot), err=as_json)


@leaderboard.command("keep")
@_roots
@click.option("--out", required=True, type=PATH, help="Folder of the copies.")
@click.option(
    "--compact",
    is_flag=True,
    help="Keep of classifications the five best classes of every image alone, about a tenth of the bytes. Calibration "
    "cannot be computed from them, and is left out.",
)
def leaderboard_keep(roots: tuple[Path, ...], out: Path, compact: bool) -> None:
    """Copy the records below ROOTS, with everything that a check needs, to where they can be committed.

    Copied are predictions (COCO's results compressed), descriptions, metrics and COCO's annotations, but no weights.
    """
    from simmim_bench.leaderboard.archive import archive_runs

    found = _find(roots)
    problems = archive_runs(found.records, out, compact=compact)
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    click.echo(f"{len(found.records)} records, {size / 1e6:.1f} MB: {out}")
    if problems:
        raise DataError("\n       ".join(problems))
