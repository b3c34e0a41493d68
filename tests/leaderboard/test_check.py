"""Tests of `leaderboard check`: changed records, predictions, checkpoints, tables and documents are found."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.records import change, make_record, run_leaderboard
from support.tiny import TINY

from simmim_bench.checkpoints.checkpoint import IMAGENET_MEAN, IMAGENET_STD, write_checkpoint
from simmim_bench.errors import DriftError
from simmim_bench.models.build import build_backbone
from simmim_bench.results.metrics import write_logits
from transfer.recipes import RECIPES


def build(runs: Path, *options: object) -> None:
    """Build the tables of `runs` in the folder `out` next to it."""
    result = run_leaderboard("build", "--no-reported", runs, "--out", runs.parent / "out", *options)
    assert result.exit_code == 0


def check(runs: Path, *options: object) -> tuple[int, str]:
    """Check the tables that `build` built; return the exit code and the output."""
    result = run_leaderboard("check", "--no-reported", runs, "--out", runs.parent / "out", *options)
    if isinstance(result.exception, DriftError):
        return DriftError.exit_code, str(result.exception)
    return result.exit_code, result.output


@pytest.fixture
def built(tmp_path: Path) -> Path:
    """Write a record whose tables are built and pass the check; return the record's path."""
    (tmp_path / "README.md").write_text(
        "# x\n<!-- leaderboard: begin -->\n<!-- leaderboard: end -->\nend\n"
    )
    path = make_record(tmp_path / "runs")
    into = ("--into", tmp_path / "README.md")
    build(tmp_path / "runs", *into)
    assert check(tmp_path / "runs", *into) == (0, "verified: 1 records, 5 tables.\n")
    return path


def change_metric(path: Path) -> None:
    change(path, metrics=json.loads(path.read_text())["metrics"] | {"top1": 61.0})


def change_predictions(path: Path) -> None:
    write_logits(path.parent / "predictions" / "logits.npz", np.zeros((10, 6)), np.arange(10) % 6)


def change_recipe(path: Path) -> None:
    recipe = json.loads(path.read_text())["recipe"]
    change(path, recipe=recipe | {"fields": recipe["fields"] | {"epochs": 1}})


def change_deviations(path: Path) -> None:
    change(path, deviates={"epochs": 1})


def change_evaluated(path: Path) -> None:
    change(path, evaluated=9)


def cut_record(path: Path) -> None:
    path.write_text(path.read_text()[:200])


def remove_predictions(path: Path) -> None:
    (path.parent / "predictions" / "logits.npz").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change_metric, "top1 is 61.0 in the record but 60.0 when recomputed from the predictions"),
        (change_predictions, "have changed since they were scored"),
        (remove_predictions, "do not exist"),
        (change_recipe, "the fields of recipe 'linear' in the record do not match its hash"),
        (
            change_deviations,
            "recipe 'linear' with the record's deviations is not the recipe of the run",
        ),
        (change_evaluated, "status is 'reproduced' with 9 of 10 images evaluated"),
        (cut_record, "cannot be read as JSON"),
    ],
)
def test_a_changed_run_is_found_and_its_record_named(
    built: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(built)
    code, output = check(built.parent.parent)
    assert code == 6
    assert message in output
    assert str(built) in output


def test_a_record_may_lack_a_field_that_its_recipe_got_later_but_only_at_its_default(
    built: Path,
) -> None:
    recipe = json.loads(built.read_text())["recipe"]
    scalars = {k: v for k, v in recipe["fields"].items() if not isinstance(v, list)}
    defaults = {field.name: field.default for field in dataclasses.fields(RECIPES["linear"])}
    at_default = next(key for key, value in scalars.items() if value == defaults[key])
    changed = next(key for key, value in scalars.items() if value != defaults[key])
    for key, code in ((at_default, 0), (changed, 6)):
        fields = {k: v for k, v in recipe["fields"].items() if k != key}
        change(built, recipe=recipe | {"fields": fields})
        assert check(built.parents[1])[0] == code, key


def write_weights(checkpoint: Path, seed: int) -> None:
    spec = TINY["vit"]
    write_checkpoint(
        checkpoint,
        state=build_backbone(spec, seed=seed).state_dict(),
        spec=spec,
        form="transfer",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        provenance={"label": "a"},
    )


def test_a_changed_checkpoint_is_found_unless_the_record_is_archived(tmp_path: Path) -> None:
    checkpoint = tmp_path / "ckpt"
    write_weights(checkpoint, seed=0)
    path = make_record(tmp_path / "runs")
    described = json.loads(path.read_text())["checkpoint"]
    sha256 = json.loads((checkpoint / "meta.json").read_text())["sha256"]
    change(path, checkpoint=described | {"name": str(checkpoint), "sha256": sha256})
    (path.parent / "env.json").write_text("{}")  # only run directories contain this file
    build(tmp_path / "runs")
    assert check(tmp_path / "runs")[0] == 0
    write_weights(checkpoint, seed=1)
    code, output = check(tmp_path / "runs")
    assert code == 6
    assert f"{path}: checkpoint {checkpoint} has changed" in output
    (path.parent / "env.json").unlink()
    assert check(tmp_path / "runs")[0] == 0


@pytest.mark.parametrize(
    "name", ["LEADERBOARD.md", "leaderboard.csv", "leaderboard.json", "leaderboard.tex"]
)
def test_an_edited_table_is_found(built: Path, name: str) -> None:
    table = built.parent.parent.parent / "out" / name
    table.write_text(table.read_text().replace("60.0", "99.0", 1))
    code, output = check(built.parent.parent)
    assert code == 6
    assert f"{name} does not match the records" in output


def test_an_edited_document_is_found_and_one_without_markers_rejected(built: Path) -> None:
    document = built.parent.parent.parent / "README.md"
    assert document.read_text().startswith("# x\n<!-- leaderboard: begin -->\n### Group A: d, ")
    assert document.read_text().endswith("<!-- leaderboard: end -->\nend\n")
    document.write_text(document.read_text().replace("60.0", "99.0"))
    assert "README.md does not match" in check(built.parent.parent, "--into", document)[1]
    document.write_text("nothing\n")
    result = run_leaderboard("build", built.parent.parent, "--into", document)
    assert "has no markers for the table" in str(result.exception)
    assert document.read_text() == "nothing\n"
