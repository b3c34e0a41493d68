"""Test that `transfer shift` repeats what runs have predicted, and records scores in the rows of their backbones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.cli import fails, run
from support.commands import two_processes
from support.shift import write_classes, write_image
from support.tiny import TINY

from simmim_bench.checkpoints.checkpoint import write_checkpoint
from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.data.named import DataSet
from simmim_bench.leaderboard.protocols import protocol_id
from simmim_bench.models.build import build_backbone
from simmim_bench.results.record import read_record
from simmim_bench.runs.options import RunOptions
from transfer.evaluate.evaluation import EvaluationRequest
from transfer.fitted import build_fitted, read_fitted
from transfer.shift.classifier import StoredPredictions, open_classifier
from transfer.shift.doctor_checks import check_shift_sets
from transfer.shift.imagenet_classes import classes_of, imagenet_classes

# Task, CKPT and overrides of runs on ten classes: exact statistics, L-BFGS, running statistics and random crops.
RUNS: dict[str, tuple[str, ...]] = {
    "linear": ("linear", "random:vit_pocket", "-o", "epochs=2", "-o", "norm=layer,batch"),
    "logistic": ("linear", "random:swin_pocket", "--recipe", "logistic_pocket", "-o", "l2=1e-3"),
    "mae": (
        *("linear", "random:vit_pocket", "--recipe", "linear_mae_vit_b", "-o", "img_size=32"),
        *("-o", "epochs=2", "-o", "crops=2", "-o", "warmup_epochs=0", "-o", "batch_size=4"),
        *("-o", "norm_images=4", "-o", "num_workers=0"),
    ),
    "imagenet": (
        *("imagenet", "random:resnet_pocket", "-o", "epochs=1", "-o", "batch_size=5"),
        *("-o", "warmup_epochs=0", "-o", "base_lr=0.05"),
    ),
}


def transfer(name: str, data: Path, out: Path) -> Path:
    task, ckpt, *more = RUNS[name]
    code, _, err = run(
        *("transfer", task, "--ckpt", ckpt, "--data", data, "--out", out, "--quiet", *more)
    )
    assert code == 0, err
    return out


def shift(ckpt: object, out: Path, *more: object) -> dict[str, Any]:
    """Score by the command line, and return the record of every set by its name."""
    code, stdout, err = run(
        *("transfer", "shift", "--ckpt", ckpt, "--out", out, "--json", "--quiet", *more)
    )
    assert code == 0, err
    return json.loads(stdout)


@pytest.fixture(scope="session")
def runs(few: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished runs of `RUNS` by name."""
    root = tmp_path_factory.mktemp("shift") / "runs"
    for name in RUNS:
        transfer(name, few, root / name)
    return root


