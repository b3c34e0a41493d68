"""The run directory: everything that a run leaves behind, in one layout.

In: a path, the resolved recipe, what differs from the named one. Out:
`recipe.json, env.json, metrics.jsonl, log.txt, tensorboard/, checkpoints/last/`, and for a transfer
`predictions/` and `record.json`. A directory that is not empty is refused unless the run is resumed or
overwritten; only a run directory is ever overwritten.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from simmim_bench.checkpoints.read import recover_checkpoint
from simmim_bench.display import Display
from simmim_bench.errors import DataError, MissingFrameworkError, UsageError
from simmim_bench.files import read_json, replacing, write_json, write_text
from simmim_bench.recipe import ABOUT, MACHINE, Recipe
from simmim_bench.runs.environment import environment
from simmim_bench.runs.lock import LOCK, exclusive_lock
from simmim_bench.distributed import DistContext


class RunDir:
    """An open run directory: a log, metrics by step, and the paths of what is kept.

    Only the main process of a run writes; the others' log and metrics go nowhere. A batch that could not
    be learnt from is kept by each.
    """

    def __init__(self, path: Path, display: Display, *, writes: bool = True) -> None:
        self.path = path
        self.display = display
        self.last_checkpoint = path / "checkpoints" / "last"
        self.predictions = path / "predictions"
        self._writes = writes
        self._started = time.monotonic()
        self._spent_before = 0.0  # seconds of earlier processes
        if not writes:
            return
        self._spent_before = max(self.read_metric("wall_time_s"), default=0.0)
        # A second to import: only where it is used.
        from torch.utils.tensorboard import SummaryWriter

        self.tensorboard = SummaryWriter(str(path / "tensorboard"))
        self._log = open(path / "log.txt", "a", encoding="utf-8", buffering=1)  # noqa: SIM115
        self._metrics = open(path / "metrics.jsonl", "a", encoding="utf-8", buffering=1)  # noqa: SIM115
        recovered = recover_checkpoint(self.last_checkpoint)
        if recovered is not None:
            self.log(recovered)

    def log(self, text: str) -> None:
        """Write one line to log.txt and to stderr."""
        if not self._writes:
            return
        self._log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
        self.display.log(text)

    def wall_time_s(self) -> float:
        """Give the seconds that the run has taken, those of earlier processes as far as they told."""
        return self._spent_before + time.monotonic() - self._started

    def metrics(self, step: int, **figures: float) -> None:
        """Write figures of a step to metrics.jsonl and to TensorBoard."""
        if not self._writes:
            return
        line = {"step": step, **figures, "wall_time_s": round(self.wall_time_s(), 1)}
        self._metrics.write(json.dumps(line) + "\n")
        for name, value in figures.items():
            self.tensorboard.add_scalar(name, value, step)

    def read_metric(self, name: str) -> list[float]:
        """Give the values that a metric has had so far, in order."""
        path = self.path / "metrics.jsonl"
        values = []
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
            with suppress(ValueError):  # a line that a kill cut short
                figures = json.loads(line)
                values += [figures[name]] if name in figures else []
        return values

    def picture(self, name: str, step: int, path: Path | None) -> None:
        """Show a PNG in TensorBoard."""
        if not self._writes or path is None:
            return
        import numpy as np
        from PIL import Image

        with Image.open(path) as image:
            self.tensorboard.add_image(name, np.asarray(image), step, dataformats="HWC")

    def rewind(self, step: int) -> None:
        """Forget the metrics of a step and later ones, which will be taken again."""
        if not self._writes:
            return
        path = self.path / "metrics.jsonl"
        self._metrics.close()
        kept = []
        for line in path.read_text(encoding="utf-8").splitlines():
            with suppress(ValueError):  # a line that a kill cut short
                if json.loads(line)["step"] < step:
                    kept.append(line + "\n")
        write_text(path, "".join(kept))
        self._metrics = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115

    def keep_batch(self, step: int, batch: list[Any], rank: int = 0) -> Path:
        """Keep the tensors of a process's share of a batch that a step could not be taken on.

        Each process keeps its own: the fault may be in any of them.
        """
        import torch

        path = self.path / f"bad_batch_step{step}{f'_rank{rank}' if rank else ''}.pt"
        with replacing(path) as temporary:
            torch.save(batch, temporary)
        return path

    def close(self) -> None:
        """Flush and close all files."""
        if not self._writes:
            return
        self.tensorboard.close()
        self._log.close()
        self._metrics.close()


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
) -> Iterator[RunDir]:
    """Prepare a run directory and keep it open for the block.

    Args:
        team: the processes of the run; only the main one touches the directory.
        arguments: what shapes the run beside the recipe, such as checkpoint, data and seed.

    Raises:
        UsageError: the directory is not empty, another process works in it, or a resumed run was started
            differently.
        DataError: the directory cannot be written.
    """
    if dist is not None and not dist.is_main:
        dist.barrier()
        yield RunDir(path, display, writes=False)
        return
    description = describe_run(recipe, deviates, arguments)
    how = {"resume": resume, "overwrite": overwrite}
    check_run_dir(path, description, **how)
    occupied = is_occupied(path)
    with ExitStack() as closing:
        try:
            path.mkdir(parents=True, exist_ok=True)
            closing.enter_context(exclusive_lock(path))
            check_run_dir(path, description, **how)  # another process may have been here meanwhile
            if occupied and overwrite:
                _empty(path)
            write_json(path / "recipe.json", description)
            write_json(path / "env.json", environment())
            run = RunDir(path, display)
            closing.callback(run.close)
            if dist is not None:
                dist.barrier()
        except OSError as error:
            raise DataError(
                f"cannot write {path}: {error.strerror or error}; free some space or choose another --out."
            ) from error
        try:
            yield run
        except (UsageError, DataError, MissingFrameworkError):
            # A start that could not be made leaves nothing, so that the mended command meets no obstacle.
            if not occupied and not run.last_checkpoint.exists() and not run.predictions.exists():
                shutil.rmtree(path, ignore_errors=True)
            raise


def describe_run(
    recipe: Recipe, deviates: dict[str, Any], arguments: dict[str, Any]
) -> dict[str, Any]:
    """Give what `recipe.json` says of a run, in JSON's types."""
    description = {
        "recipe": recipe.to_json(),
        "recipe_sha256": recipe.sha256(),
        "deviates": deviates,
        "arguments": arguments,
    }
    plain: dict[str, Any] = json.loads(json.dumps(description))
    return plain


