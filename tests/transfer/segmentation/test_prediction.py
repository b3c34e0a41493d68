"""Tests of predictions, confusion matrices and records of ADE20K transfers."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from support.commands import two_processes
from support.segmentation import (
    CLASS_NAMES,
    RECIPE,
    assert_counts_every_labelled_pixel,
    build_loaders,
    entries,
    segmentor,
    split_of,
    transfer,
)

from simmim_bench.backbones import load_backbone
from simmim_bench.checkpoints.read import read_training_state
from simmim_bench.cli.main import cli
from simmim_bench.distributed import DistContext
from simmim_bench.results.record import read_record
from transfer.segmentation.confusion import confusion_matrix, interleave


@pytest.mark.heavy
def test_sliding_windows_predict_at_the_original_size(
    mmseg: None, generated: Path, tmp_path: Path
) -> None:
    recipe = replace(RECIPE, test_mode="slide", img_size=(32, 32), max_iters=2)
    transfer(tmp_path / "run", generated, recipe)
    assert_counts_every_labelled_pixel(tmp_path / "run", generated)


@pytest.mark.heavy
@pytest.mark.parametrize("mode", [pytest.param("whole", marks=pytest.mark.slow), "slide"])
def test_several_scales_and_flips_are_averaged_at_the_original_size(
    mmseg: None, data: Path, tmp_path: Path, mode: Literal["whole", "slide"]
) -> None:
    """The images are smaller and larger than the crop, with odd sides."""
    for index, size in enumerate([(31, 23), (57, 75), (101, 90)]):
        name = f"ADE_val_{index + 1:08}"
        for folder, kind in (("images", "jpg"), ("annotations", "png")):
            path = data / folder / "validation" / f"{name}.{kind}"
            with Image.open(path) as image:
                image.resize(size, Image.Resampling.NEAREST).save(path)
    recipe = replace(RECIPE, test_mode=mode, max_iters=2, test_scales=(0.5, 1.0, 1.75))
    transfer(tmp_path / "run", data, replace(recipe, test_flip=True))
    assert_counts_every_labelled_pixel(tmp_path / "run", data)
    transfer(tmp_path / "unflipped", data, recipe)
    assert not np.array_equal(entries(tmp_path / "run"), entries(tmp_path / "unflipped"))


@pytest.mark.heavy
def test_a_recipe_with_the_published_protocols_options_trains_and_predicts(
    mmseg: None, data: Path, tmp_path: Path
) -> None:
    """Resizing within limits, a minimum side in several views, and a ViT with new tables and layer scales."""
    recipe = replace(
        RECIPE,
        max_iters=3,
        resize_within=(256, 64),
        lr_rule="mmcv",
        no_decay="vectors",
        auxiliary_channels=8,
        test_mode="slide",
        slide_stride=(48, 40),
        test_scales=(0.5, 1.25),
        test_flip=True,
        min_test_side=64,
        map_norm="none",
        rel_pos="table",
        layer_scale=1.0,
        position="bicubic",
    )
    transfer(tmp_path / "run", data, recipe)
    assert_counts_every_labelled_pixel(tmp_path / "run", data)
    model = segmentor("random:vit_pocket", recipe, classes=16)
    model.load_state_dict(read_training_state(tmp_path / "run/checkpoints/last")["model"])
    assert model.auxiliary_head.channels == 8
    found = load_backbone(str(tmp_path / "run")).spec  # a later task keeps the maps
    assert (found.map_norm, found.init_values, found.rel_pos_bias) == ("none", 1.0, True)


@pytest.mark.heavy
def test_views_of_an_image_are_averaged_as_probabilities(
    mmseg: None, data: Path, tmp_path: Path
) -> None:
    recipe = replace(RECIPE, max_iters=1, test_flip=True)
    transfer(tmp_path / "run", data, recipe, label_maps=True)
    model = segmentor("random:vit_pocket", recipe, classes=16)
    model.load_state_dict(read_training_state(tmp_path / "run/checkpoints/last")["model"])
    model.eval()
    split = split_of(data, "validation")
    pixels = np.array(Image.open(split.images[0]))[..., ::-1].copy()  # 64 x 64, BGR
    views = torch.from_numpy(np.stack([pixels, pixels[:, ::-1]])).permute(0, 3, 1, 2)
    with torch.no_grad():
        inputs = model.data_preprocessor({"inputs": list(views)})["inputs"]
        found = model.encode_decode(inputs, [{"img_shape": (64, 64)}] * 2).softmax(1)
    mean = (found[0] + found[1].flip(-1)) / 2
    written = np.array(Image.open(tmp_path / "run/predictions/label_maps/ADE_val_00000001.png"))
    assert (written == mean.argmax(0).numpy() + 1).mean() > 0.999  # ties may be broken differently


@pytest.mark.heavy
def test_iou_by_class_equals_a_naive_count(finished: Path, generated: Path) -> None:
    stored = entries(finished).tolist()
    names = (generated / "classes.txt").read_text().splitlines()
    by_class = json.loads((finished / "iou_by_class.json").read_text())
    for c, name in enumerate(names):
        union = sum(n for _, t, p, n in stored if c in (t, p))
        hit = sum(n for _, t, p, n in stored if t == p == c)
        assert by_class.get(name) == (pytest.approx(100 * hit / union) if union else None)


@pytest.mark.heavy
def test_two_processes_predict_the_same_as_one(
    mmseg: None, generated: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    changes = ("max_iters=3", "warmup_iters=0", "batch_size=4", "head_channels=16")
    overrides = [f"-o{change}" for change in changes]
    arguments = ["transfer", "ade20k", "--ckpt", "random:vit_pocket", "--data", str(generated)]
    two_processes(*arguments, *overrides, "--out", str(run))
    found = entries(run)
    assert_counts_every_labelled_pixel(run, generated)
    shutil.rmtree(run / "predictions")
    (run / "record.json").unlink()
    done = CliRunner().invoke(
        cli, [*arguments, *overrides, "--out", str(run), "--resume", "--quiet"]
    )
    assert done.exit_code == 0, done.output
    assert np.array_equal(entries(run), found)


@pytest.mark.heavy
@pytest.mark.parametrize("images", [1, 4, 5])
def test_matrices_of_two_processes_are_in_the_images_order(
    mmseg: None, generated: Path, images: int
) -> None:
    """With one image, the second process has none."""
    from transfer.segmentation.metric import ConfusionMetric

    split = split_of(generated, "training")
    validation = replace(split, images=split.images[:images], masks=split.masks[:images])
    metrics = []
    for rank in (0, 1):
        _, loader = build_loaders(
            RECIPE,
            split,
            validation,
            CLASS_NAMES,
            seed=0,
            first_iteration=0,
            dist=DistContext(rank, 2),
        )
        metric = ConfusionMetric(generated / "images/training")
        metric.dataset_meta = {"classes": CLASS_NAMES, "reduce_zero_label": True}
        for batch in loader:
            truth = batch["data_samples"][0].gt_sem_seg.data
            sample = {"gt_sem_seg": {"data": truth}, "pred_sem_seg": {"data": truth % 16}}
            metric.process(None, [sample])
        metrics.append(metric)
    by_rank = [(metric.confusions, metric.shown) for metric in metrics]
    assert [len(confusions) for confusions, _ in by_rank] == [-(-images // 2), images // 2]
    confusions, shown = (interleave(part, images) for part in zip(*by_rank, strict=True))
    for collected in (confusions, shown):
        assert len(collected) == images
    for index, mask in enumerate(validation.masks):
        labels = np.asarray(Image.open(mask)).astype(np.uint8)
        counts = np.bincount(labels.ravel(), minlength=17)[1:]
        assert np.array_equal(confusions[index], np.diag(counts))
        assert np.array_equal(shown[index], (labels - np.uint8(1)) % 16)


def test_recorded_miou_equals_a_naive_count(mmseg: None, finished: Path, generated: Path) -> None:
    record = read_record(finished / "record.json")
    assert (record.evaluated, record.expected) == (3, 3)
    ious, hits, labelled = [], 0, 0
    stored = entries(finished).tolist()
    for c in range(16):
        hit = sum(n for _, t, p, n in stored if t == c and p == c)
        union = sum(n for _, t, p, n in stored if t == c or p == c)
        hits, labelled = hits + hit, labelled + sum(n for _, t, _, n in stored if t == c)
        if union:
            ious.append(hit / union)
    assert record.metrics["miou"] == pytest.approx(100 * sum(ious) / len(ious), abs=1e-6)
    assert record.metrics["aacc"] == pytest.approx(100 * hits / labelled, abs=1e-6)


def test_record_identifies_the_data_of_both_splits(finished: Path, generated: Path) -> None:
    record = read_record(finished / "record.json")
    assert record.data == {
        "root": str(generated),
        "fingerprint": split_of(generated, "validation").fingerprint(),
        "train_fingerprint": split_of(generated, "training").fingerprint(),
    }


@pytest.mark.heavy
def test_scores_equal_those_of_mmseg_at_the_original_size(
    mmseg: None, finished: Path, generated: Path
) -> None:
    from mmseg.evaluation import IoUMetric

    assert_counts_every_labelled_pixel(finished, generated)
    # Predict again with the saved weights and mmseg's own evaluation.
    model = segmentor("random:vit_pocket", RECIPE, 16, 3)
    model.load_state_dict(read_training_state(finished / "checkpoints/last")["model"])
    model.eval()
    split = split_of(generated, "validation")
    _, loader = build_loaders(RECIPE, split, split, CLASS_NAMES, seed=0, first_iteration=0)
    areas = []
    for batch in loader:
        with torch.no_grad():
            (sample,) = model.test_step(batch)
        found, truth = sample.pred_sem_seg.data[0], sample.gt_sem_seg.data[0]
        with Image.open(sample.img_path) as image:
            assert found.shape == truth.shape == (image.height, image.width)
        areas.append(IoUMetric.intersect_and_union(found, truth, 16, 255))
    totals = [torch.stack(area).sum(0).double() for area in zip(*areas, strict=True)]
    scores = IoUMetric.total_area_to_metrics(*totals, ["mIoU"])
    record = read_record(finished / "record.json")
    assert record.metrics["miou"] == pytest.approx(100 * np.nanmean(scores["IoU"]), abs=1e-6)
    assert record.metrics["macc"] == pytest.approx(100 * np.nanmean(scores["Acc"]), abs=1e-6)
    assert record.metrics["aacc"] == pytest.approx(100 * float(scores["aAcc"]), abs=1e-6)


def test_confusion_matrix_has_truth_in_rows_and_no_ignored_pixels() -> None:
    truth = np.array([[0, 0, 2], [255, 1, 2]])
    predicted = np.array([[1, 0, 2], [2, 1, 0]])
    expected = [[1, 1, 0], [0, 1, 0], [1, 0, 1]]
    assert confusion_matrix(truth, predicted, 3).tolist() == expected


def test_label_maps_have_the_folder_structure_of_the_images(mmseg: None, tmp_path: Path) -> None:
    from transfer.segmentation.metric import ConfusionMetric

    metric = ConfusionMetric(tmp_path / "images/validation", tmp_path / "maps")
    metric.dataset_meta = {"classes": ("x", "y"), "reduce_zero_label": True}
    for city, predicted in (("cityA", 0), ("cityB", 1)):
        sample = {
            "img_path": tmp_path / f"images/validation/{city}/1.jpg",
            "gt_sem_seg": {"data": torch.zeros(1, 4, 6, dtype=torch.uint8)},
            "pred_sem_seg": {"data": torch.full((1, 4, 6), predicted)},
        }
        metric.process(None, [sample])
    for city, label in (("cityA", 1), ("cityB", 2)):
        with Image.open(tmp_path / f"maps/{city}/1.png") as label_map:
            assert np.array_equal(np.asarray(label_map), np.full((4, 6), label))
