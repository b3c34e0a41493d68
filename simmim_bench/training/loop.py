"""The one training loop, for pretraining and fine-tuning alike, and what it needs of the machine.

In: a model, an optimizer, a schedule, an epoch loader and a function from batch to loss.
Out: the trained model, metrics by step, a checkpoint after every epoch and when a signal asks to stop.
Detection and segmentation are trained by the loops of their own frameworks.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from simmim_bench.data.loader import EpochLoader, seed_everything
from simmim_bench.distributed import DistContext
from simmim_bench.errors import DivergedError
from simmim_bench.runs.run_dir import RunDir
from simmim_bench.training.accumulation import accumulate_gradients
from simmim_bench.training.flops import product_flops_per_s
from simmim_bench.training.memory import retain_freed_memory
from simmim_bench.training.optim import Schedule
from simmim_bench.training.stopping import METRICS_EVERY, raise_if_stopped, stop_on_signals


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
    dist: DistContext,
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
    if dist.device.type == "cpu":
        retain_freed_memory()
    steps_per_epoch = len(loader)
    total = epochs * steps_per_epoch
    step = first_step
    limit = product_flops_per_s(dist.device, precision) if flops_per_image else math.inf
    with stop_on_signals() as stop, run.display.task(description, total) as task:
        task.advance(first_step)
        while step < total:
            epoch, index = divmod(step, steps_per_epoch)
            model.train()
            started, images, waited = time.monotonic(), 0, 0.0
            batches = iter(loader.epoch(epoch, index))
            while step < (epoch + 1) * steps_per_epoch:
                request = time.monotonic()
                batch = next(batches)
                waited += time.monotonic() - request
                seed_everything(seed, step, dist.rank)
                lr = schedule.apply(optimizer, step)
                optimizer.zero_grad(set_to_none=True)
                loss = accumulate_gradients(
                    model, batch, epoch, loss_of, precision, dist.device, accumulate
                )
                grad_norm = _whole(
                    nn.utils.clip_grad_norm_(model.parameters(), clip_grad or math.inf)
                )
                if not _finite(loss, grad_norm, step, dist):
                    _refuse_step(description, run, batch, step, loss, grad_norm, dist.rank)
                optimizer.step()
                images += len(batch[0]) * dist.size
                step += 1
                if after_step is not None:
                    after_step(step)

                ended = step % steps_per_epoch == 0
                if (step - 1) % METRICS_EVERY == 0 or ended:
                    elapsed = time.monotonic() - started
                    figures = {"loss": dist.all_mean(loss.item()), "images_per_s": images / elapsed}
                    rate = images / elapsed * (flops_per_image or 0.0) / dist.size
                    run.metrics(
                        step - 1,
                        epoch=epoch,
                        lr=lr,
                        grad_norm=grad_norm.item(),
                        data_wait=round(waited / elapsed, 4),
                        **_memory(dist.device),
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
                raise_if_stopped(stop, description, step, total, run=run, dist=dist, save=unsaved)


def _whole(norm: Tensor) -> Tensor:
    """Give the number that a sharded model's gradient norm stands for."""
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def _finite(loss: Tensor, grad_norm: Tensor, step: int, dist: DistContext) -> bool:
    """Say whether a step may be taken; a GPU is asked now and then, as an answer stops its queue."""
    if dist.device.type == "cuda" and step % METRICS_EVERY:
        return True
    fine = bool(loss.isfinite()) and bool(grad_norm.isfinite())
    return not dist.all_max(not fine)


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
