"""The recipes of Swin's detection repository against its configs, which are transcribed field by field.

Source: SwinTransformer/Swin-Transformer-Object-Detection. "1x" and "3x" are configs/swin/
mask_rcnn_swin_tiny_patch4_window7_mstrain_480-800_adamw_{1x,3x}_coco.py, "cascade" the file
cascade_mask_rcnn_swin_tiny_patch4_window7_mstrain_480-800_giou_4conv1f_adamw_1x_coco.py there, "model", "cascade
model", "data" and "schedule" the files of configs/_base_ that they name.
"""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.ops import generalized_box_iou_loss

from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.diagnostics.estimate import DataSize
from transfer.recipes import RECIPES

pytest.importorskip("detectron2")
from detectron2.data.transforms import AugInput, ResizeShortestEdge
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from support.detection import RECIPE, run
from support.official_detection import build_ours, detectron2_name

from transfer.detection.data import training_augmentations
from transfer.detection.estimate import plan_coco
from transfer.detection.optimizer import build_optimizer, build_schedule
from transfer.detection.recipes import CocoRecipe
from transfer.detectron2_backbone import SimMIMBackbone

IMAGES = 117266  # of train2017 with objects
EPOCH = math.ceil(IMAGES / 16)

COMMON: dict[str, Any] = {
    "short_sides": (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800),  # 1x:32-34
    "crop_short_sides": (400, 500, 600),  # 1x:40
    "crop_sides": (384, 600),  # 1x:45
    "max_side": 1333,  # 1x:32
    "test_size": (800, 1333),  # data:19
    "square_pad": False,  # 1x:58, data:25: Pad(size_divisor=32)
    "mask_format": "bitmask",  # 1x:26: LoadAnnotations(with_mask=True), whose poly2mask is True
    "recompute_boxes": False,
    "batch_size": 2 * 8,  # data:31, README.md:95
    "warmup_iters": 500,  # schedule:8
    "base_lr": 0.0001,  # 1x:64
    "lr_rule": "mae",
    "betas": (0.9, 0.999),  # 1x:64
    "weight_decay": 0.05,  # 1x:64
    "decay_exempt": "norms",  # 1x:65-67
    "layer_decay": 1.0,
    "clip_grad": 0.0,  # 1x:76
    "strides": (4, 8, 16, 32, 64),  # model:34
    "anchor_sizes": tuple(8 * stride for stride in (4, 8, 16, 32, 64)),  # model:32
    "anchor_ratios": (0.5, 1.0, 2.0),  # model:33
    "neck_channels": 256,  # model:24
    "neck_norm": "",  # model:21-25
    "rpn_convs": 1,  # mmdet/models/dense_heads/rpn_head.py
    "rpn_samples": 256,  # model:88
    "roi_samples": 512,  # model:110
    "pre_nms_topk": (2000, 1000),  # model:96, 119
    "box_pool": 7,  # model:46
    "mask_pool": 14,  # model:65
    "class_agnostic": False,  # model:59, cascade:34
    "mask_head_convs": 4,  # model:70
    "box_head_dim": 1024,  # model:52, cascade:27
    "head_norm": "",  # model:68-75
    "detections": 100,  # model:126
    "score_threshold": 0.05,  # model:124
    "window_size": 7,  # 1x:12
    "map_norm": "affine",  # mmdet/models/backbones/swin_transformer.py:549-553
    "rel_pos": "own",
    "position": "antialiased",
    "patch_size": None,
    "test_precision": "fp32",  # 1x:72; tools/test.py:174-176
}
MASK_RCNN: dict[str, Any] = {
    **COMMON,
    "anchor_border": -1,  # model:92
    "rpn_beta": 0.0,  # model:41
    "post_nms_topk": (1000, 1000),  # model:97, 120
    "box_head_convs": 0,  # model:50: Shared2FCBBoxHead
    "box_head_fcs": 2,
    "box_norm": None,
    "cascade": (),
    "cascade_rule": "detectron2",
    "box_loss": "l1",  # model:62
    "box_loss_weight": 1.0,
}
CASCADE: dict[str, Any] = {
    **COMMON,
    "anchor_border": 0,  # cascade model:132
    "rpn_beta": 1 / 9,  # cascade model:41
    "post_nms_topk": (2000, 1000),  # cascade model:139, 200
    "box_head_convs": 4,  # cascade:23
    "box_head_fcs": 1,  # cascade:24
    "box_norm": "BN",  # cascade:36: SyncBN
    "cascade": (0.5, 0.6, 0.7),  # cascade model:146, 163, 180
    "cascade_rule": "mmdet",
    "box_loss": "giou",  # cascade:39
    "box_loss_weight": 10.0,
}
# name: (the rest, drop_path_rate, lr_config.step, max_epochs)
OFFICIAL = {
    "coco_swin_od_1x": (MASK_RCNN, 0.1, (8, 11), 12),  # 1x:14, 68, 69
    "coco_swin_od_3x": (MASK_RCNN, 0.2, (27, 33), 36),  # 3x:14, 68, 69
    "coco_swin_od_3x_own_window": ({**MASK_RCNN, "window_size": None}, 0.2, (27, 33), 36),
    "coco_swin_od_cascade_1x": (CASCADE, 0.0, (8, 11), 12),  # cascade:14, 128, 129
    "coco_swin_od_cascade_3x": (CASCADE, 0.2, (27, 33), 36),  # tiny and small 3x: the same lines
    "coco_swin_od_cascade_b_3x": (CASCADE, 0.3, (27, 33), 36),  # base 3x: the same lines
}
OURS = {"img_size", "scale_range", "bad_annotations", "many_crowds", "precision", "num_workers"}


