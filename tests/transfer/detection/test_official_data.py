"""The images of ViTDet's recipes against Detectron2's own data pipeline, and the masks and boxes of small objects."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.layers import Mlp

from simmim_bench.models.archs import find_spec
from simmim_bench.results.record import Record
from transfer.detection.coco_layout import CocoSplit, read_splits
from transfer.recipes import RECIPES

pytest.importorskip("detectron2")
import detectron2.data.transforms as T
from detectron2.config import LazyCall, instantiate
from detectron2.structures import BitMasks, BoxMode, PolygonMasks, pairwise_iou
from pycocotools import mask as coco_mask
from support.detection import RECIPE, annotations_of, change, run
from support.official_detection import VITDET_B, load_common
from support.random_weights import random_checkpoint

from transfer.detection.data import training_mapper, val_loader, val_mapper
from transfer.detection.model import build_detector
from transfer.detection.recipes import CocoRecipe


def find(name: str) -> CocoRecipe:
    recipe = RECIPES[name]
    assert isinstance(recipe, CocoRecipe)
    return recipe


def official_loader() -> Any:
    """Return configs/common/data/coco.py with the changes of projects/ViTDet/configs/common/coco_loader_lsj.py."""
    image_size = 1024  # line 6
    dataloader = load_common("data/coco.py").dataloader
    dataloader.train.mapper.augmentations = [  # lines 8-14
        LazyCall(T.RandomFlip)(horizontal=True),
        LazyCall(T.ResizeScale)(
            min_scale=0.1, max_scale=2.0, target_height=image_size, target_width=image_size
        ),
        LazyCall(T.FixedSizeCrop)(crop_size=(image_size, image_size), pad=False),
    ]
    dataloader.train.mapper.image_format = "RGB"  # line 15
    dataloader.train.total_batch_size = 64  # line 16
    dataloader.train.mapper.recompute_boxes = True  # line 18
    dataloader.test.mapper.augmentations = [  # lines 20-22
        LazyCall(T.ResizeShortestEdge)(short_edge_length=image_size, max_size=image_size)
    ]
    return dataloader


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Return two dataset dicts of 640 x 427 pixels with triangles of 8 to 200 pixels, some of two parts."""
    folder = tmp_path_factory.mktemp("objects")
    generator = np.random.default_rng(0)
    dicts = []
    for index in range(2):
        file = folder / f"{index}.png"
        Image.fromarray(generator.integers(0, 256, (427, 640, 3), np.uint8)).save(file)
        annotations = []
        for number in range(40):
            side = generator.uniform(8, 30 if number < 30 else 200)
            left, top = generator.uniform(0, 640 - side), generator.uniform(0, 427 - side)
            corners = [left, top + side, left + side, top + 0.7 * side, left + 0.4 * side, top]
            parts = [corners]
            if number % 5 == 0:  # a second part within the same box
                parts.append([left, top, left + side / 9, top, left, top + side / 9])
            annotations.append(
                {
                    "bbox": [left, top, side, side],
                    "bbox_mode": BoxMode.XYWH_ABS,
                    "segmentation": parts,
                    "category_id": number % 3,
                    "iscrowd": 0,
                }
            )
        size = {"height": 427, "width": 640, "image_id": index}
        dicts.append({"file_name": str(file), **size, "annotations": annotations})
    return dicts


def split_of(tmp_path: Path, *, run_lengths: bool = False) -> CocoSplit:
    return CocoSplit(
        annotations=tmp_path,
        images=tmp_path,
        category_ids=(1, 2, 3),
        class_names=("a", "b", "c"),
        has_masks=True,
        has_run_lengths=run_lengths,
        without_mask=(),
        count=2,
    )


def mapped(mapper: Any, item: dict[str, Any], seed: int) -> dict[str, Any]:
    np.random.seed(seed)
    result: dict[str, Any] = mapper(item)
    return result


