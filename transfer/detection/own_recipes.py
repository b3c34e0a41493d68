"""COCO recipes of simmim-bench: earlier ones, which are near published protocols, and ones for small data.

Their records keep their names. The published protocols are in `vitdet_recipes.py` and `swin_recipes.py`.
Learning rates are for the recipe's own batch size, as in the papers.
"""

from __future__ import annotations

from dataclasses import replace

from transfer.detection.recipes import CocoRecipe

COCO_VIT_100EP = CocoRecipe(
    name="coco_vit_100ep",
    source="near ViTDet (detectron2: projects/ViTDet/configs/COCO/mask_rcnn_vitdet_b_100ep.py), which coco_vitdet_b "
    "follows. Ours: clipped gradients, evaluation in the precision of training, bit masks, a norm of the last "
    "map, no relative position of ViTs that have none, no weight decay of biases",
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
    published=None,
)
COCO_VIT_L_100EP = replace(
    COCO_VIT_100EP,
    name="coco_vit_l_100ep",
    source="as coco_vit_100ep; detectron2: projects/ViTDet/configs/COCO/mask_rcnn_vitdet_l_100ep.py, which "
    "coco_vitdet_l follows",
    layer_decay=0.8,
    drop_path_rate=0.4,
)
COCO_VIT_CASCADE_100EP = replace(
    COCO_VIT_100EP,
    name="coco_vit_cascade_100ep",
    source="as coco_vit_100ep; detectron2: projects/ViTDet/configs/COCO/cascade_mask_rcnn_vitdet_b_100ep.py, which "
    "coco_vitdet_cascade_b follows",
    cascade=(0.5, 0.6, 0.7),
)
COCO_SWIN_3X = replace(
    COCO_VIT_100EP,
    name="coco_swin_3x",
    source="ours, near SimMIM's COCO protocol, of which no config is published and the appendix was not seen. AdamW "
    "6e-5, decay 0.05, batch 32, 36 epochs, 1,000 iterations of warm-up, drop path 0.2, window 7 and large-scale "
    "jitter as in AlignDet's transcription: configs/other_backbones/finetune/"
    "mask_rcnn_swin-b-p4-w7_fpn_lsj_3x_coco_simmim.py. There with steps at epochs 24 and 33, SyncBN in the FPN, no "
    "clipping, and tests at (1333, 800). Heads: detectron2, configs/common/models/mask_rcnn_fpn.py",
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
    sources={
        "bad_annotations": COCO_VIT_100EP.sources["bad_annotations"],
        "milestones": "ours; 24 and 33 of 36 epochs in AlignDet",
        "clip_grad": "ours; none in AlignDet",
        "img_size": "ours for tests; (1333, 800) in AlignDet",
        "window_size": "AlignDet, for Swin-B; a Swin-L of SimMIM was pretrained with 12",
    },
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
    source="ours: three hundred images of 64 pixels, a CPU, a minute",
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
COCO_144PX = replace(
    COCO_POCKET,
    name="coco_144px",
    source="ours: microscope photographs by the hundred, a CPU core, minutes",
    img_size=(144, 192),
    max_iters=250,
    batch_size=4,
    base_lr=5e-4,
    strides=(8, 16, 32),
    # 0.3 of the median sides of platelets, red and white cells in BCCD: 40, 103 and 191 pixels.
    anchor_sizes=(12, 30, 57),
    rpn_samples=128,
    roi_samples=64,
    pre_nms_topk=(400, 300),
    post_nms_topk=(200, 100),
    detections=100,
)
COCO_DEMO = replace(
    COCO_POCKET,
    name="coco_demo",
    source="ours: `simmim-bench demo`; 70 of coco_pocket's 160 steps",
    max_iters=70,
    warmup_iters=10,
)
