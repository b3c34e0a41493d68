"""What a suite prints on stdout: the plan before, and the leaderboard and the failed steps after."""

from __future__ import annotations

from collections.abc import Sequence

import click

from simmim_bench.display import align_columns, format_duration, plural
from simmim_bench.leaderboard.board import Board, select_columns
from simmim_bench.leaderboard.forecast import forecast_text
from simmim_bench.leaderboard.reported import read_reported, rows_of_listed, select_scores
from simmim_bench.leaderboard.tables import print_table
from simmim_bench.methods import find_listed
from simmim_bench.runs.run_check import is_occupied
from transfer.suite.plan import PlannedStep, SuitePlan
from transfer.suite.power import protocol_of
from transfer.suite.rows import UnreadRow
from transfer.suite.run import SuiteResult

COMPARED = ("checkpoint", "method", "column", "here", "published")


def plan_text(plan: SuitePlan) -> str:
    """Return a plan as a plain-text table, with its total cost below."""
    memory = "side by side" in plan.places
    rows = [("checkpoint", "task", "recipe", "seeds", "state", "cost") + ("memory",) * memory]
    for one in plan.steps:
        step = one.step
        seeds = f"{step.seeds[0]}-{step.seeds[-1]}" if len(step.seeds) > 1 else str(step.seeds[0])
        recipe = step.transfer.recipe.name + ("*" if step.transfer.deviates else "")
        cost = "" if one.state == "done" else str(one.estimate)
        need = "" if one.state == "done" else str(one.forecast.need)
        rows.append(
            (step.shown_ckpt, step.title, recipe, seeds, one.state, cost) + (need,) * memory
        )
    for row in plan.unread:
        size = row.download_mb
        download = "" if size is None else f"download of about {size:,.0f} MB"
        rows.append(
            (row.ckpt, row.task or "all tasks", "", "", row.state, download) + ("",) * memory
        )
    power = _power_lines(plan.steps)
    remarks = [*_remarks(plan.steps), *_overwrite_remarks(plan)]
    remarks += [*_place_remarks(plan), *_row_remarks(plan)]
    return "\n".join([*align_columns(rows), "", *power, *remarks])


def _place_remarks(plan: SuitePlan) -> list[str]:
    """Describe which steps run side by side."""
    if not plan.places:
        return []
    left = [one for one in plan.steps if one.state != "done"]
    alone = sum(one.forecast.need.peak is None for one in left)
    unknown = (
        f"; {alone} of unknown memory alone" if alone and "side by side" in plan.places else ""
    )
    shared = " tasks that share a checkpoint's features run one after the other"
    return [f"{plan.places}{unknown};{shared}"]


def _power_lines(planned: Sequence[PlannedStep]) -> list[str]:
    """Return the differences that the plan can show, by column and protocol, with an empty line below."""
    by_protocol = {protocol_of(one.step): one for one in planned}
    titles = [one.step.title for one in by_protocol.values()]
    forecasts = []
    for one in by_protocol.values():
        title = one.step.title
        if titles.count(title) > 1:
            title += f" by {one.step.transfer.recipe.name}"
        forecasts += [(f"{title} {forecast.metric}", forecast) for forecast in one.power]
    lines = forecast_text(forecasts)
    return [*lines, ""] if lines else []


def _remarks(planned: Sequence[PlannedStep]) -> list[str]:
    left = [one for one in planned if one.state != "done"]
    known = [one.estimate for one in left if one.estimate.seconds is not None]
    total = sum(estimate.seconds or 0.0 for estimate in known)
    remarks = [f"{len(left)} of {len(planned)} steps to do"]
    if known:
        unknown = len(left) - len(known)
        remarks[0] += f": {format_duration(total)} of work" + (
            f", and {unknown} of unknown cost" if unknown else ""
        )
        remarks.append(
            "cost: mean wall time of this folder's records with the same recipe, arch, data and device"
        )
    if any(one.step.transfer.deviates for one in planned):
        remarks.append("* differs from the named recipe")
    return remarks


