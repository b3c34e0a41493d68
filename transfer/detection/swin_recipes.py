"""COCO recipes of Swin's detection repository (arXiv 2103.14030, appendix A2.2), to the number of its configs.

"Swin-OD" is SwinTransformer/Swin-Transformer-Object-Detection, a fork of MMDetection; the numbers are those of its
configs, where `sources` has no other. Detectron2 trains here, so that these differ in all of the recipes: images are
resized by Pillow (OpenCV there), heads are initialised by Detectron2's rules, training is in bfloat16 on GPUs
(float16 by apex there), images with a side below 32 pixels are trained on (left out there), and batches are not grouped
by aspect ratio.
"""

from __future__ import annotations

from dataclasses import replace

from transfer.detection.recipes import CocoRecipe

EPOCH = 7330  # iterations: 117,266 images with objects, 16 per iteration, rounded up
_SIDES = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)

_1X = "Swin-OD: configs/swin/mask_rcnn_swin_tiny_patch4_window7_mstrain_480-800_adamw_1x_coco.py"
_3X = "Swin-OD: configs/swin/mask_rcnn_swin_{tiny,small}_patch4_window7_mstrain_480-800_adamw_3x_coco.py"
_MODEL = "Swin-OD: configs/_base_/models/mask_rcnn_swin_fpn.py"
_DATA = "Swin-OD: configs/_base_/datasets/coco_instance.py"
_SCHEDULE = "Swin-OD: configs/_base_/schedules/schedule_1x.py"
_README = "Swin-OD: README.md"

