"""Time alternatives in turn, and report their ratios with their spread.

In: named functions that do one piece of work each, here or in processes of their own (`apart`). Out: seconds
a round, and the ratio of each alternative's speed to the first one's, round by round: what disturbs a round
disturbs both.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch


@dataclass(frozen=True)
class Timing:
    """What one alternative took; `speed` is against the first alternative, with its quartiles."""

    name: str
    seconds: float
    speed: float
    speed_low: float
    speed_high: float
    rounds: int


def compare(
    work: dict[str, Callable[[], object]],
    *,
    rounds: int,
    between: Callable[[], object] | None = None,
    warm_up: bool = True,
) -> list[Timing]:
    """Time every alternative once a round.

    Args:
        work: the alternatives by name; the first is what the others are compared with.
        rounds: at least 3.
        between: done once a round, untimed, such as a measurement of the machine.
        warm_up: begin with a round that does not count; not where a round takes minutes.
    """
    taken: dict[str, list[float]] = {name: [] for name in work}
    for number in range(not warm_up, rounds + 1):
        if between is not None:
            between()
        for name, do in work.items():
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            started = time.perf_counter()
            do()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number:
                taken[name].append(time.perf_counter() - started)
    base = next(iter(taken.values()))
    timings = []
    for name, seconds in taken.items():
        ratios = [one / other for one, other in zip(base, seconds, strict=True)]
        low, _, high = quantiles(ratios, n=4)
        timings.append(Timing(name, median(seconds), median(ratios), low, high, rounds))
    return timings


def report(title: str, timings: list[Timing], out: Path | None, **facts: object) -> None:
    """Print a Markdown table, and write its figures as JSON with the machine they were measured on."""
    content = {
        "title": title,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else _processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "timings": [asdict(t) for t in timings],
        "facts": facts,
    }
    print(markdown(content))
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def markdown(content: dict[str, Any]) -> str:
    """Give a report as a Markdown section: a table, and the facts below it."""
    machine = f"{content['device']}, {content['threads']} threads, torch {content['torch']}"
    rounds = content["timings"][0]["rounds"]
    lines = [f"### {content['title'][0].upper()}{content['title'][1:]}", ""]
    lines += [f"{machine}; medians of {rounds} rounds.", ""]
    lines += ["| | seconds | speed | its quartiles |", "| --- | ---: | ---: | --- |"]
    for t in content["timings"]:
        spread = f"{t['speed_low']:.2f} to {t['speed_high']:.2f}"
        lines.append(f"| {t['name']} | {t['seconds']:.3f} | {t['speed']:.2f} | {spread} |")
    facts = content["facts"].items()
    lines += ["", "; ".join(f"{name.replace('_', ' ')} {fact}" for name, fact in facts) + "."]
    return "\n".join(lines)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
