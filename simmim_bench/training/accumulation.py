"""Gradient accumulation: the backward pass of a batch in parts, and how many parts fit in memory."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from simmim_bench.data.loader import EpochLoader
from simmim_bench.distributed import DistContext, no_sync
from simmim_bench.errors import UsageError
from simmim_bench.models.buffers import preserve_buffers
from simmim_bench.training.precision import autocast


def accumulate_gradients(
    model: nn.Module,
    batch: list[Tensor],
    epoch: int,
    loss_of: Callable[[Any, int], Tensor],
    precision: str,
    device: torch.device,
    accumulate: int,
) -> Tensor:
    """Add up the gradients of a batch's parts; give the mean loss."""
    parts = list(zip(*(x.chunk(accumulate) for x in batch), strict=True))
    total = torch.zeros((), device=device)
    for number, part in enumerate(parts):
        weight = len(part[0]) / len(batch[0])
        with nullcontext() if number == len(parts) - 1 else no_sync(model):
            with autocast(device, precision):
                loss = loss_of(list(part), epoch)
            (loss * weight).backward()
        total += loss.detach() * weight
    return total


def find_accumulation_steps(
    model: nn.Module,
    loader: EpochLoader,
    loss_of: Callable[[Any, int], Tensor],
    precision: str,
    dist: DistContext,
) -> int:
    """Give the smallest number of parts, a power of two, whose forward and backward pass fit into memory.

    A trial with the first batch says so, with room left for the optimizer's state. Only a GPU answers: a
    system that runs out of memory ends the process.

    Raises:
        UsageError: not even one image fits.
    """
    batch = next(iter(loader.epoch(0)))
    parts = 1
    while True:
        fits = _fits(model, batch, loss_of, precision, dist.device, parts)
        if not dist.all_max(not fits):
            return parts
        if parts >= len(batch[0]):
            raise UsageError(
                "one image does not fit into the GPU's memory; use a smaller -o img_size=..., or to pretrain "
                "--grad-checkpointing, or --shard with more GPUs."
            )
        parts *= 2


def _fits(
    model: nn.Module,
    batch: list[Tensor],
    loss_of: Callable[[Any, int], Tensor],
    precision: str,
    device: torch.device,
    parts: int,
) -> bool:
    """Say whether a step in so many parts fits, with AdamW's two moments beside it."""
    model.train()
    try:
        moments = [torch.empty_like(p) for p in model.parameters() for _ in range(2)]
        part = [x.chunk(parts)[0] for x in batch]
        with no_sync(model), preserve_buffers(model):
            accumulate_gradients(model, part, 0, loss_of, precision, device, 1)
        del moments
    except torch.OutOfMemoryError:
        return False
    finally:
        model.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
    return True
