"""DINOv2's linear segmentation on ADE20K: a batch norm and a linear layer on frozen patch tokens.

facebookresearch/dinov2 (at b8931f7b) has the head, and its notebook the loading; the config is published beside the
head's weights (dinov2_vitb14_ade20k_linear_config.py) and was read in a copy.
"""

from __future__ import annotations

from dataclasses import replace

from transfer.segmentation.mmseg_recipes import ADE20K_MAE_VIT_B

_CONFIG = "DINOv2: dinov2_vitb14/dinov2_vitb14_ade20k_linear_config.py"
_HEAD = "facebookresearch/dinov2: dinov2/eval/segmentation/models/decode_heads/linear_head.py"

ADE20K_DINOV2_LINEAR = replace(
    ADE20K_MAE_VIT_B,
    name="ade20k_dinov2_linear",
    source=_CONFIG,
    sources={
        # The norm's scale and shift per channel have no effect before a batch norm of the same channels.
        "map_norm": "DINOv2 takes the last block's tokens after the final LayerNorm; here it has no weights, which "
        "are without effect before the batch norm",
        "linear_maps": f"{_CONFIG} (in_index=[3] of the last four blocks)",
        "linear_norm": f"{_HEAD}:21, 38; a batch norm of all processes' images",
        "lr_rule": "MMCV 1.x: mmcv/runner/hooks/lr_updater.py (before_train_iter, PolyLrUpdaterHook)",
        "no_decay": f"{_CONFIG} (optimizer has no paramwise_cfg)",
        "precision": f"{_CONFIG} (use_fp16=False)",
        "num_workers": "ours",
    },
    published=None,
    max_iters=40000,
    lr_rule="mmcv",
    base_lr=1e-3,
    weight_decay=1e-4,
    no_decay="nothing",
    layer_decay=1.0,
    drop_path_rate=0.0,
    auxiliary_weight=0.0,
    auxiliary_channels=None,
    head="linear",
    linear_maps="last",
    linear_norm=True,
    map_blocks=(),
    map_norm="plain",
    rel_pos="own",
    layer_scale=None,
    precision="fp32",
)
