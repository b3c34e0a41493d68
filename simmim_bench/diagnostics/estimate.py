"""Estimate the memory, time and disk of a run from one or two steps on this machine.

The findings say what was measured and what was computed from it. The time leaves out loading images, which has a
finding of its own, scoring and writing checkpoints.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from simmim_bench.data.datasets import LoadImage
from simmim_bench.data.loader import EpochLoader
from simmim_bench.diagnostics.findings import Finding, Severity
from simmim_bench.diagnostics.loading import images_per_core, workers_needed
from simmim_bench.diagnostics.machine import free_disk
from simmim_bench.display import format_duration, plural
from simmim_bench.models.build import build_backbone
from simmim_bench.models.shapes import shapes_only
from simmim_bench.models.spec import BackboneSpec
from simmim_bench.processors import usable_cores
from simmim_bench.training.memory import (
    COPIES,
    GIB,
    USABLE,
    StepMemory,
    available_memory,
    step_memory,
)
from simmim_bench.training.precision import autocast, describe_slow_precision

ROUNDS = 3  # timed steps, after those that find the number of images
SHORT_S = 2.0  # a step this long is enough: with more images, each is hardly faster
LONG_S = 20.0  # a step this long is not repeated
KEPT = 3  # checkpoints of a run at a time: the last, the one before it, the one being written
OVERHEAD = 1024  # bytes per tensor in a file for its name, offset and alignment
CPU = torch.device("cpu")


@dataclass(frozen=True)
class DataSize:
    """The size of a data set, and whose it is, such as "COCO 2017's"."""

    train: int
    val: int
    classes: int
    known: str

    @property
    def images(self) -> str:
        """The number of training images, in words."""
        return f"{self.known} {self.train:,} images"

    def limited(self, limit: int | None) -> DataSize:
        """Return the size of what a recipe's `limit` leaves of both splits; all for None."""
        if limit is None:
            return self
        return replace(self, train=min(self.train, limit), val=min(self.val, limit))


PUBLISHED = {
    "imagenet": DataSize(1_281_167, 50_000, 1000, "ImageNet-1K's"),
    "coco": DataSize(118_287, 5_000, 80, "COCO 2017's"),
    "ade20k": DataSize(20_210, 2_000, 150, "ADE20K's"),
}


def data_size(group: str, findings: Iterable[Finding]) -> DataSize:
    """Return the size counted in the user's data set of a layout, or the published size."""
    facts: dict[str, Mapping[str, Any]] = {
        finding.name: finding.facts for finding in findings if finding.group == group
    }
    train, val = (
        next((facts[name]["images"] for name in names if facts.get(name)), 0)
        for names in (("train", "training"), ("val", "validation"))
    )
    classes = next(
        (
            facts[name][key]
            for name, key in (("train", "classes"), ("train", "categories"), ("classes", "classes"))
            if key in facts.get(name, {})
        ),
        0,
    )
    needs_labels = group in PUBLISHED  # pretraining does not
    if not train or (needs_labels and not (val and classes)):
        return PUBLISHED.get(group, PUBLISHED["imagenet"])
    return DataSize(train, val, classes, "your")


def epoch_steps(images: int, batch_size: int) -> int:
    """Return the number of optimizer steps in an epoch."""
    only_length = cast(Any, range(images))  # the loader needs nothing else of a data set
    return len(EpochLoader(only_length, batch_size=batch_size, num_workers=0, seed=0))


