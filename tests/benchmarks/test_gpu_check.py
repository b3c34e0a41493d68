"""The GPU check itself, on a CPU: every check that needs no GPU passes at its smallest sizes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu_check.py"
ABSOLUTE_PATH = re.compile(r"(?<![\w.])/\w+/")


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_tiny_mode_passes_every_check_that_needs_no_gpu(tmp_path: Path) -> None:
    done = run("--tiny", "--out", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    text = (tmp_path / "gpu_check_cpu.json").read_text(encoding="utf-8")
    report = json.loads(text)
    states = {name: check["state"] for name, check in report["checks"].items()}
    assert report["failed"] == []
    assert [report["checks"][n]["error"] for n in states if states[n] == "skipped"] == (
        ["needs a GPU"] * list(states.values()).count("skipped")
    )
    assert list(states.values()).count("ok") > 12
    assert not ABSOLUTE_PATH.search(text)


@pytest.mark.slow
def test_a_check_that_exceeds_the_budget_is_skipped_and_an_earlier_one_is_kept(
    tmp_path: Path,
) -> None:
    for check, budget in (("bytes_are_normalised", 60), ("loading", 1)):
        done = run("--tiny", "--only", check, "--budget", budget, "--out", tmp_path)
        assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "gpu_check_cpu.json").read_text(encoding="utf-8"))
    states = {name: check["state"] for name, check in report["checks"].items()}
    assert states == {"bytes_are_normalised": "ok", "loading": "skipped"}
