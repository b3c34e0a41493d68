"""What a suite prints on stdout: the plan before, and the leaderboard and the failed steps after."""

from __future__ import annotations

from collections.abc import Sequence

import click

from simmim_bench.display import format_duration
from simmim_bench.leaderboard.board import select_columns
from simmim_bench.leaderboard.tables import print_table
from transfer.suite.plan import PlannedStep
from transfer.suite.run import SuiteResult


def plan_text(planned: Sequence[PlannedStep]) -> str:
    """Return a plan as a plain-text table, with its total cost below."""
    rows = [("checkpoint", "task", "recipe", "seeds", "state", "cost")]
    for one in planned:
        step = one.step
        seeds = f"{step.seeds[0]}-{step.seeds[-1]}" if len(step.seeds) > 1 else str(step.seeds[0])
        recipe = step.transfer.recipe.name + ("*" if step.transfer.deviates else "")
        cost = "" if one.state == "done" else str(one.estimate)
        rows.append((step.ckpt, step.name, recipe, seeds, one.state, cost))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join([*lines, "", *_remarks(planned)])


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


def print_result(suite: SuiteResult) -> None:
    """Print the leaderboard, and every failed step with the command that runs it alone."""
    if suite.board is not None:
        print_table(select_columns(suite.board))
        click.echo(f"leaderboard  {suite.leaderboard / 'leaderboard.html'}")
    done = sum(result.state == "done" for result in suite.results)
    click.echo(f"{done} of {len(suite.results)} steps done")
    for result in suite.failed:
        click.echo(
            f"\nfailed  {result.step}: {result.error}\n"
            f"log     {result.step.log}\n"
            f"alone   {result.step.command()}"
        )
    if suite.failed:
        click.echo("\nFix the cause and run the same command again; completed steps are skipped.")