@dataclass(frozen=True, kw_only=True)
class Work:
    """A run as it is known before it starts.

    Attributes:
        model: on its device, in training mode where it is trained.
        forward: maps a number of random images to their loss, or to a frozen backbone's features.
        least: the smallest number of images that `forward` takes.
        precision: "fp32", "bf16" or "auto" as `autocast` takes it.
        steps: optimizer steps; for a frozen backbone, forward passes.
        counted: how the steps are counted, in words.
        left_out: what takes time besides the steps, in words.
        disk: the largest number of bytes that the run occupies at a time.
        written: what these bytes are, in words.
        cut: how a batch too large for memory is split into gradient-accumulation steps: "by itself", an
            option, or None.
        memory: measures the memory of a step; None to measure `forward` of the fewest images.
        load: loads one image as a data-loading worker does; None where the loader is a framework's, or reads other
            images than RGB, as which the trial's are.
        num_workers: data-loading workers of a process.
        held: memory needed besides that of the steps, in words; "" for none.
    """

    model: nn.Module
    forward: Callable[[int], Tensor]
    least: int = 1
    precision: str
    batch_size: int
    steps: int
    counted: str
    left_out: str = "loading images, scoring, saving"
    disk: int
    written: str
    cut: str | None = None
    memory: Callable[[], StepMemory] | None = None
    load: LoadImage | None = None
    num_workers: int = 0
    held: str = ""

    @cached_property
    def optimizer(self) -> torch.optim.Optimizer | None:
        """AdamW with learning rate 0, for its time and memory; None for a frozen backbone."""
        trained = [p for p in self.model.parameters() if p.requires_grad]
        return torch.optim.AdamW(trained, lr=0.0, weight_decay=0.0, fused=True) if trained else None


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Measured seconds per image and per optimizer step, with the number of images and timed steps."""

    per_image: float
    optimizer: float
    images: int
    rounds: int

    def step(self, batch_size: int) -> float:
        """Return the seconds of one step."""
        return batch_size * self.per_image + self.optimizer


def checkpoint_bytes(saved: Sequence[nn.Module], trained: Iterable[nn.Parameter]) -> int:
    """Return the size of a checkpoint: the modules' state, and AdamW's two moments per trained weight."""
    tensors = [tensor for module in saved for tensor in module.state_dict().values()]
    moments = [parameter for parameter in trained for _ in range(COPIES - 2)]
    return sum(t.nbytes + OVERHEAD for t in (*tensors, *moments))


def too_large(spec: BackboneSpec, device: torch.device) -> Finding | None:
    """Return a problem if not even the weights, gradients and moments fit in memory; allocate nothing."""
    with shapes_only():
        weights = sum(p.nbytes for p in build_backbone(spec).parameters())
    left = available_memory(device)
    if left is None or COPIES * weights <= USABLE * left:
        return None
    return _finding(
        "memory",
        "problem",
        f"{spec.arch}'s weights, gradients and moments need {COPIES * weights / GIB:.1f} GiB, "
        f"{left / GIB:.1f} GiB are available; nothing was measured",
        remedy="use a machine with more memory, or `pretrain --shard` to shard the model over several GPUs",
        facts={"needed": COPIES * weights, "available": left},
    )


def estimate(work: Work, *, device: torch.device, folder: Path) -> list[Finding]:
    """Take one or two steps, and estimate the whole run.

    Args:
        folder: the folder that the run will be written to.
    """
    return [*_measure(work, device), _disk(work, folder)]


def _measure(work: Work, device: torch.device) -> Iterator[Finding]:
    for warning in describe_slow_precision(work.precision, device):
        yield _finding("precision", "warning", warning)
    try:
        memory = measure_memory(work, device)
        yield _fits(work, memory)
        if memory.accumulation_steps(work.least) != 1:
            return
        measured = _measure_steps(work, memory, device)
        yield _time(work, measured, device)
        if work.load is not None:
            trained = work.batch_size / measured.step(work.batch_size)
            yield check_loading(
                trained,
                images_per_core(work.load),
                num_workers=work.num_workers,
                gpus=torch.cuda.device_count() if device.type == "cuda" else 0,
                cores=usable_cores(),
            )
    except torch.OutOfMemoryError:
        yield _finding(
            "memory",
            "problem",
            f"{work.least} images at a time do not fit in the GPU's memory",
            remedy="use a smaller -o img_size=..., or `--grad-checkpointing` if the command has it",
        )


def measure_memory(work: Work, device: torch.device) -> StepMemory:
    """Measure the memory of a step: by the work's own function, or forward passes of the fewest images."""
    if work.memory is not None:
        return work.memory()
    return step_memory(
        work.model,
        lambda: _forward(work, work.least, device),
        work.least,
        device,
        forward_double=lambda: _forward(work, 2 * work.least, device),
    )


def _forward(work: Work, images: int, device: torch.device) -> Tensor:
    with torch.set_grad_enabled(work.optimizer is not None), autocast(device, work.precision):
        return work.forward(images)


