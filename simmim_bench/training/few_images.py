"""Tell from the number of training images whether a recipe's batch is meant for more of them."""

from __future__ import annotations

from collections.abc import Iterator

from simmim_bench.errors import UsageError

FEW_STEPS = (
    50  # ours: steps of an epoch below which a schedule counted in epochs has too few of them
)
SUGGESTED_STEPS = 8  # ours: steps of an epoch at the suggested batch size, at least


def check_batch_fits(batch_size: int, images: int) -> None:
    """Check that a batch is not larger than the data set, whose learning rate would be that of a larger batch.

    Raises:
        UsageError: it is.
    """
    if batch_size > images:
        raise UsageError(f"{_describe_large(batch_size, images)}, or more images.")


def few_steps_warnings(batch_size: int, images: int, epochs: int) -> Iterator[str]:
    """Yield a warning where an epoch has fewer than `FEW_STEPS` steps."""
    steps = images // batch_size
    if batch_size > images:
        yield _describe_large(batch_size, images)
    elif steps < FEW_STEPS:
        yield (
            f"an epoch of {images:,} images has only {steps} steps of batch_size {batch_size:,}, the run "
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
