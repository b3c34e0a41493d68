"""The training loop that pretraining and fine-tuning share.

`fit` advances a `TrainState` to its last epoch, logs metrics by step, and saves a checkpoint after every
epoch and when a signal asks to stop. Detectron2 and MMSegmentation train with their own loops.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from simmim_bench.data.loader import batches_on_device, seed_everything
from simmim_bench.display import PLAIN_EVERY_S, format_duration
from simmim_bench.distributed import DistContext
from simmim_bench.errors import DivergedError
from simmim_bench.runs.context import RunContext
from simmim_bench.runs.run_dir import METRICS_EVERY, RunDir
from simmim_bench.training.accumulation import LossFunction, accumulate_gradients
from simmim_bench.training.finite import FiniteCheck
from simmim_bench.training.flops import peak_flops_per_s
from simmim_bench.training.memory import GIB, peak_memory, retain_freed_memory
from simmim_bench.training.state import TrainState
from simmim_bench.training.stopping import raise_if_stopped, stop_on_signals


def fit(
    context: RunContext,
    state: TrainState,
    compute_loss: LossFunction,
    *,
    description: str,
    epochs: int,
    clip_grad: float,
    save: Callable[[], None],
    monitor: Callable[[float, float], str | None] | None = None,
    flops_per_image: float | None = None,
    after_step: Callable[[], None] | None = None,
) -> None:
    """Train from `state.step` to the end of `epochs` epochs.

    What a step samples (dropped paths, Mixup) follows from the seed, the step and the process, so that a
    resumed run ends with the weights of an uninterrupted one.

    Args:
        compute_loss: maps (model, batch, epoch) to the mean loss of the batch's images, a scalar.
        description: the phase, as the progress bar and messages name it.
        clip_grad: largest norm of the gradient; 0 for no clipping.
        save: writes the checkpoint; called after each epoch and when asked to stop.
        monitor: receives every logged loss and gradient norm, and may return a warning.
        flops_per_image: floating-point operations of an image's forward and backward pass; metrics then
            include their rate, and its fraction of a large matrix product's rate.
        after_step: called after every step that does not end an epoch; it may use the model, and changes nothing.

    Raises:
        DivergedError: the loss is not finite; the last checkpoint is kept, and the first batch with which it was
            not finite is written. On a GPU the host reads this every few steps, and the weights stay unchanged
            in between.
        InterruptedRun: a signal came; its step is saved.
    """
    run, dist = context.run, context.dist
    if dist.device.type == "cpu":
        retain_freed_memory()
    steps_per_epoch = len(state.loader)
    total = epochs * steps_per_epoch
    throughput = Throughput(dist, state.precision, flops_per_image)
    finite = FiniteCheck(dist)

    def save_finite() -> None:
        raise_if_diverged(description, run, finite)
        save()
        # Rank 0 may write for longer than the next step's collectives wait.
        dist.barrier()

    with (
        closing(state.loader),
        stop_on_signals(dist) as stop,
        run.display.task(description, total) as task,
    ):
        task.advance(state.step)
        while state.step < total:
            epoch, index = divmod(state.step, steps_per_epoch)
            state.parallel_model.train()
            throughput.start()
            loss_sum = torch.zeros(
                (), device=dist.device
            )  # stays there: reading it waits for a GPU
            batches = batches_on_device(state.loader.epoch(epoch, index), dist.device)
            while state.step < (epoch + 1) * steps_per_epoch:
                with throughput.waiting():
                    batch = next(batches)
                step = state.step
                seed_everything(context.seed, step, dist.rank)
                lr = state.schedule.apply(state.optimizer, step)
                loss, grad_norm, scale = _compute_gradients(
                    state, batch, epoch, compute_loss, clip_grad, dist.device
                )
                state.optimizer_step(finite.skip(step, batch, loss, grad_norm, scale))
                throughput.images += len(batch[0]) * dist.size
                loss_sum += loss

                epoch_ended = state.step % steps_per_epoch == 0
                logged = step % METRICS_EVERY == 0 or epoch_ended
                # Reading a value waits for a GPU, so only the steps that log metrics do.
                if logged or dist.device.type != "cuda":
                    raise_if_diverged(description, run, finite)
                if logged:
                    rates = throughput.metrics()
                    mean_loss, norm = dist.all_mean(loss.item()), grad_norm.item()
                    run.metrics(step, epoch=epoch, lr=lr, loss=mean_loss, grad_norm=norm, **rates)
                    shown = {"loss": mean_loss, "images_per_s": rates["images_per_s"]}
                    task.advance(0, epoch=f"{epoch + 1}/{epochs}", **shown)
                    warning = monitor(mean_loss, norm) if monitor else None
                    if warning is not None:
                        run.log(f"{description}: {warning}")
                task.advance(1)
                if epoch_ended:
                    _check_weights(state.parallel_model, description, epoch)
                    steps = steps_per_epoch - index
                    resumed = f" resumed_after_step={index}/{steps_per_epoch}" if index else ""
                    throughput.log_epoch(
                        run,
                        f"{description}: epoch={epoch + 1}/{epochs}{resumed}",
                        dist.all_mean(loss_sum.item() / steps),
                        lr,
                    )
                    save_finite()
                elif after_step is not None:
                    after_step()
                raise_if_stopped(
                    stop,
                    description,
                    state.step,
                    total,
                    run=run,
                    dist=dist,
                    save=None if epoch_ended else save_finite,
                )


class Throughput:
    """Images per second of an epoch, the fraction of time spent waiting for data, and peak memory.

    Args:
        flops_per_image: floating-point operations of a training image; None to log no rate of them.
    """

    def __init__(self, dist: DistContext, precision: str, flops_per_image: float | None) -> None:
        self.images = 0
        self._dist = dist
        self._flops_per_image = flops_per_image or 0.0
        self._peak_flops = peak_flops_per_s(dist.device, precision) if flops_per_image else math.inf
        self.start()

    def start(self) -> None:
        """Start an epoch."""
        self.images, self._started, self._waited = 0, time.monotonic(), 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time of the block as waiting for data."""
        started = time.monotonic()
        yield
        self._waited += time.monotonic() - started

    def log_epoch(self, run: RunDir, epoch: str, loss: float, lr: float) -> None:
        """Write a line about a finished epoch to log.txt, and to stderr unless such lines would follow each other fast.

        Args:
            epoch: what the line begins with.
            loss: mean over the steps of the epoch that this process has trained.
            lr: learning rate of the last step.
        """
        seconds = time.monotonic() - self._started
        run.log(
            f"{epoch} loss={loss:.4f} lr={lr:.3g} images_per_s={self.images / seconds:,.1f} "
            f"time={format_duration(seconds)}",
            shown=seconds >= PLAIN_EVERY_S,
        )

    def metrics(self) -> dict[str, float]:
        """Return the epoch's figures so far, by their keys in `metrics.jsonl`."""
        elapsed = time.monotonic() - self._started
        images_per_s = self.images / elapsed
        figures = {"images_per_s": images_per_s, "data_wait": round(self._waited / elapsed, 4)}
        peak = peak_memory(self._dist.device)
        if peak is not None:
            figures["memory_gib"] = round(peak / GIB, 3)
        if self._flops_per_image:
            flops_per_s = images_per_s * self._flops_per_image / self._dist.size
            figures["gflop_per_s"] = flops_per_s / 1e9
            figures["flop_share"] = flops_per_s / self._peak_flops
        return figures


