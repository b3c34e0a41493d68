"""Warn of a recipe whose batch is meant for more training images than there are."""

from __future__ import annotations

from collections.abc import Iterator

from simmim_bench.display import plural
from simmim_bench.errors import UsageError

ENOUGH_STEPS = 50  # ours: a schedule counted in epochs has too few steps where an epoch has fewer
SUGGESTED_STEPS = 8  # ours: steps of an epoch at the suggested batch size, at least


def check_batch_fits(batch_size: int, images: int) -> None:
    """Check that a batch is not larger than the data set, whose learning rate would be that of a larger batch.

    Raises:
        UsageError: it is.
    """
    if batch_size > images:
        raise UsageError(f"{_describe_large(batch_size, images)}, or more images.")


def few_steps_warnings(
    batch_size: int, images: int, steps: int, epochs: int, *, enough: int = ENOUGH_STEPS
) -> Iterator[str]:
    """Yield a warning where a batch is larger than the data set, or an epoch has too few steps.

    Args:
        images: number of training images.
        steps: of an epoch.
        enough: the number of steps of an epoch from which there is no warning.
    """
    if batch_size > images:
        yield _describe_large(batch_size, images)
    elif steps < enough:
        yield (
            f"an epoch of {images:,} images has only {plural(steps, 'step')} of batch_size {batch_size:,}, the run "
            f"{steps * epochs:,}, which may be too few to learn from; use a smaller --batch-size or more --epochs"
        )


def _describe_large(batch_size: int, images: int) -> str:
    return (
        f"batch_size {batch_size:,} is more than the {images:,} training images, so that an epoch is one step at a "
        f"learning rate for {batch_size:,} images; use --batch-size {suggest_batch_size(images)}, to which the rate is "
        "scaled"
    )


def suggest_batch_size(images: int) -> int:
    """Return the largest power of two with `SUGGESTED_STEPS` steps in an epoch, or 1."""
    return 1 << max(0, (images // SUGGESTED_STEPS).bit_length() - 1)
