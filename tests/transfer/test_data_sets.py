"""Several named data sets of one command: `--data NAME=DIR`."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.cli import fails, run
from support.records import board_of, change, make_record

from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.data.named import DataSet, read_data_set, read_titles
from simmim_bench.errors import DataError, UsageError
from simmim_bench.leaderboard.group_names import group_titles
from simmim_bench.results.record import read_record, reproduction_command
from simmim_bench.runs.options import RunOptions
from simmim_bench.tasks import TASKS
from transfer.job import TransferJob
from transfer.launch import TransferRequest, plan_baseline, plan_transfer, requests_by_data_set
from transfer.recipes import RECIPES
from transfer.suite.step import command_words

KNN = ("transfer", "knn", "--ckpt", "random:vit_pocket")


@pytest.fixture(scope="module")
def two(few: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two data sets, of which the second one has fewer classes."""
    root = tmp_path_factory.mktemp("sets")
    second = Path(shutil.copytree(few, root / "second"))
    for split in ("train", "val"):
        for folder in sorted((second / split).iterdir())[4:]:
            shutil.rmtree(folder)
    return few, second


@pytest.mark.parametrize(
    ("text", "name", "root"),
    [
        ("data", None, "data"),
        ("pets=data/pets", "pets", "data/pets"),
        ("cub-200.v2_x=/d=1/e", "cub-200.v2_x", "/d=1/e"),
        ("./size=32", None, "./size=32"),
        ("pets=~/pets", "pets", str(Path("~/pets").expanduser())),
        ("hfds:org/x=y", None, "hfds:org/x=y"),
        ("c=hfds:org/cifar10", "c", "hfds:org/cifar10"),
    ],
)
def test_a_name_is_what_is_before_the_first_equals_sign(
    text: str, name: str | None, root: str
) -> None:
    assert read_data_set(text) == DataSet(Path(root), name)


def test_an_existing_folder_with_an_equals_sign_is_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_data_set("size=32") == DataSet(Path("32"), "size")
    (tmp_path / "size=32").mkdir()
    assert read_data_set("size=32") == DataSet(Path("size=32"))


@pytest.mark.parametrize("text", ["=data", "a b=data", "-a=data", "ä=data", "..=d", "a=", "a\n=d"])
def test_bad_names_are_usage_errors(text: str) -> None:
    with pytest.raises(UsageError, match="name"):
        read_data_set(text)


def test_a_title_is_for_one_data_set_without_a_name() -> None:
    layouts = ["imagenet", "coco"]
    assert read_titles(["imagenet=CIFAR-10 = small"], layouts) == {"imagenet": "CIFAR-10 = small"}
    for texts in (["CIFAR"], ["flickr=a"], ["coco=a", "coco=b"], ["coco="], ["coco=a\nb"]):
        with pytest.raises(UsageError, match="--data-name"):
            read_titles(texts, layouts)
    assert "without NAME=" in fails(2, *KNN, "--data", "a=.", "--data-name", "b")


def test_a_title_is_recorded_and_names_the_group(tmp_path: Path) -> None:
    path = make_record(tmp_path)
    data = json.loads(path.read_text())["data"]
    change(path, data={**data, "title": "CIFAR-10"})
    assert group_titles(board_of(tmp_path)) == {"A": "CIFAR-10, 10 images"}
    (request,) = requests("knn", ".", data_title="CIFAR-10")
    job = TransferJob(
        task="knn",
        checkpoint=read_checkpoint("random:vit_pocket"),
        data=request.options.data,
        data_title=request.options.data_title,
        recipe=RECIPES["knn_pocket"],
        deviates={},
    )
    assert job.data_set == {"title": "CIFAR-10", "root": "."}
    command = reproduction_command("knn", "c", job.data_set, job.recipe, {}, 0)
    assert "--data . --data-name CIFAR-10" in " ".join(command)
    assert command_words(request, "c")[4:8] == ["--data", ".", "--data-name", "CIFAR-10"]


def requests(task: str, *texts: str, **options: Any) -> list[TransferRequest]:
    data_sets = [read_data_set(text) for text in texts]
    general = TransferRequest(
        task=task,
        options=dataclasses.replace(RunOptions(data=Path("unused")), **options),
    )
    return requests_by_data_set(general, data_sets)


def test_which_tasks_take_several_data_sets(tmp_path: Path) -> None:
    texts = [f"{name}={tmp_path}" for name in "ab"]
    several = {name for name, task in TASKS.items() if task.takes_several_data_sets}
    assert several >= {"linear", "knn", "fewshot"}
    assert not several & {"imagenet", "coco", "ade20k"}
    for task in TASKS:
        (one,) = requests(task, texts[0])
        assert (one.options.data, one.options.data_name) == (tmp_path, "a")
        if task in several:
            assert [r.options.data_name for r in requests(task, *texts)] == ["a", "b"]
        else:
            with pytest.raises(UsageError, match=f"{task} takes one data set, not 2"):
                requests(task, *texts)


def test_several_data_sets_need_different_names_and_existing_folders(tmp_path: Path) -> None:
    here = str(tmp_path)
    with pytest.raises(UsageError, match=rf"{here} has no name.* --data NAME={here}"):
        requests("knn", f"a={here}", here)
    with pytest.raises(UsageError, match="more than once"):
        requests("knn", f"a={here}", f"b={here}", f"A={here}")
    with pytest.raises(DataError, match=r"data folder gone of the data set b does not exist"):
        requests("knn", f"a={here}", "b=gone")


