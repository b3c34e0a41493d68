"""`push`: what it writes is read back, by its own name and by timm, and says what the records say."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from support.cli import fails, run
from support.hub_server import READER, HubServer, hub_server
from support.records import change, make_record
from support.tiny import TINY

import simmim_bench as sb
from simmim_bench.backbones import load_backbone
from simmim_bench.checkpoints.checkpoint import IMAGENET_MEAN, IMAGENET_STD, write_checkpoint
from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.errors import DataError
from simmim_bench.models.build import build_backbone
from simmim_bench.publish.scores import select_records

NAME = "lab/tiny"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with hub_server(tmp_path / "cache", monkeypatch) as server:
        yield server


def save(path: Path, seed: int = 0, family: str = "vit", source: str = "") -> Path:
    """Write a checkpoint of random weights, with the provenance of a pretraining."""
    spec = TINY[family]
    write_checkpoint(
        path,
        state=build_backbone(spec, seed=seed).state_dict(),
        spec=spec,
        form="transfer",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        provenance={
            "label": f"tiny | {seed}",
            "method": "simmim",
            "recipe": {"name": "pocket", "deviates": {"epochs": 2, "teacher": "/home/someone/t"}},
            "data": {"root": "/home/someone/photos", "images": 1234},
            "epochs": 2.0,
            **({"from": {"sha256": source}} if source else {}),
        },
    )
    return path


def record_of(ckpt: Path, root: Path, *, seed: int = 0, correct: int = 6) -> Path:
    """Write a record of a checkpoint."""
    path = make_record(root, seed=seed, correct=correct)
    plain = json.loads(path.read_text())["checkpoint"]
    change(path, checkpoint={**plain, "sha256": read_checkpoint(str(ckpt)).sha256})
    return path


def metadata(card: str) -> dict[str, Any]:
    found = yaml.safe_load(card.split("---\n")[1])
    assert isinstance(found, dict)
    return found


def test_a_pushed_checkpoint_is_read_back_by_name_and_by_timm(
    tmp_path: Path, hub: HubServer
) -> None:
    ckpt = save(tmp_path / "ckpt")
    for seed, correct in ((0, 6), (1, 8)):
        path = record_of(ckpt, tmp_path / "runs", seed=seed, correct=correct)
        change(path, deviates={"teacher": "/home/someone/models/t"})
    done = sb.push(ckpt, NAME, records=tmp_path / "runs", license="mit", private=True, quiet=True)
    repository = hub.repositories[NAME]
    assert repository.private
    assert done.ckpt == f"hub:{NAME}@{repository.branches['main']}"
    assert {*repository.files()} == {*done.files, ".gitattributes"}

    local, found = read_checkpoint(str(ckpt)), read_checkpoint(done.ckpt)
    assert found.sha256 == local.sha256  # so that records are of both
    assert found.label == local.label
    assert found.provenance["data"]["root"] == "photos"
    assert found.provenance["revision"] == done.commit
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        wanted = load_backbone(ckpt).eval().forward_features(images)
        same = load_backbone(f"hub:{NAME}").eval().forward_features(images)
        model = timm.create_model(f"hf-hub:{NAME}", pretrained=True).eval()
    assert torch.equal(same, wanted)
    torch.testing.assert_close(model(images), wanted, rtol=0, atol=1e-5)

    said = metadata(repository.files()["README.md"].decode())
    assert (said["license"], said["library_name"]) == ("mit", "timm")
    (result,) = said["model-index"][0]["results"]
    (metric,) = result["metrics"]
    assert (metric["type"], metric["value"]) == ("accuracy", 70.0)  # of 60 and 80
    assert metric["args"]["seeds"] == [0, 1]
    assert metric["args"]["images"] == 10
    assert metric["args"]["deviates"] == {"teacher": "models/t"}
    assert b"/home/someone" not in b"".join(repository.files().values())


@pytest.mark.heavy
def test_a_second_push_adds_scores_and_replaces_nothing_else(
    tmp_path: Path, hub: HubServer
) -> None:
    ckpt, other = save(tmp_path / "ckpt"), save(tmp_path / "other", seed=1)
    first = sb.push(ckpt, NAME, quiet=True)
    record_of(ckpt, tmp_path / "runs")
    second = sb.push(ckpt, NAME, records=tmp_path / "runs", quiet=True)
    assert first.commit != second.commit
    assert "linear top-1" not in first.card
    assert "linear top-1" in second.card
    assert read_checkpoint(first.ckpt).sha256 == read_checkpoint(second.ckpt).sha256

    assert "holds another checkpoint" in fails(2, "push", other, NAME)
    assert "is public" in fails(2, "push", ckpt, NAME, "--private")
    branch = ("--branch", "seed1", "--overwrite", "--quiet", "--json")
    code, shown, error = run("push", other, NAME, *branch)
    assert code == 0, error
    assert read_checkpoint(f"hub:{NAME}@seed1").label == "tiny | 1"
    assert json.loads(shown)["ckpt"] == f"hub:{NAME}@{hub.repositories[NAME].branches['seed1']}"
    assert read_checkpoint(f"hub:{NAME}@main").label == "tiny | 0"

    hub.repositories[NAME].commit("main", {"weights.bin": b"1"})
    before = len(hub.repositories[NAME].commits)
    assert "was not written by simmim-bench: it holds weights.bin" in fails(2, "push", ckpt, NAME)
    assert len(hub.repositories[NAME].commits) == before


def test_a_refused_push_says_what_to_do_and_changes_nothing(
    tmp_path: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ckpt, other = save(tmp_path / "ckpt"), save(tmp_path / "other", seed=1)
    push = ("push", ckpt, NAME)
    path = record_of(other, tmp_path / "runs")
    message = fails(4, *push, "--records", tmp_path / "runs")
    assert f"{path} is the record of another checkpoint, 'a'" in message
    assert read_checkpoint(str(ckpt)).sha256[:12] in message
    assert read_checkpoint(str(other)).sha256[:12] in message
    for name in ("tiny", "lab/a--b", "lab/a.git", "lab/é", "lab/a/b"):
        assert "use ORG/NAME" in fails(2, "push", ckpt, name, "--dry-run"), name
    for scheme in ("random:vit_b", "hub:lab/tiny"):
        assert "push takes a checkpoint or run directory" in fails(2, "push", scheme, NAME)
    weights = ckpt / "model.safetensors"
    assert "simmim-bench convert" in fails(2, "push", weights, NAME)
    assert "does not exist" in fails(4, "push", tmp_path / "none", NAME)
    (tmp_path / "list").mkdir()
    (tmp_path / "list" / "meta.json").write_text("[]")
    (tmp_path / "list" / "model.safetensors").write_bytes(weights.read_bytes())
    assert "meta.json is damaged" in fails(4, "push", tmp_path / "list", NAME)

    refused = fails(2, *push, "--license", "MIT")
    assert "refuses the model card of lab/tiny" in refused
    assert '"license" must be one of' in refused
    hub.repositories.clear()
    monkeypatch.setenv("HF_TOKEN", READER)
    assert "may not write to lab/tiny" in fails(1, *push)
    monkeypatch.setenv("HF_TOKEN", "hf_unknown")
    assert "does not accept the token" in fails(1, *push)
    monkeypatch.delenv("HF_TOKEN")
    asked = len(hub.requests)
    assert "hf auth login" in fails(2, *push)
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in fails(2, *push)
    assert len(hub.requests) == asked
    assert not hub.repositories


def test_without_a_network_a_push_fails_in_words(
    tmp_path: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    message = fails(1, "push", save(tmp_path / "ckpt"), NAME)
    assert "http://127.0.0.1:9 cannot be reached" in message


def test_a_dry_run_writes_the_folder_and_uploads_nothing(
    tmp_path: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    ckpt = save(tmp_path / "ckpt", family="convnext")  # timm's has another stem
    path = record_of(ckpt, tmp_path / "runs")
    change(path, deviates={"epochs": 3}, environment={"simmim_bench": "0.1.0", "dirty": True})
    out = tmp_path / "folder"
    weights = ckpt / "model.safetensors"
    weights.rename(tmp_path / "blob")
    weights.symlink_to("../blob")  # as the Hub's cache has it
    arguments = ("--records", tmp_path / "runs", "--dry-run", "--out", out)
    code, shown, _ = run("push", ckpt, NAME, *arguments)
    assert code == 0
    assert not hub.requests
    files = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    assert files == {"README.md", "simmim-bench/meta.json", "simmim-bench/model.safetensors"}
    card = (out / "README.md").read_text()
    assert card.strip() in shown
    assert "# tiny \\| 0\n" in card
    (row,) = [line for line in card.splitlines() if line.startswith("| linear top-1 |")]
    assert "60.00\\*‡<br>images ± " in row
    assert "| d | 10 | linear | epochs=3 | 0 |" in row
    said = metadata(card)
    assert said["library_name"] == "simmim-bench"
    assert "model-index" not in said  # uncommitted changes are no result
    assert "timm cannot load it" in card
    assert "exists" in fails(2, "push", ckpt, NAME, *arguments)
    assert read_checkpoint(str(out / "simmim-bench")).sha256 == read_checkpoint(str(ckpt)).sha256
    assert not (out / "simmim-bench" / "model.safetensors").samefile(weights)
    assert run("push", ckpt, NAME, "--dry-run", "--json")[1].count("model.safetensors") == 1


def test_scores_whose_predictions_are_missing_are_marked_and_changed_ones_are_refused(
    tmp_path: Path,
) -> None:
    ckpt = save(tmp_path / "ckpt")
    path = record_of(ckpt, tmp_path / "runs")
    options: dict[str, Any] = {"records": tmp_path / "runs", "dry_run": True, "quiet": True}
    stored = json.loads(path.read_text())
    change(path, metrics={**stored["metrics"], "top1": 99.0})
    with pytest.raises(DataError, match=r"record\.json: top1 is 99\.0 in the record but 60\.0"):
        sb.push(ckpt, NAME, **options)
    change(path, metrics=stored["metrics"])
    predictions = path.parent / "predictions" / "logits.npz"
    content = predictions.read_bytes()
    predictions.write_bytes(content + b"1")
    with pytest.raises(DataError, match=r"record\.json: predictions .* have changed"):
        sb.push(ckpt, NAME, **options)
    predictions.unlink()
    card = sb.push(ckpt, NAME, **options).card
    assert "| linear top-1 | 60.00§ |" in card
    assert "§ The predictions do not exist any more" in card
    assert "model-index" not in metadata(card)

    predictions.write_bytes(content)
    other = record_of(ckpt, tmp_path / "runs" / "again", correct=8)
    change(other, checkpoint={**stored["checkpoint"], "label": "b"})
    with pytest.raises(DataError, match="same protocol and seed but different predictions"):
        sb.push(ckpt, NAME, **options)


def test_a_push_whose_reply_is_lost_can_be_repeated_with_the_same_command(
    tmp_path: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ckpt, out = save(tmp_path / "ckpt", family="convnext"), tmp_path / "out"
    api = pytest.importorskip("huggingface_hub").HfApi
    commit = api.create_commit

    def lose_reply(*arguments: Any, **options: Any) -> None:
        commit(*arguments, **options)
        raise ConnectionResetError("connection reset")

    with monkeypatch.context() as patch:
        patch.setattr(api, "create_commit", lose_reply)
        message = fails(1, "push", ckpt, NAME, "--out", out)
    assert "connection reset; the files may not have been committed" in message
    assert not out.exists()
    assert sb.push(ckpt, NAME, out=out, quiet=True).folder == out
    assert (out / "README.md").is_file()


def test_the_record_of_a_trained_classifier_is_that_of_the_run_it_ended(tmp_path: Path) -> None:
    """It names the checkpoint that the training started from, and so does a record of that checkpoint elsewhere."""
    start = save(tmp_path / "start")
    path = record_of(start, tmp_path / "runs")
    sha256 = read_checkpoint(str(start)).sha256
    last = save(path.parent / "checkpoints" / "last", seed=1, source=sha256)
    trained = read_checkpoint(str(last))
    assert [*select_records([path.parent], trained, last)] == [path]
    record_of(start, tmp_path / "runs", seed=1)
    with pytest.raises(DataError, match=r"linear-1/record\.json is the record of another"):
        select_records([tmp_path / "runs"], trained, last)
