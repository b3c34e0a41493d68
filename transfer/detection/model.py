"""Build Mask R-CNN, or Cascade Mask R-CNN, from Detectron2's modules on a checkpoint's backbone.

Follows arXiv 1703.06870 and 1712.00726, with the heads of ViTDet (arXiv 2203.16527, appendix A.2) where the recipe
has them. Imports Detectron2 at the top: import this module after `framework.require_detectron2` has passed.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone, GeneralizedRCNN
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator import RPN, StandardRPNHead
from detectron2.modeling.roi_heads import (
    CascadeROIHeads,
    FastRCNNConvFCHead,
    FastRCNNOutputLayers,
    MaskRCNNConvUpsampleHead,
    StandardROIHeads,
)
from torch import nn

from simmim_bench.checkpoints.checkpoint import Checkpoint
from transfer.detection.cascade import BOX_STDS, MMDetCascadeROIHeads
from transfer.detection.fit import fit_to_backbone
from transfer.detection.recipes import CocoRecipe
from transfer.detectron2_backbone import SimMIMBackbone, build_detection_backbone

POSITIVE_FRACTION = (
    0.25  # upper limit of the fraction of positive regions among the sampled regions
)
POSITIVE_IOU = 0.5  # of a region with a ground-truth box, without a cascade
BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)  # detectron2, config/defaults.py (ROI_BOX_HEAD)


def build_detector(
    checkpoint: Checkpoint,
    recipe: CocoRecipe,
    *,
    num_classes: int,
    masks: bool,
    seed: int,
    device: torch.device,
) -> GeneralizedRCNN:
    """Build the detector of a recipe.

    The recipe's precisions are those of the backbone. Pyramid and heads are computed in float32: in bfloat16, boxes
    of 20 to 60 pixels move by 0.7 pixels on average.

    Args:
        masks: Mask R-CNN; otherwise Faster R-CNN, which has no mask head.
        seed: initialises the weights that the checkpoint does not have.

    Raises:
        UsageError: the backbone does not have the pyramid's strides.
    """
    recipe = fit_to_backbone(recipe, checkpoint.spec)
    backbone = build_detection_backbone(checkpoint, recipe, seed)
    unit = checkpoint.pixel_format.decoded_unit
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GeneralizedRCNN(
            backbone=backbone,
            proposal_generator=build_rpn(backbone, recipe),
            roi_heads=build_roi_heads(backbone, recipe, num_classes=num_classes, masks=masks),
            pixel_mean=[unit * value for value in checkpoint.mean],
            pixel_std=[unit * value for value in checkpoint.std],
            input_format="RGB",
        )
    adapter = find_adapter(model)
    adapter.precision = recipe.precision
    adapter.test_precision = recipe.test_precision or recipe.precision
    return model.to(device)


def build_rpn(backbone: Backbone, recipe: CocoRecipe) -> RPN:
    """Build the region proposal network on all levels of a pyramid."""
    levels = backbone.output_shape()
    return RPN(
        in_features=list(levels),
        head=StandardRPNHead(
            in_channels=recipe.neck_channels,
            num_anchors=len(recipe.anchor_ratios),
            conv_dims=[-1] * recipe.rpn_convs,
        ),
        anchor_generator=DefaultAnchorGenerator(
            sizes=[[size] for size in recipe.anchor_sizes],
            aspect_ratios=list(recipe.anchor_ratios),
            strides=[level.stride for level in levels.values()],
            offset=0.0,
        ),
        anchor_matcher=Matcher([0.3, 0.7], [0, -1, 1], allow_low_quality_matches=True),
        box2box_transform=Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0)),
        batch_size_per_image=recipe.rpn_samples,
        positive_fraction=0.5,
        pre_nms_topk=recipe.pre_nms_topk,
        post_nms_topk=recipe.post_nms_topk,
        nms_thresh=0.7,
        anchor_boundary_thresh=recipe.anchor_border,
        smooth_l1_beta=recipe.rpn_beta,
    )


def build_roi_heads(
    backbone: Backbone, recipe: CocoRecipe, *, num_classes: int, masks: bool
) -> StandardROIHeads:
    """Build the box head, or the stages of a cascade, and the mask head.

    The mask head is initialised first, then the box heads, then the predictors: the random numbers of a
    seed are consumed in this order.
    """
    levels = backbone.output_shape()
    # A level that is pooled from another is for proposals only, as in Detectron2's FPN models.
    names = list(levels)[: len(levels) - (0 if backbone.top_block is None else 1)]
    scales = [1 / levels[name].stride for name in names]
    per_stage = recipe.cascade_rule == "mmdet"  # MMDetection's cascade has a mask head per stage
    stages = len(recipe.cascade) if per_stage else 1
    mask_arguments: dict[str, Any] = {}
    if masks:
        mask_heads = [_mask_head(recipe, num_classes) for _ in range(stages)]
        mask_arguments = {
            "mask_in_features": names,
            "mask_pooler": _pooler(recipe, recipe.mask_pool, scales),
            "mask_head": nn.ModuleList(mask_heads) if per_stage else mask_heads[0],
        }
    common: dict[str, Any] = {
        "num_classes": num_classes,
        "batch_size_per_image": recipe.roi_samples,
        "positive_fraction": POSITIVE_FRACTION,
        "box_in_features": names,
        "box_pooler": _pooler(recipe, recipe.box_pool, scales),
        **mask_arguments,
    }
    if recipe.cascade:
        heads = [_box_head(recipe) for _ in recipe.cascade]
        return (MMDetCascadeROIHeads if per_stage else CascadeROIHeads)(
            box_heads=heads,
            box_predictors=[
                _box_predictor(head, recipe, num_classes, weights)
                for head, weights in zip(heads, _cascade_weights(recipe), strict=True)
            ],
            proposal_matchers=[_matcher(iou) for iou in recipe.cascade],
            **common,
        )
    head = _box_head(recipe)
    return StandardROIHeads(
        proposal_matcher=_matcher(POSITIVE_IOU),
        box_head=head,
        box_predictor=_box_predictor(head, recipe, num_classes, BOX_WEIGHTS),
        **common,
    )


def _cascade_weights(recipe: CocoRecipe) -> list[tuple[float, ...]]:
    """Return the weights of box offsets for every stage: each regresses more finely."""
    if recipe.cascade_rule == "mmdet":
        return [tuple(1 / std for std in stds) for stds in BOX_STDS]
    # detectron2, config/defaults.py (ROI_BOX_CASCADE_HEAD)
    return [tuple(stage * w for w in BOX_WEIGHTS) for stage in range(1, len(recipe.cascade) + 1)]


def _pooler(recipe: CocoRecipe, size: int, scales: list[float]) -> ROIPooler:
    return ROIPooler(
        output_size=size,
        scales=scales,
        sampling_ratio=0,
        pooler_type="ROIAlignV2",
        # 224 pixels at stride 16, for COCO's anchors: 7/4 of the level's anchor.
        canonical_box_size=recipe.anchor_sizes[0] * 7 / 4,
        canonical_level=int(math.log2(recipe.strides[0])),
    )


def _box_head(recipe: CocoRecipe) -> FastRCNNConvFCHead:
    width = recipe.neck_channels
    return FastRCNNConvFCHead(
        ShapeSpec(channels=width, height=recipe.box_pool, width=recipe.box_pool),
        conv_dims=[width] * recipe.box_head_convs,
        fc_dims=[recipe.box_head_dim] * recipe.box_head_fcs,
        conv_norm=recipe.head_norm if recipe.box_norm is None else recipe.box_norm,
    )


def _box_predictor(
    head: FastRCNNConvFCHead,
    recipe: CocoRecipe,
    num_classes: int,
    weights: tuple[float, ...],
) -> FastRCNNOutputLayers:
    # The stages of Detectron2's cascade pass on boxes that have no class yet.
    agnostic = recipe.class_agnostic or bool(recipe.cascade and recipe.cascade_rule == "detectron2")
    return FastRCNNOutputLayers(
        head.output_shape,
        box2box_transform=Box2BoxTransform(weights=weights),
        num_classes=num_classes,
        test_score_thresh=recipe.score_threshold,
        test_topk_per_image=recipe.detections,
        cls_agnostic_bbox_reg=agnostic,
        box_reg_loss_type="giou" if recipe.box_loss == "giou" else "smooth_l1",
        loss_weight={"loss_cls": 1.0, "loss_box_reg": recipe.box_loss_weight},
    )


def _mask_head(recipe: CocoRecipe, num_classes: int) -> MaskRCNNConvUpsampleHead:
    width = recipe.neck_channels
    return MaskRCNNConvUpsampleHead(
        ShapeSpec(channels=width, height=recipe.mask_pool, width=recipe.mask_pool),
        num_classes=1 if recipe.class_agnostic else num_classes,
        conv_dims=[width] * (recipe.mask_head_convs + 1),  # the last one doubles the size
        conv_norm=recipe.head_norm,
    )


def _matcher(iou: float) -> Matcher:
    return Matcher([iou], [0, 1], allow_low_quality_matches=False)


def find_adapter(model: GeneralizedRCNN) -> SimMIMBackbone:
    """Return the backbone adapter within a detector."""
    (adapter,) = (m for m in model.modules() if isinstance(m, SimMIMBackbone))
    return adapter
