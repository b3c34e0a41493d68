"""Send the figures of a run to experiment trackers: `--log wandb`, `--log mlflow`, `--log trackio`.

A tracker is opened with the first figures, so that a run that fails to start leaves nothing there. Its project is
`simmim-bench`, its configuration the content of `recipe.json`. `tracking.json` keeps what identifies the run, by which
a resumed run continues its curves. A tracker that fails is used no further, with a warning: `metrics.jsonl` has all
figures.
Addresses, keys and offline modes are those of the tracker's own environment variables. Nothing here loads torch.
"""

from __future__ import annotations

import os
import secrets
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from simmim_bench.errors import MissingFrameworkError, UsageError, nearest
from simmim_bench.files import write_json
from simmim_bench.untrusted.json_text import read_json
from simmim_bench.untrusted.text import describe_error

PROJECT = "simmim-bench"
TENSORBOARD = "tensorboard"  # always written, by `events.EventFile`
IDENTITY = "tracking.json"
STOPPED = 128  # exit codes from here on are of a signal
FAULTS = (ImportError, OSError, RuntimeError, ValueError, TypeError)
# The base class of each library's errors.
LIBRARY_FAULTS = {"wandb": ("wandb", "Error"), "mlflow": ("mlflow.exceptions", "MlflowException")}
# Set before a library is imported, so that it sends no reports to its makers; a value that the user has set stays.
NO_TELEMETRY = {"WANDB_ERROR_REPORTING": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}


class Logger(Protocol):
    """What receives the figures of a run."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add the figures of a step."""

    def finish(self, exit_code: int = 0) -> None:
        """Write what is left, and end the run; `exit_code` is that of the command (`simmim_bench.errors`)."""


@dataclass(frozen=True)
class TrackedRun:
    """A run as trackers know it.

    Attributes:
        folder: run directory, whose path is the run's name.
        config: the content of `recipe.json`.
        identity: identifies the run, also after it was resumed.
    """

    folder: Path
    config: Mapping[str, Any]
    identity: str

    @property
    def name(self) -> str:
        """The name that people see."""
        return self.folder.as_posix()


