"""Steps as SLURM jobs, submitted through submitit.

A job whose time runs out saves and is requeued. Jobs outlive the process that submitted them: a suite or an
ablation that is started again finds them by a file next to their log.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from simmim_bench.errors import MissingFrameworkError, UsageError
from simmim_bench.files import write_json
from simmim_bench.jobs.options import SlurmOptions
from simmim_bench.jobs.process import command_line, launch
from simmim_bench.signals import REQUEUES
from simmim_bench.untrusted.json_text import read_json

COUNTS = ("gpus_per_node", "cpus_per_task")
# MAE's submitit_pretrain.py:109. sbatch's own default is a single core, which leaves a GPU waiting for images.
CPUS_PER_GPU = 10


class CommandJob:
    """A job that runs a command; at the time limit the command saves and the job is requeued."""

    def __init__(self, arguments: Sequence[str], processes: int, log: Path) -> None:
        self.arguments, self.processes, self.log = list(arguments), processes, log
        self.running: subprocess.Popen[bytes] | None = None

    def __call__(self) -> int:
        """Run the command and return its exit code."""
        self.running = launch(command_line(self.arguments, self.processes), self.log, None)
        return self.running.wait()

    def checkpoint(self) -> Any:
        """Make the run save, and return what to requeue; submitit calls it before the time limit."""
        from submitit.helpers import DelayedSubmission

        if self.running is not None:
            self.running.send_signal(signal.SIGTERM)
            # A signal has interrupted `wait` above, which holds its lock: calling it here would never return.
            with suppress(ChildProcessError):
                os.waitid(os.P_PID, self.running.pid, os.WEXITED | os.WNOWAIT)
        self.running = None
        return DelayedSubmission(self)


class Cluster:
    """A SLURM cluster that jobs are submitted to.

    Args:
        folder: receives submitit's files.
        gpus: GPUs, and therefore processes, of a job.

    Raises:
        MissingFrameworkError: submitit is not installed.
        UsageError: this machine has no SLURM, or sbatch does not have an option.
    """

    def __init__(self, folder: Path, options: SlurmOptions, gpus: int) -> None:
        try:
            import submitit  # noqa: F401
        except ImportError as error:
            raise MissingFrameworkError(
                "--slurm needs the package submitit: pip install 'simmim-bench[slurm]'."
            ) from error
        self.folder, self.name = folder.resolve(), options.cluster
        self.processes = max(1, gpus)
        self.settings = {
            "timeout_min": read_minutes(options.time),
            "gpus_per_node": gpus,
            "cpus_per_task": CPUS_PER_GPU * self.processes,
            **_read_settings(options),
        }
        self._executor("trial", None)  # fails here rather than at the first submission

    def _executor(self, name: str, after: str | None) -> Any:
        """Build an executor for one job: a parameter such as a dependency cannot be unset later."""
        import submitit

        limit = {"slurm_max_num_timeout": REQUEUES} if self.name == "slurm" else {}
        order = {"slurm_dependency": f"afterany:{after}"} if after else {}
        try:
            executor = submitit.AutoExecutor(self.folder, cluster=self.name, **limit)
            name = re.sub(r"[^\w.-]+", "-", name)
            executor.update_parameters(
                name=name, tasks_per_node=1, nodes=1, **order, **self.settings
            )
        except (RuntimeError, ValueError, NameError, AssertionError) as error:
            raise UsageError(f"--slurm cannot be used: {error}") from error
        return executor

    def submit(self, arguments: Sequence[str], log: Path, name: str, after: str | None) -> Any:
        """Submit a job, and write its number to a file next to the log.

        Args:
            after: number of the job that has to end first, on a cluster with dependencies.

        Raises:
            UsageError: SLURM refuses the job.
        """
        executor = self._executor(name, after)
        try:
            job = executor.submit(CommandJob(arguments, self.processes, log.resolve()))
        except Exception as error:  # submitit's own errors, and those of subprocess for sbatch
            raise UsageError(f"SLURM refuses the job of {name}: {error}") from error
        write_json(_note_path(log), {"cluster": self.name, "job": job.job_id})
        return job

    def find(self, log: Path) -> Any | None:
        """Return the job that was submitted for a log earlier, if it is queued or runs."""
        if self.name != "slurm" or not _note_path(log).is_file():
            return None
        from submitit import SlurmJob

        noted = read_json(_note_path(log), "job's description")
        job: Any = SlurmJob(self.folder, str(noted["job"]))
        # SLURM forgets old jobs; their state is then unknown.
        return None if job.state.upper() == "UNKNOWN" or job.done() else job


def _note_path(log: Path) -> Path:
    return log.with_suffix(".job.json")


def job_result(job: Any) -> tuple[int, str]:
    """Return the exit code of an ended job, its command's or 1, and the reason why SLURM ended it."""
    try:
        return int(job.result()), ""
    except Exception as error:  # submitit reports whatever ended the job
        return 1, f"job {job.job_id}: {error}"


def _read_settings(options: SlurmOptions) -> dict[str, Any]:
    """Convert options of sbatch to submitit's parameters.

    Raises:
        UsageError: an option without a value, or a count that is not a whole number.
    """
    from submitit import SlurmExecutor

    known = SlurmExecutor._valid_parameters()
    settings: dict[str, Any] = {}
    extra: dict[str, str] = {}
    for text in options.more:
        key, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--slurm-set {text} has no value; write --slurm-set {text}=VALUE.")
        name = key.lstrip("-").replace("-", "_")
        if name in COUNTS:
            if not value.isdecimal():
                raise UsageError(f"--slurm-set {text} is not a whole number.")
            settings[name] = int(value)
        elif name in known:
            settings[f"slurm_{name}"] = value
        else:
            extra[name.replace("_", "-")] = value
    for name, given in (("partition", options.partition), ("account", options.account)):
        settings |= {f"slurm_{name}": given} if given else {}
    return {**settings, **({"slurm_additional_parameters": extra} if extra else {})}


def read_minutes(text: str) -> int:
    """Convert a time limit in one of sbatch's formats to minutes: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S.

    Raises:
        UsageError: another format, or zero.
    """
    days, dash, rest = text.rpartition("-")
    parts = rest.split(":")
    if not (
        all(p.isdecimal() for p in parts) and len(parts) <= 3 and (days.isdecimal() or not dash)
    ):
        raise UsageError(f"--slurm-time {text} is not a time; use minutes, H:M:S or D-H:M:S.")
    numbers = [int(p) for p in parts]
    if not dash and len(numbers) < 3:
        numbers = [0, *numbers]
    hours, minutes, seconds = [*numbers, 0, 0][:3]
    total = int(days or 0) * 24 * 60 + hours * 60 + minutes + -(-seconds // 60)
    if not total:
        raise UsageError(f"--slurm-time {text} is zero; use minutes, H:M:S or D-H:M:S.")
    return total
