"""The expected duration and memory of a step before it starts. Loads no torch."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, field
from importlib import resources

from simmim_bench.jobs.capacity import Need

PRETRAIN_KIND = "pretrain"  # of the demo; every share is relative to it


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """The expected duration and memory of a step.

    Attributes:
        kind: steps of the same kind take about the same time and memory.
        seconds: mean duration of similar runs on this device; None where there are none.
        share: duration relative to the demo's pretraining, as it was on the project's machine; None if not known.
    """

    kind: str
    seconds: float | None = None
    share: float | None = None
    need: Need = field(default_factory=Need)


def demo_share(kind: str, seeds: int = 1) -> float | None:
    """Return the duration of a kind of step relative to the demo's pretraining; None for one not in the demo.

    Args:
        seeds: of the step; the demo's steps have one or three.
    """
    known = _demo_steps().get(kind, {})
    if "share" not in known:
        return None
    return known["share"] * seeds / known["seeds"]


def demo_peak(kind: str) -> int | None:
    """Return the main memory in bytes that a kind of step took in the demo on a CPU; None for one not in it."""
    peak = _demo_steps().get(kind, {}).get("peak_memory_bytes")
    return None if peak is None else int(peak)


@functools.cache
def _demo_steps() -> dict[str, dict[str, float]]:
    """Read the figures of the demo's steps, which benchmarks/demo_shares.py writes."""
    text = resources.files("simmim_bench.jobs").joinpath("demo_steps.json").read_text("utf-8")
    steps: dict[str, dict[str, float]] = json.loads(text)
    return steps
