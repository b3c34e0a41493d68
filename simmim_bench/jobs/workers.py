"""Where steps run: processes on this machine's devices, or SLURM jobs."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from simmim_bench.errors import UsageError
from simmim_bench.jobs.options import JobOptions
from simmim_bench.jobs.process import command_line, kill, launch
from simmim_bench.jobs.slurm import Cluster, job_result
from simmim_bench.jobs.step import Step


class Worker(Protocol):
    """A started step."""

    def poll(self) -> tuple[int, str] | None:
        """Return the exit code, and the reason where the log does not contain it; None while it runs."""

    def stop(self, number: int) -> None:
        """Send a signal that asks the step to save and stop."""

    def kill(self) -> None:
        """End the step at once."""


class LocalWorker:
    """A step as a process of this machine.

    Args:
        release: frees the step's devices; called when the process has ended.
    """

    def __init__(self, process: subprocess.Popen[bytes], release: Callable[[], None]) -> None:
        self._process, self._release = process, release

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
    """This machine, its GPUs split into one group per parallel step.

    Attributes:
        processes: processes of a step.
        slots: steps that run in parallel.

    Raises:
        UsageError: more GPUs are requested than are visible.
    """

    outlives_parent = False

    def __init__(self, job_options: JobOptions) -> None:
        self.processes = job_options.gpus_per_task
        groups = gpu_groups(self.processes)
        self.slots = job_options.workers or max(1, len(groups))
        if groups and self.slots > len(groups):
            raise UsageError(
                f"--workers {self.slots} with --gpus-per-task {self.processes} needs "
                f"{self.slots * self.processes} GPUs, more than are visible; use --workers {len(groups)}."
            )
        self._free: list[str | None] = list(groups) or [None] * self.slots

    def may_start(self, step: Step, running: Sequence[Step]) -> bool:
        """Return whether no running step uses the step's exclusive resource."""
        resource = step.exclusive_resource
        return resource is None or all(resource != other.exclusive_resource for other in running)

    def start(self, step: Step) -> LocalWorker:
        """Start a step on a free group of GPUs."""
        devices = self._free.pop(0)
        command = command_line(step.arguments(), self.processes)
        return LocalWorker(launch(command, step.log, devices), lambda: self._free.append(devices))


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
        self._last_job: dict[str, str] = {}  # exclusive resource -> the last job that uses it

    def may_start(self, step: Step, running: Sequence[Step]) -> bool:
        """Return True: SLURM's dependencies keep exclusive resources apart."""
        return True

    def start(self, step: Step) -> JobWorker:
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
