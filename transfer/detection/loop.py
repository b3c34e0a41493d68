"""The training and the inference of a detector, by Detectron2's loop with hooks of ours.

In: a model, an optimizer, loaders, the processes of the run. Out: trained weights, metrics by iteration,
results in COCO's form. Imports Detectron2 at the top, as `detection_model.py` does.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from detectron2.engine.train_loop import HookBase, SimpleTrainer
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.modeling import GeneralizedRCNN
from detectron2.structures import Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from simmim_bench.data.loader import seed_everything
from simmim_bench.display import Task
from simmim_bench.distributed import DistContext, no_sync, per_process_batch
from simmim_bench.errors import DivergedError, UsageError
from simmim_bench.runs.run_dir import RunDir
from simmim_bench.training.memory import GIB, StepMemory, step_memory
from simmim_bench.training.optim import Schedule
from simmim_bench.training.stopping import (
    METRICS_EVERY,
    StopRequest,
    raise_if_stopped,
    stop_on_signals,
)
from transfer.detection.coco_layout import CocoSplit
from transfer.detection.data import PlainErrors
from transfer.detection.model import POSITIVE_FRACTION
from transfer.detection.recipes import CocoRecipe

SAVE_EVERY = 1000  # iterations; some minutes of a GPU
Batch = list[dict[str, Any]]


def estimate_memory(
    model: GeneralizedRCNN, image: dict[str, Any], recipe: CocoRecipe, dist: DistContext
) -> StepMemory:
    """Run a training image forward, as full of objects as regions are learnt from, and say what a step takes."""
    objects = image["instances"]
    wanted = math.ceil(POSITIVE_FRACTION * recipe.roi_samples)
    crowded = Instances.cat([objects] * max(1, -(-wanted // max(1, len(objects)))))
    model.train()
    with EventStorage():
        return step_memory(
            model,
            lambda: model([{**image, "instances": crowded}]),
            1,
            dist.device,
            dist.size,
        )


def choose_parts(
    model: GeneralizedRCNN,
    image: dict[str, Any],
    recipe: CocoRecipe,
    accumulate: int | None,
    run: RunDir,
    dist: DistContext,
) -> int:
    """Say and log in how many parts a process takes its share of a batch.

    Args:
        image: one of the training images.
        accumulate: the parts asked for; None for as few as fit.

    Raises:
        UsageError: not even one image fits, or more parts are asked for than there are images.
    """
    share = per_process_batch(recipe.batch_size, dist.size)
    if accumulate is not None and accumulate > share:
        raise UsageError(
            f"--accumulate {accumulate} is more than the {share} images of a batch that a process takes."
        )
    try:
        memory = estimate_memory(model, image, recipe, dist)
        own = memory.parts(share)
    except torch.OutOfMemoryError:
        own = None
    parts = accumulate or own
    if dist.all_max(parts is None):
        raise UsageError(
            "one image does not fit into the memory of a process; try --grad-checkpointing, or a smaller "
            "-o img_size=..."
        )
    assert parts is not None
    parts = dist.all_max(parts)
    if own is None:
        return parts
    images_a_part = -(-share // parts)
    room = "unknown" if memory.available is None else f"{memory.available / GIB:.1f} GiB"
    run.log(
        f"memory: about {memory.needed(images_a_part) / GIB:.1f} GiB a process for {images_a_part} images at a "
        f"time ({memory.fixed / GIB:.1f} for weights, gradients and moments), available {room}; "
        f"a batch is {recipe.batch_size} images, in {dist.size} x {-(-share // images_a_part)} parts"
    )
    return parts


def train_detector(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    loader: PlainErrors,
    *,
    recipe: CocoRecipe,
    first_iter: int,
    seed: int,
    run: RunDir,
    save: Callable[[int, dict[str, float]], None],
    dist: DistContext,
    parts: int = 1,
) -> None:
    """Train with Detectron2's loop from an iteration to the recipe's last.

    Args:
        model: as `DistContext.share` gave it.
        save: called with the iterations done and the last one's losses.
        parts: that each process cuts its share of a batch into, one after the other.

    Raises:
        DivergedError: a loss or a predicted box is not finite; the last checkpoint stays.
        InterruptedRun: SIGINT, SIGTERM or SIGUSR1 came; all that was done is saved.
        UsageError: the GPU's memory is too small.
    """
    trainer = PartsTrainer(model, loader, optimizer, parts, on_gpu=dist.device.type == "cuda")
    with (
        stop_on_signals() as stop,
        run.display.task("coco", recipe.max_iters) as task,
    ):
        task.advance(first_iter)
        hook = RunHook(recipe, schedule, seed, run, task, stop, save, dist)
        trainer.register_hooks([hook])
        try:
            trainer.train(first_iter, recipe.max_iters)
        except FloatingPointError as error:  # Detectron2 checks losses and proposals
            raise DivergedError(
                f"coco: loss or gradient is not finite at iteration {trainer.iter + 1}; "
                f"lower base_lr {recipe.base_lr:g} with -o base_lr=..."
            ) from error
        except torch.OutOfMemoryError as error:
            more = f"--accumulate {2 * parts} or " if 2 * parts <= recipe.batch_size else ""
            raise UsageError(
                f"coco: the GPU's memory is too small at iteration {trainer.iter + 1}; go on with --resume "
                f"{more}--grad-checkpointing."
            ) from error


class PartsTrainer(SimpleTrainer):
    """Detectron2's trainer, adding up the gradients of a batch's parts."""

    def __init__(
        self,
        model: nn.Module,
        loader: PlainErrors,
        optimizer: torch.optim.Optimizer,
        parts: int,
        *,
        on_gpu: bool,
    ) -> None:
        super().__init__(model, loader, optimizer)
        self.parts, self.on_gpu = parts, on_gpu

    def asks(self) -> bool:
        """Say whether this step's figures are looked at: an answer stops a GPU's queue."""
        done = self.iter + 1
        return not self.on_gpu or done % METRICS_EVERY == 0 or done == self.max_iter

    def run_step(self) -> None:
        """Take one step of the optimizer."""
        request = time.perf_counter()
        batch: Batch = next(self._data_loader_iter)
        waited = time.perf_counter() - request
        self.optimizer.zero_grad()
        size = -(-len(batch) // self.parts)
        cut = [batch[i : i + size] for i in range(0, len(batch), size)]
        losses: dict[str, Tensor] = {}
        for number, part in enumerate(cut):
            with nullcontext() if number == len(cut) - 1 else no_sync(self.model):
                found = self.model(part)
                weight = len(part) / len(batch)
                (sum(found.values()) * weight).backward()
            for name, value in found.items():
                losses[name] = losses.get(name, 0) + value.detach() * weight
        self.after_backward()
        if self.asks():
            self.write_metrics(losses, waited, self.iter)
        self.optimizer.step()


class RunHook(HookBase):
    """What happens around Detectron2's step: seed, rate, clipping, figures, saving, stopping."""

    def __init__(
        self,
        recipe: CocoRecipe,
        schedule: Schedule,
        seed: int,
        run: RunDir,
        task: Task,
        stop: StopRequest,
        save: Callable[[int, dict[str, float]], None],
        dist: DistContext,
    ) -> None:
        self.recipe, self.schedule, self.seed = recipe, schedule, seed
        self.run, self.task, self.stop, self.save, self.dist = run, task, stop, save, dist
        self.lr = 0.0
        self.grad_norm = torch.zeros(())
        self.losses: dict[str, float] = {}
        self.started = time.monotonic()

    def before_step(self) -> None:
        """Seed the sampling of anchors and regions by the iteration: a resumed run draws the same."""
        seed_everything(self.seed, self.trainer.iter, self.dist.rank)
        self.lr = self.schedule.apply(self.trainer.optimizer, self.trainer.iter)

    def after_backward(self) -> None:
        """Clip the norm of the whole gradient."""
        limit = self.recipe.clip_grad or math.inf
        self.grad_norm = nn.utils.clip_grad_norm_(self.trainer.model.parameters(), limit)

    def after_step(self) -> None:
        """Report and save; end the loop where a signal asked for it."""
        done, last = self.trainer.iter + 1, self.recipe.max_iters
        self.losses = {
            name.replace("total_loss", "loss"): float(value)
            for name, (value, _) in self.trainer.storage.latest().items()
            if name.startswith("loss_") or name == "total_loss"
        } or self.losses
        self.task.advance(1, **{k: v for k, v in self.losses.items() if k == "loss"})
        if done % METRICS_EVERY == 0 or done == last:
            seen = (done - self.trainer.start_iter) * self.recipe.batch_size
            rate = round(seen / (time.monotonic() - self.started), 1)
            self.run.metrics(
                done,
                lr=self.lr,
                grad_norm=float(self.grad_norm),
                images_per_s=rate,
                **self.losses,
            )
        saved = done % SAVE_EVERY == 0 or done == last
        # A step that is not finite may have been taken on a GPU, or where the loss alone was; it is not saved.
        if (self.trainer.asks() or self.stop.number is not None) and not self.grad_norm.isfinite():
            raise FloatingPointError(f"gradient norm {float(self.grad_norm)}")
        if saved:
            self.save(done, self.losses)
        raise_if_stopped(
            self.stop,
            "coco",
            done,
            last,
            run=self.run,
            dist=self.dist,
            save=None if saved else lambda: self.save(done, self.losses),
        )