def _overwrite_remarks(plan: SuitePlan) -> list[str]:
    """Return how many runs the suite replaces."""
    count = sum(is_occupied(run_dir) for run_dir in plan.run_dirs)
    if not (plan.overwrite and count):
        return []
    runs = plural(count, "earlier run is", "earlier runs are")
    return [f"{runs} removed; if the suite is interrupted, continue without --overwrite"]


def _row_remarks(plan: SuitePlan) -> list[str]:
    """Describe the rows without steps, and the licences of all rows."""
    missing = [row for row in plan.unread if row.error is None]
    remarks = []
    if missing:
        sizes = [row.download_mb for row in missing]
        total = sum(size or 0.0 for size in sizes) / 1000
        unknown = sizes.count(None)
        remarks.append(
            f"{len(missing)} checkpoints to download, which have their steps afterwards: about {total:,.1f} GB"
            + (f", and {unknown} of unknown size" if unknown else "")
        )
    ckpts = dict.fromkeys([one.step.ckpt for one in plan.steps] + [r.ckpt for r in plan.unread])
    listed = [one for ckpt in ckpts if (one := find_listed(ckpt)) is not None]
    restricted = [one.ckpt for one in listed if one.is_non_commercial]
    if restricted:
        remarks.append(f"licence forbids commercial use: {', '.join(restricted)}")
    for note in dict.fromkeys(one.note for one in listed if one.note):
        remarks.append(f"{', '.join(one.ckpt for one in listed if one.note == note)}: {note}")
    return remarks + blocked_text(plan.unread)


def blocked_text(rows: Sequence[UnreadRow]) -> list[str]:
    """Return a line for each reason, which several rows may have in common, with one of its rows."""
    groups = dict[str, list[str]]()
    for row in rows:
        if row.error is not None:
            line = f"{f'{row.task} of {row.ckpt}: ' if row.task else ''}{row.obstacle}"
            groups.setdefault(line.replace(row.ckpt, ""), []).append(line)
    return [
        f"blocked  {lines[0]}"
        if len(lines) == 1
        else f"blocked  {len(lines)} rows alike: {lines[0]}"
        for lines in groups.values()
    ]


def compare_published(board: Board) -> list[tuple[str, ...]]:
    """Return the scores of listed checkpoints beside those that are published for the same weights.

    Returns:
        Checkpoint, method, column, score and published scores; a score without published ones is left out.
    """
    published, found = read_reported(), list[tuple[str, ...]]()
    for row in board.rows:
        listed = find_listed(board.records[row.records[0]].checkpoint["name"])
        if listed is None:
            continue
        scores = select_scores(rows_of_listed(published, listed), board.columns)
        for number, (column, cell) in enumerate(zip(board.columns, row.cells, strict=True)):
            values = [score.value for r in scores if (score := r.scores[number]) is not None]
            if cell is not None and values:
                texts = ", ".join(map(str, dict.fromkeys(values)))
                found.append((row.label, listed.method, column.title, str(cell), texts))
    return found


def print_result(suite: SuiteResult) -> None:
    """Print the leaderboard, and every failed step with the command that runs it alone."""
    if suite.board is not None:
        board = select_columns(suite.board)
        print_table(board)
        if compared := compare_published(board):
            click.echo("\n".join(align_columns([COMPARED, *compared])))
            click.echo(
                "published: any protocol; `simmim-bench methods --json` has protocol and source"
            )
        click.echo(f"leaderboard  {suite.leaderboard / 'leaderboard.html'}")
    done = sum(result.state == "done" for result in suite.results)
    click.echo(f"{done} of {len(suite.results)} steps done")
    for result in suite.failed:
        click.echo(
            f"\nfailed  {result.step}: {result.error}\n"
            f"log     {result.step.log}\n"
            f"alone   {result.step.command()}"
        )
    if suite.blocked:
        click.echo("\n" + "\n".join(blocked_text(suite.blocked)))
    if suite.failed or suite.blocked:
        click.echo("\nFix the cause and run the same command again; completed steps are skipped.")
