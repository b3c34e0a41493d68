"""Forward a model over images, each image exactly once, with any number of processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from simmim_bench.data.loader import eval_loader
from simmim_bench.data.normalise import normalise_like_torchvision
from simmim_bench.distributed import DistContext
from simmim_bench.runs.run_dir import RunDir
from simmim_bench.training.precision import autocast

Statistics = tuple[Sequence[float], Sequence[float]]  # mean and standard deviation per channel


def own_part(count: int, dist: DistContext) -> range:
    """Return the indices, consecutive, that this process has of `count`; the processes divide all of them."""
    return range(count * dist.rank // dist.size, count * (dist.rank + 1) // dist.size)


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
    dtype: torch.dtype = torch.float32,
    statistics: Statistics | None = None,
) -> Iterator[tuple[range, Tensor]]:
    """Forward this process's images batch by batch.

    Each process forwards a contiguous range of the data set, so that processes write separate regions of a
    file. No image is repeated to fill a batch, which would count it twice.

    A GPU computes the next batch while the host uses the rows of the one before it.

    Args:
        forward: maps (B, C, H, W), normalised, to (B, ...).
        dataset: returns tuples whose first element is the image.
        batch_size: images of a forward pass.
        dtype: of the rows.
        statistics: mean and standard deviation by which the device normalises decoded images; None where the data
            set has normalised them.

    Yields:
        The batch's indices in the data set, consecutive, and its rows (B, ...), on the CPU.
    """
    count = len(dataset)  # type: ignore[arg-type]
    indices = own_part(count, dist)

    def normalised_forward(images: Tensor) -> Tensor:
        if statistics is not None:
            images = normalise_like_torchvision(images, *statistics)
        return forward(images)

    loader = eval_loader(Subset(dataset, indices), batch_size=batch_size, num_workers=num_workers)
    done = 0
    with run.display.task(description, len(indices)) as task:
        for rows in _lag_by_one(
            _forward(normalised_forward, loader, precision, dist.device, dtype)
        ):
            yield indices[done : done + len(rows)], rows
            done += len(rows)
            task.advance(len(rows))


def _forward(
    forward: Callable[[Tensor], Tensor],
    loader: Iterable[Any],
    precision: str,
    device: torch.device,
    dtype: torch.dtype,
) -> Iterator[Callable[[], Tensor]]:
    """Start the forward pass of every batch; yield functions that wait for its rows on the CPU."""
    for batch, *_ in loader:
        with torch.no_grad(), autocast(device, precision, allow_fp16=True):
            rows = forward(batch.to(device, non_blocking=True)).to(dtype)
        yield _copy_to_host(rows)


def _copy_to_host(rows: Tensor) -> Callable[[], Tensor]:
    """Start to copy rows to the CPU; return a function that waits for the copy and returns it."""
    if rows.device.type != "cuda":
        return rows.cpu
    host = torch.empty(rows.shape, dtype=rows.dtype, pin_memory=True)
    host.copy_(rows, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()

    def wait() -> Tensor:
        copied.synchronize()
        return host

    return wait


def _lag_by_one(started: Iterator[Callable[[], Tensor]]) -> Iterator[Tensor]:
    """Yield the result of each started computation after the next one has been started."""
    waiting = next(started, None)
    for newer in started:
        assert waiting is not None
        yield waiting()
        waiting = newer
    if waiting is not None:
        yield waiting()


def gather_rows(batches: Iterator[tuple[range, Tensor]], dist: DistContext) -> Tensor:
    """Gather the rows of all processes on rank 0.

    Returns:
        (images, ...) in the data set's order on rank 0; empty on the other processes.
    """
    rows = [row for _, row in batches]
    # A process has no rows where images are fewer than processes.
    gathered = dist.gather(torch.cat(rows) if rows else torch.zeros(0))
    return torch.cat([part for part in gathered if len(part)] or [torch.zeros(0)])