def test_training_images_boxes_and_outlines_equal_those_of_the_official_pipeline(
    objects: list[dict[str, Any]], tmp_path: Path
) -> None:
    recipe = find("coco_vitdet_b")
    loader = official_loader()
    assert recipe.batch_size == loader.train.total_batch_size
    theirs = instantiate(loader.train.mapper)
    ours = training_mapper(split_of(tmp_path), recipe)
    sizes = set()
    for seed in range(8):
        a, b = (mapped(m, objects[seed % 2], seed) for m in (ours, theirs))
        assert torch.equal(a["image"], b["image"])
        sizes.add(tuple(a["image"].shape))
        found, wanted = a["instances"], b["instances"]
        assert torch.equal(found.gt_boxes.tensor, wanted.gt_boxes.tensor)
        assert torch.equal(found.gt_classes, wanted.gt_classes)
        assert isinstance(found.gt_masks, PolygonMasks)
        assert len(found) > 0
        for one, other in zip(found.gt_masks.polygons, wanted.gt_masks.polygons, strict=True):
            assert all(np.array_equal(x, y) for x, y in zip(one, other, strict=True))
    assert len(sizes) > 3


def test_test_images_equal_those_of_the_official_pipeline(
    objects: list[dict[str, Any]], coco: Path, tmp_path: Path
) -> None:
    recipe = replace(find("coco_vitdet_b"), num_workers=0)
    theirs, ours = instantiate(official_loader().test.mapper), val_mapper(recipe)
    _, val = read_splits(coco, "refuse")
    batches = list(val_loader(val, recipe))
    assert [len(batch) for batch in batches] == [1] * val.count
    for (found,), item in zip(batches, val.dataset_dicts(), strict=True):
        assert torch.equal(found["image"], theirs(item)["image"])
    # 1001 / 2 = 500.5 pixels, which Detectron2's two resizing classes round differently
    Image.new("RGB", (2048, 1001), "red").save(tmp_path / "wide.png")
    for item in (*objects, {"file_name": str(tmp_path / "wide.png")}):
        assert torch.equal(ours(item)["image"], theirs(item)["image"])


def test_the_tensor_that_reaches_the_backbone_equals_the_official_models(
    objects: list[dict[str, Any]], tmp_path: Path
) -> None:
    small = {"net.embed_dim": 16, "net.depth": 4, "net.num_heads": 1}
    config = replace(
        VITDET_B, changes={**small, "net.window_block_indexes": [], "out_channels": 8}
    ).model_config()
    config.roi_heads = config.proposal_generator = torch.nn.Identity()
    theirs = instantiate(config)
    recipe = replace(find("coco_vitdet_b"), neck_channels=8, box_head_dim=8)
    spec = replace(find_spec("vit_b"), embed_dim=16, depths=(4,), num_heads=(1,))
    ours = build_detector(
        random_checkpoint(spec),
        recipe,
        num_classes=3,
        masks=True,
        seed=0,
        device=torch.device("cpu"),
    )
    mapper = training_mapper(split_of(tmp_path), recipe)
    batch = [mapped(mapper, objects[seed], seed) for seed in (0, 1)]
    found, wanted = (model.preprocess_image(batch) for model in (ours, theirs))
    assert found.tensor.shape == (2, 3, 1024, 1024)
    assert found.image_sizes == wanted.image_sizes
    torch.testing.assert_close(found.tensor, wanted.tensor, rtol=0, atol=1e-5)


