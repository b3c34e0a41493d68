"""Tests of MMDetection's cascade on Detectron2's modules, compared with plain loops."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.errors import UsageError

pytest.importorskip("detectron2")
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from support.detection import RECIPE, run

from transfer.detection.cascade import BOX_STDS, MMDetCascadeROIHeads
from transfer.detection.model import build_roi_heads
from transfer.detectron2_backbone import build_detection_backbone

CASCADE = replace(
    RECIPE,
    cascade=(0.5, 0.6, 0.7),
    cascade_rule="mmdet",
    class_agnostic=False,
    box_head_convs=1,
    box_norm="BN",
    box_loss="giou",
    box_loss_weight=10.0,
    roi_samples=1000,  # all regions are used, so that nothing is sampled
)
SIDE, CLASSES = 64, 3


@pytest.fixture
def heads() -> MMDetCascadeROIHeads:
    backbone = build_detection_backbone(read_checkpoint("random:vit_pocket"), CASCADE, seed=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        built = build_roi_heads(backbone, CASCADE, num_classes=CLASSES, masks=True)
        for predictor in built.box_predictor:  # so that boxes move and classes differ
            torch.nn.init.normal_(predictor.bbox_pred.weight, std=0.2)
            torch.nn.init.normal_(predictor.cls_score.weight, std=0.5)
    assert isinstance(built, MMDetCascadeROIHeads)
    return built


@pytest.fixture
def features() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        f"p{level}": torch.randn(1, 16, SIDE // 2**level, SIDE // 2**level, generator=generator)
        for level in (2, 3, 4)
    }


def proposals(more: Tensor | None = None) -> list[Instances]:
    generator = torch.Generator().manual_seed(2)
    corners = torch.rand(12, 2, generator=generator) * 40
    boxes = torch.cat([corners, corners + 8 + 14 * torch.rand(12, 2, generator=generator)], 1)
    boxes = boxes if more is None else torch.cat([boxes, more])
    logits = torch.full((len(boxes),), 30.0)  # as high as the one that marks an object's own box
    return [Instances((SIDE, SIDE), proposal_boxes=Boxes(boxes), objectness_logits=logits)]


def moved(boxes: Tensor, offsets: Tensor, stage: int) -> Tensor:
    """Apply offsets (R, 4) to boxes (R, 4) and clip them to the image, one by one."""
    found = []
    for (x0, y0, x1, y1), offset in zip(boxes.tolist(), offsets, strict=True):
        dx, dy, dw, dh = (offset * torch.tensor(BOX_STDS[stage])).tolist()
        w, h = x1 - x0, y1 - y0
        limit = torch.tensor(1000 / 16).log().item()
        new_w, new_h = (
            side * torch.tensor(min(d, limit)).exp().item() for side, d in ((w, dw), (h, dh))
        )
        cx, cy = (x0 + x1) / 2 + dx * w, (y0 + y1) / 2 + dy * h
        found.append([cx - new_w / 2, cy - new_h / 2, cx + new_w / 2, cy + new_h / 2])
    return torch.tensor(found).clamp(0, SIDE)


def box_outputs(heads: Any, features: dict[str, Tensor], boxes: Tensor, stage: int) -> Any:
    pooled = heads.box_pooler([features[name] for name in heads.box_in_features], [Boxes(boxes)])
    return heads.box_predictor[stage](heads.box_head[stage](pooled))


def test_detections_average_the_logits_and_the_masks_of_the_stages(
    heads: Any, features: dict[str, Tensor]
) -> None:
    heads.eval()
    for predictor in heads.box_predictor:
        predictor.test_nms_thresh, predictor.test_topk_per_image = 1.1, 1000
    with torch.no_grad():
        (found,), losses = heads(None, features, proposals())
        boxes = proposals()[0].proposal_boxes.tensor
        logits = []
        for stage in range(3):
            scores, offsets = box_outputs(heads, features, boxes, stage)
            logits.append(scores)
            by_class = offsets.view(len(boxes), CLASSES, 4)
            if stage < 2:
                best = scores[:, :CLASSES].argmax(1)
                chosen = torch.stack([row[b] for row, b in zip(by_class, best, strict=True)])
                boxes = moved(boxes, chosen, stage)
        probabilities = F.softmax(sum(logits) / 3, dim=1)[:, :CLASSES]
        wanted = {
            (round(float(probabilities[r, c]), 5), c): moved(
                boxes[r : r + 1], by_class[r, c][None], 2
            )
            for r in range(len(boxes))
            for c in range(CLASSES)
        }
        kept = {
            (round(float(s), 5), int(c)): b
            for s, c, b in zip(
                found.scores, found.pred_classes, found.pred_boxes.tensor, strict=True
            )
        }
        assert losses == {}
        assert len(kept) > 10
        for key, box in kept.items():
            torch.testing.assert_close(box[None], wanted[key], rtol=1e-4, atol=1e-3)
        pooled = heads.mask_pooler(
            [features[name] for name in heads.box_in_features], [found.pred_boxes]
        )
        masks = [head.layers(pooled).sigmoid() for head in heads.mask_head]
        mean = (masks[0] + masks[1] + masks[2]) / 3
        index = torch.arange(len(found))
        torch.testing.assert_close(found.pred_masks[:, 0], mean[index, found.pred_classes])


def test_every_stage_trains_on_its_own_regions_and_the_objects_boxes(
    heads: Any, features: dict[str, Tensor]
) -> None:
    """Against a loop over stages, with all regions: weights 1, 0.5 and 0.25; own boxes are not moved on."""
    heads.train()
    truth = torch.tensor([[10.0, 10.0, 30.0, 34.0], [36.0, 20.0, 60.0, 44.0]])
    shifted = torch.cat([truth + shift for shift in (-5, -4, -3, -2, 2, 3)])
    (image,) = proposals(shifted)
    labels = torch.tensor([2, 0])
    targets = Instances((SIDE, SIDE), gt_boxes=Boxes(truth), gt_classes=labels)
    targets.gt_masks = BitMasks(torch.ones(2, SIDE, SIDE, dtype=torch.bool))
    with EventStorage():
        _, losses = heads(None, features, [image], [targets])
    assert set(losses) == {
        f"loss_{kind}_stage{stage}" for kind in ("cls", "box_reg", "mask") for stage in range(3)
    }
    boxes, positives = image.proposal_boxes.tensor, []
    for stage, (weight, threshold) in enumerate(((1.0, 0.5), (0.5, 0.6), (0.25, 0.7))):
        regions = torch.cat([boxes, truth])
        target = torch.full((len(regions),), CLASSES)
        for r, region in enumerate(regions.tolist()):
            overlaps = [iou(region, box) for box in truth.tolist()]
            if max(overlaps) >= threshold:
                target[r] = labels[overlaps.index(max(overlaps))]
        positives.append(int((target[: len(boxes)] < CLASSES).sum()))
        # Batch statistics do not depend on the order of the regions.
        scores, offsets = box_outputs(heads, features, regions, stage)
        wanted = weight * F.cross_entropy(scores, target)
        torch.testing.assert_close(losses[f"loss_cls_stage{stage}"], wanted, rtol=1e-4, atol=1e-5)
        best = torch.where(target == CLASSES, scores[:, :CLASSES].argmax(1), target)
        chosen = offsets.view(len(regions), CLASSES, 4)[torch.arange(len(regions)), best]
        boxes = moved(regions, chosen.detach(), stage)[: len(boxes)]
    assert positives[0] > positives[1] > positives[2] > 0


def iou(a: list[float], b: list[float]) -> float:
    w = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    h = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [(x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)]
    return w * h / (sum(areas) - w * h) if w * h else 0.0


def test_gradients_to_the_pyramid_are_not_scaled(heads: Any, features: dict[str, Tensor]) -> None:
    heads.eval()
    heads.training = True  # of the heads alone: batch norms keep their statistics
    level = features["p3"].requires_grad_()
    boxes = Boxes(torch.tensor([[8.0, 8.0, 40.0, 40.0]]))
    one = [Instances((SIDE, SIDE), proposal_boxes=boxes)]
    scores, _ = heads._run_stage([features[name] for name in heads.box_in_features], one, 0)
    (found,) = torch.autograd.grad(scores.sum(), level)
    scores, _ = box_outputs(heads, features, boxes.tensor, 0)
    (wanted,) = torch.autograd.grad(scores.sum(), level)
    torch.testing.assert_close(found, wanted)


@pytest.mark.heavy
def test_a_cascade_of_mmdetection_is_trained_and_scored(coco: Path, tmp_path: Path) -> None:
    record = run(tmp_path / "run", coco, replace(CASCADE, max_iters=2))
    losses = record.details["losses"]
    assert len([name for name in losses if "stage" in name]) == 9
    assert {"box_ap", "mask_ap"} <= set(record.metrics)


def test_a_cascade_of_mmdetection_has_three_stages() -> None:
    with pytest.raises(UsageError, match=r"must have three stages with cascade_rule=mmdet"):
        replace(CASCADE, cascade=(0.5, 0.6))
    with pytest.raises(UsageError, match="crop_short_sides without short_sides"):
        replace(RECIPE, crop_short_sides=(400,))
    with pytest.raises(UsageError, match="must not decrease"):
        replace(RECIPE, crop_sides=(600, 384))
    with pytest.raises(UsageError, match=r"test_size \(1333, 800\) .* must not decrease"):
        replace(RECIPE, test_size=(1333, 800))
