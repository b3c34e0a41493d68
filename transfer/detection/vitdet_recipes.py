"""COCO recipes of ViTDet (arXiv 2203.16527), to the number of Detectron2's configs, of ViTs and of Swins.

The numbers are those of Detectron2's repository: configs/common and projects/ViTDet/configs/COCO, where `sources` has
no other. Two things differ in all of them: training is in bfloat16 on GPUs and in float16 there (`train.amp`), and
gradients are summed over processes in float32 instead of float16 (`train.ddp.fp16_compression`).
"""

from __future__ import annotations

from dataclasses import replace

from transfer.detection.recipes import CocoRecipe

_CONFIGS = "detectron2: projects/ViTDet/configs/COCO"
_MODEL = "detectron2: configs/common/models/mask_rcnn_vitdet.py"
_FPN = "detectron2: configs/common/models/mask_rcnn_fpn.py"
_LSJ = "detectron2: projects/ViTDet/configs/common/coco_loader_lsj.py"
_OPTIM = "detectron2: configs/common/optim.py:18-28"
_README = "detectron2: projects/ViTDet/README.md"

COCO_VITDET_B = CocoRecipe(
    name="coco_vitdet_b",
    source=f"{_CONFIGS}/mask_rcnn_vitdet_b_100ep.py",
    img_size=(1024, 1024),
    scale_range=(0.1, 2.0),
    test_size=(1024, 1024),
    mask_format="polygon",
    recompute_boxes=True,
    max_iters=184375,
    warmup_iters=250,
    batch_size=64,
    base_lr=1e-4,
    lr_rule="mae",
    weight_decay=0.1,
    decay_exempt="norms",
    layer_decay=0.7,
    drop_path_rate=0.1,
    clip_grad=0.0,
    milestones=(163889 / 184375, 177546 / 184375),
    strides=(4, 8, 16, 32, 64),
    anchor_sizes=(32, 64, 128, 256, 512),
    anchor_ratios=(0.5, 1.0, 2.0),
    neck_channels=256,
    neck_norm="LN",
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
    map_norm="none",
    rel_pos="decomposed",
    position="kept",
    test_precision="fp32",
    num_workers=8,
    sources={
        "img_size": f"{_LSJ}:6, {_MODEL}:19",
        "scale_range": f"{_LSJ}:8-14",
        "test_size": f"{_LSJ}:20-22",
        "mask_format": "detectron2: configs/common/data/coco.py:28, data/dataset_mapper.py:46",
        "recompute_boxes": f"{_LSJ}:17-18",
        "max_iters": f"{_CONFIGS}/mask_rcnn_vitdet_b_100ep.py:25",
        "warmup_iters": f"{_CONFIGS}/mask_rcnn_vitdet_b_100ep.py:33-34, from 0.001 of the rate",
        "milestones": f"{_CONFIGS}/mask_rcnn_vitdet_b_100ep.py:30",
        "batch_size": f"{_LSJ}:16",
        "base_lr": f"{_OPTIM}",
        "betas": f"{_OPTIM}",
        "weight_decay": f"{_OPTIM}",
        "decay_exempt": f"{_OPTIM}, {_CONFIGS}/mask_rcnn_vitdet_b_100ep.py:40; the LN of neck and heads is no "
        "torch.nn.LayerNorm and decays (detectron2: layers/batch_norm.py:333, solver/build.py:195-206)",
        "lr_rule": "detectron2: solver/lr_scheduler.py (LRMultiplier)",
        "layer_decay": f"{_CONFIGS}/mask_rcnn_vitdet_b_100ep.py:39, modeling/backbone/vit.py:506-524",
        "drop_path_rate": f"{_MODEL}:15",
        "clip_grad": "detectron2: tools/lazyconfig_train_net.py:70-71, no clipping",
        "strides": f"{_FPN}:38-43, {_MODEL}:46-47",
        "anchor_sizes": f"{_FPN}:39",
        "anchor_ratios": f"{_FPN}:40",
        "neck_channels": f"{_MODEL}:45",
        "neck_norm": f"{_MODEL}:48",
        "rpn_convs": f"{_MODEL}:55",
        "box_head_convs": f"{_MODEL}:58",
        "box_head_fcs": f"{_MODEL}:59",
        "box_head_dim": f"{_MODEL}:59",
        "mask_head_convs": f"{_FPN}:86-90",
        "head_norm": f"{_MODEL}:52",
        "rpn_samples": f"{_FPN}:48",
        "roi_samples": f"{_FPN}:56",
        "pre_nms_topk": f"{_FPN}:50",
        "post_nms_topk": f"{_FPN}:51",
        "box_pool": f"{_FPN}:63",
        "mask_pool": f"{_FPN}:81",
        "class_agnostic": "detectron2: modeling/roi_heads/fast_rcnn.py (cls_agnostic_bbox_reg)",
        "detections": "detectron2: modeling/roi_heads/fast_rcnn.py (test_topk_per_image)",
        "score_threshold": f"{_FPN}:75",
        "bad_annotations": "detectron2: data/datasets/coco.py and filter_empty_instances leave them out",
        "window_size": f"{_MODEL}:25",
        "map_norm": "detectron2: modeling/backbone/vit.py:359, no norm after the last block",
        "rel_pos": f"{_MODEL}:41",
        "position": "detectron2: modeling/backbone/vit.py:351-354",
        "square_pad": f"{_MODEL}:49",
        "precision": "ours: bfloat16 on a GPU; float16 there (train.amp)",
        "test_precision": "detectron2: tools/lazyconfig_train_net.py:35-43; only training is under autocast",
        "num_workers": "ours",
    },
    published=f"COCO box AP 51.6, mask AP 45.9 from MAE's ViT-B ({_README}:35-36)",
)
_LARGE = f"{_CONFIGS}/mask_rcnn_vitdet_l_100ep.py"
COCO_VITDET_L = replace(
    COCO_VITDET_B,
    name="coco_vitdet_l",
    source=_LARGE,
    layer_decay=0.8,
    drop_path_rate=0.4,
    sources={
        **COCO_VITDET_B.sources,
        "layer_decay": f"{_LARGE}:25",
        "drop_path_rate": f"{_LARGE}:19",
    },
    published=f"COCO box AP 55.5, mask AP 49.2 from MAE's ViT-L ({_README}:46-47)",
)
_HUGE = f"{_CONFIGS}/mask_rcnn_vitdet_h_75ep.py"
COCO_VITDET_H = replace(
    COCO_VITDET_B,
    name="coco_vitdet_h",
    source=_HUGE,
    layer_decay=0.9,
    drop_path_rate=0.5,
    decay_exempt="nothing",
    max_iters=138281,
    warmup_iters=187,
    milestones=(122916 / 138281, 133159 / 138281),
    patch_size=16,
    sources={
        **COCO_VITDET_B.sources,
        "layer_decay": f"{_HUGE}:25",
        "drop_path_rate": f"{_HUGE}:19",
        "decay_exempt": f"{_HUGE}:26-27",
        "max_iters": f"{_HUGE}:29",
        "warmup_iters": "187.5 there: the warm-up is a fraction of the training and shrinks with it "
        f"({_CONFIGS}/mask_rcnn_vitdet_b_100ep.py:33, {_HUGE}:29)",
        "milestones": f"{_HUGE}:30-32",
        "patch_size": f"{_HUGE}:13, weights p14to16; how they were resized from MAE's 14 pixels was not seen",
        "position": "detectron2: modeling/backbone/vit.py:351-354; here MAE's 16 x 16 positions, there 14 x 14",
    },
    published=f"COCO box AP 56.7, mask AP 50.2 from MAE's ViT-H ({_README}:57-58)",
)
_CASCADE = f"{_CONFIGS}/cascade_mask_rcnn_vitdet_b_100ep.py:20-48"
COCO_VITDET_CASCADE_B = replace(
    COCO_VITDET_B,
    name="coco_vitdet_cascade_b",
    source=f"{_CONFIGS}/cascade_mask_rcnn_vitdet_b_100ep.py",
    cascade=(0.5, 0.6, 0.7),
    sources={**COCO_VITDET_B.sources, "cascade": _CASCADE},
    published=f"COCO box AP 54.0, mask AP 46.7 from MAE's ViT-B ({_README}:142-143)",
)
COCO_VITDET_CASCADE_L = replace(
    COCO_VITDET_L,
    name="coco_vitdet_cascade_l",
    source=f"{_CONFIGS}/cascade_mask_rcnn_vitdet_l_100ep.py",
    cascade=(0.5, 0.6, 0.7),
    sources={**COCO_VITDET_L.sources, "cascade": _CASCADE},
    published=f"COCO box AP 57.6, mask AP 50.0 from MAE's ViT-L ({_README}:153-154)",
)
COCO_VITDET_CASCADE_H = replace(
    COCO_VITDET_H,
    name="coco_vitdet_cascade_h",
    source=f"{_CONFIGS}/cascade_mask_rcnn_vitdet_h_75ep.py",
    cascade=(0.5, 0.6, 0.7),
    sources={**COCO_VITDET_H.sources, "cascade": _CASCADE},
    published=f"COCO box AP 58.7, mask AP 51.0 from MAE's ViT-H ({_README}:164-165)",
)
_SWIN = f"{_CONFIGS}/cascade_mask_rcnn_swin_b_in21k_50ep.py"
_MVIT = f"{_CONFIGS}/cascade_mask_rcnn_mvitv2_b_in21k_100ep.py"
COCO_SWIN_LSJ_50EP = replace(
    COCO_VITDET_CASCADE_B,
    name="coco_swin_lsj_50ep",
    # The config of Swin-L has no other number: cascade_mask_rcnn_swin_l_in21k_50ep.py:9-12.
    source=f"{_SWIN}, whose heads are those of {_MVIT}",
    base_lr=4e-5,
    weight_decay=0.05,
    layer_decay=1.0,
    drop_path_rate=0.4,
    max_iters=92187,
    warmup_iters=125,
    milestones=(81944 / 92187, 88773 / 92187),
    window_size=7,
    map_norm="affine",
    rel_pos="own",
    position="antialiased",
    sources={
        **COCO_VITDET_B.sources,
        "base_lr": f"{_SWIN}:48",
        "weight_decay": f"{_SWIN}:49",
        "decay_exempt": f"{_OPTIM}, {_SWIN}:50",
        "layer_decay": f"{_SWIN}:47-50, none",
        "drop_path_rate": f"{_SWIN}:13",
        "max_iters": f"{_SWIN}:40",
        "warmup_iters": f"124.999 there: {_SWIN}:35-36, 40",
        "milestones": f"{_SWIN}:41-43",
        "square_pad": f"{_SWIN}:18",
        "strides": f"{_FPN}:21-34, 41",
        "neck_channels": f"{_FPN}:32",
        "neck_norm": f"{_MVIT}:39",
        "head_norm": f"{_MVIT}:40",
        "rpn_convs": f"{_MVIT}:43",
        "box_head_convs": f"{_MVIT}:52",
        "box_head_fcs": f"{_MVIT}:53",
        "box_head_dim": f"{_MVIT}:53",
        "cascade": f"{_MVIT}:46-72",
        "window_size": f"{_SWIN}:11-16, modeling/backbone/swin.py:546",
        "map_norm": "detectron2: modeling/backbone/swin.py:622-626",
        "rel_pos": "detectron2: modeling/backbone/swin.py",
        "position": "a Swin has no absolute position",
    },
    published="COCO box AP 53.9, mask AP 46.2 from Swin-B and 55.0, 47.2 from Swin-L, supervised on ImageNet-22k "
    f"({_README}:85-86, 96-97)",
)