def find(name: str) -> CocoRecipe:
    recipe = RECIPES[name]
    assert isinstance(recipe, CocoRecipe)
    return recipe


@pytest.mark.parametrize("name", OFFICIAL)
def test_every_field_is_that_of_the_config(name: str) -> None:
    table, drop_path, steps, epochs = OFFICIAL[name]
    fields = find(name).fields()
    wanted = {
        **table,
        "drop_path_rate": drop_path,
        "max_iters": epochs * EPOCH,
        "milestones": tuple(step / epochs for step in steps),
    }
    assert set(wanted) | OURS == set(fields)
    assert {key: fields[key] for key in wanted} == wanted


@pytest.mark.parametrize("name", ["coco_swin_od_1x", "coco_swin_od_3x"])
def test_the_rate_at_every_step_is_mmcvs(name: str) -> None:
    """By the rule of mmcv's StepLrUpdaterHook, by epoch, with the linear warm-up of schedule:5-10."""
    _, _, steps, epochs = OFFICIAL[name]
    schedule = build_schedule(find(name))
    near = {step * EPOCH + i for step in steps for i in range(-3, 4)}
    for i in sorted({*range(510), *range(0, epochs * EPOCH, 499), *near}):
        wanted = 1e-4 * 0.1 ** sum(i // EPOCH >= step for step in steps)
        if i < 500:
            wanted *= 1 - (1 - i / 500) * (1 - 0.001)
        assert schedule.lr(i) == pytest.approx(wanted, rel=1e-9), i


@pytest.fixture(scope="module")
def cascade() -> Any:
    return build_ours(find("coco_swin_od_cascade_1x"), "swin_t")


def test_norms_and_tables_of_the_backbone_alone_do_not_decay(cascade: Any) -> None:
    """By mmcv's rule of `custom_keys`: a parameter whose name contains a key."""
    backbone: Any = next(m for m in cascade.modules() if hasattr(m, "layer_id"))
    optimizer = build_optimizer(cascade, backbone, find("coco_swin_od_cascade_1x"))
    of_parameter = {
        id(p): (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for p in group["params"]
    }
    count = 0
    for name, parameter in cascade.named_parameters():
        if not parameter.requires_grad:  # the last norm, of classification
            continue
        theirs = detectron2_name(name)
        # In MMDetection's heads the norms are called "bn".
        exempt = theirs.startswith("backbone.") and any(
            key in theirs for key in ("relative_position_bias_table", "norm")
        )
        assert of_parameter[id(parameter)] == (1e-4, 0.0 if exempt else 0.05), name
        count += exempt
    # a table and two norms per block, two norms per downsampling, the embedding's and the maps'
    assert count == 12 * (1 + 2 * 2) + 3 * 2 + 2 + 4 * 2


def test_the_cascades_heads_have_the_shapes_of_the_config(cascade: Any) -> None:
    heads: Any = cascade["roi_heads"]
    assert heads.num_cascade_stages == len(heads.mask_head) == 3
    stds = ((0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067))
    for stage in range(3):  # cascade:21-77
        head, predictor = heads.box_head[stage], heads.box_predictor[stage]
        assert [c.weight.shape for c in head.conv_norm_relus] == [(256, 256, 3, 3)] * 4
        assert all(c.bias is None for c in head.conv_norm_relus)
        assert all(isinstance(c.norm, nn.BatchNorm2d) for c in head.conv_norm_relus)
        assert [fc.weight.shape for fc in head.fcs] == [(1024, 256 * 7 * 7)]
        assert predictor.cls_score.weight.shape == (80 + 1, 1024)
        assert predictor.bbox_pred.weight.shape == (80 * 4, 1024)
        weights = predictor.box2box_transform.weights
        assert weights == pytest.approx([1 / std for std in stds[stage]])
        assert predictor.loss_weight == {"loss_cls": 1.0, "loss_box_reg": 10.0}
    rpn: Any = cascade["proposal_generator"]
    assert (rpn.anchor_boundary_thresh, rpn.smooth_l1_beta) == (0, 1 / 9)
    assert rpn.post_nms_topk == {True: 2000, False: 1000}
    assert not any("norm" in n for n, _ in cascade["backbone"].named_parameters() if "fpn" in n)


def mmcv_size(height: int, width: int, scale: tuple[int, int]) -> tuple[int, int]:
    """Return the (h, w) of mmcv's imrescale: mmcv/image/geometric.py, rescale_size."""
    factor = min(max(scale) / max(height, width), min(scale) / min(height, width))
    return int(height * factor + 0.5), int(width * factor + 0.5)


def test_images_are_cropped_and_resized_by_the_configs_rule() -> None:
    """With the draws of the same generator, for boxes too (mmdet/datasets/pipelines/transforms.py)."""
    recipe = find("coco_swin_od_1x")
    sizes = np.random.default_rng(0).integers(100, 900, (60, 2))
    crops = flips = 0
    for seed, (height, width) in enumerate(sizes.tolist()):
        np.random.seed(seed)
        item = AugInput(np.zeros((height, width, 3), np.uint8))
        transforms = training_augmentations(recipe)(item)
        box = np.array([[0.3 * width, 0.4 * height, 0.5 * width, 0.45 * height]])
        found = transforms.apply_box(box)[0]

        np.random.seed(seed)
        x, y = box[0, ::2], box[0, 1::2]
        if np.random.uniform() < 0.5:  # RandomFlip, 1x:27
            x, flips = width - x[::-1], flips + 1
        h, w = height, width
        if np.random.uniform() < 0.5:  # the second policy, 1x:38-55
            new = mmcv_size(h, w, (np.random.choice((400, 500, 600)), 1333))
            x, y, (h, w) = x * new[1] / w, y * new[0] / h, new
            crop_h = np.random.randint(min(h, 384), min(h, 600) + 1)
            crop_w = np.random.randint(min(w, 384), min(w, 600) + 1)
            top = np.random.randint(0, h - crop_h + 1)
            left = np.random.randint(0, w - crop_w + 1)
            x, y, h, w, crops = x - left, y - top, crop_h, crop_w, crops + 1
        new = mmcv_size(h, w, (np.random.choice(range(480, 801, 32)), 1333))
        x, y = x * new[1] / w, y * new[0] / h
        assert item.image.shape[:2] == new
        np.testing.assert_allclose(found, [x[0], y[0], x[1], y[1]], rtol=1e-9)
    assert 15 < crops < 45
    assert 15 < flips < 45


def test_test_images_are_resized_to_the_pixel() -> None:
    """Where a side is not exactly half a pixel, which floating point rounds either way."""
    recipe = find("coco_swin_od_3x")
    assert recipe.test_size is not None
    short, long = recipe.test_size
    ties = 0
    for height in range(60, 700, 13):
        for width in range(60, 700, 11):
            found = ResizeShortestEdge.get_output_shape(height, width, short, long)
            wanted = mmcv_size(height, width, (long, short))
            factor = min(Fraction(long, max(height, width)), Fraction(short, min(height, width)))
            if any(2 * side * factor % 2 == 1 for side in (height, width)):
                ties += 1
                assert max(abs(a - b) for a, b in zip(found, wanted, strict=True)) <= 1
            else:
                assert found == wanted, (height, width)
    assert ties < 100


def test_the_box_loss_is_the_configs_giou(cascade: Any) -> None:
    """Ten times the sum over positive regions, divided by the number of all regions (bbox_head.py, loss)."""
    predictor: Any = cascade["roi_heads"].box_predictor[2]
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(6, 2, generator=generator) * 50
    regions = torch.cat([corners, corners + 20 + 30 * torch.rand(6, 2, generator=generator)], 1)
    logits, offsets = (torch.randn(6, n, generator=generator) for n in (81, 320))
    image = Instances((200, 200), proposal_boxes=Boxes(regions), gt_boxes=Boxes(regions + 3))
    image.gt_classes = torch.tensor([5, 80, 7, 80, 80, 79])
    with EventStorage():
        losses = predictor.losses((logits, offsets), [image])
    total = torch.zeros(())
    std = torch.tensor([0.033, 0.033, 0.067, 0.067])
    for i, label in ((0, 5), (2, 7), (5, 79)):
        dx, dy, dw, dh = offsets[i, 4 * label : 4 * label + 4] * std
        x0, y0, x1, y1 = regions[i]
        cx, cy = (x0 + x1) / 2 + dx * (x1 - x0), (y0 + y1) / 2 + dy * (y1 - y0)
        w, h = (x1 - x0) * dw.exp(), (y1 - y0) * dh.exp()
        box = torch.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2])
        total = total + generalized_box_iou_loss(box, regions[i] + 3)
    torch.testing.assert_close(losses["loss_box_reg"], 10 * total / 6)
    wanted = nn.functional.cross_entropy(logits, image.gt_classes)
    torch.testing.assert_close(losses["loss_cls"], wanted)


