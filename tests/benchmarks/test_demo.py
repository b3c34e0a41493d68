"""Tests of the demo: its recipes and its check of earlier runs; the report on several pretraining seeds."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

from pretrain.recipes import resolve_recipe
from simmim_bench.cli import demo as command
from simmim_bench.errors import UsageError
from simmim_bench.files import write_json
from simmim_bench.runs.run_check import describe_run
from transfer.recipes import RECIPES

ROOT = Path(__file__).parents[2]


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("demo")


def run(random: float, pretrained: float, *, in_one_go: bool) -> dict[str, object]:
    scores = {"random": {"k-NN": random}, "SimMIM": {"k-NN": pretrained}}
    parts = {"pretraining": 10.0 * random}
    return {
        "seconds": random,
        "in_one_go": in_one_go,
        "seconds_by_part": parts,
        "scores": scores,
    }


def test_noise_is_the_standard_error_of_the_differences_of_the_same_seed(demo: ModuleType) -> None:
    runs = [run(10, 13, in_one_go=True), run(20, 25, in_one_go=True), run(30, 37, in_one_go=False)]
    report = demo.summarise(runs)
    row = report["table"]["k-NN"]
    assert row["gain"] == pytest.approx(5)  # of 3, 5 and 7, whose standard deviation is 2
    assert row["noise"] == pytest.approx(2 / 3**0.5)
    # A demo that was resumed is not timed.
    assert report["seconds"] == [10, 20]
    assert report["seconds_by_part"] == {"pretraining": 150}


def test_an_earlier_tree_runs_the_commands_of_its_demo(demo: ModuleType, tmp_path: Path) -> None:
    earlier = tmp_path / "simmim_bench" / "cli"
    earlier.mkdir(parents=True)
    (earlier / "demo.py").write_text("", encoding="utf-8")
    names = [words[0] for words in demo.commands(tmp_path, tmp_path / "out", 1)]
    assert names == ["pocket", "pretrain", "suite"]
    [words] = demo.commands(ROOT, tmp_path / "out", 1)
    assert words[0] == "demo"


def test_the_demo_names_recipes_that_exist() -> None:
    assert {f"{task}_{command.RECIPE}" for task in command.SHORTER} <= set(RECIPES)


def test_a_demo_whose_pretraining_was_another_starts_nothing(tmp_path: Path) -> None:
    recipe, _ = resolve_recipe(arch=command.ARCH, recipe=command.RECIPE, overrides=())
    of_seed_0 = {"data": str(tmp_path / "data" / "imagenet"), "seed": 0, "init_from": None}
    write_json(tmp_path / "pretrain" / "recipe.json", describe_run(recipe, {}, of_seed_0))
    command.check_pretraining(command.plan_pretraining(tmp_path, 0))
    with pytest.raises(UsageError, match=r"another seed.*--overwrite starts the demo anew"):
        command.check_pretraining(command.plan_pretraining(tmp_path, 1))
