"""The registry of tasks: a new task is one entry in each of its two halves, and is then known everywhere."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
from support.cli import fails, run
from support.records import board_of

from simmim_bench.data.class_splits import class_folders
from simmim_bench.diagnostics.findings import Finding
from simmim_bench.diagnostics.frameworks import FRAMEWORKS
from simmim_bench.leaderboard.tables import to_markdown
from simmim_bench.recipe import Recipe
from simmim_bench.results.metrics import write_logits
from simmim_bench.results.record import Record, write_record
from simmim_bench.runs.context import RunContext
from simmim_bench.shift_sets import SHIFT_SETS, shift_record_name
from simmim_bench.tasks import LAYOUTS, OPTIONS, TASKS, Column, Task, columns, variants
from transfer.job import TransferJob
from transfer.recipes import RECIPES
from transfer.tasks import (
    DATA_CHECKS,
    RUNNERS,
    TASK_RECIPES,
    TaskRecipes,
    TaskRunner,
    load_function,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConstantRecipe(Recipe):
    """A protocol that predicts the same class for every image."""

    answer: int = 0


def run_constant(context: RunContext, job: TransferJob[ConstantRecipe]) -> Record | None:
    """Score the constant prediction on the validation images."""
    val = class_folders(job.data, "val")
    logits = np.zeros((len(val), len(val.classes)), np.float32)
    logits[:, job.recipe.answer] = 1.0
    predictions = context.run.predictions / "logits.npz"
    write_logits(predictions, logits, np.array(val.labels))
    return write_record(
        context.run,
        task=job.record_name,
        checkpoint=job.checkpoint,
        recipe=job.recipe,
        deviates=job.deviates,
        seed=context.seed,
        data={"root": str(job.data), "fingerprint": val.fingerprint()},
        predictions=predictions,
        evaluated=len(val),
        expected=len(val),
        images_seen=len(val),
        dist=context.dist,
    )


@pytest.fixture
def constant_task(monkeypatch: pytest.MonkeyPatch) -> str:
    """Register a task: one entry in `simmim_bench.tasks`, one in `transfer.tasks`, and its recipe."""
    recipe = ConstantRecipe(name="constant", source="ours")
    task = Task(
        name="constant",
        summary="predict one class for every image; top-1",
        data="imagenet",
        columns=(Column("constant", "constant", "top1"),),
        metrics=("top1", "top5"),
        predictions="ranking",
        suite_order=0,
    )
    transfer = TaskRecipes(
        recipe_types=(ConstantRecipe,), defaults={"pocket": "constant"}, recipe_modules=()
    )
    protocol = TaskRunner(run=f"{__name__}:run_constant", estimate="", frameworks=("mmseg",))
    monkeypatch.setitem(TASKS, "constant", task)
    monkeypatch.setitem(TASK_RECIPES, "constant", transfer)
    monkeypatch.setitem(RUNNERS, ConstantRecipe, protocol)
    monkeypatch.setitem(RECIPES, "constant", recipe)
    return "constant"


def test_a_new_task_is_in_the_help_the_suite_the_doctor_and_the_leaderboard(
    constant_task: str, tmp_path: Path, pocket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = pocket / "imagenet"
    _, help_text, _ = run("transfer", "--help")
    assert "constant predict one class for every image; top-1" in " ".join(help_text.split())
    _, suite_help, _ = run("suite", "--help")
    assert "Data of imagenet, linear, attentive, knn, fewshot and constant." in " ".join(
        suite_help.split()
    )

    code, out, err = run(
        *("suite", "--ckpt", "random:vit_pocket", "--imagenet", data, "--out", tmp_path / "runs"),
        *("--dry-run", "--json"),
    )
    assert code == 0, err
    first = json.loads(out)[0]
    assert (first["task"], first["recipe"], first["state"]) == ("constant", "constant", "to do")

    required: list[set[str]] = []

    def note(frameworks: object, needed: set[str]) -> list[Finding]:
        required.append(needed)
        return []

    monkeypatch.setattr("simmim_bench.diagnostics.frameworks.check_frameworks", note)
    run("doctor", "--imagenet", data)
    assert required == [{"mmseg"}]

    code, out, err = run(
        *("transfer", "constant", "--ckpt", "random:vit_pocket", "--data", data),
        *("--out", tmp_path / "constant"),
    )
    assert code == 0, err
    assert "top1 10.00" in out  # ten classes of as many images
    table = to_markdown(board_of(tmp_path / "constant"))
    assert "| constant |" in table
    assert re.search(r"\| \*{0,2}10\.0", table)


def test_an_option_of_another_task_is_refused_with_the_tasks_that_take_it() -> None:
    transfer = ("transfer", "linear", "--ckpt", "random:vit_pocket", "--data", "x")
    assert "--fraction is only for fewshot, not for linear" in fails(
        2, *transfer, "--fraction", "1%"
    )
    assert "--label-maps is only for ade20k, not for linear" in fails(2, *transfer, "--label-maps")


def test_both_halves_of_the_registry_fit_each_other() -> None:
    assert set(TASKS) == set(TASK_RECIPES)
    assert set(LAYOUTS) == set(DATA_CHECKS) == {task.data for task in TASKS.values()}
    known = {framework.name for framework in FRAMEWORKS}
    for name, task in TASKS.items():
        assert set(task.options) <= set(OPTIONS)
        assert {column.metric for column in task.columns} <= set(task.metrics)
        assert {column.task for column in task.columns} == set(task.variants or {name: {}})
        for recipe in TASK_RECIPES[name].defaults.values():
            assert type(RECIPES[recipe]) is TASK_RECIPES[name].recipe_types[0]
        for recipe_type in TASK_RECIPES[name].recipe_types:
            assert set(RUNNERS[recipe_type].frameworks) <= known
            assert callable(load_function(RUNNERS[recipe_type].estimate))
    of_shift = {shift_record_name(name) for name in SHIFT_SETS}
    assert {column.task for column in columns()} == set(variants()) | of_shift


def test_every_runner_can_be_imported_without_its_framework() -> None:
    for protocol in RUNNERS.values():
        module, _, function = protocol.run.partition(":")
        assert callable(getattr(importlib.import_module(module), function))
