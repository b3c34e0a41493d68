"""Time alternatives in turn and report the ratios of their speeds with quartiles.

Every alternative runs once per round, in this process or in a separate one (`separate_process.py`). Speeds are
ratios to the first alternative within a round, so that a disturbance of the machine affects both.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch


@dataclass(frozen=True)
class Timing:
    """The timing of one alternative.

    Attributes:
        seconds: median over rounds.
        speed, speed_low, speed_high: speed relative to the first alternative: median and quartiles.
    """

    name: str
    seconds: float
    speed: float
    speed_low: float
    speed_high: float
    rounds: int


def seconds_of(run: Callable[[], object]) -> float:
    """Return the seconds of one call, including the GPU's work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    started = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def compare(
    alternatives: Mapping[str, Callable[[], Any]],
    *,
    rounds: int,
    between: Callable[[], object] | None = None,
    warm_up: bool = True,
    clock: Callable[[Callable[[], Any]], float] = seconds_of,
) -> list[Timing]:
    """Time every alternative once per round.

    Args:
        alternatives: functions by name; the first one is the reference.
        rounds: at least 3, which quartiles need.
        between: called once per round, untimed, such as a measurement of the machine.
        warm_up: run one round before those that count; skip it if a round takes minutes.
        clock: runs a function and returns its seconds, such as those that the function itself measured.
    """
    elapsed: dict[str, list[float]] = {name: [] for name in alternatives}
    for number in range(not warm_up, rounds + 1):
        if between is not None:
            between()
        for name, run in alternatives.items():
            seconds = clock(run)
            if number:
                elapsed[name].append(seconds)
    reference = next(iter(elapsed.values()))
    timings = []
    for name, measured in elapsed.items():
        ratios = [one / other for one, other in zip(reference, measured, strict=True)]
        low, _, high = quantiles(ratios, n=4)
        timings.append(Timing(name, median(measured), median(ratios), low, high, rounds))
    return timings


def report(title: str, timings: list[Timing], out: Path | None, **facts: object) -> None:
    """Print the timings as a Markdown table; write them as JSON with the machine that measured them.

    Args:
        out: the JSON file; None to only print.
        facts: further figures by name.
    """
    content = {
        "title": title,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "timings": [asdict(t) for t in timings],
        "facts": facts,
    }
    print(to_markdown(content))
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def to_markdown(content: dict[str, Any]) -> str:
    """Render a report as a Markdown section: a table with the facts below it."""
    machine = f"{content['device']}, {content['threads']} threads, torch {content['torch']}"
    rounds = content["timings"][0]["rounds"]
    lines = [f"### {content['title'][0].upper()}{content['title'][1:]}", ""]
    lines += [f"{machine}; medians of {rounds} rounds.", ""]
    lines += ["| | seconds | speed | quartiles |", "| --- | ---: | ---: | --- |"]
    for t in content["timings"]:
        quartiles = f"{t['speed_low']:.2f} to {t['speed_high']:.2f}"
        lines.append(f"| {t['name']} | {t['seconds']:.3f} | {t['speed']:.2f} | {quartiles} |")
    facts = content["facts"].items()
    lines += ["", "; ".join(f"{name.replace('_', ' ')} {fact}" for name, fact in facts) + "."]
    return "\n".join(lines)


def processor() -> str:
    """Return the name of the CPU."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
