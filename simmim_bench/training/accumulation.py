"""Gradient accumulation: the backward pass of a batch in steps, and how many steps fit in memory."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from simmim_bench.data.loader import EpochLoader
from simmim_bench.distributed import DistContext, no_sync
from simmim_bench.errors import UsageError
from simmim_bench.models.buffers import preserve_buffers
from simmim_bench.training.precision import autocast

LossFunction = Callable[[list[Tensor], int], Tensor]  # (batch, epoch) -> mean loss, a scalar


def accumulate_gradients(
    model: nn.Module,
    batch: list[Tensor],
    epoch: int,
    compute_loss: LossFunction,
    precision: str,
    device: torch.device,
    steps: int,
) -> Tensor:
    """Accumulate the gradients of a batch over several backward passes.

    Args:
        model: as `DistContext.wrap_model` returned it; gradients are averaged over the processes in the
            last pass only.
        batch: tensors whose first dimension is the image; each is split into `steps` chunks.
        compute_loss: maps a chunk and the epoch to the mean loss of the chunk's images.

    Returns:
        The mean loss of the batch, a detached scalar.
    """
    chunks = list(zip(*(x.chunk(steps) for x in batch), strict=True))
    total = torch.zeros((), device=device)
    for number, chunk in enumerate(chunks):
        weight = len(chunk[0]) / len(batch[0])
        with nullcontext() if number == len(chunks) - 1 else no_sync(model):
            with autocast(device, precision):
                loss = compute_loss(list(chunk), epoch)
            (loss * weight).backward()
        total += loss.detach() * weight
    return total


def find_accumulation_steps(
    model: nn.Module,
    loader: EpochLoader,
    compute_loss: LossFunction,
    precision: str,
    dist: DistContext,
) -> int:
    """Find the smallest number of accumulation steps, a power of two, that fits in memory.

    The forward and backward pass of the first batch is tried on the device, with room reserved for the
    optimizer's state. Use it on a GPU only: a system that runs out of main memory ends the process.

    Raises:
        UsageError: not even one image fits.
    """
    batch = next(iter(loader.epoch(0)))
    steps = 1
    while True:
        fits = _fits_in_memory(model, batch, compute_loss, precision, dist.device, steps)
        if not dist.all_max(not fits):
            return steps
        if steps >= len(batch[0]):
            raise UsageError(
                "one image does not fit into the GPU's memory; use a smaller -o img_size=..., or to pretrain "
                "--grad-checkpointing, or --shard with more GPUs."
            )
        steps *= 2


def _fits_in_memory(
    model: nn.Module,
    batch: list[Tensor],
    compute_loss: LossFunction,
    precision: str,
    device: torch.device,
    steps: int,
) -> bool:
    """Try one accumulation step of `steps`, with memory reserved for AdamW's two moments."""
    model.train()
    try:
        moments = [torch.empty_like(p) for p in model.parameters() for _ in range(2)]
        chunk = [x.chunk(steps)[0] for x in batch]
        with no_sync(model), preserve_buffers(model):
            accumulate_gradients(model, chunk, 0, compute_loss, precision, device, 1)
        del moments
    except torch.OutOfMemoryError:
        return False
    finally:
        model.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
    return True
