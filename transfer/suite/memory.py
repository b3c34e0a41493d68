"""The memory that a step of a suite is expected to take: measured by similar runs, else estimated from one image."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import suppress

import torch

from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.diagnostics.estimate import PUBLISHED, Work, measure_memory
from simmim_bench.errors import BenchError
from simmim_bench.jobs.capacity import Need
from simmim_bench.jobs.forecast import demo_peak
from simmim_bench.results.record import Record
from simmim_bench.tasks import TASKS
from transfer.suite.cost import is_similar
from transfer.suite.step import SuiteStep
from transfer.tasks import load_function, runner_of

CPU = torch.device("cpu")
# Ours: pixels of an image above which the estimate takes long and needs much main memory, as of detection and
# segmentation at full size, whose batches fill a GPU. They run alone until a run has measured them.
LARGEST = 256 * 256


def measured_need(
    step: SuiteStep, records: Iterable[Record], device: str | None, processes: int = 1
) -> Need:
    """Return the largest peak of similar runs: the same recipe, architecture, device and number of processes.

    Args:
        device: name of the device that the run will use; None where it is not known.

    Returns:
        On a CPU, the peak in the project's own demo where there is no similar run.
    """
    peaks = [
        peak
        for record in records
        if is_similar(record, step)
        and record.environment.get("device") == device
        and record.cost.get("devices") == processes
        and (peak := record.cost["peak_memory_bytes"]) is not None
    ]
    if peaks:
        return Need(max(peaks), f"measured by {len(peaks)} similar run{'s' * (len(peaks) > 1)}")
    peak = demo_peak(step.kind) if device == "cpu" else None
    return Need() if peak is None else Need(peak, "measured in the demo")


class MemoryEstimates:
    """The estimates of `doctor --recipe`, one for every recipe and architecture, computed on the CPU."""

    def __init__(self) -> None:
        self._found: dict[str, Need] = {}

    def need(self, step: SuiteStep) -> Need:
        """Estimate the memory of a step's batch; unknown for large images, or where the task's framework is missing."""
        if step.kind not in self._found:
            img_size = getattr(step.transfer.recipe, "img_size", None)
            self._found[step.kind] = Need()
            if img_size is not None and math.prod(img_size) <= LARGEST:
                with suppress(BenchError, RuntimeError):  # a framework is missing, or memory
                    self._found[step.kind] = _estimate(step)
        return self._found[step.kind]


def _estimate(step: SuiteStep) -> Need:
    """Estimate the memory of the recipe's batch from forward passes of the fewest images, at a published data size."""
    recipe, spec = step.transfer.recipe, step.transfer.checkpoint.spec
    runner = runner_of(recipe)
    data = PUBLISHED.get(TASKS[step.transfer.request.task].data, PUBLISHED["imagenet"])
    work: Work = load_function(runner.estimate)(
        recipe, read_checkpoint(f"random:{spec.arch}"), data, CPU
    )
    memory = measure_memory(work, CPU)
    return Need(round(memory.needed(work.batch_size)), "estimated")


def needs_of(
    steps: Sequence[SuiteStep],
    records: Sequence[Record],
    device: str | None,
    *,
    processes: int,
    estimate: bool,
) -> list[Need]:
    """Return the expected memory of every step.

    Args:
        estimate: whether to estimate what no similar run has measured.
    """
    estimates, needs = MemoryEstimates(), list[Need]()
    for step in steps:
        need = measured_need(step, records, device, processes)
        needs.append(estimates.need(step) if need.peak is None and estimate else need)
    return needs
