"""The smallest differences that the rows of a suite can show, by column and protocol."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path

from simmim_bench.leaderboard.at_hand import RecordsAtHand, Target
from simmim_bench.leaderboard.forecast import Forecast, make_forecast
from simmim_bench.tasks import variants
from transfer.suite.step import SuiteStep
from transfer.validation_images import count_validation_images

Protocol = tuple[str, str | None, str]  # task, name of the data set, hash of the recipe


def protocol_of(step: SuiteStep) -> Protocol:
    """Return what the steps have in common whose scores are compared."""
    transfer = step.transfer
    return step.name, transfer.request.options.data_name, transfer.recipe.sha256()


def forecast_steps(
    steps: Sequence[SuiteStep], at_hand: RecordsAtHand
) -> dict[Protocol, tuple[Forecast, ...]]:
    """Forecast the smallest differences of each protocol of a suite, one for each column of its task."""
    by_protocol = dict[Protocol, list[SuiteStep]]()
    for step in steps:
        by_protocol.setdefault(protocol_of(step), []).append(step)
    count_images = cache(count_validation_images)  # many tasks share a data set
    return {
        protocol: _forecast(found, at_hand, count_images) for protocol, found in by_protocol.items()
    }


def _forecast(
    steps: Sequence[SuiteStep],
    at_hand: RecordsAtHand,
    count_images: Callable[[str, Path], int | None],
) -> tuple[Forecast, ...]:
    """Forecast the columns of one protocol's steps."""
    step = steps[0]
    task, options = variants()[step.name].task, step.transfer.request.options
    only_random = all(one.ckpt.startswith("random:") for one in steps)
    return tuple(
        make_forecast(
            at_hand,
            Target(
                task=step.name,
                metric=column.metric,
                recipe=step.transfer.recipe.sha256(),
                data=(str(options.data), options.data_name),
                limit=getattr(step.transfer.recipe, "limit", None),
                varies=task.varies_with_seed or only_random,
                paired=task.samples_images,
            ),
            len({seed for one in steps for seed in one.seeds}),
            partial(count_images, task.data, options.data),
        )
        for column in task.columns
        if column.task == step.name
    )
