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
from simmim_bench.jobs.process import kill, launch, launch_words
from simmim_bench.jobs.slurm import Cluster, job_code
from simmim_bench.runs.status import RunStatus


class Step(Protocol):
    """One process's work."""

    @property
    def log(self) -> Path:
        """The file that its process writes to."""

    @property
    def exclusive_resource(self) -> str | None:
        """What steps share that are not to run at once; None for nothing."""

    def look(self) -> list[tuple[RunStatus, str]]:
        """Say of each of its runs how it stands, and why where it is in the way."""

    def arguments(self) -> list[str]:
        """Give the arguments of `simmim-bench` for what is left."""


class Worker(Protocol):
    """A step that runs somewhere."""

    def poll(self) -> tuple[int, str] | None:
        """Give the exit code, and why it ended where its log does not say; None while it runs."""

    def stop(self, number: int) -> None:
        """Ask it to save and stop."""

    def kill(self) -> None:
        """End it at once."""


class LocalWorker:
    """A step as a process of this machine."""

    def __init__(self, process: subprocess.Popen[bytes], free: Callable[[], None]) -> None:
        self._process, self._free = process, free

    def poll(self) -> tuple[int, str] | None:
        """Give the exit code; None while it runs."""
        code = self._process.poll()
        if code is None:
            return None
        self._free()
        return code, ""

    def stop(self, number: int) -> None:
        """Pass a signal on."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """End it at once."""
        kill(self._process)


class JobWorker:
    """A step as a job, which outlives who submitted it."""

    def __init__(self, job: Any) -> None:
        self.job = job

    def poll(self) -> tuple[int, str] | None:
        """Give the exit code and what SLURM says; None while it waits or runs."""
        return job_code(self.job) if self.job.done() else None

    def stop(self, number: int) -> None:
        """Leave it: who starts the same again finds it."""

    def kill(self) -> None:
        """Leave it."""


class Machine:
    """This machine, its devices shared out to so many steps at once."""

    outlives = False

    def __init__(self, job_options: JobOptions) -> None:
        self.processes = job_options.gpus_per_task
        groups = share_devices(self.processes)
        self.places = job_options.workers or max(1, len(groups))
        if groups and self.places > len(groups):
            raise UsageError(
                f"--workers {self.places} with --gpus-per-task {self.processes} need more GPUs than there are; "
                f"use --workers {len(groups)}."
            )
        self._free: list[str | None] = list(groups) or [None] * self.places

    def may_start(self, step: Step, running: Sequence[Step]) -> bool:
        """Say whether a step may start: what shares a thing takes turns."""
        turn = step.exclusive_resource
        return turn is None or all(turn != other.exclusive_resource for other in running)

    def start(self, step: Step) -> LocalWorker:
        """Start a step."""
        devices = self._free.pop(0)
        command = launch_words(step.arguments(), self.processes)
        return LocalWorker(launch(command, step.log, devices), lambda: self._free.append(devices))


class Queue:
    """SLURM, which shares out its machines itself."""

    outlives = True

    def __init__(self, job_options: JobOptions, folder: Path, steps: int) -> None:
        assert job_options.slurm is not None
        self.cluster = Cluster(folder, job_options.slurm, job_options.gpus_per_task)
        self.places = job_options.workers or max(1, steps)
        self._last: dict[str, str] = {}  # what is shared -> the job that uses it last

    def may_start(self, step: Step, running: Sequence[Step]) -> bool:
        """Say whether a step may start; SLURM keeps the order."""
        return True

    def start(self, step: Step) -> JobWorker:
        """Submit a step, or find the job of an earlier attempt."""
        job, turn = self.cluster.find(step.log), step.exclusive_resource
        if job is None:
            after = None if turn is None else self._last.get(turn)
            job = self.cluster.submit(step.arguments(), step.log, str(step), after)
        if turn is not None and self.cluster.name == "slurm":
            self._last[turn] = job.job_id
        return JobWorker(job)


def share_devices(size: int) -> list[str]:
    """Give the GPUs that this process sees, in groups; none on a CPU.

    Raises:
        UsageError: a group has more than there are.
    """
    if not torch.cuda.is_available():
        return []
    count = torch.cuda.device_count()
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = seen.split(",")[:count] if seen else [str(number) for number in range(count)]
    if size > count:
        raise UsageError(f"--gpus-per-task {size} is more than the {count} GPUs that there are.")
    return [",".join(names[i : i + size]) for i in range(0, count - size + 1, size)]