COCO_SWIN_OD_1X = CocoRecipe(
    name="coco_swin_od_1x",
    source=_1X,
    img_size=(800, 1344),
    scale_range=(1.0, 1.0),
    short_sides=_SIDES,
    crop_short_sides=(400, 500, 600),
    crop_sides=(384, 600),
    max_side=1333,
    test_size=(800, 1333),
    square_pad=False,
    mask_format="bitmask",
    recompute_boxes=False,
    max_iters=12 * EPOCH,
    warmup_iters=500,
    milestones=(8 / 12, 11 / 12),
    batch_size=16,
    base_lr=1e-4,
    lr_rule="mae",
    weight_decay=0.05,
    decay_exempt="norms",
    layer_decay=1.0,
    drop_path_rate=0.1,
    clip_grad=0.0,
    strides=(4, 8, 16, 32, 64),
    anchor_sizes=(32, 64, 128, 256, 512),
    anchor_ratios=(0.5, 1.0, 2.0),
    neck_channels=256,
    neck_norm="",
    rpn_convs=1,
    box_head_convs=0,
    box_head_fcs=2,
    box_head_dim=1024,
    mask_head_convs=4,
    head_norm="",
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
    window_size=7,
    map_norm="affine",
    test_precision="fp32",
    num_workers=8,
    sources={
        "img_size": "ours: the largest padded image",
        "scale_range": "ours: without effect",
        "short_sides": f"{_1X}:31-36",
        "crop_short_sides": f"{_1X}:39-42",
        "crop_sides": f"{_1X}:43-46",
        "max_side": f"{_1X}:32",
        "test_size": f"{_DATA}:19",
        "square_pad": f"{_1X}:58, {_DATA}:25",
        "mask_format": f"{_1X}:26; Swin-OD: mmdet/datasets/pipelines/loading.py (poly2mask)",
        "recompute_boxes": "Swin-OD: mmdet/datasets/pipelines/transforms.py:681-697",
        "max_iters": f"{_1X}:69, {_DATA}:31: 16 images on 8 GPUs",
        "warmup_iters": f"{_SCHEDULE}:7-9",
        "milestones": f"{_1X}:68",
        "batch_size": f"{_DATA}:31, {_README}:93-96",
        "base_lr": f"{_1X}:64",
        "betas": f"{_1X}:64",
        "lr_rule": "mmcv: LrUpdaterHook",
        "weight_decay": f"{_1X}:64",
        "decay_exempt": f"{_1X}:65-67",
        "layer_decay": f"{_1X}:64-67, none",
        "drop_path_rate": f"{_1X}:14",
        "clip_grad": f"{_1X}:76",
        "strides": f"{_MODEL}:34",
        "anchor_sizes": f"{_MODEL}:32-34",
        "anchor_ratios": f"{_MODEL}:33",
        "neck_channels": f"{_MODEL}:24",
        "neck_norm": f"{_MODEL}:21-25",
        "rpn_convs": f"{_MODEL}:26-29",
        "box_head_convs": f"{_MODEL}:50",
        "box_head_fcs": f"{_MODEL}:50",
        "box_head_dim": f"{_MODEL}:52",
        "mask_head_convs": f"{_MODEL}:70",
        "head_norm": f"{_MODEL}:49-73",
        "rpn_samples": f"{_MODEL}:88",
        "roi_samples": f"{_MODEL}:110; regions there also include the best of an object at IoU 0.5 or more",
        "pre_nms_topk": f"{_MODEL}:96, 119",
        "post_nms_topk": f"{_MODEL}:97, 120",
        "box_pool": f"{_MODEL}:46",
        "mask_pool": f"{_MODEL}:65",
        "class_agnostic": f"{_MODEL}:59",
        "detections": f"{_MODEL}:126",
        "score_threshold": f"{_MODEL}:124",
        "bad_annotations": "Swin-OD: mmdet/datasets/coco.py leaves them out",
        "window_size": f"{_1X}:12",
        "map_norm": "Swin-OD: mmdet/models/backbones/swin_transformer.py:549-553",
        "precision": "ours: bfloat16 on a GPU; float16 there",
        "test_precision": "Swin-OD: tools/test.py:174-176; fp16 is None",
        "num_workers": "ours",
    },
    published=f"COCO box AP 43.7, mask AP 39.8 from Swin-T, supervised on ImageNet-1k ({_README}:17)",
)
_3X_SOURCES = {
    **COCO_SWIN_OD_1X.sources,
    "max_iters": f"{_3X}:69",
    "milestones": f"{_3X}:68",
    "drop_path_rate": f"{_3X}:14",
}
COCO_SWIN_OD_3X = replace(
    COCO_SWIN_OD_1X,
    name="coco_swin_od_3x",
    source=f"{_3X}, for T and S; there is no Mask R-CNN of Swin-B",
    max_iters=36 * EPOCH,
    milestones=(27 / 36, 33 / 36),
    drop_path_rate=0.2,
    sources=_3X_SOURCES,
    published="COCO box AP 46.0, mask AP 41.6 from Swin-T and 48.5, 43.3 from Swin-S, supervised on ImageNet-1k "
    f"({_README}:18-19)",
)
COCO_SWIN_OD_3X_OWN_WINDOW = replace(
    COCO_SWIN_OD_3X,
    name="coco_swin_od_3x_own_window",
    source="as coco_swin_od_3x; the window is ours",
    window_size=None,
    sources={
        **_3X_SOURCES,
        "window_size": "ours: the checkpoint's. 7 there, the window of its pretraining; SimMIM's Swin-L and Swin V2 "
        "were pretrained with 12",
    },
    published=None,
)
_CASCADE = (
    "Swin-OD: configs/swin/cascade_mask_rcnn_swin_{tiny,small,base}_patch4_window7_mstrain_480-800_giou_"
    "4conv1f_adamw_3x_coco.py"
)
_CASCADE_1X = (
    "Swin-OD: configs/swin/cascade_mask_rcnn_swin_tiny_patch4_window7_mstrain_480-800_giou_"
    "4conv1f_adamw_1x_coco.py"
)
_CASCADE_MODEL = "Swin-OD: configs/_base_/models/cascade_mask_rcnn_swin_fpn.py"
_CASCADE_SOURCES = {
    **COCO_SWIN_OD_1X.sources,
    "drop_path_rate": f"{_CASCADE_1X}:14",
    "max_iters": f"{_CASCADE_1X}:129",
    "milestones": f"{_CASCADE_1X}:128",
    "anchor_border": f"{_CASCADE_MODEL}:132",
    "rpn_beta": f"{_CASCADE_MODEL}:41",
    "post_nms_topk": f"{_CASCADE_MODEL}:139, 200",
    "cascade": f"{_CASCADE_MODEL}:142-194",
    "cascade_rule": f"{_CASCADE_MODEL}:42-44; Swin-OD: mmdet/models/roi_heads/cascade_roi_head.py",
    "class_agnostic": f"{_CASCADE_1X}:34",
    "box_head_convs": f"{_CASCADE_1X}:23",
    "box_head_fcs": f"{_CASCADE_1X}:24",
    "box_head_dim": f"{_CASCADE_1X}:27",
    "box_norm": f"{_CASCADE_1X}:36",
    "box_loss": f"{_CASCADE_1X}:35, 39",
    "box_loss_weight": f"{_CASCADE_1X}:39",
    "roi_samples": f"{_CASCADE_MODEL}:153",
}
COCO_SWIN_OD_CASCADE_1X = replace(
    COCO_SWIN_OD_1X,
    name="coco_swin_od_cascade_1x",
    source=_CASCADE_1X,
    drop_path_rate=0.0,
    anchor_border=0,
    rpn_beta=1 / 9,
    post_nms_topk=(2000, 1000),
    cascade=(0.5, 0.6, 0.7),
    cascade_rule="mmdet",
    box_head_convs=4,
    box_head_fcs=1,
    box_norm="BN",
    box_loss="giou",
    box_loss_weight=10.0,
    sources=_CASCADE_SOURCES,
    published=f"COCO box AP 48.1, mask AP 41.7 from Swin-T, supervised on ImageNet-1k ({_README}:25)",
)
_CASCADE_3X_SOURCES = {
    **_CASCADE_SOURCES,
    "drop_path_rate": f"{_CASCADE}:14",
    "max_iters": f"{_CASCADE}:129",
    "milestones": f"{_CASCADE}:128",
}
COCO_SWIN_OD_CASCADE_3X = replace(
    COCO_SWIN_OD_CASCADE_1X,
    name="coco_swin_od_cascade_3x",
    source=f"{_CASCADE}, for T and S",
    max_iters=36 * EPOCH,
    milestones=(27 / 36, 33 / 36),
    drop_path_rate=0.2,
    sources=_CASCADE_3X_SOURCES,
    published="COCO box AP 50.4, mask AP 43.7 from Swin-T and 51.9, 45.0 from Swin-S, supervised on ImageNet-1k "
    f"({_README}:26-27)",
)
COCO_SWIN_OD_CASCADE_B_3X = replace(
    COCO_SWIN_OD_CASCADE_3X,
    name="coco_swin_od_cascade_b_3x",
    source=f"{_CASCADE}, for B",
    drop_path_rate=0.3,
    published=f"COCO box AP 51.9, mask AP 45.0 from Swin-B, supervised on ImageNet-1k ({_README}:28)",
)
