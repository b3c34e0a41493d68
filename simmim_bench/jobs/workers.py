"""Where steps run: processes on this machine's devices, or SLURM jobs."""

from __future__ import annotations

import functools
import math
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from simmim_bench.display import plural
from simmim_bench.errors import UsageError
from simmim_bench.jobs.capacity import Need, Place, choose_place, free_gpu_memory
from simmim_bench.jobs.options import JobOptions
from simmim_bench.jobs.process import command_line, kill, launch
from simmim_bench.jobs.progress import PROGRESS_FILE
from simmim_bench.jobs.slurm import Cluster, job_result
from simmim_bench.jobs.step import Step, progress_file
from simmim_bench.processors import child_environment, usable_cores
from simmim_bench.runs.environment import SIDE_BY_SIDE
from simmim_bench.training.memory import available_memory

ASK_EVERY_S = 5.0  # between two questions for a GPU's free memory


class Worker(Protocol):
    """A started step."""

    @property
    def place(self) -> Place | None:
        """The devices that the step runs on; None where they are not this machine's."""

    def poll(self) -> tuple[int, str] | None:
        """Return the exit code, and the reason where the log does not contain it; None while it runs."""

    def stop(self, number: int) -> None:
        """Send a signal that asks the step to save and stop."""

    def kill(self) -> None:
        """End the step at once."""


class LocalWorker:
    """A step as a process of this machine.

    Args:
        place: the devices that it runs on.
        release: frees them; called when the process has ended.
    """

    def __init__(
        self, process: subprocess.Popen[bytes], place: Place, release: Callable[[], None]
    ) -> None:
        self._process, self.place, self._release = process, place, release

    def poll(self) -> tuple[int, str] | None:
        """Return the exit code; None while the process runs."""
        code = self._process.poll()
        if code is None:
            return None
        self._release()
        return code, ""

    def stop(self, number: int) -> None:
        """Send a signal to the process."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """Kill the process and its children."""
        kill(self._process)


class JobWorker:
    """A step as a SLURM job, which outlives the process that submitted it."""

    place = None

    def __init__(self, job: Any) -> None:
        self.job = job

    def poll(self) -> tuple[int, str] | None:
        """Return the exit code and SLURM's reason; None while the job is queued or runs."""
        return job_result(self.job) if self.job.done() else None

    def stop(self, number: int) -> None:
        """Leave the job unchanged; the same command finds it again."""

    def kill(self) -> None:
        """Leave the job unchanged."""


class Machine:
    """This machine, its GPUs split into groups, each of which takes the steps that fit in its memory.

    Steps that compute on a CPU divide the processors: several of one thread each run at a time, which
    benchmarks/side_by_side.py compares with one after the other.

    Attributes:
        processes: processes of a step.
        places: the groups of GPUs, or the machine itself.
        slots: the most steps that run in parallel.

    Raises:
        UsageError: more GPUs are requested than are visible.
    """

    outlives_parent = False

    def __init__(self, job_options: JobOptions) -> None:
        self.processes = job_options.gpus_per_task
        groups = gpu_groups(self.processes)
        workers = job_options.workers
        if groups and workers and workers > len(groups):
            raise UsageError(
                f"--workers {workers} with --gpus-per-task {self.processes} needs "
                f"{workers * self.processes} GPUs, more than are visible; use --workers {len(groups)}."
            )
        if groups:
            chosen = groups[:workers]
            cores = max(1, int(usable_cores() / (len(chosen) * self.processes)))
            seats = 1 if workers or job_options.exclusive else cores
            self.places = [
                Place(
                    group,
                    seats,
                    _seldom(functools.partial(_free_memory, i * self.processes, self.processes)),
                )
                for i, group in enumerate(chosen)
            ]
        elif workers or job_options.exclusive:
            self.places = [Place(None, 1, _free_main_memory) for _ in range(workers or 1)]
        else:
            seats = max(1, int(usable_cores() / self.processes))
            self.places = [Place(None, seats, _free_main_memory)]
        self.slots = sum(place.seats for place in self.places)

    def describe(self) -> str:
        """Describe how many steps run at a time; "" for one."""
        if self.slots == 1:
            return ""
        first = self.places[0]
        if first.seats == 1:
            return f"{self.slots} steps at a time"
        where = "in main memory" if first.devices is None else "in a GPU's memory"
        groups = f" on each of {len(self.places)} groups of GPUs" if len(self.places) > 1 else ""
        return f"side by side: up to {plural(first.seats, 'step')}{groups} while they fit {where}"

    def find_place(self, step: Step, running: Sequence[Step], need: Need) -> Place | None:
        """Return where a step fits; None while it fits nowhere, or a running step uses its exclusive resource."""
        resource = step.exclusive_resource
        if resource is not None and any(resource == one.exclusive_resource for one in running):
            return None
        return choose_place(self.places, need)

    def start(
        self, step: Step, place: Place, need: Need, others: Sequence[tuple[Step, Need]]
    ) -> LocalWorker:
        """Start a step with its part of the processors.

        Args:
            place: what `find_place` has returned; the free memory may have changed since.
            others: the running and the pending steps.
        """
        command = command_line(step.arguments(), self.processes)
        release = place.take(need)
        together = min(self._share(step, others), len(self.places) * place.most(need))
        variables = child_environment(together * self.processes) if together > 1 else {}
        variables[SIDE_BY_SIDE] = str(together if place.seats > 1 or place.devices is None else 1)
        variables[PROGRESS_FILE] = str(progress_file(step).resolve())
        process = launch(command, step.log, place.devices, variables)
        return LocalWorker(process, place, release)

    def _share(self, step: Step, others: Sequence[tuple[Step, Need]]) -> int:
        """Return how many steps may run at a time with a step, itself included, if all of known memory fit."""
        known = [other for other, need in others if need.peak is not None]
        independent = sum(other.exclusive_resource is None for other in known)
        resources = {other.exclusive_resource for other in known} - {None, step.exclusive_resource}
        elsewhere = min(len(others) - len(known), len(self.places) - 1)  # each alone in its place
        return 1 + independent + len(resources) + elsewhere


