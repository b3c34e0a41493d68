"""Gradient accumulation: the backward pass of a batch in steps, and how many steps fit in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from simmim_bench.data.loader import batches_on_device
from simmim_bench.distributed import DistContext, no_sync
from simmim_bench.errors import UsageError
from simmim_bench.models.buffers import preserve_buffers
from simmim_bench.training.memory import optimizer_bytes, trial_memory
from simmim_bench.training.precision import autocast

# (model, batch, epoch) -> mean loss, a scalar
LossFunction = Callable[[nn.Module, list[Tensor], int], Tensor]


def accumulate_gradients(
    model: nn.Module,
    batch: list[Tensor],
    epoch: int,
    compute_loss: LossFunction,
    precision: str,
    device: torch.device,
    steps: int,
    scaler: torch.amp.GradScaler | None = None,
) -> Tensor:
    """Accumulate the gradients of a batch over several backward passes.

    Args:
        model: as `DistContext.wrap_model` returned it; gradients are averaged over the processes in the
            last pass only.
        batch: tensors on the device, whose first dimension is the image; each is split into `steps` chunks.
        compute_loss: maps the model, a chunk and the epoch to the mean loss of the chunk's images.
        scaler: scales the gradients; None to leave them as they are.

    Returns:
        The mean loss of the batch, a detached scalar.
    """
    chunks = list(zip(*(x.chunk(steps) for x in batch), strict=True))
    total = torch.zeros((), device=device)
    for number, chunk in enumerate(chunks):
        weight = len(chunk[0]) / len(batch[0])
        with nullcontext() if number == len(chunks) - 1 else no_sync(model):
            with autocast(device, precision):
                loss = compute_loss(model, list(chunk), epoch)
            weighted = loss * weight
            (weighted if scaler is None else scaler.scale(weighted)).backward()
        total += loss.detach() * weight
    return total


def find_accumulation_steps(
    model: nn.Module,
    batches: Iterable[list[Tensor]],
    compute_loss: LossFunction,
    precision: str,
    dist: DistContext,
    *,
    shard: bool = False,
) -> int:
    """Find the smallest number of accumulation steps that fits in memory, the same for every process.

    The forward and backward pass of the first batch is tried on the device, with room reserved for gradients
    and the optimizer's state. Use it on a GPU only: a system that runs out of main memory ends the process.

    Args:
        model: not wrapped and not compiled: a pass of a sharded model that runs out of memory leaves its
            parameters gathered, and a process that runs out alone leaves the others waiting for it.
        batches: of an epoch; the first one is tried.
        shard: whether gradients and optimizer state will be sharded over the processes.

    Returns:
        A power of two, or one step per image.

    Raises:
        UsageError: not even one image fits.
    """
    batch = next(batches_on_device(batches, dist.device))
    devices = [dist.device] if dist.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), trial_memory(dist.device):
        fitting = (
            steps
            for steps in _candidates(len(batch[0]))
            if _fits_in_memory(
                model,
                batch,
                compute_loss,
                precision,
                dist.device,
                steps,
                reserved=optimizer_bytes(model, dist.size, shard=shard, accumulation_steps=steps),
            )
        )
        steps = next(fitting, None)
    if dist.all_max(steps is None):
        raise UsageError(
            "one image does not fit into the GPU's memory; use a smaller -o img_size=..., or to pretrain "
            "--grad-checkpointing, or --shard with more GPUs."
        )
    assert steps is not None
    return dist.all_max(steps)


def _candidates(images: int) -> Iterator[int]:
    """Yield the powers of two below the number of images, then that number."""
    steps = 1
    while steps < images:
        yield steps
        steps *= 2
    yield images


def _fits_in_memory(
    model: nn.Module,
    batch: list[Tensor],
    compute_loss: LossFunction,
    precision: str,
    device: torch.device,
    steps: int,
    *,
    reserved: int,
) -> bool:
    """Try one accumulation step of `steps`, with a number of bytes reserved."""
    model.train()
    # The gradients are reserved in full; keeping those of the trial as well would count them twice.
    hooks = [
        p.register_post_accumulate_grad_hook(_discard_gradient)
        for p in model.parameters()
        if p.requires_grad
    ]
    try:
        room = torch.empty(reserved, dtype=torch.uint8, device=device)
        chunk = [x.chunk(steps)[0] for x in batch]
        with preserve_buffers(model):
            accumulate_gradients(model, chunk, 0, compute_loss, precision, device, 1)
        del room
        fits = True
    except torch.OutOfMemoryError:
        fits = False
    for hook in hooks:
        hook.remove()
    model.zero_grad(set_to_none=True)
    return fits


def _discard_gradient(parameter: Tensor) -> None:
    parameter.grad = None