def check_run_dir(path: Path, description: dict[str, Any], *, resume: bool, overwrite: bool) -> None:
    """Refuse a directory that a run cannot go into.

    Raises:
        UsageError: the directory is not empty, or a resumed run was started differently.
        DataError: the description of the run to go on with cannot be read.
    """
    if resume and overwrite:
        raise UsageError("--resume and --overwrite contradict each other; give one of them.")
    if path.exists() and not path.is_dir():
        raise UsageError(f"--out {path} is a file; choose a directory.")
    if not is_occupied(path):
        return
    if resume:
        before = read_json(path / "recipe.json", "run description")
        if not isinstance(before, dict):
            raise DataError(f"run description {path / 'recipe.json'} is damaged; start anew.")
        changed = _changes(before, description)
        if changed:
            raise UsageError(
                f"{path} was started with another {' and '.join(changed)}; resume with the same command, "
                "or start anew with another --out."
            )
    elif not overwrite:
        raise UsageError(
            f"{path} is not empty; go on with --resume, replace it with --overwrite, or choose another --out."
        )
    elif not (path / "recipe.json").is_file():
        raise UsageError(
            f"{path} is not a run directory (no recipe.json), so --overwrite leaves it alone; choose another --out."
        )


def is_occupied(path: Path) -> bool:
    """Say whether a directory holds more than a killed process leaves of a start."""
    if not path.is_dir():
        return False
    return any(p.name != LOCK and not p.match(".recipe.json.*.tmp") for p in path.iterdir())


def _empty(path: Path) -> None:
    """Remove all that a directory holds but the lock on it."""
    for entry in path.iterdir():
        if entry.name == LOCK:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Name what shapes a run and is not as before, with both values."""
    changed = []
    if before.get("recipe_sha256") != now["recipe_sha256"]:
        fields = _differences(before, now, "recipe", leave_out=(*ABOUT, *MACHINE))
        changed.append(f"recipe ({', '.join(fields) or 'of another version'})")
    elif before.get("deviates") != now["deviates"]:
        changed.append(f"named recipe (deviates {before.get('deviates')}, now {now['deviates']})")
    return changed + _differences(before, now, "arguments")


def _differences(
    before: dict[str, Any], now: dict[str, Any], part: str, leave_out: Sequence[str] = ()
) -> list[str]:
    old, new = before.get(part), now[part]
    old = old if isinstance(old, dict) else {}
    return [
        f"{key} {old.get(key)}, now {new.get(key)}"
        for key in dict.fromkeys([*old, *new])
        if key not in leave_out and old.get(key) != new.get(key)
    ]
