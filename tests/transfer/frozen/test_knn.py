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
from simmim_bench.errors import DataError
from simmim_bench.files import sha256_json
from simmim_bench.leaderboard.find import find_records
from simmim_bench.overrides import override
from simmim_bench.probes.knn import knn_votes
from simmim_bench.recipe import deviations, with_deviations
from simmim_bench.results.metrics import (
    classification_scores,
    rank_votes,
    read_ranking,
    write_ranking,
)
from simmim_bench.runs.run_dir import RunDir
from transfer.frozen.candidates import TrainingSubset
from transfer.frozen.feature_store import StoredFeatures
from transfer.frozen.features import FeatureSet
from transfer.frozen.knn import probe_knn
from transfer.frozen.recipes import KNN_POCKET, KnnRecipe


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


def naive_ranking(
    train: Tensor, labels: Tensor, query: Tensor, k: int, classes: int, temperature: float
) -> list[int]:
    """Rank the classes by votes, then by the place of their first image among all neighbours."""
    order = sorted(range(len(train)), key=lambda i: -float(query @ train[i]))
    votes: dict[int, float] = {}
    for i in order[:k]:
        weight = np.exp((float(query @ train[i]) - 1) / temperature)
        votes[int(labels[i])] = votes.get(int(labels[i]), 0.0) + weight
    ranked = sorted(votes, key=lambda c: -votes[c])
    for i in order[k:]:
        if int(labels[i]) not in ranked:
            ranked.append(int(labels[i]))
    return ranked + [c for c in range(classes) if c not in ranked]


