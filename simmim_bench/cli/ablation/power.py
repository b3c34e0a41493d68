"""The smallest difference between two cells that an ablation can show."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from simmim_bench.cli.ablation.study import AblationStudy
from simmim_bench.leaderboard.at_hand import Target, read_at_hand
from simmim_bench.leaderboard.forecast import Forecast, make_forecast


def forecast_ablation(study: AblationStudy, warn: Callable[[str], None]) -> Forecast:
    """Forecast the smallest difference of two cells from the completed cells in the study's folder.

    The units are pretrainings. Cells with one are compared with the spread of those with several, on any axis.

    Args:
        warn: called with one sentence for every record that cannot be used.
    """
    from simmim_bench.overrides import override
    from simmim_bench.recipe import find_recipe
    from transfer.recipes import RECIPES
    from transfer.validation_images import count_validation_images

    task = study.variant.task
    recipe = override(find_recipe(RECIPES, study.transfer_recipe_name), study.transfer_overrides)
    target = Target(
        task=study.task,
        metric=study.metric,
        recipe=recipe.sha256(),
        data=(str(study.transfer_data), None),
        limit=getattr(recipe, "limit", None),
        unit="pretraining",
        paired=task.samples_images,
    )
    return make_forecast(
        read_at_hand(study.out, warn),
        target,
        len(study.seeds),
        partial(count_validation_images, task.data, study.transfer_data),
        pool=True,
    )
