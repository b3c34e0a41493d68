"""Recipes of COCO detection, each number with its source.

Learning rates are for the recipe's own batch size, as in the papers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from simmim_bench.errors import UsageError
from simmim_bench.recipe import Recipe, UnscaledPrecision, check_positive


@dataclass(frozen=True, kw_only=True)
class CocoRecipe(Recipe):
    """Mask R-CNN through Detectron2.

    The backbone determines the neck: a simple feature pyramid on a ViT's last map (ViTDet), an FPN on the
    stages of other backbones. Fields with (train, test) pairs are used as in Detectron2.

    Attributes:
        img_size: (H, W) in pixels. Training images are resized to fit it, times a random factor of
            `scale_range`, then cropped to it; test images are resized to fit it. Both are padded to a square.
        max_iters, warmup_iters: optimizer steps.
        batch_size: images per step, over all processes.
        base_lr: for this batch size, of the last layer.
        milestones: fractions of `max_iters` at which the learning rate is multiplied by 0.1.
        strides: of the pyramid's levels in pixels, each twice the previous one; a level coarser than the
            neck's coarsest is pooled from it, for proposals only.
        anchor_sizes: side of the square with an anchor's area in pixels, one per stride.
        anchor_ratios: height / width of the anchors.
        rpn_convs, box_head_convs, box_head_fcs, mask_head_convs: depth of the heads.
        neck_channels, box_head_dim: width of pyramid and convolutions, and of the fully connected layers.
        head_norm: normalisation of the heads' convolutions; "" for none.
        rpn_samples, roi_samples: anchors and regions sampled per image for the losses.
        pre_nms_topk, post_nms_topk: proposals kept, (train, test), per level before and per image after NMS.
        box_pool, mask_pool: side of the pooled region features; a mask's side is twice `mask_pool`.
        class_agnostic: predict one box and one mask per region instead of one per class.
        cascade: IoU from which a region is positive, one value per stage of a Cascade R-CNN (arXiv
            1712.00726); () for a single stage with 0.5.
        detections: maximum number of detections per image.
        score_threshold: detections with a lower score are dropped before evaluation.
        bad_annotations: "refuse" objects that cannot be trained on, or "skip" them (`coco_faults.find_bad`).
        window_size: of a Swin, or of a ViT's windowed blocks, in tokens; None for the checkpoint's.
    """

    img_size: tuple[int, int]
    scale_range: tuple[float, float]
    max_iters: int
    warmup_iters: int
    batch_size: int
    base_lr: float
    weight_decay: float
    layer_decay: float
    drop_path_rate: float
    clip_grad: float
    milestones: tuple[float, ...]
    strides: tuple[int, ...]
    anchor_sizes: tuple[int, ...]
    anchor_ratios: tuple[float, ...]
    neck_channels: int
    rpn_convs: int
    box_head_convs: int
    box_head_fcs: int
    box_head_dim: int
    mask_head_convs: int
    head_norm: Literal["", "LN"]
    rpn_samples: int
    roi_samples: int
    pre_nms_topk: tuple[int, int]
    post_nms_topk: tuple[int, int]
    box_pool: int
    mask_pool: int
    class_agnostic: bool
    detections: int
    score_threshold: float
    cascade: tuple[float, ...] = ()
    bad_annotations: Literal["refuse", "skip"] = "refuse"
    window_size: int | None = None
    precision: UnscaledPrecision = "auto"
    num_workers: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "img_size", "max_iters", "batch_size", "base_lr", "strides")
        if len(self.strides) != len(self.anchor_sizes):
            raise UsageError(
                f"recipe '{self.name}' has {len(self.strides)} strides and {len(self.anchor_sizes)} "
                "anchor_sizes; give one anchor size per stride."
            )
        if list(self.cascade) != sorted(set(self.cascade)) or not all(
            0 < v < 1 for v in self.cascade
        ):
            raise UsageError(
                f"cascade {self.cascade} of recipe '{self.name}' must increase within (0, 1), such as 0.5,0.6,0.7."
            )
        if not self.box_head_convs + self.box_head_fcs:
            raise UsageError(
                f"recipe '{self.name}' has neither box_head_convs nor box_head_fcs; set one of them to 1 or more."
            )


COCO_VIT_100EP = CocoRecipe(
    name="coco_vit_100ep",
    source="ViTDet, arXiv 2203.16527, appendix A.2; detectron2: configs/common/models/mask_rcnn_vitdet.py, "
    "projects/ViTDet/configs/COCO/mask_rcnn_vitdet_b_100ep.py",
    img_size=(1024, 1024),
    scale_range=(0.1, 2.0),
    max_iters=184375,
    warmup_iters=250,
    batch_size=64,
    base_lr=1e-4,
    weight_decay=0.1,
    layer_decay=0.7,
    drop_path_rate=0.1,
    clip_grad=1.0,
    milestones=(163889 / 184375, 177546 / 184375),
    strides=(4, 8, 16, 32, 64),
    anchor_sizes=(32, 64, 128, 256, 512),
    anchor_ratios=(0.5, 1.0, 2.0),
    neck_channels=256,
    rpn_convs=2,
    box_head_convs=4,
    box_head_fcs=1,
    box_head_dim=1024,
    mask_head_convs=4,
    head_norm="LN",
    rpn_samples=256,
    roi_samples=512,
    pre_nms_topk=(2000, 1000),
    post_nms_topk=(1000, 1000),
    box_pool=7,
    mask_pool=14,
    class_agnostic=False,
    detections=100,
    score_threshold=0.05,
    bad_annotations="skip",
    window_size=14,
    num_workers=8,
    sources={
        "bad_annotations": "detectron2: data/datasets/coco.py and filter_empty_instances leave them out",
        "warmup_iters": "detectron2: projects/ViTDet/configs/COCO/mask_rcnn_vitdet_b_100ep.py",
    },
    published="COCO box AP 51.6, mask AP 45.9 from MAE's ViT-B (detectron2: projects/ViTDet/README.md)",
)
COCO_VIT_L_100EP = replace(
    COCO_VIT_100EP,
    name="coco_vit_l_100ep",
    source="ViTDet, arXiv 2203.16527, appendix A.2; detectron2: "
    "projects/ViTDet/configs/COCO/mask_rcnn_vitdet_l_100ep.py",
    layer_decay=0.8,
    drop_path_rate=0.4,
    published="COCO box AP 55.5, mask AP 49.2 from MAE's ViT-L (detectron2: projects/ViTDet/README.md)",
)
COCO_VIT_CASCADE_100EP = replace(
    COCO_VIT_100EP,
    name="coco_vit_cascade_100ep",
    source="ViTDet, arXiv 2203.16527, appendix A.2; detectron2: "
    "projects/ViTDet/configs/COCO/cascade_mask_rcnn_vitdet_b_100ep.py",
    cascade=(0.5, 0.6, 0.7),
    published="COCO box AP 54.0, mask AP 46.7 from MAE's ViT-B (detectron2: projects/ViTDet/README.md)",
)
COCO_SWIN_3X = replace(
    COCO_VIT_100EP,
    name="coco_swin_3x",
    source="SimMIM, arXiv 2111.09886, appendix (COCO): AdamW 6e-5, batch 32, 36 epochs, drop path 0.2, "
    "large-scale jitter; heads: detectron2, configs/common/models/mask_rcnn_fpn.py",
    window_size=7,
    max_iters=131929,  # 36 epochs of 117,266 images, 32 per iteration
    warmup_iters=1000,
    batch_size=32,
    base_lr=6e-5,
    weight_decay=0.05,
    layer_decay=1.0,
    drop_path_rate=0.2,
    milestones=(27 / 36, 33 / 36),
    rpn_convs=1,
    box_head_convs=0,
    box_head_fcs=2,
    head_norm="",
    sources={"bad_annotations": COCO_VIT_100EP.sources["bad_annotations"]},
    published=None,
)
COCO_SWIN_1X = replace(
    COCO_SWIN_3X,
    name="coco_swin_1x",
    source="as coco_swin_3x, 12 epochs; milestones: detectron2, MODEL_ZOO.md (1x)",
    max_iters=43975,
    milestones=(8 / 12, 11 / 12),
)
COCO_SWIN_CASCADE_3X = replace(
    COCO_SWIN_3X,
    name="coco_swin_cascade_3x",
    source="as coco_swin_3x; stages: Cascade R-CNN, arXiv 1712.00726, section 4",
    cascade=(0.5, 0.6, 0.7),
)
COCO_CONVNEXT_3X = replace(
    COCO_SWIN_3X,
    name="coco_convnext_3x",
    source="as coco_swin_3x; AdamW 1e-4, a layer decay of 0.9 to 0.95 and drop path of 0.2 to 0.5: ConvNeXt V2, "
    "arXiv 2301.00808, of which the mildest",
    sources={
        **COCO_SWIN_3X.sources,
        "layer_decay": "ConvNeXt V2; ours is a block's, not a group's",
    },
    window_size=None,
    base_lr=1e-4,
    layer_decay=0.95,
)
COCO_RESNET50_1X = replace(
    COCO_SWIN_1X,
    name="coco_resnet50_1x",
    source="SparK: downstream_d2/configs/coco_R_50_FPN_CONV_1x_moco_adam.yaml; there with SyncBN in neck and heads, "
    "sides of 480 to 896 pixels and steps of 0.25",
    sources={
        **COCO_SWIN_1X.sources,
        "scale_range": "as coco_swin_3x",
        "img_size": "as coco_swin_3x",
        "head_norm": "ours, ViTDet's",
        "layer_decay": "ours: 0.6 there, of stages; here of blocks",
        "num_workers": "ours",
    },
    window_size=None,
    max_iters=90000,
    batch_size=16,
    base_lr=2.5e-4,
    weight_decay=1e-4,
    layer_decay=0.9,
    drop_path_rate=0.0,
    clip_grad=0.0,
    milestones=(60 / 90, 80 / 90),
    box_head_convs=4,
    box_head_fcs=1,
    head_norm="LN",
)
COCO_SMALL = replace(
    COCO_SWIN_3X,
    name="coco_small",
    source="ours: photographs by the dozen or the hundred, a CPU, minutes",
    sources={},
    img_size=(256, 256),
    scale_range=(0.8, 1.25),
    window_size=None,
    max_iters=400,
    warmup_iters=50,
    batch_size=2,
    base_lr=5e-4,
    drop_path_rate=0.0,
    milestones=(0.85,),
    strides=(4, 8, 16, 32),
    anchor_sizes=(24, 48, 96, 192),
    neck_channels=96,
    box_head_fcs=1,
    box_head_dim=256,
    mask_head_convs=1,
    roi_samples=128,
    pre_nms_topk=(1000, 500),
    post_nms_topk=(300, 200),
    class_agnostic=True,
    score_threshold=0.01,
    bad_annotations="refuse",
    num_workers=0,
)
COCO_POCKET = CocoRecipe(
    name="coco_pocket",
    source="ours: three hundred pictures of 64 pixels, a CPU, a minute",
    img_size=(64, 64),
    scale_range=(0.8, 1.25),
    max_iters=160,
    warmup_iters=20,
    batch_size=8,
    base_lr=1e-3,
    weight_decay=0.05,
    layer_decay=1.0,
    drop_path_rate=0.0,
    clip_grad=5.0,
    milestones=(0.8,),
    strides=(4, 8, 16),
    anchor_sizes=(12, 20, 32),
    anchor_ratios=(1.0,),
    neck_channels=64,
    rpn_convs=1,
    box_head_convs=0,
    box_head_fcs=1,
    box_head_dim=256,
    mask_head_convs=1,
    head_norm="",
    rpn_samples=64,
    roi_samples=32,
    pre_nms_topk=(100, 100),
    post_nms_topk=(60, 30),
    box_pool=7,
    mask_pool=7,
    class_agnostic=True,
    detections=30,
    score_threshold=0.01,
)