def test_every_data_set_has_its_own_run_directories(tmp_path: Path) -> None:
    texts = (f"a={tmp_path}", f"b={tmp_path}")

    def run_dirs(*texts: str, seeds: int = 1, **options: Any) -> list[str]:
        dirs: list[Path] = []
        for request in requests("knn", *texts, **options):
            ours = plan_transfer(request, "random:vit_pocket", range(seeds))
            dirs += [*ours.run_dirs, *plan_baseline(request, ours, "random:vit_ti").run_dirs]
        return list(map(str, dirs))

    pocket, tiny = "runs/random-vit_pocket/knn", "runs/random-vit_ti/knn"
    assert run_dirs(str(tmp_path)) == [f"{pocket}/seed0", f"{tiny}/seed0"]
    assert run_dirs(texts[0]) == [f"{pocket}/a/seed0", f"{tiny}/a/seed0"]
    assert run_dirs(*texts) == [
        *(f"{folder}/a/seed0" for folder in (pocket, tiny)),
        *(f"{folder}/b/seed0" for folder in (pocket, tiny)),
    ]
    assert run_dirs(texts[0], out=Path("x")) == ["x", "x-from-random-vit_ti"]
    assert run_dirs(*texts, seeds=2, out=Path("x"))[:4] == [
        *(f"x/a/seed{seed}" for seed in (0, 1)),
        *(f"x/a-from-random-vit_ti/seed{seed}" for seed in (0, 1)),
    ]
    (request, _) = requests("knn", *texts, out=Path("y/x"))
    assert str(request.task_options["features"]) == "y/features"


def test_records_of_several_data_sets_and_the_summary(
    two: tuple[Path, Path], tmp_path: Path
) -> None:
    out, data = tmp_path / "runs", (f"first={two[0]}", f"second={two[1]}")
    given = [word for text in data for word in ("--data", text)]
    finished = (*KNN, *given[:2], "--out", out / "first", "--features", tmp_path / "features")
    assert run(*finished)[0] == 0
    before = (out / "first" / "record.json").read_bytes()
    command = (*KNN, *given, "--out", out, "--features", tmp_path / "features", "--resume")
    code, stdout, stderr = run(*command, "--json")
    assert code == 0, stderr
    assert f"{out / 'first'} is finished" in stderr
    assert (out / "first" / "record.json").read_bytes() == before
    scores = []
    for text in data:
        name, _, root = text.partition("=")
        record = read_record(out / name / "record.json")
        assert (record.data["name"], record.data["root"]) == (name, root)
        assert record.command[record.command.index("--data") + 1] == text
        scores.append(record.metrics["top1"])
    found = json.loads(stdout)
    assert list(found["data_sets"]) == ["first", "second"]
    assert found["mean"]["top1"] == pytest.approx((scores[0] + scores[1]) / 2)
    lines = run(*command)[1].splitlines()
    assert lines[0].split() == ["top1", "top5"]
    errors = [found["data_sets"][name]["images_se"]["top1"] for name in ("first", "second")]
    expected = [
        ["first", f"{scores[0]:.2f}"],
        ["images", "±", f"{errors[0]:.2f}"],
        ["second", f"{scores[1]:.2f}"],
        ["images", "±", f"{errors[1]:.2f}"],
        ["mean", f"{found['mean']['top1']:.2f}"],
        ["images", "±", f"{(errors[0] ** 2 + errors[1] ** 2) ** 0.5 / 2:.2f}"],
    ]
    shown = [line.split()[: len(row)] for line, row in zip(lines[1:], expected, strict=False)]
    assert shown == expected
    assert "second, chance: top1 25.00 (one of 4 classes)" in lines
    assert lines[-1] == f"next: simmim-bench leaderboard show {out}"
    # The name is a part of the record, so that a run is not resumed under another one.
    renamed = (*KNN, "--data", f"third={two[0]}", "--out", out / "first", "--resume")
    assert "data_name first, now third" in fails(2, *renamed, "--features", tmp_path / "features")


@pytest.mark.heavy
def test_seeds_and_the_baseline_are_of_every_data_set(
    two: tuple[Path, Path], tmp_path: Path
) -> None:
    data = ("--data", f"first={two[0]}", "--data", f"second={two[1]}")
    options = ("--seeds", 2, "--baseline", "random", "--out", tmp_path / "runs", "--json")
    code, stdout, stderr = run(*KNN, *data, *options)
    assert code == 0, stderr
    found, means = json.loads(stdout), []
    for name in ("first", "second"):
        folder = tmp_path / "runs" / name
        records = [read_record(folder / f"seed{seed}" / "record.json") for seed in (0, 1)]
        assert [record.seed for record in records] == [0, 1]
        means.append(sum(record.metrics["top1"] for record in records) / 2)
        baseline = folder.with_name(f"{name}-from-random-vit_pocket") / "seed1" / "record.json"
        assert read_record(baseline).data == records[1].data
        above = found["data_sets"][name]["above_baseline"]
        assert (above["points"], above["seeds"]) == (0, 2)  # both are random
    assert found["mean"]["top1"] == pytest.approx(sum(means) / 2)


def test_a_missing_folder_of_a_later_data_set_is_found_before_the_first_one_runs(
    two: tuple[Path, Path], tmp_path: Path
) -> None:
    command = (*KNN, "--data", f"a={two[0]}", "--data", "b=gone", "--out", tmp_path / "runs")
    assert "data folder gone of the data set b does not exist" in fails(4, *command)
    assert not (tmp_path / "runs").exists()


def test_a_split_file_is_of_one_data_set(two: tuple[Path, Path], tmp_path: Path) -> None:
    data = ("--data", f"a={two[0]}", "--data", f"b={two[1]}", "--split", tmp_path / "list.txt")
    command = ("transfer", "fewshot", "--ckpt", "random:vit_pocket", *data)
    assert "--split lists images of one data set" in fails(2, *command)
