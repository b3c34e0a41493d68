"""The GPU check's report: its outcome by check, as JSON, as a printed line, and as Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

Findings = dict[str, Any]  # JSON: figures and names, nested at most once
SHOWN = 150  # characters of a check's findings in a printed line
SPEED = "images_per_s"
COLUMNS = (SPEED, "step_ms", "tflop_per_s", "peak_gib")


@dataclass
class Result:
    """The outcome of a check: ok, failed or skipped."""

    state: str
    seconds: float = 0.0
    findings: Findings = field(default_factory=dict)
    error: str | None = None


def describe(name: str, result: Result) -> str:
    """Return a line of the printed table: state, seconds, name, and what was found."""
    found = " ".join((result.error or json.dumps(result.findings)).split())
    found = found if len(found) <= SHOWN else f"{found[: SHOWN - 3]}..."
    return f"{result.state:8} {result.seconds:6.1f} s  {name:28} {found}"


def plain(value: Any) -> Any:
    """Convert findings to JSON, with four significant digits."""
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, float):
        return float(f"{value:.4g}")
    return value if isinstance(value, str | int | None) else str(value)


def markdown(report: dict[str, Any]) -> str:
    """Return a report as a Markdown section: the state of every check, and the speed of every step."""
    checks = report["checks"]
    memory = f", {report['memory_gib']:g} GiB" if report["memory_gib"] else ""
    lines = [
        f"### {report['device']}{memory}",
        "",
        f"torch {report['torch']}, {report['cpu_cores']} CPU cores; {report['seconds']:.0f} s.",
        "",
    ]
    for state in ("ok", "failed", "skipped"):
        names = [f"`{name}`" for name, check in checks.items() if check["state"] == state]
        if names:
            lines += [f"{state}: {', '.join(names)}.", ""]
    speeds = list(_speeds(checks))
    if speeds:
        lines += [
            "| step | images/s | ms | TFLOP/s | peak GiB |",
            "| --- | ---: | ---: | ---: | ---: |",
        ]
        for name, found in speeds:
            figures = " | ".join(f"{found[key]:,.4g}" if key in found else "" for key in COLUMNS)
            lines.append(f"| {name} | {figures} |")
    ratios = [(name, check["findings"].get("summary")) for name, check in checks.items()]
    lines += ["", *(f"- `{name}`: {summary}." for name, summary in ratios if summary)]
    return "\n".join(lines).strip()


def _speeds(checks: dict[str, Any]) -> Iterator[tuple[str, Findings]]:
    """Yield the findings of every measured step with a name for it."""
    for name, check in checks.items():
        findings = check["findings"]
        if isinstance(findings.get(SPEED), float | int):
            yield f"`{name}`", findings
        for case, found in findings.items():
            if isinstance(found, dict) and any(key in found for key in COLUMNS):
                yield f"`{name}`, {case}", found
        loaded = findings.get(SPEED)
        if isinstance(loaded, dict):
            yield from ((f"`{name}`, {case}", {SPEED: rate}) for case, rate in loaded.items())
