"""`simmim-bench methods`: list public checkpoints by pretraining method, with the scores published for them."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import click

from simmim_bench.cli.options import JSON_OPTION
from simmim_bench.methods import ListedCheckpoint, read_methods, select_ckpts

HEADER = ("checkpoint", "method", "arch", "M params", "px", "pretraining data", "licence")


@click.command()
@click.option(
    "--only",
    multiple=True,
    metavar="PATTERN,...",
    help="Only checkpoints whose name, method, architecture or licence matches, such as 'mae*,vit-b/16'.",
)
@JSON_OPTION
def methods(only: tuple[str, ...], as_json: bool) -> None:
    """List the public checkpoints of `suite --ckpt list:methods`, by pretraining method.

    Shows licence, pretraining data and the published percentages of the protocols that have a column, which
    may differ from the recipes here; --json adds the protocol and source of each, and the paper. Sizes are those of
    the backbone without classifier.

    \b
      simmim-bench methods --only 'dino*'
      simmim-bench methods --only apache-2.0,mit
      simmim-bench suite --ckpt list:methods --only 'dino*' --imagenet imagenet --tasks linear,knn --dry-run
    """
    from simmim_bench.display import align_columns

    chosen = set(select_ckpts([one.ckpt for one in read_methods()], only))
    listed = [one for one in read_methods() if one.ckpt in chosen]
    scores = _published_scores(listed)
    if as_json:
        shown = [
            {**asdict(one), "is_non_commercial": one.is_non_commercial, "scores": scores[one.ckpt]}
            for one in listed
        ]
        click.echo(json.dumps(shown, indent=2))
        return
    rows = [(*HEADER, "published")]
    rows += [
        (
            one.ckpt,
            one.method,
            one.arch,
            f"{one.params_m:,.1f}",
            str(one.img_size),
            one.data,
            one.licence_text,
            _scores_text(scores[one.ckpt]),
        )
        for one in listed
    ]
    click.echo("\n".join(align_columns(rows)))


def _published_scores(listed: list[ListedCheckpoint]) -> dict[str, list[dict[str, Any]]]:
    """Return the published scores of checkpoints as plain JSON."""
    from simmim_bench.leaderboard.reported import read_reported, rows_of_listed
    from simmim_bench.tasks import columns

    reported = read_reported()
    return {
        one.ckpt: [
            {"task": column.task, "metric": column.metric, "row": row.label, **vars(score)}
            for number, column in enumerate(columns())
            for row in rows_of_listed(reported, one)
            if (score := row.scores[number]) is not None
        ]
        for one in listed
    }


def _scores_text(scores: list[dict[str, Any]]) -> str:
    """Return the published percentages by task: `linear 68.0, 67.8; knn 35.57`."""
    by_task: dict[str, dict[str, None]] = {}
    for score in scores:
        name = score["task"] if score["metric"] == "top1" else f"{score['task']} {score['metric']}"
        by_task.setdefault(name, {})[str(score["value"])] = None
    return "; ".join(f"{name} {', '.join(values)}" for name, values in by_task.items())
