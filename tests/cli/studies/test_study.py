"""Claims about studies: planned first, each step after those it needs, resumable, and reported from their records."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from simmim_bench.cli.main import cli
from simmim_bench.cli.studies.read import read_study
from simmim_bench.cli.studies.rows import list_study
from simmim_bench.errors import InterruptedRun, UsageError
from simmim_bench.jobs import workers
from simmim_bench.jobs.process import command_line

QUICK = "{epochs: 1, warmup_epochs: 0, batch_size: 6, mask_patch_size: 8}"


class Ended:
    """A process that has ended."""

    def __init__(self, code: int) -> None:
        self.code, self.pid = code, -1

    def poll(self) -> int:
        return self.code


def launch_by(run: Callable[[tuple[str, ...]], int]) -> Callable[..., Ended]:
    """Return a function that runs the command of a step by a function instead of in a process."""

    def launch(command: Sequence[str], log: Path, devices: str | None, variables: Any) -> Ended:
        arguments = tuple(command)[len(command_line((), 1)) :]
        log.parent.mkdir(parents=True, exist_ok=True)
        log.touch()
        return Ended(run(arguments))

    return launch


def study(*words: object) -> Result:
    return CliRunner().invoke(cli, ["study", *map(str, words)])


def write(folder: Path, pocket: Path, **parts: str) -> Path:
    """Write a study of the pocket data; return its path."""
    known = {
        "data": f"{{pocket: {{imagenet: {pocket / 'imagenet'}}}}}",
        "checkpoints": f"{{ours: {{arch: vit_pocket, overrides: {QUICK}, seeds: 2}}}}",
        "baselines": "[random]",
        "tasks": "{linear: {overrides: {epochs: 2, warmup_epochs: 0, blocks: 2}}, knn: {}}",
        "out": "out",
    }
    path = folder / "study.yaml"
    path.write_text("\n".join(f"{key}: {value}" for key, value in (known | parts).items()))
    return path


def test_a_plan_has_every_step_after_the_pretraining_that_it_waits_for(
    tmp_path: Path, pocket: Path
) -> None:
    big = "{arch: swin_pocket, seeds: [4, 7]}"
    small = "{arch: vit_pocket, overrides: {target: teacher_features}, teacher: big}"
    tuned = "{arch: swin_pocket, init_from: big}"
    labelled = "{arch: resnet_pocket, task: imagenet, overrides: {epochs: 3}}"
    more = f"{{big: {big}, small: {small}, tuned: {tuned}, labelled: {labelled}}}"
    tasks = "{knn: {recipe: {swin_pocket: knn}}, linear: {seeds: 2}}"
    path = write(tmp_path, pocket, checkpoints=more, tasks=tasks)
    listed = list_study(read_study(path), download=False, log=lambda message: None)
    names = [str(step) for step in listed.steps]
    assert names[:4] == [
        "linear of random swin_pocket",
        "knn of random swin_pocket",
        "linear of random vit_pocket",
        "knn of random vit_pocket",
    ]
    assert names[4:6] == ["linear of random resnet_pocket", "knn of random resnet_pocket"]
    assert names[6:] == [
        *("pretraining of big, seed 4", "linear of big, seed 4", "knn of big, seed 4"),
        *("pretraining of big, seed 7", "linear of big, seed 7", "knn of big, seed 7"),
        *("pretraining of small, seed 0", "linear of small", "knn of small"),
        *("pretraining of tuned, seed 0", "linear of tuned", "knn of tuned"),
        "imagenet of random weights for labelled, seed 0",
        *("linear of labelled", "knn of labelled"),
    ]
    waits = {str(s): [str(one) for one in listed.needed_by(s)] for s in listed.steps}
    assert {name for name, needed in waits.items() if not needed} == {
        *(*names[:7], names[9], "imagenet of random weights for labelled, seed 0")
    }
    assert waits["knn of labelled"] == ["imagenet of random weights for labelled, seed 0"]
    assert waits["knn of big, seed 7"] == ["pretraining of big, seed 7"]
    # The teacher and the initial weights are those of the first seed.
    assert waits["pretraining of small, seed 0"] == ["pretraining of big, seed 4"]
    assert waits["pretraining of tuned, seed 0"] == ["pretraining of big, seed 4"]
    teacher = str(tmp_path / "out" / "rows" / "big" / "seed4" / "pretrain")
    by_name = dict(zip(names, listed.steps, strict=True))
    assert f"teacher={teacher}" in by_name["pretraining of small, seed 0"].arguments()
    words = by_name["pretraining of tuned, seed 0"].arguments()
    assert words[words.index("--init-from") + 1] == teacher
    # Every pretraining has other seeds, and random weights have those of all of their architecture.
    seeds = {str(step): step.seeds for step in listed.transfers}
    assert seeds["linear of big, seed 4"] == (0, 1)
    assert seeds["linear of big, seed 7"] == (2, 3)
    assert seeds["linear of random swin_pocket"] == (0, 1, 2, 3)
    assert seeds["linear of random vit_pocket"] == (0, 1)
    recipes = {str(step): step.transfer.recipe.name for step in listed.transfers}
    assert recipes["knn of big, seed 4"] == recipes["knn of random swin_pocket"] == "knn"
    assert recipes["knn of small"] == recipes["knn of random vit_pocket"] == "knn_pocket"
    folders = [run_dir for step in listed.transfers for run_dir in step.run_dirs]
    assert len({*folders}) == len(folders)
    # The score of the training itself is not one of the row.
    assert listed.runs.keys() == {*folders} - {tmp_path / "out" / "trained" / "labelled" / "seed0"}


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({"checkpoints": "{a: {arch: vit_pokcet}}"}, "checkpoints.a: unknown arch"),
        ({"checkpoints": "{a: {arch: vit_b, recipe: pockt}}"}, "did you mean 'pocket'?"),
        (
            {"checkpoints": "{a: {arch: vit_pocket, overrides: {epoch: 3}}}"},
            "checkpoints.a: unknown override key 'epoch'",
        ),
        (
            {"checkpoints": "{a: {arch: vit_pocket, overrides: {mask_ratio: high}}}"},
            "checkpoints.a: mask_ratio=high is not of type float",
        ),
        ({"tasks": "{knn: {recipe: linear}}"}, "tasks.knn, random: recipe 'linear' is not for knn"),
        ({"tasks": "{knn: {overrides: {kk: 3}}}"}, "tasks.knn, random: unknown override key 'kk'"),
        ({"tasks": "{knn: {recipe: {vit_b: knn}}}"}, "tasks.knn.recipe: no row has the arch"),
    ],
)
def test_what_a_study_cannot_run_is_refused_with_its_place(
    parts: dict[str, str], says: str, tmp_path: Path, pocket: Path
) -> None:
    result = study(write(tmp_path, pocket, **parts), "--dry-run")
    assert isinstance(result.exception, UsageError), result.output
    assert says in str(result.exception)
    assert not (tmp_path / "out").exists()


def test_what_waits_for_a_failed_pretraining_is_not_run(
    tmp_path: Path, pocket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []

    def fail(arguments: tuple[str, ...]) -> int:
        started.append(arguments[0])
        return 5

    monkeypatch.setattr(workers, "launch", launch_by(fail))
    path = write(tmp_path, pocket, baselines="[]", tasks="[knn]")
    result = study(path, "--quiet")
    assert result.exit_code == 5
    assert started == ["pretrain", "pretrain"]
    assert "0 of 4 steps done" in result.stdout
    assert "failed   pretraining of ours, seed 1: exit code 5, no output" in result.stdout
    assert "alone    simmim-bench pretrain --arch vit_pocket -o epochs=1" in result.stdout
    assert "not run  knn of ours, seed 1: pretraining of ours, seed 1 failed" in result.stdout
    steps = json.loads(study(path, "--quiet", "--json").stdout)
    assert [step["state"] for step in steps["steps"]] == ["failed", "not run"] * 2
    assert steps["report"] is None
    refused = study(path, "--only-report", "--quiet")
    assert isinstance(refused.exception, UsageError)
    assert "no step has a score yet" in str(refused.exception)


@pytest.mark.heavy
def test_an_interrupted_study_continues_and_its_report_equals_its_records(
    tmp_path: Path, few: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pocket = few.parent
    monkeypatch.setattr("pretrain.evaluation.held_out.HELD_OUT_IMAGES", 4)  # for speed
    quick = "{epochs: 1, warmup_epochs: 0, batch_size: 6}"
    labelled = f"{{arch: vit_pocket, task: imagenet, overrides: {quick}}}"
    ours = f"{{arch: vit_pocket, overrides: {QUICK}, seeds: 2}}"
    rows = f"{{ours: {ours}, labelled: {labelled}}}"
    path = write(tmp_path, pocket, reference="random", checkpoints=rows)
    out = tmp_path / "out"
    planned = json.loads(study(path, "--dry-run", "--json").stdout)
    assert [one["state"] for one in planned["pretrainings"]] == ["to do"] * 2
    assert [one["state"] for one in planned["transfers"]] == ["to do"] * 9
    assert planned["transfers"][0]["power"][0]["units"] == 2
    assert not out.exists()

    started: list[str] = []
    left = 4

    def run_here(arguments: tuple[str, ...]) -> int:
        nonlocal left
        started.append(" ".join(arguments[:2]))
        done = CliRunner().invoke(cli, [*arguments, "--quiet"])
        left -= 1
        if not left:
            signal.raise_signal(signal.SIGTERM)
        return done.exit_code

    threads = torch.get_num_threads()
    monkeypatch.setattr(workers, "launch", launch_by(run_here))
    words = (path, "--workers", "1", "--quiet")
    stopped = study(*words)
    assert isinstance(stopped.exception, InterruptedRun)
    assert "study: stopped by SIGTERM; 7 steps are left (knn of ours, seed 0" in str(
        stopped.exception
    )
    assert "4 of 11 steps of study.yaml are done." in (out / "report.md").read_text()
    begun = [*started]
    assert begun == ["transfer linear", "transfer knn", "pretrain --arch", "transfer linear"]
    done = study(*words, "--json")
    assert done.exit_code == 0, done.output
    assert {step["state"] for step in json.loads(done.stdout)["steps"]} == {"done"}
    assert started == [
        *(*begun, "transfer knn", "pretrain --arch", "transfer linear", "transfer knn"),
        *("transfer imagenet", "transfer linear", "transfer knn"),
    ]
    torch.set_num_threads(threads)
    again = json.loads(study(path, "--dry-run", "--json").stdout)
    assert {one["state"] for one in again["pretrainings"] + again["transfers"]} == {"done"}

    scores = {
        (row, task): read_scores(out, row, task) for row in ROWS for task in ("linear", "knn")
    }
    assert all(len(values) == 2 for values in scores.values())
    report = (out / "report.md").read_text()
    assert "ours (2 pretrainings)" in report
    for values in scores.values():
        assert f"{fmean(values):.1f}" in report
    plain = json.loads((out / "report.json").read_text())
    found = {one["column"]: one for one in plain["differences"] if one["row"] == "ours"}
    assert {one["row"] for one in plain["differences"]} == {"ours", "labelled"}
    assert plain["training_seconds"].keys() == {"ours", "labelled"}
    for column, task in (("linear", "linear"), ("k-NN", "knn")):
        expected = fmean(scores["ours", task]) - fmean(scores["random", task])
        assert found[column]["points"] == pytest.approx(expected)
        assert found[column]["low"] <= expected <= found[column]["high"]
        assert (found[column]["units"], found[column]["images"]) == ([2, 2], 10)
    assert set(plain["figures"]) == {"cost"}
    with Image.open(out / "figures" / "cost.png") as figure:
        assert figure.size[0] > 800

    # The table is that of the records, and what the checkpoints cost is expected of the next ones.
    checked = CliRunner().invoke(
        cli, ["leaderboard", "check", str(out / "rows"), "--out", str(out / "leaderboard")]
    )
    assert checked.exit_code == 0, checked.output
    longer = f"{{ours: {{arch: vit_pocket, overrides: {QUICK.replace('epochs: 1', 'epochs: 2')}}}}}"
    write(tmp_path, pocket, checkpoints=longer)  # a row fewer, and another recipe
    blocked = study(path, "--dry-run", "--json")
    assert isinstance(blocked.exception, UsageError)
    assert "epochs 1, now 2" in str(blocked.exception)


ROWS: Mapping[str, tuple[str, str]] = {
    "ours": ("ours/seed0", "ours/seed1"),
    "random": ("random-vit_pocket", "random-vit_pocket"),
}


def read_scores(out: Path, row: str, task: str) -> list[float]:
    """Read the scores of a row's two runs of a task."""
    records = [
        out / "rows" / folder / task / f"seed{seed}" / "record.json"
        for seed, folder in enumerate(ROWS[row])
    ]
    return [json.loads(path.read_text())["metrics"]["top1"] for path in records]