class WandbLogger:
    """Weights & Biases; `WANDB_MODE=offline` writes to `wandb/` in the run directory alone."""

    def __init__(self, run: TrackedRun) -> None:
        wandb = import_module("wandb")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run.name,
            id=run.identity,
            resume="allow",
            dir=str(run.folder),
            config=dict(run.config),
            reinit="create_new",  # a notebook may have a run of its own
            settings=wandb.Settings(console="off"),  # log.txt has it
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add the figures of a step."""
        self._run.log(dict(values), step=step)

    def finish(self, exit_code: int = 0) -> None:
        """Upload what is left; another code than 0 marks the run as failed."""
        self._run.finish(exit_code=exit_code)


class MlflowLogger:
    """MLflow, through its client, which leaves the active run of a notebook alone."""

    def __init__(self, run: TrackedRun) -> None:
        self._entities = import_module("mlflow.entities")
        self._client = import_module("mlflow.tracking").MlflowClient()
        experiment_name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self._client.get_experiment_by_name(experiment_name)
        number = (
            self._create_experiment(experiment_name)
            if experiment is None
            else experiment.experiment_id
        )
        found = self._client.search_runs(
            [number], filter_string=f"tags.identity = '{run.identity}'", max_results=1
        )
        if found:
            self._id = found[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
            return
        created = self._client.create_run(
            number, run_name=run.name, tags={"identity": run.identity}
        )
        self._id = created.info.run_id
        for key, value in flatten(run.config).items():
            self._client.log_param(self._id, key, value)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add the figures of a step."""
        now = int(time.time() * 1000)
        metrics = [self._entities.Metric(key, value, now, step) for key, value in values.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def finish(self, exit_code: int = 0) -> None:
        """Mark the run as finished, failed or stopped by a signal."""
        ended = "FAILED" if exit_code < STOPPED else "KILLED"
        self._client.set_terminated(self._id, status=ended if exit_code else "FINISHED")

    def _create_experiment(self, name: str) -> str:
        """Create an experiment, unless another run creates it at the same time, and return its number."""
        try:
            return str(self._client.create_experiment(name))
        except faults_of("mlflow"):
            experiment = self._client.get_experiment_by_name(name)
            if experiment is None:
                raise
            return str(experiment.experiment_id)


class TrackioLogger:
    """Trackio, on this machine."""

    def __init__(self, run: TrackedRun) -> None:
        self._run = import_module("trackio").init(
            project=PROJECT,
            name=f"{run.name} {run.identity}",  # which identifies a run
            config=dict(run.config),
            resume="allow",
            embed=False,
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add the figures of a step."""
        self._run.log(dict(values), step=step)

    def finish(self, exit_code: int = 0) -> None:
        """Write what is left; Trackio keeps no outcome."""
        self._run.finish()


TRACKERS: dict[str, Callable[[TrackedRun], Logger]] = {
    "wandb": WandbLogger,
    "mlflow": MlflowLogger,
    "trackio": TrackioLogger,
}
LOGGERS = (TENSORBOARD, *TRACKERS)


def check_loggers(names: Iterable[str]) -> tuple[str, ...]:
    """Check that loggers are known and installed, and return their names.

    Raises:
        UsageError: one is unknown.
        MissingFrameworkError: the package of one is not installed.
    """
    chosen = tuple(dict.fromkeys(names))
    for name in chosen:
        if name not in LOGGERS:
            raise UsageError(f"unknown logger {name!r} of --log; {nearest(name, LOGGERS)}")
        if name in TRACKERS and not _is_installed(name):
            raise MissingFrameworkError(
                f"--log {name} needs the package {name}: pip install 'simmim-bench[{name}]'."
            )
    return chosen


def _is_installed(name: str) -> bool:
    """Return whether a package is installed; a folder of its name, as wandb writes one, is none."""
    found = find_spec(name)
    return found is not None and found.origin is not None


class Tracker:
    """A tracker that is opened with the first figures, and used no further where it fails.

    Args:
        name: key of `TRACKERS`.
        folder: run directory.
        config: the content of `recipe.json`.
        report: receives one line if the tracker fails; nothing is sent from then on.
    """

    def __init__(
        self, name: str, folder: Path, config: Mapping[str, Any], report: Callable[[str], None]
    ) -> None:
        self._name, self._folder, self._config, self._report = name, folder, config, report
        self._logger: Logger | None = None
        self._failed = False

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add the figures of a step."""
        if self._failed:
            return
        with self._guarded():
            if self._logger is None:
                run = TrackedRun(self._folder, self._config, read_identity(self._folder))
                self._logger = TRACKERS[self._name](run)
            self._logger.log(step, values)

    def finish(self, exit_code: int = 0) -> None:
        """Write what is left, and end the run."""
        if self._logger is not None and not self._failed:
            with self._guarded():
                self._logger.finish(exit_code)

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Stop using the tracker where the block raises one of its errors; what it prints goes to stderr."""
        for key, value in NO_TELEMETRY.items():
            os.environ.setdefault(key, value)
        try:
            with redirect_stdout(sys.stderr):  # stdout has results alone
                yield
        except faults_of(self._name) as error:
            self._failed = True
            self._report(
                f"warning: {self._name} receives nothing from here on ({describe_error(error)}); metrics.jsonl has all "
                "figures"
            )


def faults_of(name: str) -> tuple[type[Exception], ...]:
    """Return the errors that a tracker may raise: common ones, and its library's where that is imported."""
    module, kind = LIBRARY_FAULTS.get(name, ("", ""))
    found = getattr(sys.modules.get(module), kind, None)
    if isinstance(found, type) and issubclass(found, Exception):
        return (*FAULTS, found)
    return FAULTS


def read_identity(folder: Path) -> str:
    """Return what identifies a run in trackers, and write it for the run's resumption."""
    path = folder / IDENTITY
    known = read_json(path, "identity of the run", finite=False) if path.is_file() else {}
    found = known.get("id") if isinstance(known, dict) else None
    if isinstance(found, str) and found.isalnum():
        return found
    identity = secrets.token_hex(6)
    write_json(path, {"id": identity})
    return identity


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of nested tables by their keys, joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        flat |= flatten(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return flat