@pytest.fixture(scope="session")
def thousand(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with random weights and a head of 1,000 outputs, without names of classes."""
    root = tmp_path_factory.mktemp("thousand") / "ckpt"
    spec = TINY["vit"]
    write_checkpoint(
        root,
        state=build_backbone(spec, num_classes=1000, seed=0).state_dict(),
        spec=spec,
        form="transfer",
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        provenance={"label": "thousand"},
    )
    return root


@pytest.mark.heavy
@pytest.mark.parametrize("name", RUNS)
def test_the_classifier_of_a_run_repeats_its_predictions(
    name: str, runs: Path, few: Path, tmp_path: Path
) -> None:
    record = shift(runs / name, tmp_path / "out", "--data", f"own={few}")["own"]
    recorded = json.loads((runs / name / "record.json").read_text())
    # The calibration follows the rounding of the logits; the accuracies that of the ranks, which are equal.
    assert record["metrics"] == pytest.approx(recorded["metrics"], rel=1e-4)
    with (
        np.load(runs / name / "predictions" / "logits.npz") as before,
        np.load(tmp_path / "out" / "predictions" / "logits.npz") as after,
    ):
        assert (before["ranked"] == after["ranked"]).all()
        assert (before["labels"] == after["labels"]).all()
        assert np.allclose(before["logits"], after["logits"], rtol=1e-3, atol=1e-3)
    # In the row of the run's backbone, under the run's recipe; the task and the data are others.
    assert record["checkpoint"] == recorded["checkpoint"]
    for key in ("name", "sha256", "source"):
        assert record["recipe"][key] == recorded["recipe"][key]
    assert (record["task"], record["data"]["name"]) == ("shift", "own")
    assert record["data"]["classifier"] == recorded["task"]
    assert record["details"]["trained"] == recorded["metrics"]


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("name", "override"), [("linear", "test_crop_ratio=0.5"), ("imagenet", "img_size=64")]
)
def test_stored_predictions_are_those_of_the_runs_own_recipe(
    name: str, override: str, runs: Path, few: Path
) -> None:
    def stored(*overrides: str) -> StoredPredictions | None:
        options = RunOptions(data=few, overrides=overrides)
        request = EvaluationRequest(task="imagenet", ckpt=str(runs / name), options=options)
        return open_classifier(request).stored

    assert stored() == stored("num_workers=0")
    assert stored() is not None
    assert stored(override) is None


def test_some_classes_of_a_classifier_are_scored_among_all_of_them(
    runs: Path, few: Path, tmp_path: Path
) -> None:
    classes = sorted(folder.name for folder in (few / "val").iterdir())
    for name in (classes[7], classes[2]):
        shutil.copytree(few / "val" / name, tmp_path / "set" / name)
    record = shift(runs / "linear", tmp_path / "out", "--data", f"two={tmp_path / 'set'}")["two"]
    with np.load(tmp_path / "out" / "predictions" / "logits.npz") as stored:
        assert sorted(set(stored["labels"].tolist())) == [2, 7]
        assert int(stored["classes"]) == 10
    assert (record["evaluated"], record["status"]) == (2, "reproduced")


@pytest.mark.heavy
def test_known_sets_have_columns_on_request_and_never_share_a_protocol_with_another_classifier(
    thousand: Path, runs: Path, tmp_path: Path
) -> None:
    v2 = write_classes(tmp_path / "v2", ((str(k), k) for k in range(1000)))
    a = write_classes(tmp_path / "a", ((name, k) for k, name in enumerate(classes_of("a"))))
    out = tmp_path / "runs"
    records = shift(
        *(thousand, out, "--data", f"v2={v2}", "--data", f"a={a}", "-o", "num_workers=0")
    )
    assert (records["v2"]["status"], records["v2"]["evaluated"]) == ("partial", 1000)
    assert records["a"]["details"]["classes"] == 200
    both = (out, runs / "linear")
    tables = ("--out", tmp_path / "tables", "--no-reported")
    assert run("leaderboard", "build", *both, *tables, "--columns", "shift")[0] == 0
    markdown = (tmp_path / "tables" / "LEADERBOARD.md").read_text()
    assert "| V2 | A |" in markdown
    assert run("leaderboard", "check", *both, *tables, "--columns", "shift")[0] == 0
    assert run("leaderboard", "build", *both, *tables)[0] == 0
    markdown = (tmp_path / "tables" / "LEADERBOARD.md").read_text()
    assert "V2" not in markdown
    assert "thousand" not in markdown  # it has no score in these columns
    assert ">V2</th>" in (tmp_path / "tables" / "leaderboard.html").read_text()

    record = read_record(out / "v2" / "record.json")
    other = read_record(out / "v2" / "record.json")
    other.data["classifier"] = "fewshot-1%"
    assert protocol_id(record) != protocol_id(other)
    # A finished set is left as it is.
    before = (out / "a" / "record.json").read_bytes()
    shift(
        thousand, out, "--data", f"a={a}", "--data", f"v2={v2}", "-o", "num_workers=0", "--resume"
    )
    assert (out / "a" / "record.json").read_bytes() == before


def test_a_changed_classifier_or_backbone_is_refused(runs: Path, few: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(runs / "linear", copy)
    own = ("--data", f"own={few}", "--out", tmp_path / "out")
    head = copy / "classifier" / "head.safetensors"
    content = bytearray(head.read_bytes())
    content[-1] ^= 1
    head.write_bytes(content)
    assert "differs from its hash" in fails(4, "transfer", "shift", "--ckpt", copy, *own)
    shutil.rmtree(copy / "classifier")
    assert "keeps no fitted classifier" in fails(4, "transfer", "shift", "--ckpt", copy, *own)
    record = json.loads((copy / "record.json").read_text())
    shutil.copytree(runs / "linear" / "classifier", copy / "classifier")
    record["checkpoint"]["sha256"] = "0" * 64
    (copy / "record.json").write_text(json.dumps(record))
    assert "has changed since" in fails(4, "transfer", "shift", "--ckpt", copy, *own)
    (copy / "record.json").unlink()
    assert "has no record; finish it" in fails(4, "transfer", "shift", "--ckpt", copy, *own)


def test_what_has_no_classifier_or_no_name_is_refused_in_one_line(
    runs: Path, few: Path, tmp_path: Path
) -> None:
    out = ("--out", tmp_path / "out")
    linear = ("transfer", "shift", "--ckpt", runs / "linear", *out)
    named = ("--data", f"own={few}")
    knn = tmp_path / "knn"
    assert not run("transfer", "knn", "--ckpt", "random:vit_pocket", "--data", few, "--out", knn)[0]
    said = fails(4, "transfer", "shift", "--ckpt", knn, *named, *out)
    assert "is a run of knn, which has no classifier to score on other images" in said
    assert "no classification head" in fails(
        4, "transfer", "shift", "--ckpt", "random:vit_pocket", *named, *out
    )
    assert "has no name, which determines how the set is scored" in fails(2, *linear, "--data", few)
    assert "--seeds does not apply to shift" in fails(2, *linear, *named, "--seeds", 2)
    assert "--fraction does not apply to shift" in fails(2, *linear, *named, "--fraction", "1%")
    assert "test_crop_ratio does not apply to c" in fails(
        2, *linear, "--data", f"c={few}", "-o", "test_crop_ratio=1"
    )
    assert "was fitted at img_size=" in fails(2, *linear, *named, "-o", "img_size=64")
    assert "changes the training, which is done" in fails(2, *linear, *named, "-o", "epochs=3")
    assert "--model is only for shift" in fails(
        2, "transfer", "knn", "--ckpt", "x", "--data", few, "--model", "timm:x"
    )
    assert not (tmp_path / "out").exists()


def test_doctor_says_what_a_run_would_say(thousand: Path, tmp_path: Path) -> None:
    for name in ("n01440764", "cat"):
        write_image(tmp_path / "set" / name / "0.ppm", 0)
    sets = [DataSet(tmp_path / "set", name) for name in ("v2", "a", "real", "c", "own")]
    found = {f.name: f.said for f in check_shift_sets(sets, str(thousand))}
    assert "1,000 classes" in found.pop("classifier")
    assert [*found] == [data_set.name for data_set in sets]
    for name, said in found.items():
        ckpt = ("--ckpt", thousand, "--out", tmp_path / "out")
        refused = fails(4, "transfer", "shift", *ckpt, "--data", f"{name}={tmp_path / 'set'}")
        assert refused == f"error: {said}"
    assert "--classifier x needs --shift" in fails(2, "doctor", "--classifier", "x")
    hints = {f.name: "add --classifier RUN" in f.said for f in check_shift_sets(sets, None)}
    assert hints == dict.fromkeys(hints, False) | {"own": True}
    (finding,) = check_shift_sets(sets, "random:vit_pocket")
    assert (finding.state, "no classification head" in finding.said) == ("problem", True)


@pytest.mark.slow
def test_doctor_prints_the_findings_of_shift_sets(runs: Path, few: Path, tmp_path: Path) -> None:
    own = ("--shift", f"own={few}", "--classifier", runs / "linear")
    assert "10 classes" in run("doctor", *own)[1]
    (tmp_path / "cat").mkdir()
    code, stdout, _ = run("doctor", "--shift", f"a={tmp_path}")
    assert (code, "name no class of ImageNet-A" in stdout) == (4, True)


def test_a_fitted_classifier_is_built_from_its_description_alone(runs: Path) -> None:
    fitted = read_fitted(runs / "logistic")
    assert fitted.kind == "linear"
    assert len(fitted.classes) == 10
    module = build_fitted(fitted, read_checkpoint("random:swin_pocket")).eval()
    with torch.no_grad():
        assert module(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert len(imagenet_classes()) == 1000


@pytest.mark.slow
def test_two_processes_score_every_image_once(runs: Path, few: Path, tmp_path: Path) -> None:
    alone = shift(runs / "linear", tmp_path / "alone", "--data", f"own={few}")["own"]
    two_processes(
        *("transfer", "shift", "--ckpt", str(runs / "linear"), "--data", f"own={few}", "--quiet"),
        *("--out", str(tmp_path / "two")),
    )
    record = read_record(tmp_path / "two" / "record.json")
    assert (record.evaluated, record.cost["devices"]) == (10, 2)
    assert record.metrics == pytest.approx(alone["metrics"], rel=1e-4)
