"""Every file operation of a command fails, or the process is killed at it: nothing is lost, and no reader finds a part.

`make test-faults` runs every fault of every command and prints the outcomes; `make test` a sample of some commands.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support import commands, syscalls
from support.fault_scenarios import SCENARIOS, STARTS_FROM, Scenario
from support.faults import Ended, Fault, check_readable, describe, list_faults, run

from simmim_bench.files import finish_writing
from simmim_bench.pocket.write import PocketCounts, write_pocket

# Faults of each command in `make test`.
SAMPLE = {"pretrain": 1, "knn": 2, "leaderboard build": 1, "leaderboard keep": 2, "convert": 1}
# Imported once by the process that the commands are forked from.
IMPORTED = (
    *("jsonschema", "matplotlib.backends.backend_svg", "simmim_bench.checkpoints.convert"),
    *("simmim_bench.checkpoints.third_party.read", "simmim_bench.checkpoints.third_party.timm"),
    *("simmim_bench.leaderboard.write", "simmim_bench.runs.events", "transfer.evaluate.launch"),
    *(
        "transfer.finetune.run",
        "transfer.frozen.run",
        "transfer.attentive.run",
        "transfer.shift.run",
    ),
)
COUNTS = PocketCounts(
    imagenet_train=12, imagenet_val=10, coco_train=2, coco_val=2, ade20k_train=2, ade20k_val=2
)

pytestmark = pytest.mark.skipif(
    not syscalls.is_supported(), reason="needs Linux's seccomp user notification"
)


class Trial:
    """A scenario in a folder, with its undisturbed run.

    Attributes:
        wanted: what the undisturbed run wrote.
        operations: its file operations.
    """

    def __init__(self, scenario: Scenario, folder: Path) -> None:
        self.scenario = scenario
        self._template, self._root = folder / "template", folder / "work"
        self._command = scenario.command(folder / "data", folder / "runs")
        self._template.mkdir()
        scenario.prepare(self._template)
        if scenario.replaces:
            ended = run(self._template, [*self._command, "--label", "older"])
            assert ended.code == 0, ended.stderr
        self._before = self._describe(self._template)
        whole = self._run(fresh=True)
        assert whole.code == 0, whole.stderr
        self.operations, self.wanted = whole.operations, self._describe(self._root)

    def _run(self, fault: Fault | None = None, *, fresh: bool, more: Sequence[str] = ()) -> Ended:
        if fresh:
            shutil.rmtree(self._root, ignore_errors=True)
            shutil.copytree(self._template, self._root)
        return run(self._root, [*self._command, *more], fault)

    def _describe(self, root: Path) -> dict[str, Any]:
        found = describe(root, self.scenario.folders, leftovers=self.scenario.is_run)
        return {k: v for k, v in found.items() if Path(k).name not in self.scenario.uncompared}

    def check(self, fault: Fault) -> str:
        """Run with a fault, then again, and compare with the undisturbed run; return the outcome."""
        ended = self._run(fault, fresh=True)
        about = f"{fault.kind} at {fault.number}, {self.operations[fault.number]}: {ended.stderr}"
        assert "Traceback" not in ended.stderr, about
        check_readable(self._root)
        if self.scenario.is_one_state:
            finish_writing(self._root / self.scenario.folders[0])  # as `leaderboard check` does
            assert self._describe(self._root) in (self._before, self.wanted), about
        errors = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
        if ended.code == 4:
            assert len(errors) == 1, about
        else:
            assert ended.code in (0, -9), about
        if ended.code:
            again = self._run(fresh=False, more=self.scenario.again)
            assert again.code == 0, about + again.stderr
        assert self._describe(self._root) == self.wanted, about
        return {0: "done", 4: "exit 4, then done", -9: "killed, then done"}[ended.code]


def make_trial(name: str, folder: Path) -> Trial:
    """Write data, and the runs that a scenario starts from, and run it undisturbed."""
    data, runs = folder / "data", folder / "runs"
    images = 100 if name == "fewshot" else COUNTS.imagenet_train  # a tenth is an image per class
    write_pocket(data, img_size=(32, 32), counts=replace(COUNTS, imagenet_train=images))
    first = STARTS_FROM.get(name)
    if first is not None:
        (runs / first).mkdir(parents=True)
        ended = run(runs / first, SCENARIOS[first].command(data, runs))
        assert ended.code == 0, ended.stderr
    return Trial(SCENARIOS[name], folder)


@pytest.fixture(autouse=True, scope="module")
def imported() -> None:
    commands.IMPORTED += IMPORTED  # has an effect unless the server runs already


@pytest.mark.heavy
@pytest.mark.parametrize("name", sorted(SAMPLE))
def test_a_sampled_fault_of_a_file_operation_loses_nothing(name: str, tmp_path: Path) -> None:
    trial = make_trial(name, tmp_path)
    faults = list_faults(trial.operations)
    for fault in random.Random(0).sample(faults, SAMPLE[name]):
        trial.check(fault)


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
def test_no_fault_of_any_file_operation_loses_anything(name: str, tmp_path: Path) -> None:
    """Run all faults, or as many as FAULTS says."""
    trial = make_trial(name, tmp_path)
    faults = list_faults(trial.operations)
    most = int(os.environ.get("FAULTS") or len(faults))
    chosen = random.Random(0).sample(faults, min(most, len(faults)))
    outcomes = Counter(f"{fault.kind}: {trial.check(fault)}" for fault in chosen)
    shown = ", ".join(f"{outcome} {count}" for outcome, count in sorted(outcomes.items()))
    print(f"{name}: {len(trial.operations)} operations; {shown}", file=sys.stderr)
