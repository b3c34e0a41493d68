"""The COCO recipe of networks of other code, which no published protocol is for: any network with maps.

The pyramid's levels are those of the network, and all images are padded to one square, which networks of a fixed size
need as well.
"""

from __future__ import annotations

from dataclasses import replace

from transfer.detection.vitdet_recipes import COCO_VITDET_B

_SWIN = "detectron2: projects/ViTDet/configs/COCO/cascade_mask_rcnn_swin_b_in21k_50ep.py"

COCO_ANY = replace(
    COCO_VITDET_B,
    name="coco_any",
    source="ours: the images, heads and anchors of ViTDet, in which its paper also trains Swins and MViTs (arXiv "
    "2203.16527, table 4), for 50 epochs: coco_vitdet_b and coco_swin_lsj_50ep",
    max_iters=92187,
    warmup_iters=125,
    milestones=(81944 / 92187, 88773 / 92187),
    weight_decay=0.05,
    decay_exempt="vectors",
    layer_decay=0.9,
    drop_path_rate=0.0,
    clip_grad=1.0,
    strides=(),
    anchor_sizes=(),
    neck_norm=None,
    window_size=None,
    map_norm="plain",
    rel_pos="own",
    position="antialiased",
    sources={
        **COCO_VITDET_B.sources,
        "max_iters": f"{_SWIN}:40",
        "warmup_iters": f"124.999 there: {_SWIN}:35-36, 40",
        "milestones": f"{_SWIN}:41-43",
        "weight_decay": f"{_SWIN}:49",
        "decay_exempt": "ours: no norm of a network of other code is known by its type",
        "layer_decay": "ours: between 0.7 of ViTDet's 12 blocks and none of Swin, as networks have up to 60 layers",
        "drop_path_rate": "ours: not all networks have stochastic depth",
        "clip_grad": "ours",
        "strides": "ours: those of the network from 4 on, and one more; 4 to 64 for patches of 16, as in ViTDet",
        "anchor_sizes": "eight strides: detectron2: configs/common/models/mask_rcnn_fpn.py:39",
        "neck_norm": "ViTDet's LN in a simple feature pyramid, none in an FPN: detectron2: modeling/backbone/fpn.py",
        "window_size": "ours: the network's own attention",
        "map_norm": "ours",
        "rel_pos": "ours: the network's own",
        "position": "timm's",
    },
    published=None,
)
