"""The one training loop, for pretraining and fine-tuning alike, and what it needs of the machine.

In: a model, an optimizer, a schedule, an epoch loader and a function from batch to loss.
Out: the trained model, metrics by step, a checkpoint after every epoch. Detection and segmentation are
trained by the loops of their own frameworks.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from simmim_bench.data import EpochLoader
from simmim_bench.errors import DivergedError, InterruptedRun
from simmim_bench.optim import Schedule
from simmim_bench.rundir import RunDir

METRICS_EVERY = 10  # optimizer steps between lines of metrics.jsonl


def best_device() -> torch.device:
    """Give the GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Compute in bfloat16 where the recipe asks for it; "auto" is bfloat16 on a GPU that has it."""
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


class StopRequest:
    """Which signal asked the run to stop, if any."""

    number: int | None = None


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turn SIGINT and SIGTERM into a request that the loop answers after its step."""
    request = StopRequest()

    def remember(number: int, frame: FrameType | None) -> None:
        if request.number is not None:  # a second one means it
            raise KeyboardInterrupt
        request.number = number

    try:
        before = {s: signal.signal(s, remember) for s in (signal.SIGINT, signal.SIGTERM)}
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
    first_epoch: int,
    clip_grad: float,
    precision: str,
    device: torch.device,
    run: RunDir,
    description: str,
    save: Callable[[int], None],
) -> None:
    """Train for `epochs - first_epoch` epochs.

    Args:
        loss_of: maps a batch and the number of its step to a scalar loss.
        clip_grad: largest norm of the gradient; 0 for no clipping.
        save: called with the number of epochs done, after each.

    Raises:
        DivergedError: the loss is not finite; the last checkpoint stays.
        InterruptedRun: SIGINT or SIGTERM came; what was saved last is an epoch's end.
    """
    steps_per_epoch = len(loader)
    with (
        stop_on_signals() as stop,
        run.display.task(description, (epochs - first_epoch) * steps_per_epoch) as task,
    ):
        for epoch in range(first_epoch, epochs):
            model.train()
            started, images = time.monotonic(), 0
            for index, batch in enumerate(loader.epoch(epoch)):
                step = epoch * steps_per_epoch + index
                lr = schedule.apply(optimizer, step)
                with autocast(device, precision):
                    loss = loss_of(batch, step)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                limit = clip_grad or math.inf
                grad_norm = nn.utils.clip_grad_norm_(model.parameters(), limit)
                optimizer.step()
                images += len(batch[0])

                if step % METRICS_EVERY == 0 or index == steps_per_epoch - 1:
                    figures = {"loss": loss.item(), "lr": lr, "grad_norm": grad_norm.item()}
                    if not (math.isfinite(figures["loss"]) and math.isfinite(figures["grad_norm"])):
                        raise DivergedError(
                            f"{description}: loss {figures['loss']}, gradient norm {figures['grad_norm']} "
                            f"at step {step}; lower it with -o base_lr=..."
                        )
                    rate = images / (time.monotonic() - started)
                    run.metrics(step, epoch=epoch, images_per_s=round(rate, 1), **figures)
                    task.advance(0, loss=figures["loss"], images_per_s=rate)
                task.advance(1)
                if stop.number is not None:
                    raise InterruptedRun(
                        f"{description}: stopped by {signal.Signals(stop.number).name} in epoch {epoch + 1}; "
                        f"{epoch} of {epochs} epochs are saved, go on with --resume.",
                        stop.number,
                    )
            if not all(bool(p.isfinite().all()) for p in model.parameters()):
                raise DivergedError(
                    f"{description}: a weight is not finite after epoch {epoch + 1}; the checkpoint "
                    "before it stays, lower the rate with -o base_lr=..."
                )
            save(epoch + 1)
