"""The one training loop, for pretraining and fine-tuning alike, and what it needs of the machine.

In: a model, an optimizer, a schedule, an epoch loader and a function from batch to loss.
Out: the trained model, metrics by step, a checkpoint after every epoch and when a signal asks to stop.
Detection and segmentation are trained by the loops of their own frameworks.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from simmim_bench.data.datasets import EpochLoader, seed_everything
from simmim_bench.errors import DivergedError, InterruptedRun, UsageError
from simmim_bench.runs.run_dir import RunDir
from simmim_bench.training.distributed import Team, without_sync
from simmim_bench.training.optim import Schedule
from simmim_bench.training.precision import (
    autocast,
    buffers_kept,
    keep_freed_memory,
    product_flops_per_s,
)

METRICS_EVERY = 10  # optimizer steps between lines of metrics.jsonl


class StopRequest:
    """Which signal asked the run to stop, if any."""

    number: int | None = None


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # USR1 is what SLURM is asked to send


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turn SIGINT, SIGTERM and SIGUSR1 into a request that the loop answers after its step."""
    request = StopRequest()

    def remember(number: int, frame: FrameType | None) -> None:
        if request.number is not None:  # a second one means it
            raise KeyboardInterrupt
        request.number = number

    try:
        before = {s: signal.signal(s, remember) for s in SIGNALS}
    except ValueError:  # not in the main thread: the caller keeps its own handling
        yield request
        return
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def fit(
    *,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    loader: EpochLoader,
    loss_of: Callable[[Any, int], Tensor],
    epochs: int,
    first_step: int,
    clip_grad: float,
    precision: str,
    seed: int,
    run: RunDir,
    description: str,
    save: Callable[[int], None],
    team: Team,
    accumulate: int = 1,
    watch: Callable[[float, float], str | None] | None = None,
    after_step: Callable[[int], None] | None = None,
    flops_per_image: float | None = None,
) -> None:
    """Train from a step on to the end of `epochs` epochs.

    What a step draws (dropped paths, mixed pictures) follows from the seed, the step and the process, so
    that a run that goes on after any step ends as one that was never stopped.

    Args:
        loss_of: maps a part of a batch and its epoch to a scalar loss, a mean over the part's images.
        clip_grad: largest norm of the gradient; 0 for no clipping.
        save: called with the number of steps done, after each epoch and when asked to stop.
        accumulate: parts that each process cuts its share of a batch into, one after the other.
        watch: hears every loss and gradient norm that is written down, and may answer with a warning.
        after_step: called with the number of steps done, after each.
        flops_per_image: floating-point operations of an image's forward and backward pass; their rate,
            and its share of a large matrix product's, go into the metrics.

    Raises:
        DivergedError: the loss is not finite; the last checkpoint stays, the batch is kept beside it.
        InterruptedRun: a signal came; its step is saved.
    """
    if team.device.type == "cpu":
        keep_freed_memory()
    steps_per_epoch = len(loader)
    total = epochs * steps_per_epoch
    step = first_step
    limit = product_flops_per_s(team.device, precision) if flops_per_image else math.inf
    with stop_on_signals() as stop, run.display.task(description, total) as task:
        task.advance(first_step)
        while step < total:
            epoch, index = divmod(step, steps_per_epoch)
            model.train()
            started, images, waited = time.monotonic(), 0, 0.0
            batches = iter(loader.epoch(epoch, index))
            while step < (epoch + 1) * steps_per_epoch:
                asked = time.monotonic()
                batch = next(batches)
                waited += time.monotonic() - asked
                seed_everything(seed, step, team.rank)
                lr = schedule.apply(optimizer, step)
                optimizer.zero_grad(set_to_none=True)
                loss = _backward(model, batch, epoch, loss_of, precision, team.device, accumulate)
                grad_norm = _whole(
                    nn.utils.clip_grad_norm_(model.parameters(), clip_grad or math.inf)
                )
                if not _finite(loss, grad_norm, step, team):
                    _refuse_step(description, run, batch, step, loss, grad_norm, team.rank)
                optimizer.step()
                images += len(batch[0]) * team.size
                step += 1
                if after_step is not None:
                    after_step(step)

                ended = step % steps_per_epoch == 0
                if (step - 1) % METRICS_EVERY == 0 or ended:
                    elapsed = time.monotonic() - started
                    figures = {"loss": team.mean(loss.item()), "images_per_s": images / elapsed}
                    rate = images / elapsed * (flops_per_image or 0.0) / team.size
                    run.metrics(
                        step - 1,
                        epoch=epoch,
                        lr=lr,
                        grad_norm=grad_norm.item(),
                        data_wait=round(waited / elapsed, 4),
                        **_memory(team.device),
                        **({"gflop_per_s": rate / 1e9, "flop_share": rate / limit} if rate else {}),
                        **figures,
                    )
                    task.advance(0, **figures)
                    warning = watch(figures["loss"], grad_norm.item()) if watch else None
                    if warning is not None:
                        run.log(warning)
                task.advance(1)
                if ended:
                    _check_weights(model, description, epoch)
                    save(step)
                unsaved = None if ended else partial(save, step)
                raise_if_stopped(stop, description, step, total, run=run, team=team, save=unsaved)