def _compute_gradients(
    state: TrainState,
    batch: list[Tensor],
    epoch: int,
    compute_loss: LossFunction,
    clip_grad: float,
    device: torch.device,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute and clip the gradients of a batch.

    Returns:
        The mean loss, the norm before clipping, and the scale that the gradients had in the backward pass; on
        the device.
    """
    state.optimizer.zero_grad(set_to_none=True)
    loss = accumulate_gradients(
        state.parallel_model,
        batch,
        epoch,
        compute_loss,
        state.precision,
        device,
        state.accumulation_steps,
        state.scaler,
    )
    scale = state.scaler.scale(torch.ones((), device=device))
    state.scaler.unscale_(state.optimizer)
    norm = nn.utils.clip_grad_norm_(state.parallel_model.parameters(), clip_grad or math.inf)
    return loss, _unsharded(norm), scale


def _unsharded(norm: Tensor) -> Tensor:
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def raise_if_diverged(description: str, run: RunDir, finite: FiniteCheck) -> None:
    """Wait for the device; end the run if the loss or gradient of a step was not finite.

    Raises:
        DivergedError: the batch of the first such step is written.
    """
    step, dist = finite.first_bad(), finite.dist
    if step is None:
        return
    try:
        raise_diverged(
            description, run, step.batch, int(step.number), step.loss, step.grad_norm, dist.rank
        )
    finally:
        # A launcher would kill the processes that are still writing as soon as one ends.
        dist.barrier()


def raise_diverged(
    description: str,
    run: RunDir,
    batch: list[Tensor],
    step: int,
    loss: Tensor,
    grad_norm: Tensor,
    rank: int,
) -> None:
    """Write the batch of a step whose loss or gradient is not finite, and end the run.

    Raises:
        DivergedError: always.
    """
    path = run.save_bad_batch(step, [tensor.cpu() for tensor in batch], rank)
    raise DivergedError(
        f"{description}: loss {loss.item()}, gradient norm {grad_norm.item()} at step {step}; the last "
        f"checkpoint is kept, the batch is written to {path}. Use a lower -o base_lr=..., or fix the data."
    )


def _check_weights(model: nn.Module, description: str, epoch: int) -> None:
    """Refuse to save weights that are not finite."""
    # One norm for all weights, so that the host waits for a GPU once.
    if not _unsharded(nn.utils.get_total_norm(model.parameters())).isfinite():
        raise DivergedError(
            f"{description}: a weight is not finite after epoch {epoch + 1}; the checkpoint "
            "before it is kept. Use a lower -o base_lr=..."
        )
