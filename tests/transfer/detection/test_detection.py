"""What is claimed of COCO transfer through Detectron2."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from simmim_bench.backbones import load_backbone
from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.display import Display, Task
from simmim_bench.errors import (
    DataError,
    DivergedError,
    InterruptedRun,
    MissingFrameworkError,
    UsageError,
)
from simmim_bench.pocket.write import PocketCounts, write_pocket
from simmim_bench.results.record import Record
from simmim_bench.runs.run_dir import open_run
from transfer.detection.coco_layout import CocoSplit, read_splits
from transfer.detection.data import PlainErrors, train_loader, training_stream
from transfer.detection.recipes import COCO_POCKET, COCO_VIT_100EP, CocoRecipe
from transfer.detection.run import require_detectron2, run_coco

pytest.importorskip("detectron2")
from detectron2.config import get_cfg
from detectron2.modeling import build_backbone
from detectron2.structures import ImageList

from transfer.detection.model import _roi_heads, build_detector
from transfer.detectron2_backbone import (
    SimMIMBackbone,
    add_simmim_config,
    build_detection_backbone,
    build_pyramid,
)

ARCHS = (
    "random:vit_pocket",
    "random:swin_pocket",
    "random:convnext_pocket",
    "random:resnet_pocket",
)
TINY = replace(
    COCO_POCKET,
    max_iters=4,
    warmup_iters=1,
    batch_size=2,
    neck_channels=16,
    box_head_dim=16,
    post_nms_topk=(8, 4),
    drop_path_rate=0.1,
    score_threshold=0.0,
)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Keep small tensors from being shared out among busy cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "pocket"
    counts = PocketCounts(
        imagenet_train=10, imagenet_val=10, coco_train=9, coco_val=5, ade20k_train=1, ade20k_val=1
    )
    write_pocket(out, counts=counts)
    return out / "coco"


@pytest.fixture
def own_coco(coco: Path, tmp_path: Path) -> Path:
    """Give a copy that a test may damage."""
    return Path(shutil.copytree(coco, tmp_path / "coco"))


def batches(split: CocoSplit, recipe: CocoRecipe, seed: int, first_iter: int) -> PlainErrors:
    return train_loader(training_stream(split, recipe, seed), recipe, first_iter)


def annotations_of(data: Path, split: str = "train") -> Path:
    return data / "annotations" / f"instances_{split}2017.json"


def change(path: Path, how: Callable[[Any], object]) -> None:
    content = json.loads(path.read_text())
    how(content)
    path.write_text(json.dumps(content))


def run(
    out: Path,
    data: Path,
    recipe: CocoRecipe = TINY,
    *,
    arch: str = ARCHS[0],
    display: Display | None = None,
    resume: bool = False,
) -> Record:
    with open_run(
        out,
        recipe=recipe,
        deviates={},
        arguments={},
        display=display or Display(quiet=True),
        resume=resume,
    ) as opened:
        return run_coco(
            checkpoint=read_checkpoint(arch),
            data=data,
            run=opened,
            recipe=recipe,
            deviates={},
            seed=3,
            resume=resume,
        )


@pytest.fixture(scope="module")
def finished(coco: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Record]:
    out = tmp_path_factory.mktemp("runs") / "vit"
    return out, run(out, coco)


# The adapter


@pytest.mark.parametrize("arch", ARCHS)
def test_pyramid_gives_the_declared_levels(arch: str) -> None:
    recipe = replace(TINY, strides=(2, 4, 8, 16), anchor_sizes=(4, 8, 16, 32))
    pyramid = build_detection_backbone(read_checkpoint(arch), recipe, seed=0)
    shapes = pyramid.output_shape()
    strides = {name: shape.stride for name, shape in shapes.items()}
    assert strides == {"p1": 2, "p2": 4, "p3": 8, "p4": 16}
    for name, level in pyramid(torch.randn(1, 3, 64, 96)).items():
        stride = shapes[name].stride
        assert level.shape == (1, shapes[name].channels, 64 // stride, 96 // stride)


@pytest.mark.parametrize("arch", ARCHS)
def test_images_are_padded_to_a_multiple_of_the_coarsest_stride(arch: str) -> None:
    for square_pad, expected in ((0, (64, 96)), (100, (104, 104))):
        pyramid = build_pyramid(SimMIMBackbone(arch), (2, 4, 8), 16, square_pad)
        padded = ImageList.from_tensors(
            [torch.zeros(3, 61, 83), torch.zeros(3, 50, 95)],
            pyramid.size_divisibility,
            padding_constraints=pyramid.padding_constraints,
        )
        assert padded.tensor.shape[-2:] == expected


def test_strides_that_the_backbone_cannot_give_are_refused() -> None:
    with pytest.raises(UsageError, match=r"strides \(4, 8, 32\) cannot be had from vit_pocket"):
        build_pyramid(SimMIMBackbone("random:vit_pocket"), (4, 8, 32), 16)
    with pytest.raises(UsageError, match="swin_pocket"):
        build_pyramid(SimMIMBackbone("random:swin_pocket"), (8, 16, 32, 64), 16)


def test_backbones_can_be_built_from_a_yaml_config() -> None:
    cfg = get_cfg()
    add_simmim_config(cfg)
    cfg.MODEL.SIMMIM.CKPT = "random:swin_pocket"
    cfg.MODEL.SIMMIM.IMG_SIZE = [64, 64]
    cfg.MODEL.SIMMIM.STRIDES = [4, 8, 16]
    cfg.MODEL.BACKBONE.NAME = "SimMIMBackbone"
    raw = build_backbone(cfg)
    assert isinstance(raw, SimMIMBackbone)
    cfg.MODEL.BACKBONE.NAME = "build_simmim_pyramid"
    pyramid = build_backbone(cfg)
    assert list(pyramid.output_shape()) == ["p2", "p3", "p4"]
    assert pyramid.output_shape()["p2"].channels == cfg.MODEL.FPN.OUT_CHANNELS


# The detector


@pytest.mark.parametrize("arch", ARCHS)
def test_every_weight_of_the_encoder_gets_a_gradient(arch: str, coco: Path) -> None:
    recipe = replace(TINY, drop_path_rate=0.0)
    train, _ = read_splits(coco, "refuse")
    model = build_detector(
        read_checkpoint(arch),
        recipe,
        num_classes=10,
        masks=True,
        seed=0,
        device=torch.device("cpu"),
    )
    from detectron2.utils.events import EventStorage

    with EventStorage():
        sum(model(next(iter(batches(train, recipe, 0, 0)))).values()).backward()
    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    assert [n for n, p in trained if p.grad is None] == []
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert all("fc_norm" in n for n in frozen)  # it normalises pooled features only


def test_pixels_are_normalised_as_the_checkpoint_says() -> None:
    checkpoint = replace(read_checkpoint(ARCHS[0]), mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    model = build_detector(
        checkpoint, TINY, num_classes=2, masks=False, seed=0, device=torch.device("cpu")
    )
    image = torch.randint(0, 256, (3, 64, 64))
    seen = model.preprocess_image([{"image": image}]).tensor[0]
    mean, std = (torch.tensor(v)[:, None, None] for v in (checkpoint.mean, checkpoint.std))
    torch.testing.assert_close(seen, (image / 255 - mean) / std)


def test_regions_are_pooled_from_the_levels_that_detectron2_takes_for_coco() -> None:
    pyramid = build_pyramid(SimMIMBackbone("random:vit_ti"), COCO_VIT_100EP.strides, 256)
    heads = _roi_heads(pyramid, COCO_VIT_100EP, num_classes=80, masks=True)
    assert heads.box_in_features == ["p2", "p3", "p4", "p5"]
    pooler = heads.box_pooler
    level_of_224 = pooler.canonical_level + torch.log2(
        torch.tensor(224 / pooler.canonical_box_size)
    )
    assert level_of_224 == 4  # FPN, arXiv 1612.03144, equation 1


# The data


def test_objects_are_trained_on_once_an_epoch_and_crowds_never(coco: Path) -> None:
    train, _ = read_splits(coco, "refuse")
    truth = COCO_quiet(annotations_of(coco))
    objects = [a for a in truth.dataset["annotations"] if not a["iscrowd"]]
    pictured = {a["image_id"] for a in objects}
    recipe = replace(TINY, scale_range=(1.0, 1.0), batch_size=1, max_iters=len(pictured))
    images = [image for batch in batches(train, recipe, 0, 0) for image in batch]
    assert sorted(image["image_id"] for image in images) == sorted(pictured)
    seen = sorted(
        (image["image_id"], train.category_ids[c])
        for image in images
        for c in image["instances"].gt_classes.tolist()
    )
    assert seen == sorted((a["image_id"], a["category_id"]) for a in objects)
    assert any(a["iscrowd"] for a in truth.dataset["annotations"])
    assert len(pictured) < len(truth.dataset["images"])


def test_what_is_at_an_iteration_depends_on_neither_start_nor_workers(coco: Path) -> None:
    train, _ = read_splits(coco, "refuse")
    whole = list(batches(train, TINY, 7, 0))
    rest = list(batches(train, replace(TINY, num_workers=2), 7, 1))
    assert len(whole) == TINY.max_iters
    for expected, found in zip(whole[1:], rest, strict=True):
        for a, b in zip(expected, found, strict=True):
            assert torch.equal(a["image"], b["image"])
            assert torch.equal(a["instances"].gt_boxes.tensor, b["instances"].gt_boxes.tensor)
            assert torch.equal(a["instances"].gt_masks.tensor, b["instances"].gt_masks.tensor)


def _drop_objects(content: Any) -> None:
    content["annotations"] = [{**a, "iscrowd": 1} for a in content["annotations"]]


BAD_ANNOTATIONS: dict[str, tuple[Callable[[Any], object], str]] = {
    "image_id": (
        lambda c: c["annotations"][1].update(image_id=404),
        "annotation 2 has image_id 404, which is not in images, as 1 annotations",
    ),
    "category": (
        lambda c: c["annotations"][1].update(category_id=4),
        "category_id 4, which is not in categories",
    ),
    "twice": (
        lambda c: c["annotations"].append(c["annotations"][0]),
        "id 1 is 2 times in annotations",
    ),
    "area": (lambda c: c["annotations"][0].pop("area"), "lacks 'area'"),
    "id": (lambda c: c["annotations"][0].update(id="1"), r'entry 0 of annotations has id "1"'),
    "size": (
        lambda c: c["images"][0].update(width=None),
        "has width null, which is not of type int",
    ),
    "crowd": (lambda c: c["annotations"][0].update(iscrowd="0"), 'has iscrowd "0"'),
    "entry": (lambda c: c["images"].insert(0, 3), "entry 0 of images is 3; it must be an object"),
    "ignore": (lambda c: c["annotations"][0].update(ignore=1), "has 'ignore', which COCO does not"),
    "names": (
        lambda c: c["categories"][0].update(name=c["categories"][1]["name"]),
        "2 categories are called",
    ),
    "flat": (
        lambda c: c["annotations"][0].update(segmentation=[1, 2, 3, 4, 5, 6]),
        "1 with a polygon that is not",
    ),
    "text": (
        lambda c: c["annotations"][0].update(segmentation="x"),
        "1 with a polygon that is not",
    ),
    "run lengths": (
        lambda c: c["annotations"][0].update(segmentation={"size": [64, 64]}),
        "1 with run lengths without size and counts",
    ),
    "no mask": (
        lambda c: c["annotations"][0].update(segmentation=None, iscrowd=0),
        "1 with no mask, while others have one",
    ),
    "bbox": (lambda c: c["annotations"][0].update(bbox=[1, 2, 3]), r"bbox \[1, 2, 3\]"),
    "box": (lambda c: c["annotations"][0].update(bbox=[1, 2, None, 3]), "annotation 1 has bbox"),
    "polygon": (
        lambda c: c["annotations"][0].update(segmentation=[[1, 2, 3, 4]]),
        r"1 with a polygon that is not three corners .*first is annotation 1\).*bad_annotations=skip",
    ),
    "no area": (
        lambda c: [a.update(bbox=[1, 2, 0, 4]) for a in c["annotations"][3:5]],
        r"2 with a box without area \(the first is annotation 4\)",
    ),
    "outside": (
        lambda c: c["annotations"][0].update(bbox=[64, 2, 5, 4]),
        "1 with a box outside of its image",
    ),
    "file": (lambda c: c["images"][0].update(file_name="gone.jpg"), "gone.jpg is not there"),
    "objects": (_drop_objects, "no usable annotation"),
    "list": (lambda c: c.pop("annotations"), "no list of annotations"),
    "classes": (
        lambda c: c["categories"].append({"id": 90, "name": "x"}),
        "different categories: id 90",
    ),
}


@pytest.mark.parametrize("what", BAD_ANNOTATIONS)
def test_bad_annotations_are_refused_before_training(what: str, own_coco: Path) -> None:
    how, message = BAD_ANNOTATIONS[what]
    change(annotations_of(own_coco), how)
    with pytest.raises(DataError, match=message):
        read_splits(own_coco, "refuse")


def test_bad_annotations_are_left_out_where_the_recipe_says_so(own_coco: Path) -> None:
    def damage(content: Any) -> None:
        by_image: dict[int, Any] = {}
        for annotation in content["annotations"]:
            if not annotation["iscrowd"]:
                by_image.setdefault(annotation["image_id"], annotation)
        first, second, third, *_ = by_image.values()
        first.update(id=1001, segmentation=[[1, 2, 3, 4]])
        second.update(id=1002, bbox=[3, 4, 0, 5])
        third.update(id=1003, bbox=[-9, 0, 4, 4])

    before = [len(d["annotations"]) for d in read_splits(own_coco, "skip")[0].dataset_dicts()]
    change(annotations_of(own_coco), damage)
    train, _ = read_splits(own_coco, "skip")
    assert list(train.skipped.values()) == [(1001,), (1002,), (1003,)]
    after = [len(d["annotations"]) for d in train.dataset_dicts()]
    assert sum(before) - sum(after) == 3
    assert all("id" not in a for d in train.dataset_dicts() for a in d["annotations"])


def test_val_objects_without_masks_are_refused_where_masks_are_learnt(own_coco: Path) -> None:
    change(annotations_of(own_coco, "val"), lambda c: c["annotations"][0].pop("segmentation"))
    with pytest.raises(DataError, match=r"instances_val2017.* with no mask, while others"):
        read_splits(own_coco, "refuse")
    with pytest.raises(DataError, match=r"annotation 1 has no mask, as 1 have none"):
        read_splits(own_coco, "skip")


def test_val_annotations_that_cannot_be_evaluated_are_refused_before_training(
    own_coco: Path,
) -> None:
    change(annotations_of(own_coco, "val"), lambda c: c["images"][0].update(license="a"))
    with pytest.raises(DataError, match=r"cannot be evaluated against: .*invalid type"):
        read_splits(own_coco, "refuse")


def test_a_polygon_that_pycocotools_would_misread_is_never_scored_against(own_coco: Path) -> None:
    change(
        annotations_of(own_coco, "val"),
        lambda c: c["annotations"][0].update(segmentation=[[1, 2, 3, 4]]),
    )
    with pytest.raises(DataError, match=r"instances_val2017.*three corners .*Correct them\.$"):
        read_splits(own_coco, "skip")


@pytest.mark.parametrize(
    "gone", [".", "annotations/instances_val2017.json", "train2017"], ids=["data", "json", "images"]
)
def test_missing_paths_are_named(gone: str, own_coco: Path) -> None:
    path = own_coco / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(DataError, match=f"{path} is not there"):
        read_splits(own_coco, "refuse")


def test_broken_json_is_refused(own_coco: Path) -> None:
    annotations_of(own_coco).write_text('{"images": [')
    with pytest.raises(DataError, match=r"instances_train2017.json cannot be read as JSON"):
        read_splits(own_coco, "refuse")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_truncated_image_is_named_in_one_line(num_workers: int, own_coco: Path) -> None:
    for path in (own_coco / "train2017").iterdir():
        path.write_bytes(path.read_bytes()[:700])
    train, _ = read_splits(own_coco, "refuse")
    with pytest.raises(DataError, match=r"^image .*/train2017/\d+.jpg.* cannot be read") as caught:
        next(iter(batches(train, replace(TINY, num_workers=num_workers), 0, 0)))
    assert "\n" not in str(caught.value)


def test_an_image_of_another_size_than_annotated_is_named(own_coco: Path) -> None:
    change(annotations_of(own_coco), lambda c: [image.update(width=99) for image in c["images"]])
    train, _ = read_splits(own_coco, "refuse")
    with pytest.raises(DataError, match="is not 99 x 64 pixels"):
        next(iter(batches(train, TINY, 0, 0)))


# The run


def COCO_quiet(path: Path) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(path))


def average_precision(annotations: Path, results: list[dict[str, Any]], kind: str) -> float:
    """Ask pycocotools, as its own demo does."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
        if kind == "segm":  # its loader would score the boxes' areas
            results = [{k: v for k, v in r.items() if k != "bbox"} for r in results]
        evaluation = COCOeval(truth, truth.loadRes(results), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return 100 * float(evaluation.stats[0])


def test_recorded_ap_is_that_of_pycocotools(finished: tuple[Path, Record], coco: Path) -> None:
    out, record = finished
    results = json.loads((out / record.predictions["file"]).read_text())
    val = annotations_of(coco, "val")
    assert results
    assert record.metrics["box_ap"] == pytest.approx(
        average_precision(val, results, "bbox"), abs=1e-6
    )
    assert record.metrics["mask_ap"] == pytest.approx(
        average_precision(val, results, "segm"), abs=1e-6
    )
    by_class = json.loads((out / "ap_by_class.json").read_text())
    for kind in ("box", "mask"):
        mean = np.mean(list(by_class[kind].values()))
        assert record.metrics[f"{kind}_ap"] == pytest.approx(mean)
    assert (record.evaluated, record.expected) == (5, 5)
    assert json.loads((out / "record.json").read_text())["task"] == "coco"
    assert (out / "predictions.png").stat().st_size > 1000


def test_results_are_in_cocos_form(finished: tuple[Path, Record], coco: Path) -> None:
    out, record = finished
    truth = COCO_quiet(annotations_of(coco, "val"))
    for result in json.loads((out / record.predictions["file"]).read_text()):
        assert result["category_id"] in truth.cats
        image = truth.imgs[result["image_id"]]
        x, y, width, height = result["bbox"]
        assert min(x, y) >= 0
        assert x + width <= image["width"] + 1e-3
        assert y + height <= image["height"] + 1e-3
        assert result["segmentation"]["size"] == [image["height"], image["width"]]
        assert isinstance(result["segmentation"]["counts"], str)


class StoppingDisplay(Display):
    """Sends the process SIGTERM as the scheduler of a cluster does, after some training steps."""

    def __init__(self, after: int) -> None:
        super().__init__(quiet=True)
        self.left = after

    @contextmanager
    def task(self, description: str, total: int) -> Iterator[Task]:
        with super().task(description, total) as task:
            advance = task.advance

            def counted(steps: int = 1, **figures: float) -> None:
                advance(steps, **figures)
                self.left -= 1 if figures else 0
                if self.left == 0:
                    os.kill(os.getpid(), signal.SIGTERM)

            task.advance = counted  # type: ignore[method-assign]
            yield task


def test_an_interrupted_run_ends_as_an_undisturbed_one(
    finished: tuple[Path, Record], coco: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    undisturbed, record = finished
    with pytest.raises(InterruptedRun, match="SIGTERM after step 2 of 4, which is saved") as caught:
        run(tmp_path / "run", coco, display=StoppingDisplay(after=2))
    assert caught.value.exit_code == 128 + signal.SIGTERM
    resumed = run(tmp_path / "run", coco, resume=True)
    predictions = [d / "predictions" / "coco_results.json" for d in (undisturbed, tmp_path / "run")]
    assert predictions[0].read_bytes() == predictions[1].read_bytes()
    assert resumed.metrics == record.metrics
    assert resumed.details == record.details
    assert resumed.details["iterations"] == 4
    assert capfd.readouterr() == ("", "")


def test_a_finished_run_is_a_checkpoint_of_the_fine_tuned_backbone(
    finished: tuple[Path, Record],
) -> None:
    backbone = load_backbone(str(finished[0]))
    report = backbone.load_report
    assert (report.missing, report.unused, report.resized) == ([], [], [])


def test_data_without_masks_are_scored_on_boxes_alone(own_coco: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        change(
            annotations_of(own_coco, split),
            lambda c: [annotation.pop("segmentation") for annotation in c["annotations"]],
        )
    record = run(tmp_path / "run", own_coco, replace(TINY, max_iters=1), arch=ARCHS[1])
    assert "box_ap" in record.metrics
    assert "mask_ap" not in record.metrics
    assert "loss_mask" not in record.details["losses"]


def test_a_run_without_detections_scores_zero(coco: Path, tmp_path: Path) -> None:
    recipe = replace(TINY, max_iters=1, score_threshold=1.0)
    assert run(tmp_path / "run", coco, recipe).metrics == {"box_ap": 0.0, "mask_ap": 0.0}


def test_a_loss_that_is_not_finite_is_reported_as_diverged(coco: Path, tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match=r"not finite at iteration \d+; lower base_lr 1e\+20"):
        run(tmp_path / "run", coco, replace(TINY, base_lr=1e20, warmup_iters=0))


def test_without_detectron2_the_runner_imports_and_names_the_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in [n for n in sys.modules if n.split(".")[0] == "detectron2"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "detectron2", None)
    monkeypatch.delitem(sys.modules, "transfer.detection.run")
    monkeypatch.delitem(sys.modules, "transfer.detection.coco_layout")
    importlib.import_module("transfer.detection.run")
    with pytest.raises(MissingFrameworkError, match=r"extra \[det\].*README") as caught:
        require_detectron2()
    assert caught.value.exit_code == 3
