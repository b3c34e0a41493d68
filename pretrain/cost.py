"""The expected cost and memory of a pretraining: of finished runs of the same recipe, or estimated from two images."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

from pretrain.estimate import plan_pretraining
from pretrain.recipes import PretrainRecipe
from pretrain.step import PretrainStep, read_provenance
from simmim_bench.diagnostics.estimate import CPU, PUBLISHED, measure_memory
from simmim_bench.display import format_duration
from simmim_bench.errors import BenchError, DataError
from simmim_bench.jobs.capacity import Need
from simmim_bench.recipe import ABOUT, MACHINE
from simmim_bench.untrusted.json_text import read_json

# Ours: pixels of an image above which the estimate takes long, as of a suite's steps; they run alone at first.
LARGEST = 256 * 256
LENGTH = ("epochs", "warmup_epochs", "milestones")  # fields that change the duration in proportion


class FinishedRun(NamedTuple):
    """A finished pretraining: its recipe without its length, and its figures."""

    settings: dict[str, Any]
    data: str
    epochs: int
    device: str | None
    devices: int | None
    wall_time_s: float
    peak_memory_bytes: int | None


@dataclass(frozen=True)
class PretrainCost:
    """The expected seconds of a pretraining; None where they are not known, and its memory."""

    seconds: float | None
    source: str
    need: Need = field(default_factory=Need)

    def __str__(self) -> str:
        return f"unknown ({self.source})" if self.seconds is None else format_duration(self.seconds)


def read_finished(run_dirs: Iterable[Path]) -> list[FinishedRun]:
    """Read the finished ones of some pretrainings; those that cannot be read are left out."""
    found = []
    for run_dir in run_dirs:
        provenance = read_provenance(run_dir)
        if "wall_time_s" not in provenance:
            continue
        with suppress(DataError, KeyError, TypeError):
            description = read_json(run_dir / "recipe.json", "recipe of a run", finite=False)
            environment = read_json(run_dir / "env.json", "environment of a run", finite=False)
            found.append(
                FinishedRun(
                    _settings(description["recipe"]),
                    str(description["arguments"]["data"]),
                    int(description["recipe"]["epochs"]),
                    environment.get("device"),
                    provenance.get("devices"),
                    float(provenance["wall_time_s"]),
                    provenance.get("peak_memory_bytes"),
                )
            )
    return found


def expect_cost(
    step: PretrainStep, finished: Sequence[FinishedRun], device: str | None, processes: int = 1
) -> PretrainCost:
    """Expect what finished runs have cost that differ in the number of epochs at most.

    Args:
        device: name of the device that the run will use; None where it is not known.
        processes: of the run.
    """
    settings, recipe = _settings(step.recipe.to_json()), step.recipe
    alike = [
        run
        for run in finished
        if run.settings == settings
        and run.data == str(step.data)
        and device in (None, run.device)
        and run.devices == processes
    ]
    if not alike:
        return PretrainCost(None, f"no similar run yet; epochs {recipe.epochs}")
    seconds = statistics.fmean(run.wall_time_s * recipe.epochs / run.epochs for run in alike)
    peaks = [run.peak_memory_bytes for run in alike if run.peak_memory_bytes is not None]
    source = f"mean of {len(alike)} similar run{'s' * (len(alike) > 1)}"
    need = Need(max(peaks), f"measured by {source.removeprefix('mean of ')}") if peaks else Need()
    return PretrainCost(seconds, source, need)


def _settings(recipe: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a recipe that determine the duration of an epoch, in JSON's types.

    Fields at their default are left out, so that a run of an earlier version, without a field, is similar.
    """
    left_out = (*ABOUT, *MACHINE, *LENGTH)
    defaults = {f.name: _as_json(f.default) for f in fields(PretrainRecipe)}
    plain = {key: _as_json(value) for key, value in recipe.items() if key not in left_out}
    return {key: value for key, value in plain.items() if value != defaults.get(key)}


def _as_json(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


class MemoryEstimates:
    """The estimates of `doctor --recipe`, one for every recipe, computed on the CPU."""

    def __init__(self) -> None:
        self._found: dict[str, Need] = {}

    def need(self, step: PretrainStep) -> Need:
        """Estimate the memory of a step's batch; unknown for large images, or for a teacher that does not exist yet."""
        if step.kind not in self._found:
            self._found[step.kind] = Need()
            if math.prod(step.recipe.img_size) <= LARGEST:
                with suppress(BenchError, RuntimeError):  # a teacher is missing, or memory
                    self._found[step.kind] = _estimate(step)
        return self._found[step.kind]


def _estimate(step: PretrainStep) -> Need:
    work = plan_pretraining(step.recipe, PUBLISHED["imagenet"], CPU)
    return Need(round(measure_memory(work, CPU).needed(work.batch_size)), "estimated")
