"""`limit`: a part of both splits, evenly from the classes, the same for every seed, and recorded as a deviation."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from support.cli import fails, run

from pretrain.checkpoints import CheckpointWriter
from pretrain.recipes import POCKET
from pretrain.run import build
from pretrain.train import TrainOptions
from simmim_bench.data.class_splits import class_files
from simmim_bench.data.named import DataSet
from simmim_bench.data.pretraining_images import any_images, held_out_images
from simmim_bench.data.sources import image_list
from simmim_bench.data.subsets import limit_images
from simmim_bench.display import Display
from simmim_bench.errors import UsageError
from simmim_bench.runs.context import RunContext
from simmim_bench.runs.run_dir import open_run
from simmim_bench.training.few_images import check_batch_fits, few_steps_warnings
from transfer.shift.check import check_names
from transfer.suite.selection import describe_without, read_overrides


def test_a_limit_takes_equally_many_of_every_class_that_has_them(tmp_path: Path) -> None:
    labels = [0] * 50 + [1] * 3 + [2] * 20
    paths = [tmp_path / f"{number:02}.jpg" for number in range(len(labels))]
    images = image_list(tmp_path, paths, labels, "abc")
    part = limit_images(images, 23, "train")
    assert Counter(part.labels.tolist()) == {0: 10, 1: 3, 2: 10}
    assert [*part.names] == [*limit_images(images, 23, "train").names]
    assert limit_images(images, 73, "train") is images
    assert limit_images(images, None, "train") is images
    assert len(limit_images(images, 3, "train")) == 3
    with pytest.raises(
        UsageError, match=r"limit=2 is less .* the 3 classes of val/; use --limit 3"
    ):
        limit_images(images, 2, "val")


@pytest.mark.heavy
def test_a_transfer_uses_and_records_the_same_part_of_both_splits_for_every_seed(
    tmp_path: Path, pocket: Path
) -> None:
    data, out = pocket / "imagenet", tmp_path / "run"
    code, _, err = run(
        *("transfer", "knn", "--ckpt", "random:vit_pocket", "--data", data, "--out", out),
        *("--limit", 20, "--seeds", 2),
    )
    assert code == 0, err
    train, val = (limit_images(class_files(data, split), 20, split) for split in ("train", "val"))
    assert err.count("data: limit=20 train=20 val=20") == 2
    for seed in (0, 1):
        record = json.loads((out / f"seed{seed}" / "record.json").read_text())
        assert record["deviates"] == {"limit": 20}
        assert (record["evaluated"], record["expected"]) == (20, 20)
        assert record["data"]["train_images"] == 20
        assert record["data"]["train_fingerprint"] == train.fingerprint()
        assert record["data"]["fingerprint"] == val.fingerprint()
    assert val.fingerprint() != class_files(data, "val").fingerprint()
    assert "--limit 10 or more" in fails(
        *(2, "transfer", "knn", "--ckpt", "random:vit_pocket", "--data", data, "--limit", 9),
        *("--out", tmp_path / "few"),
    )
    assert not (tmp_path / "few").exists()


@pytest.mark.heavy
def test_a_pretraining_uses_a_part_of_both_splits_and_reports_a_useless_end(
    tmp_path: Path, pocket: Path
) -> None:
    data, recipe = pocket / "imagenet", replace(POCKET, limit=20)
    train, val = any_images(data), held_out_images(data)
    assert val is not None
    for seed in (0, 1):
        out = tmp_path / str(seed)
        quiet = Display(quiet=True)
        with open_run(out, recipe=recipe, deviates={}, arguments={}, display=quiet) as opened:
            context = RunContext(run=opened, seed=seed)
            built = build(context, recipe, data, None, TrainOptions(), None)
            assert built.images.fingerprint() == limit_images(train, 20, "train").fingerprint()
            assert built.held_out.fingerprint() == limit_images(val, 20, "val").fingerprint()
            figures = {"held_out_loss": 0.6, "psnr": 10.0, "ssim": 0.1}
            constant_loss = (0.5, 0.7)[seed]  # of the best constant prediction
            writer = CheckpointWriter(built, constant_loss=constant_loss, provenance=figures)
            writer._log_result()
        log = (out / "log.txt").read_text()
        assert ("worse than 0.5, which a constant prediction reaches" in log) == (seed == 0)
        assert "finished held_out_loss=0.6000" in log
    assert len(built.images) == len(built.held_out) == 20


def test_too_few_steps_and_too_large_batches_are_reported() -> None:
    (few,) = few_steps_warnings(100, 4999, 49, 3)
    assert "4,999 images has only 49 steps of batch_size 100, the run 147" in few
    assert not [*few_steps_warnings(100, 5000, 50, 3)]
    assert not [*few_steps_warnings(100, 4999, 49, 3, enough=1)]
    (large,) = few_steps_warnings(2048, 300, 1, 100, enough=1)
    assert "batch_size 2,048 is more than the 300 training images" in large
    assert "use --batch-size 32" in large
    check_batch_fits(300, 300)
    with pytest.raises(UsageError, match="use --batch-size 32"):
        check_batch_fits(301, 300)


def test_a_batch_larger_than_the_data_is_refused_before_anything_is_written(
    tmp_path: Path, few: Path
) -> None:
    out = tmp_path / "run"
    arguments = ("pretrain", "--arch", "vit_pocket", "--data", few, "--out", out)
    message = fails(2, *arguments, "--batch-size", 13)
    assert "batch_size 13 is more than the 12 training images" in message
    assert not out.exists()


def test_a_limit_that_cannot_apply_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--limit does not apply to shift"):
        check_names([DataSet(tmp_path, "v2")], ["limit=5"])
    coco = ("transfer", "coco", "--ckpt", "random:vit_pocket", "--data", tmp_path, "--limit", 5)
    assert "it uses all images" in fails(2, *coco)
    listed = ("transfer", "fewshot", "--ckpt", "random:vit_pocket", "--data", tmp_path)
    assert "limit=5 leaves out images that --split list.txt lists" in fails(
        2, *listed, "--split", "list.txt", "--limit", 5
    )


def test_a_suite_names_the_tasks_without_a_limit() -> None:
    names = ["linear", "fewshot-1%", "coco"]
    texts = ["linear.limit=50", "limit=100", "precision=fp32"]
    assert read_overrides(texts, names) == {
        "linear": ["limit=100", "precision=fp32", "limit=50"],  # the last one of a key holds
        "fewshot-1%": ["limit=100", "precision=fp32"],
        "coco": ["precision=fp32"],
    }
    (line,) = describe_without(texts, names)
    assert "limit=100 is not for coco" in line
    with pytest.raises(UsageError, match="no task of the plan has limit"):
        read_overrides(["limit=100"], ["coco"])
