"""Claims about k-NN: equal to a naive loop, chosen without val/, leave-one-out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

import transfer.knn as module
from simmim_bench.cli import cli
from simmim_bench.files import sha256_json
from transfer.knn import knn_votes


@pytest.mark.parametrize("at_a_time", [1, 7 * 60, 10**6])
def test_votes_equal_a_naive_loop_for_every_k(
    at_a_time: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SIMILARITIES", at_a_time)
    generator = torch.Generator().manual_seed(0)
    train = torch.randn(60, 8, generator=generator)
    queries = torch.randn(20, 8, generator=generator)
    labels = torch.arange(60) % 4
    ks = (5, 1, 100)
    found = knn_votes(train, labels, queries, 4, ks=ks, temperature=0.07)
    for q in range(20):
        similarity = sorted(
            (
                (float(queries[q] @ x / queries[q].norm() / x.norm()), i)
                for i, x in enumerate(train)
            ),
            reverse=True,
        )
        for k, votes in zip(ks, found, strict=True):
            wanted = torch.zeros(4)
            for s, i in similarity[:k]:
                wanted[labels[i]] += np.exp((s - 1) / 0.07)
            torch.testing.assert_close(votes[q], wanted, rtol=1e-4, atol=1e-9)


def test_leave_one_out_never_asks_the_image_itself() -> None:
    train = torch.eye(6)
    labels = torch.arange(6)
    rows = torch.tensor([4, 0, 2])
    (votes,) = knn_votes(train, labels, train[rows], 6, ks=[1], temperature=0.07, own_rows=rows)
    assert (votes.argmax(1) != rows).all()
    (every,) = knn_votes(train, labels, train[rows], 6, ks=[9], temperature=0.07, own_rows=rows)
    assert ((every > 0).sum(1) == 5).all()


def knn(out: Path, data: Path, *more: str) -> Result:
    arguments = ["transfer", "knn", "--ckpt", "random:vit_pocket", "--data", str(data), "--quiet"]
    return CliRunner().invoke(cli, [*arguments, "--out", str(out), *more])


def record_of(out: Path) -> dict:
    return json.loads((out / "record.json").read_text())


def test_the_choice_knows_nothing_of_val(tmp_path: Path, pocket: Path) -> None:
    shutil.copytree(pocket / "imagenet", tmp_path / "data")
    folders = sorted((tmp_path / "data" / "val").iterdir())
    for folder in folders:
        for image in list(folder.iterdir())[1:]:
            image.unlink()
    choices = []
    for name, data in (("whole", pocket / "imagenet"), ("other", tmp_path / "data")):
        assert knn(tmp_path / name, data).exception is None
        choices.append((tmp_path / name / "compared.json").read_text())
    assert choices[0] == choices[1]
    ks = {c["k"] for c in json.loads(choices[0])}
    assert ks == {10, 20, 100}


def test_leave_one_out_scores_the_training_images_that_chose_nothing(
    tmp_path: Path, pocket: Path
) -> None:
    done = knn(
        tmp_path / "run", pocket / "imagenet", "-o", "leave_one_out=true", "-o", "choose_on=20"
    )
    assert done.exception is None
    record = record_of(tmp_path / "run")
    assert record["evaluated"] == record["expected"] == 40
    assert record["details"]["scored"] == "train, each by all others"
    kept = {sha256_json(json.loads(p.read_text())) for p in tmp_path.rglob("features.json")}
    assert set(record["details"]["features_sha256"].values()) == kept
    assert knn(tmp_path / "val", pocket / "imagenet").exception is None
    assert record["data"]["fingerprint"] != record_of(tmp_path / "val")["data"]["fingerprint"]
    with np.load(tmp_path / "run" / record["predictions"]["file"]) as stored:
        assert len(stored["labels"]) == 40
