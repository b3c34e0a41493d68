"""The ADE20K recipe of networks of other code, which no published protocol is for: any network with maps.

Files and lines are those of `mmseg_recipes.py`.
"""

from __future__ import annotations

from dataclasses import replace

from transfer.segmentation.mmseg_recipes import ADE20K_CONVNEXT_512

_KEPT = ("img_size", "resize_within", "scale_range", "photometric", "warmup_iters", "max_iters")

ADE20K_ANY = replace(
    ADE20K_CONVNEXT_512,
    name="ade20k_any",
    source="ours: UPerNet as MMSegmentation trains it for 160k iterations on MAE's ViT, Swin and ConvNeXt, with what "
    "the three have in common or what any network can have: ade20k_mae_vit_b, ade20k_swin_w7, ade20k_convnext_512",
    sources={
        **{key: ADE20K_CONVNEXT_512.sources[key] for key in _KEPT},
        "batch_size": ADE20K_CONVNEXT_512.sources["batch_size"],
        "base_lr": f"{ADE20K_CONVNEXT_512.sources['base_lr']}; MAE's has it too",
        "weight_decay": f"{ADE20K_CONVNEXT_512.sources['weight_decay']}; MAE's has it too",
        "no_decay": ADE20K_CONVNEXT_512.sources["no_decay"],
        "layer_decay": "ours: between 0.65 of MAE's 12 blocks and none of Swin, as networks have up to 60 layers",
        "stage_decay_layers": "ours: timm's groups of layers",
        "drop_path_rate": "ours: not all networks have stochastic depth",
        "head_channels": ADE20K_CONVNEXT_512.sources["head_channels"],
        "auxiliary_channels": ADE20K_CONVNEXT_512.sources["auxiliary_channels"],
        "auxiliary_weight": ADE20K_CONVNEXT_512.sources["auxiliary_weight"],
        "test_mode": ADE20K_CONVNEXT_512.sources["test_mode"],
        "slide_stride": ADE20K_CONVNEXT_512.sources["slide_stride"],
        "map_norm": "ours: a norm without weights, none after BatchNorm",
        "window_size": "ours: the network's own attention",
        "precision": ADE20K_CONVNEXT_512.sources["precision"],
        "num_workers": "ours",
    },
    published=None,
    layer_decay=0.9,
    stage_decay_layers=0,
    drop_path_rate=0.0,
    map_norm="plain",
)
