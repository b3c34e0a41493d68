"""The run directory: the files of a run, in one layout.

A run directory holds `recipe.json`, `env.json`, `metrics.jsonl`, `log.txt`, `tensorboard/`,
`checkpoints/last/`, and for a transfer `predictions/` and `record.json`. A directory that is not empty is
refused unless the run is resumed or overwritten; only a run directory is ever overwritten.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from simmim_bench.checkpoints.checkpoint import save_pickle
from simmim_bench.checkpoints.read import recover_checkpoint
from simmim_bench.display import Display
from simmim_bench.distributed import DistContext
from simmim_bench.errors import DataError, MissingFrameworkError, UsageError, exit_code_after
from simmim_bench.files import (
    ESCAPED,
    cannot_write,
    remove_leftovers,
    write_json,
    write_text,
)
from simmim_bench.recipe import Recipe
from simmim_bench.runs.environment import environment
from simmim_bench.runs.lock import exclusive_lock, locked_below
from simmim_bench.runs.loggers import TENSORBOARD, Logger, Tracker
from simmim_bench.runs.removal import empty
from simmim_bench.runs.run_check import check_run_dir, describe_run, is_occupied
from simmim_bench.untrusted.json_text import parse_json
from simmim_bench.untrusted.text import visible_lines
from simmim_bench.waiting import sleep_beside_others

# Other folders in a run directory may be runs, such as the transfers of a pretraining, or the features they share.
OWN_FOLDERS = ("checkpoints", "classifier", "predictions", "tensorboard")
METRICS_EVERY = 10  # optimizer steps between lines of metrics.jsonl, in every training loop


class RunDir:
    """An open run directory: its log, its metrics by step, and the paths of its results.

    Args:
        loggers: names of further loggers of the metrics; see `runs.loggers`.
        config: the run's description, which these loggers receive.

    Only rank 0 writes log and metrics; on the other ranks these methods do nothing. Every rank writes a
    batch whose loss is not finite.

    Attributes:
        last_checkpoint: directory of the checkpoint that a resumed run continues from.
        predictions: folder of the raw predictions that scores are computed from.
    """

    def __init__(
        self,
        path: Path,
        display: Display,
        *,
        writes: bool = True,
        loggers: Sequence[str] = (),
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = path
        self.display = display
        self.last_checkpoint = path / "checkpoints" / "last"
        self.predictions = path / "predictions"
        self._writes = writes
        self._started = time.monotonic()
        self._spent_before = 0.0  # seconds, by earlier processes of the run
        self._last_step = -1
        if not writes:
            return
        self._spent_before = max(self.read_metric("wall_time_s"), default=0.0)
        # Its library takes half a second to import, so it is imported only here.
        from simmim_bench.runs.events import EventFile

        self._log = open(  # noqa: SIM115
            path / "log.txt", "a", encoding="utf-8", errors=ESCAPED, buffering=1
        )
        self._tensorboard = EventFile(path / "tensorboard", self.log)
        self._loggers: list[Logger] = [
            self._tensorboard,
            *(Tracker(n, path, config or {}, self.log) for n in loggers if n != TENSORBOARD),
        ]
        self._metrics = open(path / "metrics.jsonl", "a", encoding="utf-8", buffering=1)  # noqa: SIM115
        recovered = recover_checkpoint(self.last_checkpoint)
        if recovered is not None:
            self.log(recovered)
        if not (self.last_checkpoint.exists() or (path / "record.json").exists()):
            self.rewind(0)  # nothing to continue from: the run starts at its first step
        self._last_step = self._find_last_step()

    def write_environment(self) -> None:
        """Write the environment to `env.json` again, after a setting of torch has changed."""
        if self._writes:
            write_json(self.path / "env.json", environment())

    def log(self, text: str, *, shown: bool = True) -> None:
        """Write one line to log.txt and to stderr.

        A disk error ends no run, as stderr has the line as well.

        Args:
            shown: False for what stdout shows at the end, which only log.txt receives.
        """
        if not self._writes:
            return
        text = visible_lines(text)  # labels and names of other people's files
        if shown:
            self.display.log(text)
        try:
            self._log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
        except OSError as error:
            self.display.log(f"warning: cannot write {self.path / 'log.txt'}: {error.strerror}")

    def wall_time_s(self) -> float:
        """Return the seconds that the run has taken, earlier processes included up to their last metrics."""
        return self._spent_before + time.monotonic() - self._started

    def metrics(self, step: int, **figures: float) -> None:
        """Write the figures of a step to metrics.jsonl, to TensorBoard and to the other loggers.

        Raises:
            DataError: metrics.jsonl, from which a resumed run continues, cannot be written.
        """
        if not self._writes:
            return
        line = {"step": step, **figures, "wall_time_s": round(self.wall_time_s(), 1)}
        try:
            self._metrics.write(json.dumps(line) + "\n")
        except OSError as error:
            raise cannot_write(self.path / "metrics.jsonl", error) from error
        self._last_step = step
        self._send(step, figures)

    def log_scores(self, scores: Mapping[str, float]) -> None:
        """Send the scores of a record to the loggers, after the last step."""
        if self._writes:
            self._send(self._last_step + 1, {f"score/{key}": v for key, v in scores.items()})

    def _send(self, step: int, figures: Mapping[str, float]) -> None:
        for logger in self._loggers:
            logger.log(step, figures)

    def read_metric(self, name: str) -> list[float]:
        """Read the values of a metric so far, in order."""
        path = self.path / "metrics.jsonl"
        values = []
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
            with suppress(ValueError, TypeError):  # a line that a kill has truncated
                figures = parse_json(line, finite=False)
                values += [figures[name]] if name in figures else []
        return values

    def add_image(self, name: str, step: int, path: Path | None) -> None:
        """Add a PNG to TensorBoard."""
        if self._writes and path is not None:
            self._tensorboard.add_image(name, path, step)

    def rewind(self, step: int) -> None:
        """Remove the metrics of a step and of later ones, which a resumed run computes again."""
        if not self._writes:
            return
        path = self.path / "metrics.jsonl"
        with suppress(OSError):  # reported when the line was written
            self._metrics.close()
        kept = []
        for line in path.read_text(encoding="utf-8").splitlines():
            with suppress(ValueError, TypeError, KeyError):  # a line that a kill has truncated
                if parse_json(line, finite=False)["step"] < step:
                    kept.append(line + "\n")
        write_text(path, "".join(kept))
        self._metrics = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115
        self._last_step = self._find_last_step()

    def _find_last_step(self) -> int:
        """Return the last step in metrics.jsonl; -1 without one."""
        return int(max(self.read_metric("step"), default=-1))

    def save_bad_batch(self, step: int, batch: list[Any], rank: int = 0) -> Path:
        """Write the tensors of a process's part of a batch whose loss is not finite; return the file.

        Every rank writes its own file, as the fault may be in the images of any of them.
        """
        path = self.path / f"bad_batch_step{step}{f'_rank{rank}' if rank else ''}.pt"
        save_pickle(batch, path)
        return path

    def close(self, exit_code: int = 0) -> None:
        """Flush and close all files.

        Args:
            exit_code: of the command, which trackers receive as the outcome of the run.
        """
        if not self._writes:
            return
        for logger in self._loggers:
            logger.finish(exit_code)
        for file in (self._log, self._metrics):
            with suppress(OSError):  # reported when the line was written
                file.close()


@contextmanager
def open_run(
    path: Path,
    *,
    recipe: Recipe,
    deviates: dict[str, Any],
    arguments: dict[str, Any],
    display: Display,
    resume: bool = False,
    overwrite: bool = False,
    dist: DistContext | None = None,
    loggers: Sequence[str] = (),
) -> Iterator[RunDir]:
    """Create or reopen a run directory, lock it, and keep it open for the block.

    Args:
        deviates: differences of the recipe from the named one.
        arguments: what shapes the run besides the recipe, such as checkpoint, data and seed.
        dist: the processes of the run, of which rank 0 alone writes to the directory; None for a single
            process.
        loggers: names of further loggers of the metrics; see `runs.loggers`.

    Raises:
        UsageError: the directory is not empty, another process works in it, or a resumed run was started
            with other arguments.
        DataError: the directory cannot be written.
    """
    if dist is not None and not dist.is_main:
        dist.barrier()
        with sleep_beside_others():
            yield RunDir(path, display, writes=False)
        return
    description = describe_run(recipe, deviates, arguments)
    how = {"resume": resume, "overwrite": overwrite}
    check_run_dir(path, description, **how)
    occupied = is_occupied(path)
    created = [parent for parent in path.parents if not parent.exists()]
    with ExitStack() as closing:
        try:
            path.mkdir(parents=True, exist_ok=True)
            closing.enter_context(exclusive_lock(path))
            check_run_dir(path, description, **how)  # may have changed before the lock was held
            if occupied and overwrite:
                empty(path)
            remove_leftovers(path, OWN_FOLDERS)
            write_json(path / "recipe.json", description)
            write_json(path / "env.json", environment())
            run = RunDir(path, display, loggers=loggers, config=description)
            closing.push(lambda kind, error, trace: run.close(exit_code_after(error)))
            closing.enter_context(sleep_beside_others())
            if dist is not None:
                dist.barrier()
        except OSError as error:
            raise cannot_write(path, error) from error
        try:
            yield run
        except (UsageError, DataError, MissingFrameworkError):
            # A run that failed to start leaves no directory, so that the corrected command is not refused.
            results = (run.last_checkpoint, run.predictions)
            if not (occupied or any(p.exists() for p in results) or locked_below(path)):
                shutil.rmtree(path, ignore_errors=True)
                with suppress(OSError):  # another run has begun there
                    for parent in created:
                        parent.rmdir()
            raise
        remove_leftovers(path, OWN_FOLDERS)  # of a folder that could not be removed at once
