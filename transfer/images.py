"""Which images a transfer reads: those that its checkpoint takes, if the task and the recipe can."""

from __future__ import annotations

from simmim_bench.checkpoints.checkpoint import Checkpoint
from simmim_bench.checkpoints.load import check_rgb, check_statistics_fit
from simmim_bench.data.datasets import check_photometric
from simmim_bench.data.pixel_format import PixelFormat
from simmim_bench.errors import UsageError
from simmim_bench.recipe import Recipe
from simmim_bench.tasks import TASKS
from transfer.finetune.recipes import FinetuneRecipe
from transfer.segmentation.recipes import Ade20kRecipe


def check_images(task: str, recipe: Recipe, checkpoint: Checkpoint) -> None:
    """Check that a task and a recipe can read the images that a checkpoint takes.

    Raises:
        DataError: the task reads RGB images of 8 bits alone, or the checkpoint has no mean and std for its channels.
        UsageError: the recipe changes colours of RGB images of 8 bits.
    """
    check_statistics_fit(checkpoint)
    if not TASKS[task].any_images:
        check_rgb(checkpoint.name, checkpoint.pixel_format, task)
    pixel_format = checkpoint.pixel_format
    if isinstance(recipe, FinetuneRecipe):
        check_photometric(recipe.auto_augment, recipe.color_jitter, pixel_format)
    if isinstance(recipe, Ade20kRecipe) and recipe.photometric and not pixel_format.is_rgb:
        raise UsageError(
            "photometric=true changes colours of RGB images of 8 bits (MMSegmentation's PhotoMetricDistortion), but "
            f"the model takes {pixel_format}; use -o photometric=false."
        )


def default_overrides(recipe: Recipe, pixel_format: PixelFormat) -> tuple[str, ...]:
    """Return what a default recipe leaves out for images that are not RGB of 8 bits: photometric augmentations."""
    if pixel_format.is_rgb:
        return ()
    if isinstance(recipe, Ade20kRecipe):
        return ("photometric=false",) if recipe.photometric else ()
    if not isinstance(recipe, FinetuneRecipe):
        return ()
    overrides = []
    if recipe.auto_augment is not None:
        overrides.append("auto_augment=none")
    if recipe.color_jitter:
        overrides.append("color_jitter=0")
    return tuple(overrides)