def raise_if_stopped(
    stop: StopRequest,
    description: str,
    done: int,
    total: int,
    *,
    run: RunDir,
    team: Team,
    save: Callable[[], None] | None,
) -> None:
    """Save and end the run where any of its processes got a signal and there are steps left.

    Args:
        done: optimizer steps, of `total`.
        save: None where the step has been saved.

    Raises:
        InterruptedRun: with what was done.
    """
    signal_number = _agree_to_stop(stop, done, team)
    if not signal_number or done >= total:
        return
    if save is not None:
        save()
    team.wait()  # the main process writes: a launcher kills it when another has ended
    _requeue(signal_number, run, team)
    raise InterruptedRun(
        f"{description}: stopped by {signal.Signals(signal_number).name} after step {done} of {total}, which is "
        "saved; go on with --resume.",
        signal.SIGTERM if signal_number == signal.SIGUSR1 else signal_number,
    )


def _backward(
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
        with nullcontext() if number == len(parts) - 1 else without_sync(model):
            with autocast(device, precision):
                loss = loss_of(list(part), epoch)
            (loss * weight).backward()
        total += loss.detach() * weight
    return total


def _whole(norm: Tensor) -> Tensor:
    """Give the number that a sharded model's gradient norm stands for."""
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def parts_that_fit(
    model: nn.Module,
    loader: EpochLoader,
    loss_of: Callable[[Any, int], Tensor],
    precision: str,
    team: Team,
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
        fits = _fits(model, batch, loss_of, precision, team.device, parts)
        if not team.largest(not fits):
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
        with without_sync(model), buffers_kept(model):
            _backward(model, part, 0, loss_of, precision, device, 1)
        del moments
    except torch.OutOfMemoryError:
        return False
    finally:
        model.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
    return True


def _finite(loss: Tensor, grad_norm: Tensor, step: int, team: Team) -> bool:
    """Say whether a step may be taken; a GPU is asked now and then, as an answer stops its queue."""
    if team.device.type == "cuda" and step % METRICS_EVERY:
        return True
    fine = bool(loss.isfinite()) and bool(grad_norm.isfinite())
    return not team.largest(not fine)


def _refuse_step(
    description: str,
    run: RunDir,
    batch: list[Tensor],
    step: int,
    loss: Tensor,
    norm: Tensor,
    rank: int,
) -> None:
    """Keep the batch of a step that is not finite, and end the run."""
    kept = run.keep_batch(step, batch, rank)
    raise DivergedError(
        f"{description}: loss {loss.item()}, gradient norm {norm.item()} at step {step}; the last "
        f"checkpoint stays, the batch is in {kept}. Lower the rate with -o base_lr=..., or mend the data."
    )


def _check_weights(model: nn.Module, description: str, epoch: int) -> None:
    if not all(bool(p.isfinite().all()) for p in model.parameters()):
        raise DivergedError(
            f"{description}: a weight is not finite after epoch {epoch + 1}; the checkpoint "
            "before it stays, lower the rate with -o base_lr=..."
        )


def _memory(device: torch.device) -> dict[str, float]:
    """Give the peak of the device's memory that this process had, in GiB."""
    if device.type == "cuda":
        return {"memory_gib": round(torch.cuda.max_memory_allocated(device) / 2**30, 3)}
    with suppress(ImportError):  # Windows has none
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        return {"memory_gib": round(peak / 2**30, 3)}
    return {}


def _agree_to_stop(stop: StopRequest, step: int, team: Team) -> int:
    """Give the signal that any process got, 0 for none; several processes ask each other now and then."""
    if team.size > 1 and step % METRICS_EVERY:
        return 0
    return team.largest(stop.number or 0)


def _requeue(signal_number: int, run: RunDir, team: Team) -> None:
    """Put a SLURM job that was warned by SIGUSR1 back into the queue."""
    job = os.environ.get("SLURM_JOB_ID")
    if signal_number != signal.SIGUSR1 or job is None or not team.is_main:
        return
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, timeout=60)
        run.log(f"SLURM job {job} is requeued")
    except (OSError, subprocess.SubprocessError) as error:
        run.log(f"SLURM job {job} could not be requeued: {error}")