@pytest.mark.parametrize("at_a_time", [1, 10**6])
def test_classes_without_a_vote_are_ranked_by_their_nearest_image(
    at_a_time: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(knn_module, "SIMILARITIES", at_a_time)
    generator = torch.Generator().manual_seed(1)
    train = F.normalize(torch.randn(90, 8, generator=generator))
    queries = F.normalize(torch.randn(30, 8, generator=generator))
    labels, truth = torch.arange(90) % 12, torch.arange(30) % 12  # class 12 has no image
    ks = (3, 1, 20)
    chunks = knn_votes(train, labels, queries, 13, ks=ks, temperature=0.07, rank_others=True)
    plain = knn_votes(train, labels, queries, 13, ks=ks, temperature=0.07)
    found = [torch.cat(votes) for votes in zip(*chunks, strict=True)]
    before = [torch.cat(votes) for votes in zip(*plain, strict=True)]
    for k, votes, old in zip(ks, found, before, strict=True):
        assert (votes[old > 0] == old[old > 0]).all()  # votes and top-1 are those of before
        ranking = rank_votes(votes.numpy())
        expected = [naive_ranking(train, labels, q, k, 13, 0.07)[:10] for q in queries]
        assert ranking.ranked.tolist() == expected
        write_ranking(tmp_path / f"{k}.npz", ranking, truth.numpy())
        stored, _ = read_ranking(tmp_path / f"{k}.npz")
        scores = classification_scores(stored.ranked, truth.numpy(), 13)
        hits = [int(t) in row[:5] for t, row in zip(truth, expected, strict=True)]
        assert scores["top5"] == pytest.approx(100 * np.mean(hits))
    by_number = rank_votes(before[1].numpy())  # of one neighbour: the others are 0, 1, 2 and 3
    assert classification_scores(by_number.ranked, truth.numpy(), 13)["top5"] != scores["top5"]


@pytest.mark.parametrize("temperature", [1e-3, 0.07])
def test_a_low_temperature_follows_the_nearest_image(temperature: float) -> None:
    """In float32, exp(-0.2 / 0.001) is 0: all votes vanished, and class 0 was predicted."""
    angles = torch.tensor([1.2, 1.1, 1.0, 0.9])
    train = torch.stack([angles.cos(), angles.sin()], 1)
    labels = torch.tensor([0, 1, 2, 3])
    query = torch.tensor([[1.0, 0.0]])
    ((votes,),) = knn_votes(train, labels, query, 4, ks=[3], temperature=temperature)
    assert votes.argmax(1).item() == 3
    if temperature == 0.07:
        expected = ((train[:, 0] - 1) / 0.07).exp()
        torch.testing.assert_close(votes[0, 1:], expected[1:])


def probed(labels: np.ndarray, features: np.ndarray, recipe: KnnRecipe, folder: Path) -> Any:
    """Return the result of k-NN scored leave-one-out on features (N, D)."""
    numbers = range(len(labels))
    stored = image_list(
        Path(), tuple(Path(f"{n}") for n in numbers), labels, tuple(map(str, range(4)))
    )
    kept = StoredFeatures(
        features[None, None], {"blocks": [1], "poolings": ["mean"]}, lambda *_: features.shape[1]
    )
    run = RunDir(folder, Display(quiet=True), writes=False)
    subset = TrainingSubset(stored, None, kept)
    sets = [FeatureSet(1, "mean")]
    return probe_knn(subset, None, sets, recipe, seed=0, run=run, dist=DistContext())


def test_the_choice_of_leave_one_out_does_not_depend_on_the_scored_labels(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    labels = np.arange(80) % 4
    features = (np.eye(4)[labels] + generator.normal(size=(80, 4))).astype(np.float16)
    recipe = replace(KNN_POCKET, norm=("none", "batch"), k=(1, 5), choose_on=30, leave_one_out=True)
    result = probed(labels, features, recipe, tmp_path)
    assert result.scored is not None
    assert len(result.scored) == 50
    other = labels.copy()
    other[result.scored] = generator.permutation(other[result.scored])
    changed = probed(other, features, recipe, tmp_path)
    assert changed.compared == result.compared
    # As in earlier versions, which this option reproduces.
    leaky = replace(recipe, choose_votes="all")
    assert probed(other, features, leaky, tmp_path).compared != (
        probed(labels, features, leaky, tmp_path).compared
    )
    # Independent: among the choosing images alone, each by all others.
    choosing = np.setdiff1d(np.arange(80), result.scored)
    x = features[choosing].astype(np.float64)
    similarity = (x @ x.T) / np.outer(*[np.linalg.norm(x, axis=1)] * 2)
    np.fill_diagonal(similarity, -2)
    right = labels[choosing][similarity.argmax(1)] == labels[choosing]
    (first,) = (c for c in result.compared if (c["norm"], c["k"]) == ("none", 1))
    assert first["held_out_top1"] == pytest.approx(100 * right.mean())


def test_a_leave_one_out_recipe_is_hashed_by_who_votes() -> None:
    assert KNN_POCKET.choose_votes is None
    assert override(KNN_POCKET, ["choose_on=5000"]).sha256() == KNN_POCKET.sha256()
    now = override(KNN_POCKET, ["leave_one_out=true"])
    assert now.choose_votes == "choosing"
    before = override(KNN_POCKET, ["leave_one_out=true", "choose_votes=all"])
    assert len({now.sha256(), before.sha256(), KNN_POCKET.sha256()}) == 3
    again = with_deviations(KNN_POCKET, deviations(now, KNN_POCKET))
    assert again.sha256() == now.sha256()


def test_leave_one_out_of_too_few_images_is_refused(tmp_path: Path) -> None:
    features = np.ones((3, 4), np.float16)
    recipe = replace(KNN_POCKET, leave_one_out=True)
    with pytest.raises(DataError, match=r"on 1 of 3 training images, .* use 4 training images"):
        probed(np.arange(3), features, recipe, tmp_path)


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


@pytest.mark.heavy
@pytest.mark.parametrize("leave_one_out", [False, True])
def test_features_are_copied_once_and_votes_are_not_kept(
    leave_one_out: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, channels, classes = 10_000, 64, 300
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
    # One to choose, if all images vote there, and one to score.
    assert copies.count == (1 if leave_one_out else 2)
