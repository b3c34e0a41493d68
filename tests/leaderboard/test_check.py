"""Tests of `leaderboard check`: changed records, predictions, checkpoints, tables and documents are found."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from support.records import change, make_record
from support.tiny import TINY

from simmim_bench.checkpoints.checkpoint import IMAGENET_MEAN, IMAGENET_STD, write_checkpoint
from simmim_bench.cli.main import cli
from simmim_bench.models.build import build_backbone
from simmim_bench.results.metrics import write_logits


def build_and_check(runs: Path, *more: str) -> tuple[int, str]:
    done = CliRunner().invoke(
        cli,
        [
            "leaderboard",
            "check",
            "--no-reported",
            str(runs),
            "--out",
            str(runs.parent / "out"),
            *more,
        ],
    )
    return (done.exit_code, done.output) if done.exception is None else (6, str(done.exception))


@pytest.fixture
def built(tmp_path: Path) -> Path:
    """Give a record whose tables are built, and held."""
    (tmp_path / "README.md").write_text(
        "# x\n<!-- leaderboard: begin -->\n<!-- leaderboard: end -->\nend\n"
    )
    path = make_record(tmp_path / "runs")
    into = str(tmp_path / "README.md")
    arguments = [str(tmp_path / "runs"), "--out", str(tmp_path / "out"), "--into", into]
    assert (
        CliRunner().invoke(cli, ["leaderboard", "build", "--no-reported", *arguments]).exit_code
        == 0
    )
    assert build_and_check(tmp_path / "runs", "--into", into) == (
        0,
        "1 records and their tables hold.\n",
    )
    return path


def damage_metric(path: Path) -> None:
    change(path, metrics=json.loads(path.read_text())["metrics"] | {"top1": 61.0})


def damage_predictions(path: Path) -> None:
    write_logits(path.parent / "predictions" / "logits.npz", np.zeros((10, 6)), np.arange(10) % 6)


def damage_recipe(path: Path) -> None:
    recipe = json.loads(path.read_text())["recipe"]
    change(path, recipe=recipe | {"fields": recipe["fields"] | {"epochs": 1}})


def damage_deviations(path: Path) -> None:
    change(path, deviates={"epochs": 1})


def damage_status(path: Path) -> None:
    change(path, evaluated=9)


def damage_half(path: Path) -> None:
    path.write_text(path.read_text()[:200])


def damage_nothing_left(path: Path) -> None:
    (path.parent / "predictions" / "logits.npz").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_metric, "top1 is 61.0 in the record, 60.0 from the predictions"),
        (damage_predictions, "not the ones that were scored"),
        (damage_nothing_left, "are not there"),
        (damage_recipe, "the fields of recipe 'linear' in the record are not those of its hash"),
        (damage_deviations, "recipe 'linear' with what deviates is not what was run"),
        (damage_status, "status is 'reproduced' with 9 of 10 images evaluated"),
        (damage_half, "cannot be read as JSON"),
    ],
)
def test_tampering_is_found_and_the_record_named(
    built: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(built)
    code, said = build_and_check(built.parent.parent)
    assert code == 6
    assert message in said
    assert str(built) in said


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


def test_another_checkpoint_under_the_same_name_is_found(tmp_path: Path) -> None:
    checkpoint = tmp_path / "ckpt"
    write_weights(checkpoint, seed=0)
    path = make_record(tmp_path / "runs")
    described = json.loads(path.read_text())["checkpoint"]
    sha256 = json.loads((checkpoint / "meta.json").read_text())["sha256"]
    change(path, checkpoint=described | {"name": str(checkpoint), "sha256": sha256})
    (path.parent / "env.json").write_text("{}")  # it is still in its run
    arguments = [str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    assert (
        CliRunner().invoke(cli, ["leaderboard", "build", "--no-reported", *arguments]).exit_code
        == 0
    )
    assert build_and_check(tmp_path / "runs")[0] == 0
    write_weights(checkpoint, seed=1)
    code, said = build_and_check(tmp_path / "runs")
    assert code == 6
    assert f"{path}: checkpoint {checkpoint} is another" in said
    (path.parent / "env.json").unlink()
    assert build_and_check(tmp_path / "runs")[0] == 0


@pytest.mark.parametrize(
    "name", ["LEADERBOARD.md", "leaderboard.csv", "leaderboard.json", "leaderboard.tex"]
)
def test_an_edited_table_is_found(built: Path, name: str) -> None:
    table = built.parent.parent.parent / "out" / name
    table.write_text(table.read_text().replace("60.0", "99.0", 1))
    code, said = build_and_check(built.parent.parent)
    assert code == 6
    assert f"{name} is not what the records give" in said


def test_an_edited_document_is_found_and_one_without_a_place_refused(built: Path) -> None:
    document = built.parent.parent.parent / "README.md"
    assert document.read_text().startswith("# x\n<!-- leaderboard: begin -->\n| checkpoint |")
    assert document.read_text().endswith("<!-- leaderboard: end -->\nend\n")
    document.write_text(document.read_text().replace("60.0", "99.0"))
    assert (
        "README.md is not what" in build_and_check(built.parent.parent, "--into", str(document))[1]
    )
    document.write_text("nothing\n")
    arguments = [str(built.parent.parent), "--out", str(document.parent / "out")]
    done = CliRunner().invoke(
        cli, ["leaderboard", "build", "--no-reported", *arguments, "--into", str(document)]
    )
    assert "has no place for the table" in str(done.exception)
    assert document.read_text() == "nothing\n"