def detect(
    model: GeneralizedRCNN,
    loader: PlainErrors,
    split: CocoSplit,
    task: Task,
    *,
    keep: int,
    dist: DistContext,
) -> tuple[list[dict[str, Any]], list[Instances], int]:
    """Give all detections as COCO results, the first `keep` images' as instances, and the images seen.

    Every process detects in its part of the images; the main one gets what all found, in the images' order.
    """
    collector = ResultCollector(split.category_ids, task, keep)
    inference_on_dataset(model, loader, collector)
    shares = dist.gather((collector.results, collector.images))
    results = [result for found, _ in shares for result in found]
    return results, collector.kept, sum(images for _, images in shares)


class ResultCollector(DatasetEvaluator):
    """Gather detections in COCO's form, with the category ids of the annotation file."""

    def __init__(self, category_ids: Sequence[int], task: Task, keep: int) -> None:
        self.category_ids, self.task, self.keep = category_ids, task, keep
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self.results: list[dict[str, Any]] = []
        self.kept: list[Instances] = []
        self.images = 0

    def process(self, inputs: Batch, outputs: list[dict[str, Instances]]) -> None:
        """Take a batch of images and what was found in them."""
        for image, found in zip(inputs, outputs, strict=True):
            instances = found["instances"].to("cpu")
            for result in instances_to_coco_json(instances, image["image_id"]):
                category_id = self.category_ids[result["category_id"]]
                self.results.append({**result, "category_id": category_id})
            if len(self.kept) < self.keep:
                self.kept.append(instances)
            self.images += 1
        self.task.advance(len(inputs))
