"""What `transfer` prints beside a score: chance, random weights under the same protocol, and where the files are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from support.records import change, make_record

from simmim_bench.api.score_context import ScoreContext, describe_files, score_context
from simmim_bench.api.transfer_result import TransferResult, summarise
from simmim_bench.results.scored_runs import ScoredRuns, read_scored_runs


def write(root: Path, folder: str, label: str, correct: int, **changes: object) -> Path:
    path = make_record(root, label=label, correct=correct)
    record = json.loads(path.read_text())
    change(path, data={**record["data"], "classes": 6}, **changes)
    target = root / folder
    target.parent.mkdir(parents=True, exist_ok=True)
    return Path(shutil.move(path.parent, target))


def random(label: str = "r", **more: object) -> dict[str, object]:
    return {
        "label": label,
        "name": "random:x",
        "sha256": "0" * 64,
        "arch": "x",
        "params": 1000,
        "provenance": {"method": "random"},
        **more,
    }


def test_chance_random_weights_and_files_are_shown(tmp_path: Path) -> None:
    run_dir = write(tmp_path, "a/linear/seed0", "a", 6)
    runs = read_scored_runs([run_dir])
    lines, plain = summarise(TransferResult(None, runs))
    assert "chance: top1 16.67, top5 83.33 (one of 6 classes)" in lines
    assert "random weights: no run of this protocol here; --baseline random adds it" in lines
    assert not [line for line in lines if line.startswith("warning")]
    # Random weights of another network, and under another protocol, are no baseline.
    write(tmp_path, "random-y/linear/seed0", "y", 9, checkpoint=random(arch="y"))
    write(tmp_path, "random-x/linear/seed0", "z", 9, checkpoint=random(), deviates={"epochs": 3})
    assert not score_context(runs).random
    best = write(tmp_path, "random-x/linear/d/seed1", "x", 7, checkpoint=random(), seed=1)
    lines, plain = summarise(TransferResult(None, runs))
    assert f"random weights: top1 70.00, top5 100.00 ({best})" in lines
    assert plain["random_weights"]["metrics"]["top1"] == 70
    assert plain["random_weights"]["records"] == [str(best / "record.json")]
    assert plain["files"][0]["record"] == str(run_dir / "record.json")
    (warning,) = [line for line in lines if line.startswith("warning")]
    assert "top1 not above random weights" in warning
    files = describe_files([runs])
    assert files[0] == f"record: {run_dir / 'record.json'}"
    assert files[1] == f"predictions: {run_dir / 'predictions' / 'logits.npz'}"
    assert files[-1] == f"next: simmim-bench leaderboard show {run_dir}"
    # Random weights are their own baseline, and below chance is said of them, too.
    lowest = write(tmp_path, "random-low/linear/seed0", "low", 1, checkpoint=random())
    context = score_context(read_scored_runs([lowest]))
    assert not context.random
    assert "top1 not above chance" in context.lines(read_scored_runs([lowest]).scores())[-1]


def test_records_of_random_weights_elsewhere_end_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run_dirs = [
        write(tmp_path, f"a/linear/seed{seed}", f"a{seed}", 6, seed=seed) for seed in (0, 1)
    ]
    for seed, folder in enumerate(("random-x/linear/seed0", "runs/random-x/linear/seed1")):
        write(tmp_path, folder, f"x{seed}", 3, checkpoint=random(), seed=seed)
    damaged = tmp_path / "random-z" / "record.json"
    damaged.mkdir(parents=True)
    looks = list[ScoredRuns]()

    def look(runs: ScoredRuns) -> ScoreContext:
        looks.append(runs)
        return score_context(runs)

    monkeypatch.setattr("simmim_bench.api.transfer_result.score_context", look)
    lines, plain = summarise(TransferResult(None, read_scored_runs(run_dirs)))
    assert len(looks) == 1
    # An absolute --out, and `runs` of the working directory.
    (line,) = [line for line in lines if line.startswith("random weights")]
    assert line.endswith(f"(2 seeds, {tmp_path})")
    assert "runs/random-x/linear/seed1/record.json" in plain["random_weights"]["records"]
