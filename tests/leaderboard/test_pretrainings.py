"""Checkpoints of one method share everything but the seed of their pretraining."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest
from support.cli import run
from support.records import make_record, plain_cells

from simmim_bench.leaderboard.pretrainings import method_key, pretraining_seed
from simmim_bench.results.record import Record, read_record

PROVENANCE: dict[str, Any] = {
    "label": "vit_b, SimMIM vit_b_800ep",
    "method": "simmim",
    "recipe": {"name": "vit_b_800ep", "sha256": "a" * 64, "deviates": {}},
    "design": {"head": "linear"},
    "avg_dist": 4.8,
    "seed": 1,
    "init_from": None,
    "data": {"root": "imagenet", "images": 1000, "fingerprint": "b" * 64},
    "held_out_loss": 0.38,
    "wall_time_s": 300.6,
    "devices": 1,
    "epochs": 800.0,
}
TEACHER = {"name": "teacher", "sha256": "c" * 64}
RECIPE, DATA = PROVENANCE["recipe"], PROVENANCE["data"]


@pytest.fixture
def pretrained(tmp_path: Path) -> Record:
    """A record of a pretrained checkpoint."""
    return of(read_record(make_record(tmp_path)), PROVENANCE)


def of(record: Record, provenance: dict[str, Any], **checkpoint: Any) -> Record:
    return replace(record, checkpoint=record.checkpoint | {"provenance": provenance} | checkpoint)


@pytest.mark.parametrize(
    "changed",
    [
        {"seed": 2, "held_out_loss": 0.37, "avg_dist": 4.5, "fitted": {"loss": 0.3}},
        {"wall_time_s": 9000.0, "devices": 8, "probe": {"top1": 3.0}},
        {"label": "mine"},
        {"recipe": RECIPE | {"name": "renamed", "deviates": {"num_workers": 3}}},
        {"data": DATA | {"root": "/other/imagenet"}},
        {"revision": "abc"},
    ],
)
def test_seed_cost_and_names_are_no_part_of_a_method(
    pretrained: Record, changed: dict[str, Any]
) -> None:
    key = method_key(pretrained)
    assert key is not None
    other = of(pretrained, PROVENANCE | changed, label="x", sha256="d" * 64)
    assert method_key(other) == key
    assert hash(method_key(other)) == hash(key)


@pytest.mark.parametrize(
    "changed",
    [
        {"recipe": RECIPE | {"sha256": "d" * 64}},
        {"data": DATA | {"fingerprint": "d" * 64}},
        {"epochs": 100.0},  # of `checkpoints/epoch_0100`
        {"init_from": "runs/a"},
        {"target_model": TEACHER},
        {"adapted": "4 channels adapted from 3"},
        {"converted_from": "d" * 64},
        {"method": "mae"},
    ],
)
def test_whatever_else_shapes_the_weights_makes_another_method(
    pretrained: Record, changed: dict[str, Any]
) -> None:
    other = of(pretrained, PROVENANCE | changed)
    assert method_key(other) not in (None, method_key(pretrained))
    assert method_key(of(pretrained, PROVENANCE, arch="vit_s")) != method_key(pretrained)
    assert method_key(of(pretrained, PROVENANCE, params=2)) != method_key(pretrained)


def test_random_weights_trained_with_labels_are_pretrained_and_fine_tuned_ones_are_not(
    pretrained: Record,
) -> None:
    random = {"sha256": "d" * 64, "provenance": {"label": "vit_b, random", "method": "random"}}
    trained = PROVENANCE | {"method": "finetune", "from": random}
    keys = {method_key(of(pretrained, trained | {"seed": seed})) for seed in (0, 1)}
    assert len(keys) == 1
    assert None not in keys
    assert method_key(pretrained) not in keys
    for source in ({"sha256": "d" * 64, "provenance": PROVENANCE}, {"provenance": None}, None):
        assert method_key(of(pretrained, trained | {"from": source})) is None


def test_another_teacher_makes_another_method(pretrained: Record) -> None:
    keys = {
        method_key(of(pretrained, PROVENANCE | {"target_model": TEACHER | {"sha256": digit * 64}}))
        for digit in "abb"
    }
    assert len(keys) == 2
    # Two conversions of one size are of one method, as their sources are.
    converted = [
        method_key(of(pretrained, PROVENANCE | {"converted_from": digit * 64, "seed": int(digit)}))
        for digit in "12"
    ]
    assert converted[0] == converted[1] != method_key(pretrained)


@pytest.mark.parametrize(
    "damage",
    [
        {"seed": None},
        {"seed": "1"},
        {"seed": True},
        {"seed": [1]},
        {"seed": -1},
        {"seed": 10**400},
        {"recipe": "vit_b_800ep"},
        {"recipe": {"sha256": ["a"]}},
        {"recipe": {}},
        {"data": []},
        {"data": {"fingerprint": {}}},
        {"epochs": None},
        {"target_model": 5},
        {"target_model": {"sha256": 5}},
        {"fine_tuned": {"task": "coco", "iterations": 9, "seed": 1}},
        # Of an `ade20k` run, whose seed is that of the fine-tuning.
        {"data": None, "init_from": {"sha256": "d" * 64, "provenance": PROVENANCE}},
    ],
)
def test_a_checkpoint_that_does_not_say_how_it_was_pretrained_has_no_method(
    pretrained: Record, damage: dict[str, Any]
) -> None:
    assert method_key(of(pretrained, PROVENANCE | damage)) is None


@pytest.mark.parametrize(
    "odd",
    [{"init_from": {"a": [1]}}, {"epochs": [5]}, {"adapted": 10**400}, {"method": ["\ud800"]}],
)
def test_a_strange_provenance_has_a_key_that_can_be_hashed(
    pretrained: Record, odd: dict[str, Any]
) -> None:
    key = method_key(of(pretrained, PROVENANCE | odd))
    assert hash(key) != hash(method_key(pretrained))


def test_random_weights_and_other_trainers_have_no_method_and_no_seed(pretrained: Record) -> None:
    for provenance in (
        {"label": "vit_b, random", "method": "random"},
        {"label": "mae", "method": "MAE", "epochs": 800, "read": {"prefix": ""}},
        {},
    ):
        record = of(pretrained, provenance)
        assert (method_key(record), pretraining_seed(record)) == (None, None)
    assert pretraining_seed(pretrained) == 1


@pytest.mark.heavy
def test_pretrainings_of_two_seeds_are_one_row_of_their_method(
    tmp_path: Path, pocket: Path
) -> None:
    sizes = ("img_size=32", "mask_patch_size=8", "epochs=1", "warmup_epochs=0", "batch_size=32")
    data = pocket / "imagenet"
    options = [word for size in sizes for word in ("-o", size)]
    records = []
    for seed in (1, 2):
        out = tmp_path / f"seed{seed}"
        command = ("pretrain", "--arch", "vit_pocket", "--recipe", "pocket", "--data", data)
        code, _, stderr = run(*command, "--out", out, "--seed", seed, *options)
        assert code == 0, stderr
        code, _, stderr = run(
            "transfer", "knn", "--ckpt", out, "--data", data, "--out", out / "knn"
        )
        assert code == 0, stderr
        records.append(read_record(out / "knn" / "record.json"))
    assert [pretraining_seed(record) for record in records] == [1, 2]
    assert len({record.checkpoint["sha256"] for record in records}) == 2
    assert method_key(records[0]) == method_key(records[1]) is not None
    top1 = [record.metrics["top1"] for record in records]
    code, _, stderr = run("leaderboard", "build", tmp_path, "--no-reported", "--out", tmp_path)
    assert code == 0, stderr
    lines = plain_cells((tmp_path / "LEADERBOARD.md").read_text()).splitlines()
    row, *single = (line for line in lines if "SimMIM" in line or "– seed" in line)
    assert "(2 pretrainings)" in row
    assert f"pretrainings ± {stdev(top1):.1f}" in row
    assert f" {mean(top1):.1f}" in row
    assert ["seed 1" in single[0], "seed 2" in single[1]] == [True, True]