def ious(recipe: CocoRecipe, split: CocoSplit, objects: list[dict[str, Any]]) -> torch.Tensor:
    """Return the IoU of training boxes with the true ones, of objects below 32 x 32 pixels inside of the crop."""
    found = []
    mapper = training_mapper(split, recipe)
    for seed in range(12):
        item = objects[seed % 2]
        result = mapped(mapper, item, seed)
        np.random.seed(seed)
        augmented = T.AugInput(np.zeros((item["height"], item["width"], 3), np.uint8))
        transforms = mapper.augmentations(augmented)
        height, width = augmented.image.shape[:2]
        corners = [np.concatenate(a["segmentation"]).reshape(-1, 2) for a in item["annotations"]]
        moved = [transforms.apply_coords(c) for c in corners]
        true = torch.tensor(np.stack([[*c.min(0), *c.max(0)] for c in moved])).float()
        sides = true[:, 2:] - true[:, :2]
        inside = (true[:, :2] >= 0).all(1) & (true[:, 2] <= width) & (true[:, 3] <= height)
        true = true[inside & (sides.prod(1) < 32**2)]
        boxes = result["instances"].gt_boxes
        overlap = pairwise_iou(type(boxes)(true), boxes) if len(boxes) else torch.zeros(0, 1)
        found += [row.max() for row in overlap]
    return torch.stack(found)


@pytest.mark.slow
def test_boxes_of_small_objects_are_exact_from_outlines_and_not_from_bit_masks(
    objects: list[dict[str, Any]], tmp_path: Path
) -> None:
    recipe = find("coco_vitdet_b")
    split = split_of(tmp_path)
    outlines = ious(recipe, split, objects)
    assert len(outlines) > 100
    assert outlines.min() > 0.999
    masks = ious(replace(recipe, mask_format="bitmask"), split, objects)
    assert masks.mean() < 0.95


@pytest.mark.heavy
def test_a_split_with_run_lengths_is_trained_on_bit_masks(
    objects: list[dict[str, Any]], own_coco: Path, tmp_path: Path
) -> None:
    """Detectron2 has no polygon of run lengths; the log and the record state the form."""

    def encode(content: Any) -> None:
        first = next(a for a in content["annotations"] if not a["iscrowd"])
        image = next(i for i in content["images"] if i["id"] == first["image_id"])
        encoded = coco_mask.merge(
            coco_mask.frPyObjects(first["segmentation"], image["height"], image["width"])
        )
        first["segmentation"] = {**encoded, "counts": encoded["counts"].decode()}

    recipe = replace(RECIPE, max_iters=1, mask_format="polygon")
    before = run(tmp_path / "polygon", own_coco, recipe)
    change(annotations_of(own_coco), encode)
    after = run(tmp_path / "bitmask", own_coco, recipe)
    assert before.details["mask_format"] == "polygon"
    assert after.details["mask_format"] == "bitmask"
    line = 'coco: masks=bitmask reason="run lengths have no outline" recipe=polygon'
    assert line in (tmp_path / "bitmask" / "log.txt").read_text()
    assert line not in (tmp_path / "polygon" / "log.txt").read_text()
    mapper = training_mapper(split_of(tmp_path, run_lengths=True), recipe)
    assert isinstance(mapped(mapper, objects[0], 1)["instances"].gt_masks, BitMasks)


@pytest.mark.heavy
@pytest.mark.parametrize(("test_precision", "seen"), [(None, "bf16"), ("fp32", "fp32")])
def test_the_precision_of_the_evaluation_is_the_recipes(
    test_precision: Any, seen: str, coco: Path, tmp_path: Path
) -> None:
    recipe = replace(RECIPE, max_iters=1, precision="bf16", test_precision=test_precision)
    dtypes: dict[bool, set[torch.dtype]] = {True: set(), False: set()}

    def note(module: torch.nn.Module, _: Any, output: torch.Tensor) -> None:
        if isinstance(module, Mlp):  # of the backbone's blocks
            dtypes[module.training].add(output.dtype)

    with torch.nn.modules.module.register_module_forward_hook(note):
        record: Record = run(tmp_path / "run", coco, recipe)
    wanted = {"bf16": torch.bfloat16, "fp32": torch.float32}
    assert dtypes == {True: {torch.bfloat16}, False: {wanted[seen]}}
    assert (record.details["precision"], record.details["test_precision"]) == ("bf16", seen)