def _fits(work: Work, memory: StepMemory) -> Finding:
    needed, steps = memory.needed(work.batch_size), memory.accumulation_steps(work.batch_size)
    left = "unknown" if memory.available is None else f"{memory.available / GIB:.1f} GiB"
    facts = {
        "needed": round(needed),
        "fixed": memory.fixed,
        "per_image": round(memory.per_image),
        "available": memory.available,
        "batch_size": work.batch_size,
        "parts": steps,
    }
    said = (
        f"about {needed / GIB:.2f} GiB for {work.batch_size:,} images at a time, available {left}"
    )
    if work.optimizer is None:
        said = f"{memory.fixed / GIB:.2f} GiB for the weights, available {left}"
        items = ["not included: a forward pass; -o forward_batch_size=... makes it smaller"]
        items += [work.held] if work.held else []
        return _finding("memory", "ok", said, items=items, facts=facts)
    items = [
        f"measured: {memory.fixed / GIB:.2f} GiB for weights, gradients and moments, "
        f"{memory.per_image / 2**20:.1f} MiB per image kept by a forward pass",
        "not included: the libraries themselves, data-loading workers",
    ]
    if steps == 1:
        return _finding("memory", "ok", said, items=items, facts=facts)
    at_once = -(-work.batch_size // steps) if steps else 1
    least = f"{memory.needed(at_once) / GIB:.2f} GiB for {at_once}"
    if steps is None or at_once < work.least:
        said, remedy = f"{said}; not even {least}", "use a smaller -o img_size=..., or more memory"
        return _finding("memory", "problem", said, remedy=remedy, items=items, facts=facts)
    if work.cut == "by itself":
        said = (
            f"{said}; the run splits its batches into {steps} gradient-accumulation steps: {least}"
        )
        return _finding("memory", "ok", said, items=items, facts=facts)
    remedy = f"-o batch_size={at_once}, which changes the protocol, or more processes"
    if work.cut is not None:
        remedy = f"{work.cut} {steps}, which needs {least}"
    return _finding("memory", "problem", said, remedy=remedy, items=items, facts=facts)


def _measure_steps(work: Work, memory: StepMemory, device: torch.device) -> Measured:
    """Time some steps, after warm-up steps that also find a suitable number of images."""
    images, took = work.least, _step(work, work.least, device)
    with suppress(
        torch.OutOfMemoryError
    ):  # of a frozen backbone, whose forward pass was not measured
        while (
            sum(took) < SHORT_S
            and 2 * images <= work.batch_size
            and memory.accumulation_steps(2 * images) == 1
        ):
            took = _step(work, 2 * images, device)
            images *= 2
    rounds = [took]
    if sum(took) < LONG_S:
        rounds = [_step(work, images, device) for _ in range(ROUNDS)]
    return Measured(
        per_image=statistics.median(passed for passed, _ in rounds) / images,
        optimizer=statistics.median(updated for _, updated in rounds),
        images=images,
        rounds=len(rounds),
    )


def _step(work: Work, images: int, device: torch.device) -> tuple[float, float]:
    """Take one step; return the seconds of its forward and backward passes and of the optimizer."""
    started = _now(device)
    result = _forward(work, images, device)
    if work.optimizer is None:
        return _now(device) - started, 0.0
    result.backward()
    passed = _now(device)
    work.optimizer.step()
    work.optimizer.zero_grad(set_to_none=True)
    return passed - started, _now(device) - passed


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _time(work: Work, measured: Measured, device: torch.device) -> Finding:
    step = measured.step(work.batch_size)
    total = work.steps * step
    others = torch.cuda.device_count() if device.type == "cuda" else 1
    items = [
        f"measured: {plural(measured.images, 'random image')} in {measured.per_image * measured.images:.3g} s"
        + (f", the optimizer in {measured.optimizer:.3g} s" if work.optimizer else "")
        + f", median of {measured.rounds}; scaled to batches of {work.batch_size:,}",
        f"not included: {work.left_out}",
    ]
    if others > 1:
        items.append(f"on {others} GPUs at best {format_duration(total / others)}")
    return _finding(
        "time",
        "ok",
        f"about {format_duration(total)} on one {'GPU' if device.type == 'cuda' else 'machine'}: {work.counted}, "
        f"{step:.3g} s per step",
        items=items,
        facts={
            "seconds": total,
            "steps": work.steps,
            "seconds_per_step": step,
            "seconds_per_image": measured.per_image,
            "seconds_of_the_optimizer": measured.optimizer,
            "images_tried": measured.images,
            "device": str(device),
        },
    )


def check_loading(
    trained: float, loaded: float, *, num_workers: int, gpus: int, cores: float
) -> Finding:
    """Compare the rate at which images are loaded with the rate at which a device trains on them.

    Args:
        trained: images per second of one device.
        loaded: images per second of one data-loading worker, on one core.
        num_workers: workers of a process.
        gpus: GPUs of the machine; 0 where the CPU trains, whose cores are then shared.
        cores: usable processors of the machine.
    """
    needed = workers_needed(trained, loaded)
    said = f"one core loads {loaded:,.0f} images/s, one {'GPU' if gpus else 'machine'} computes {trained:,.0f}/s"
    facts = {
        "images_per_s_of_a_core": loaded,
        "images_per_s_of_a_device": trained,
        "workers_needed": needed,
        "num_workers": num_workers,
        "cores": cores,
    }
    if not gpus:
        return _finding("loading", "ok", said, facts=facts)
    said = f"{said}: a GPU needs {plural(needed, 'worker')}"
    if cores < needed * gpus:
        share = min(1.0, cores * loaded / (gpus * trained))
        return _finding(
            "loading",
            "warning",
            f"{said}, but {plural(gpus, 'GPU has', 'GPUs share')} {cores:g} {'core' if cores == 1 else 'cores'}: "
            f"training waits for images, and reaches {share:.0%} of its rate at best",
            remedy=f"use {plural(needed, 'core')} per GPU",
            facts=facts,
        )
    if num_workers < needed:
        remedy = f"-o num_workers={needed}, which does not change the result"
        return _finding(
            "loading", "warning", f"{said}, not {num_workers}", remedy=remedy, facts=facts
        )
    return _finding("loading", "ok", said, facts=facts)


def _disk(work: Work, folder: Path) -> Finding:
    existing, free = free_disk(folder)
    said = f"about {work.disk / GIB:.2f} GiB for {work.written}; {free / GIB:.1f} GiB free in {existing}"
    facts = {"needed": work.disk, "free": free, "folder": str(existing)}
    if work.disk <= free:
        return _finding("disk", "ok", said, facts=facts)
    remedy = "free some space, or choose another --out"
    return _finding("disk", "problem", said, remedy=remedy, facts=facts)


def _finding(name: str, state: Severity, said: str, **more: Any) -> Finding:
    return Finding(group="estimate", name=name, state=state, said=said, **more)
