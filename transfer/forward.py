"""One pass over images: each once, in the order of the list, whatever the number of processes.

In: images, a function from a batch to a row for each image. Out: the rows, batch by batch, or all of them
on the main process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from simmim_bench.checkpoint import Checkpoint
from simmim_bench.data import ImageDataset, eval_loader, eval_transform
from simmim_bench.kernels import autocast
from simmim_bench.rundir import RunDir
from simmim_bench.sources import ImageList
from simmim_bench.team import Team
from transfer.recipes import FinetuneRecipe, ProbeRecipe


def forward_batches(
    forward: Callable[[Tensor], Tensor],
    images: ImageList,
    *,
    checkpoint: Checkpoint,
    recipe: FinetuneRecipe | ProbeRecipe,
    run: RunDir,
    team: Team,
    description: str,
) -> Iterator[tuple[range, Tensor]]:
    """Give this process's images, batch by batch: their numbers in the list, and `forward` of them.

    Each of the processes takes every so-manieth image; none is taken twice to fill a batch, which would
    count it twice.

    Args:
        forward: maps (B, C, H, W), normalised, to (B, ...).

    Returns:
        Numbers, and rows (B, ...) float32 on the CPU.
    """
    numbers = range(team.rank, len(images), team.size)
    transform = eval_transform(
        recipe.img_size,
        crop_ratio=recipe.test_crop_ratio,
        mean=checkpoint.mean,
        std=checkpoint.std,
    )
    loader = eval_loader(
        ImageDataset(images.subset(numbers), transform),
        batch_size=recipe.batch_size,
        num_workers=recipe.num_workers,
    )
    done = 0
    with run.display.task(description, len(numbers)) as task:
        for batch, _ in loader:
            with torch.no_grad(), autocast(team.device, recipe.precision):
                rows = forward(batch.to(team.device, non_blocking=True)).float().cpu()
            yield numbers[done : done + len(batch)], rows
            done += len(batch)
            task.advance(len(batch))


def collect(batches: Iterator[tuple[range, Tensor]], count: int, team: Team) -> Tensor:
    """Give the rows of all processes' batches, (count, ...), to the main one; the others get nothing."""
    rows = [row for _, row in batches]
    # One process may have none: of fewer images than processes.
    shares = team.gather(torch.cat(rows) if rows else torch.zeros(0))
    if not shares:
        return torch.zeros(0)
    everything = torch.empty(count, *shares[0].shape[1:])
    for rank, share in enumerate(shares):
        if len(share):
            everything[rank :: team.size] = share
    return everything