@pytest.mark.heavy
def test_a_multi_scale_recipe_is_trained_and_scored(coco: Path, tmp_path: Path) -> None:
    recipe = replace(
        find("coco_swin_od_1x"),
        **{
            key: getattr(RECIPE, key)
            for key in (
                "max_iters",
                "warmup_iters",
                "batch_size",
                "strides",
                "anchor_sizes",
                "neck_channels",
                "box_head_dim",
                "post_nms_topk",
                "window_size",
            )
        },
        img_size=(48, 64),
        short_sides=(32, 48),
        crop_short_sides=(40,),
        crop_sides=(24, 32),
        max_side=64,
        test_size=(40, 64),
        num_workers=0,
    )
    shapes: dict[bool, list[tuple[int, ...]]] = {True: [], False: []}

    def note(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if isinstance(module, SimMIMBackbone):
            shapes[module.training].append(tuple(inputs[0].shape))

    with nn.modules.module.register_module_forward_pre_hook(note):
        record = run(tmp_path / "run", coco, recipe, arch="random:swin_pocket")
    assert {"box_ap", "mask_ap"} <= set(record.metrics)
    assert set(shapes[False]) == {(1, 3, 48, 48)}  # 40 pixels, padded to strides of 16
    assert shapes[True][0] == (1, 3, 64, 64)  # memory is measured with the largest
    trained = shapes[True][1:]
    assert all(side in (32, 48, 64) for shape in trained for side in shape[-2:])
    assert len(set(trained)) > 1  # no batch is padded to a square
    assert record.details["mask_format"] == "bitmask"


def memory_per_image(recipe: CocoRecipe) -> float:
    """Return the memory that `doctor` estimates for each image of a step."""
    size = DataSize(train=8, val=8, classes=4, known="the")
    checkpoint = read_checkpoint("random:swin_pocket")
    measure = plan_coco(recipe, checkpoint, size, torch.device("cpu")).memory
    assert measure is not None
    return measure().per_image


@pytest.mark.heavy
def test_memory_is_estimated_for_images_that_are_padded_to_the_largest_of_their_batch() -> None:
    """Images of 64 x 128 and 128 x 64 pixels in one batch take 128 x 128 each."""
    recipe = replace(RECIPE, img_size=(64, 128), square_pad=False)
    found = memory_per_image(recipe)
    assert found == pytest.approx(memory_per_image(replace(recipe, img_size=(128, 128))), rel=0.05)
    assert memory_per_image(replace(recipe, img_size=(64, 64))) < 0.6 * found
