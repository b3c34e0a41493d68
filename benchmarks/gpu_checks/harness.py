"""Run checks within a time budget, and collect what they find in a report.

A check is a function from a `Setup` to findings. It raises `CheckFailed` when the findings are not what they
should be; any other exception fails it, too.
"""

from __future__ import annotations

import json
import os
import platform
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from subprocess import Popen
from threading import Lock
from typing import Any

import torch

from gpu_checks.product import GIB
from gpu_checks.report import Findings, Result, describe, plain

PROCESSES_PER_CHECK = 4  # CPU cores that a check of commands keeps busy, roughly
DIRECTORIES = re.compile(r"(?<![\w.])/(?:[\w.+@-]+/)+")  # of absolute paths: a report names none


class CheckFailed(Exception):
    """Report findings that are not what they should be.

    Args:
        message: what is wrong, with the value and what was expected.
        findings: everything that the check measured.
    """

    def __init__(self, message: str, findings: Findings | None = None) -> None:
        super().__init__(message)
        self.findings = findings or {}


@dataclass(frozen=True)
class Setup:
    """What the checks run on.

    Attributes:
        device: the GPU, or the CPU in a tiny run.
        tiny: use the smallest models and data, to test the checks themselves on a CPU.
        scratch: an empty directory for data and runs; removed afterwards.
        logs: a directory for the output of child processes.
        children: every child process that was started.
        data_lock: held while the data sets that checks share are written.
        checkpoint_lock: held while the checkpoint that checks share is pretrained.
    """

    device: torch.device
    tiny: bool
    scratch: Path
    logs: Path
    children: list[Popen[bytes]] = field(default_factory=list)
    data_lock: Lock = field(default_factory=Lock)
    checkpoint_lock: Lock = field(default_factory=Lock)

    @property
    def precision(self) -> str:
        """The precision of training: bfloat16 on a GPU; CPUs may emulate it."""
        return "fp32" if self.tiny else "bf16"

    def synchronize(self) -> None:
        """Wait until the GPU has done all its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@dataclass(frozen=True)
class Check:
    """A check, and what running it takes.

    Attributes:
        function: from a setup to findings; its name is the check's.
        seconds: how long it takes on an H100, at most; the check is skipped when less time is left.
        gpu_only: skipped in a tiny run.
    """

    function: Callable[[Setup], Findings]
    seconds: float
    gpu_only: bool = False

    @property
    def name(self) -> str:
        """The name that `--only` takes."""
        return self.function.__name__


@dataclass(frozen=True)
class CheckGroup:
    """Checks that run one after another, or concurrently where timings do not matter."""

    checks: Sequence[Check]
    concurrent: bool = False


class Runner:
    """Run checks, print a line for each, and write the report after each.

    Args:
        budget: seconds from now on; a check that would exceed them is skipped.
        only: names of the checks to run.
        out: the report's file. If there is a report of the same machine and software, its other results are kept.
    """

    def __init__(self, setup: Setup, budget: float, only: Iterable[str], out: Path) -> None:
        self.setup, self.only, self.out = setup, set(only), out
        self.results: dict[str, Result] = {}
        self._started = time.monotonic()
        self._earlier = self._read_earlier()
        self._end = self._started + budget
        self._lock = Lock()

    def run(self, groups: Sequence[CheckGroup]) -> None:
        """Run the groups in order."""
        for group in groups:
            checks = [c for c in group.checks if c.name in self.only]
            if not group.concurrent:
                for check in checks:
                    self._run(check)
                continue
            at_once = max(2, (os.cpu_count() or 1) // PROCESSES_PER_CHECK)
            with ThreadPoolExecutor(at_once) as pool:
                list(pool.map(self._run, checks))

    @property
    def failed(self) -> list[str]:
        """The names of the checks that failed."""
        return [name for name, result in self.results.items() if result.state == "failed"]

    def report(self) -> dict[str, Any]:
        """Return the report as JSON, without paths of this machine."""
        checks = self._earlier["checks"] | {n: asdict(r) for n, r in self.results.items()}
        seconds = self._earlier["seconds"] + time.monotonic() - self._started
        return {
            **self._machine(),
            "seconds": round(seconds, 1),
            "failed": [name for name, check in checks.items() if check["state"] == "failed"],
            "checks": checks,
        }

    def _read_earlier(self) -> dict[str, Any]:
        """Return the report in `out` if it is of this machine and software, without the checks to run."""
        nothing: dict[str, Any] = {"checks": {}, "seconds": 0.0}
        if not self.out.is_file():
            return nothing
        report = json.loads(self.out.read_text(encoding="utf-8"))
        if any(report.get(key) != value for key, value in self._machine().items()):
            return nothing
        kept = {name: one for name, one in report["checks"].items() if name not in self.only}
        return {"checks": kept, "seconds": report["seconds"] if kept else 0.0}

    def _machine(self) -> dict[str, Any]:
        cuda = self.setup.device.type == "cuda"
        return {
            "device": torch.cuda.get_device_name() if cuda else "CPU",
            "memory_gib": _gpu_memory() if cuda else None,
            "cpu_cores": os.cpu_count(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version() if cuda else None,
            "tiny": self.setup.tiny,
        }

    def _run(self, check: Check) -> None:
        started = time.monotonic()
        if check.gpu_only and self.setup.tiny:
            result = Result("skipped", error="needs a GPU")
        elif started + check.seconds > self._end:
            left = max(0.0, self._end - started)
            result = Result("skipped", error=f"needs {check.seconds:.0f} s, {left:.0f} s are left")
        else:
            result = self._attempt(check)
            result.seconds = round(time.monotonic() - started, 1)
        with self._lock:
            self.results[check.name] = result
            print(describe(check.name, result), flush=True)
            self.out.write_text(json.dumps(self.report(), indent=2) + "\n", encoding="utf-8")

    def _attempt(self, check: Check) -> Result:
        try:
            return Result("ok", findings=plain(check.function(self.setup)))
        except CheckFailed as error:
            message, findings = str(error), error.findings
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            message, findings = f"{type(error).__name__}: {error}", {}
        finally:
            if self.setup.device.type == "cuda":
                torch.cuda.empty_cache()
        return Result("failed", findings=plain(findings), error=DIRECTORIES.sub("", message))


def card(device: torch.device) -> str:
    """Return a short name of a device for file names, such as "h100"."""
    if device.type != "cuda":
        return device.type
    full = torch.cuda.get_device_name(device)
    found = re.search(r"[A-Za-z]*\d+[A-Za-z]*", full)
    return (found[0] if found else full.replace(" ", "_")).lower()


def _gpu_memory() -> float:
    return round(torch.cuda.get_device_properties(0).total_memory / GIB, 1)
