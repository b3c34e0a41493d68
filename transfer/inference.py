"""Forward a model over images, each image exactly once, with any number of processes."""

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
    """Forward this process's images batch by batch.

    Each process forwards a contiguous range of the data set, so that processes write separate regions of a
    file. No image is repeated to fill a batch, which would count it twice.

    Args:
        forward: maps (B, C, H, W), normalised, to (B, ...).
        dataset: returns tuples whose first element is the image.
        batch_size: images of a forward pass.

    Yields:
        The batch's indices in the data set, consecutive, and its rows (B, ...), float32 on the CPU.
    """
    count = len(dataset)  # type: ignore[arg-type]
    indices = range(count * dist.rank // dist.size, count * (dist.rank + 1) // dist.size)
    loader = eval_loader(Subset(dataset, indices), batch_size=batch_size, num_workers=num_workers)
    done = 0
    with run.display.task(description, len(indices)) as task:
        for batch, *_ in loader:
            with torch.no_grad(), autocast(dist.device, precision, allow_fp16=True):
                rows = forward(batch.to(dist.device, non_blocking=True)).float().cpu()
            yield indices[done : done + len(batch)], rows
            done += len(batch)
            task.advance(len(batch))


def gather_rows(batches: Iterator[tuple[range, Tensor]], dist: DistContext) -> Tensor:
    """Gather the rows of all processes on rank 0.

    Returns:
        (images, ...) in the data set's order on rank 0; empty on the other processes.
    """
    rows = [row for _, row in batches]
    # A process has no rows where images are fewer than processes.
    gathered = dist.gather(torch.cat(rows) if rows else torch.zeros(0))
    return torch.cat([part for part in gathered if len(part)] or [torch.zeros(0)])
