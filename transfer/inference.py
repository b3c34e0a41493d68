"""One pass over images: each once, in the order of the list, whatever the number of processes.

In: images, a function from a batch to a row for each image. Out: the rows, batch by batch, or all of them
on the main process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from simmim_bench.data.loader import eval_loader
from simmim_bench.distributed import DistContext
from simmim_bench.runs.run_dir import RunDir
from simmim_bench.training.precision import autocast


def forward_batches(
    forward: Callable[[Tensor], Tensor],
    dataset: Dataset[Any],
    *,
    batch_size: int,
    num_workers: int,
    precision: str,
    run: RunDir,
    dist: DistContext,
    description: str,
) -> Iterator[tuple[range, Tensor]]:
    """Give this process's images, batch by batch: their numbers in the data set, and `forward` of them.

    Each of the processes takes a run of neighbours, so that what it writes is apart from what others write;
    no image is taken twice to fill a batch, which would count it twice.

    Args:
        forward: maps (B, C, H, W), normalised, to (B, ...).
        dataset: gives an image first.

    Returns:
        Numbers, neighbours in order, and rows (B, ...) float32 on the CPU.
    """
    count = len(dataset)  # type: ignore[arg-type]
    numbers = range(count * dist.rank // dist.size, count * (dist.rank + 1) // dist.size)
    loader = eval_loader(Subset(dataset, numbers), batch_size=batch_size, num_workers=num_workers)
    done = 0
    with run.display.task(description, len(numbers)) as task:
        for batch, *_ in loader:
            with torch.no_grad(), autocast(dist.device, precision):
                rows = forward(batch.to(dist.device, non_blocking=True)).float().cpu()
            yield numbers[done : done + len(batch)], rows
            done += len(batch)
            task.advance(len(batch))


def collect(batches: Iterator[tuple[range, Tensor]], dist: DistContext) -> Tensor:
    """Give the rows of all processes' batches, (images, ...), to the main one; the others get nothing."""
    rows = [row for _, row in batches]
    # One process may have none: of fewer images than processes.
    shares = dist.gather(torch.cat(rows) if rows else torch.zeros(0))
    return torch.cat([share for share in shares if len(share)] or [torch.zeros(0)])
