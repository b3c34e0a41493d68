"""k-NN equals a naive loop, chooses its candidate without val/, and can score leave-one-out."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner, Result
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import simmim_bench.probes.knn as knn_module
from simmim_bench.cli.main import cli
from simmim_bench.data.sources import image_list
from simmim_bench.display import Display
from simmim_bench.distributed import DistContext
from simmim_bench.files import sha256_json
from simmim_bench.leaderboard.find import find_records
from simmim_bench.probes.knn import knn_votes
from simmim_bench.runs.run_dir import RunDir
from transfer.frozen.candidates import TrainingSubset
from transfer.frozen.feature_store import StoredFeatures
from transfer.frozen.features import FeatureSet
from transfer.frozen.knn import probe_knn
from transfer.frozen.recipes import KNN_POCKET


@pytest.mark.parametrize("at_a_time", [1, 7 * 60, 10**6])
def test_votes_equal_a_naive_loop_for_every_k(
    at_a_time: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(knn_module, "SIMILARITIES", at_a_time)
    generator = torch.Generator().manual_seed(0)
    train = torch.randn(60, 8, generator=generator)
    queries = torch.randn(20, 8, generator=generator)
    labels = torch.arange(60) % 4
    ks = (5, 1, 100)
    train, queries = F.normalize(train), F.normalize(queries)
    chunks = knn_votes(train, labels, queries, 4, ks=ks, temperature=0.07)
    found = [torch.cat(votes) for votes in zip(*chunks, strict=True)]
    for q in range(20):
        similarity = sorted(
            ((float(queries[q] @ x), i) for i, x in enumerate(train)),
            reverse=True,
        )
        for k, votes in zip(ks, found, strict=True):
            expected = torch.zeros(4)
            for s, i in similarity[:k]:
                expected[labels[i]] += np.exp((s - 1) / 0.07)
            torch.testing.assert_close(votes[q], expected, rtol=1e-4, atol=1e-9)


def test_no_image_votes_on_itself_in_leave_one_out() -> None:
    train = torch.eye(6)
    labels = torch.arange(6)
    rows = torch.tensor([4, 0, 2])
    ((votes,),) = knn_votes(train, labels, None, 6, ks=[1], temperature=0.07, query_rows=rows)
    assert (votes.argmax(1) != rows).all()
    ((every,),) = knn_votes(train, labels, None, 6, ks=[9], temperature=0.07, query_rows=rows)
    assert ((every > 0).sum(1) == 5).all()


def knn(out: Path, data: Path, *more: str) -> Result:
    arguments = ["transfer", "knn", "--ckpt", "random:vit_pocket", "--data", str(data), "--quiet"]
    return CliRunner().invoke(cli, [*arguments, "--out", str(out), *more])


def record_of(out: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((out / "record.json").read_text())
    return record


def test_the_choice_does_not_depend_on_val(tmp_path: Path, pocket: Path) -> None:
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


def test_leave_one_out_scores_the_training_images_not_used_for_the_choice(
    tmp_path: Path, pocket: Path
) -> None:
    done = knn(
        tmp_path / "run", pocket / "imagenet", "-o", "leave_one_out=true", "-o", "choose_on=20"
    )
    assert done.exception is None
    record = record_of(tmp_path / "run")
    assert record["evaluated"] == record["expected"] == 40
    more = ("-o", "leave_one_out=true", "-o", "choose_on=20", "--seed", "1")
    assert knn(tmp_path / "seed1", pocket / "imagenet", *more).exception is None
    (row,) = find_records([tmp_path]).board().rows
    (cell,) = (cell for cell in row.cells if cell is not None)
    assert len(cell.values) == 2
    assert record["details"]["scored"] == "train, each by all others"
    stored_hashes = {
        sha256_json(json.loads(p.read_text())) for p in tmp_path.rglob("features.json")
    }
    assert set(record["details"]["features_sha256"].values()) < stored_hashes
    assert knn(tmp_path / "val", pocket / "imagenet").exception is None
    assert record["data"]["fingerprint"] != record_of(tmp_path / "val")["data"]["fingerprint"]
    with np.load(tmp_path / "run" / record["predictions"]["file"]) as stored:
        assert len(stored["labels"]) == 40


class BigCopies(TorchDispatchMode):
    """Count the operations that allocate an output of at least `min_bytes`."""

    def __init__(self, min_bytes: int) -> None:
        super().__init__()
        self.min_bytes, self.count = min_bytes, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outputs = func(*args, **(kwargs or {}))
        inputs = {
            x.untyped_storage().data_ptr() for x in tree_leaves(args) if isinstance(x, Tensor)
        }
        for found in tree_leaves(outputs):
            if isinstance(found, Tensor) and found.untyped_storage().nbytes() >= self.min_bytes:
                self.count += found.untyped_storage().data_ptr() not in inputs
        return outputs


@pytest.mark.parametrize("leave_one_out", [False, True])
def test_features_are_copied_once_and_votes_are_not_kept(
    leave_one_out: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, channels, classes = 20_000, 64, 300
    monkeypatch.setattr(knn_module, "SIMILARITIES", images * 50)
    array = np.random.default_rng(0).normal(size=(1, 1, images, channels)).astype(np.float16)
    features = StoredFeatures(array, {"blocks": [1], "poolings": ["mean"]}, lambda *_: channels)
    numbers = range(images)
    names, labels = tuple(Path(f"{n}") for n in numbers), tuple(n % classes for n in numbers)
    stored = image_list(Path(), names, labels, tuple(f"{c}" for c in range(classes)))
    recipe = replace(
        KNN_POCKET, norm=("batch",), k=(10,), choose_on=100, leave_one_out=leave_one_out
    )
    run = RunDir(tmp_path, Display(quiet=True), writes=False)
    val = (
        None
        if leave_one_out
        else StoredFeatures(
            array[:, :, :99], {"blocks": [1], "poolings": ["mean"]}, lambda *_: channels
        )
    )
    with BigCopies(4 * images * channels) as copies:
        result = probe_knn(
            TrainingSubset(stored, None, features),
            val,
            [FeatureSet(1, "mean")],
            recipe,
            seed=0,
            run=run,
            dist=DistContext(),
        )
    assert result is not None
    assert len(result.ranking) == (images - 100 if leave_one_out else 99)
    assert copies.count == 2  # one to choose, one to score
