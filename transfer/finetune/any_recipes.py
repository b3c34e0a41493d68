"""The fine-tuning recipe of networks of other code, which no published protocol is for: any network."""

from __future__ import annotations

from dataclasses import replace

from transfer.finetune.mae_recipes import IMAGENET_MAE_VIT_B

_DEIT = "DeiT: arXiv 2012.12877, table 9"

IMAGENET_ANY = replace(
    IMAGENET_MAE_VIT_B,
    name="imagenet_any",
    source="ours: MAE's fine-tuning, whose augmentations are those of BEiT and DeiT as well, with rates that any "
    "network of timm's can have; layers are those of timm's group_matcher",
    sources={
        **IMAGENET_MAE_VIT_B.sources,
        "base_lr": f"{_DEIT} (0.0005 for 512 images)",
        "layer_decay": "ours: BEiT's and MAE's 0.65 is for 12 blocks, and networks have up to 60 layers; 0.65 to the "
        "13th is 0.9 to the 53rd",
        "layer_groups": "ours: timm's group_matcher",
        "drop_path_rate": "ours: not all networks have stochastic depth",
        "clip_grad": "ours",
        "min_lr": "ours, MAE's",
        "window_size": "ours: the network's own attention",
    },
    published=None,
    base_lr=5e-4,
    layer_decay=0.9,
    drop_path_rate=0.0,
    clip_grad=1.0,
)