class Queue:
    """SLURM, which assigns machines and devices itself.

    Attributes:
        slots: jobs that are queued or run at the same time.
    """

    outlives_parent = True

    def __init__(self, job_options: JobOptions, folder: Path, steps: int) -> None:
        assert job_options.slurm is not None
        self.cluster = Cluster(folder, job_options.slurm, job_options.gpus_per_task)
        self.slots = job_options.workers or max(1, steps)
        self._place = Place(None, self.slots, lambda: None)
        self._last_job: dict[str, str] = {}  # exclusive resource -> the last job that uses it

    def find_place(self, step: Step, running: Sequence[Step], need: Need) -> Place:
        """Return the cluster, for any step: SLURM's dependencies keep exclusive resources apart."""
        return self._place

    def start(
        self, step: Step, place: Place, need: Need, others: Sequence[tuple[Step, Need]]
    ) -> JobWorker:
        """Submit a step, or find the job that an earlier attempt submitted."""
        job, resource = self.cluster.find(step.log), step.exclusive_resource
        if job is None:
            after = None if resource is None else self._last_job.get(resource)
            job = self.cluster.submit(step.arguments(), step.log, str(step), after)
        if resource is not None and self.cluster.name == "slurm":
            self._last_job[resource] = job.job_id
        return JobWorker(job)


def gpu_groups(size: int) -> list[str]:
    """Split the GPUs that this process sees into groups.

    Args:
        size: GPUs of a group; the GPUs left over are not used.

    Returns:
        The values of CUDA_VISIBLE_DEVICES; an empty list on a machine without a GPU.

    Raises:
        UsageError: a group has more GPUs than are visible.
    """
    if not torch.cuda.is_available():
        return []
    count = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",")[:count] if visible else [str(number) for number in range(count)]
    if size > count:
        raise UsageError(f"--gpus-per-task {size} is more than the {count} GPUs that are visible.")
    return [",".join(names[i : i + size]) for i in range(0, count - size + 1, size)]


def _seldom(ask: Callable[[], float | None]) -> Callable[[], float | None]:
    """Return a function that asks again only after some seconds: asking a driver takes a process."""
    asked, answer = -math.inf, None

    def cached() -> float | None:
        nonlocal asked, answer
        if time.monotonic() - asked >= ASK_EVERY_S:
            asked, answer = time.monotonic(), ask()
        return answer

    return cached


def _free_main_memory() -> int | None:
    return available_memory(torch.device("cpu"))


def _free_memory(first: int, count: int) -> int | None:
    """Return the free bytes of the fullest of some GPUs, numbered as this process sees them; None if not known."""
    found = []
    for number in range(first, first + count):
        # Asking the driver takes no memory of the GPU; asking torch takes that of a context.
        uuid = getattr(torch.cuda.get_device_properties(number), "uuid", None)
        free = None if uuid is None else free_gpu_memory(str(uuid))
        found.append(available_memory(torch.device("cuda", number)) if free is None else free)
    return None if None in found else min(one for one in found if one is not None)
