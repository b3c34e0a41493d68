"""Steps as jobs of SLURM, through submitit.

In: commands and what sbatch is to be told. Out: jobs. A job whose time runs out saves and is put back into
the queue. Jobs outlive who submitted them: a suite or an ablation that is started again finds them by a
file beside their log.
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
from simmim_bench.files import read_json, write_json
from simmim_bench.jobs.options import SlurmOptions
from simmim_bench.jobs.process import launch, launch_words

COUNTS = ("gpus_per_node", "cpus_per_task")
REQUEUES = 100  # a job that saves and goes on may have its time run out as often as it takes


class Work:
    """What a job does: run a command, and when its time runs out let it save and come back."""

    def __init__(self, arguments: Sequence[str], processes: int, log: Path) -> None:
        self.arguments, self.processes, self.log = list(arguments), processes, log
        self.running: subprocess.Popen[bytes] | None = None

    def __call__(self) -> int:
        """Run the command; give its exit code."""
        self.running = launch(launch_words(self.arguments, self.processes), self.log, None)
        return self.running.wait()

    def checkpoint(self) -> Any:
        """Answer SLURM's warning: let the run save, and hand back what is to be queued."""
        from submitit.helpers import DelayedSubmission

        if self.running is not None:
            self.running.send_signal(signal.SIGTERM)
            # A signal has stopped `wait` above, which holds its lock: another one here would never return.
            with suppress(ChildProcessError):
                os.waitid(os.P_PID, self.running.pid, os.WEXITED | os.WNOWAIT)
        self.running = None
        return DelayedSubmission(self)


class Cluster:
    """Where jobs are submitted to.

    Raises:
        MissingEngineError: submitit is not installed.
        UsageError: this is no machine of a cluster, or an option that sbatch does not have.
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
            **_read_settings(options),
        }
        self._executor("trial", None)

    def _executor(self, name: str, after: str | None) -> Any:
        import submitit

        limit = {"slurm_max_num_timeout": REQUEUES} if self.name == "slurm" else {}
        order = {"slurm_dependency": f"afterany:{after}"} if after else {}
        try:
            # One a job: what was set once, such as an order, could not be taken back.
            executor = submitit.AutoExecutor(self.folder, cluster=self.name, **limit)
            name = re.sub(r"[^\w.-]+", "-", name)
            executor.update_parameters(
                name=name, tasks_per_node=1, nodes=1, **order, **self.settings
            )
        except (RuntimeError, ValueError, NameError, AssertionError) as error:
            raise UsageError(f"--slurm cannot be used: {error}") from error
        return executor

    def submit(self, arguments: Sequence[str], log: Path, name: str, after: str | None) -> Any:
        """Submit a job.

        Args:
            after: number of the job that is to end first, on a cluster that knows such an order.
        """
        executor = self._executor(name, after)
        try:
            job = executor.submit(Work(arguments, self.processes, log.resolve()))
        except Exception as error:  # submitit's own, or what sbatch makes subprocess raise
            raise UsageError(f"SLURM refuses the job of {name}: {error}") from error
        write_json(_note(log), {"cluster": self.name, "job": job.job_id})
        return job

    def find(self, log: Path) -> Any | None:
        """Give the job that was submitted earlier, if it waits or runs."""
        if self.name != "slurm" or not _note(log).is_file():
            return None
        from submitit import SlurmJob

        noted = read_json(_note(log), "job's description")
        job: Any = SlurmJob(self.folder, str(noted["job"]))
        # SLURM forgets old jobs, whose state is then unknown.
        return None if job.state.upper() == "UNKNOWN" or job.done() else job


def _note(log: Path) -> Path:
    return log.with_suffix(".job.json")


def job_code(job: Any) -> tuple[int, str]:
    """Give the exit code of a job that has ended, its command's or 1, and why SLURM ended it."""
    try:
        return int(job.result()), ""
    except Exception as error:  # whatever ended the job is told in submitit's words
        return 1, f"job {job.job_id}: {error}"


def _read_settings(options: SlurmOptions) -> dict[str, Any]:
    """Read what sbatch is to be told, in submitit's words.

    Raises:
        UsageError: a text without a value.
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
    """Read a time as sbatch takes it, in minutes: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S.

    Raises:
        UsageError: another text.
    """
    days, dash, rest = text.rpartition("-")
    parts = rest.split(":")
    if not (
        all(p.isdecimal() for p in parts) and len(parts) <= 3 and (days.isdecimal() or not dash)
    ):
        raise UsageError(f"--slurm-time {text} is not a time; write minutes, H:M:S or D-H:M:S.")
    numbers = [int(p) for p in parts]
    if not dash and len(numbers) < 3:
        numbers = [0, *numbers]
    hours, minutes, seconds = [*numbers, 0, 0][:3]
    total = int(days or 0) * 24 * 60 + hours * 60 + minutes + -(-seconds // 60)
    if not total:
        raise UsageError(f"--slurm-time {text} is no time at all.")
    return total
