"""The named recipes of all commands, by name. Nothing here loads torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from simmim_bench.recipe import Recipe


def pretrain_recipes() -> dict[str, Recipe]:
    """Return the named pretraining recipes."""
    from pretrain.recipes import RECIPES

    return dict(RECIPES)


def transfer_recipes() -> dict[str, Recipe]:
    """Return the named transfer recipes."""
    from transfer.recipes import RECIPES

    return dict(RECIPES)


def scoring_recipes() -> dict[str, Recipe]:
    """Return the named recipes that records can have: of transfers, and of evaluations without training."""
    from transfer.evaluate.recipes import RECIPES

    return {**transfer_recipes(), **RECIPES}


def all_recipes() -> dict[str, Recipe]:
    """Return all named recipes by which something is trained."""
    return {**pretrain_recipes(), **transfer_recipes()}
