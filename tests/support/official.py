"""The official configurations, transcribed: what their files say, under their own names.

Sources: microsoft/SimMIM at d3e29bca, configs/*/*.yaml over the defaults of config.py; the folder
configs/simmim of microsoft/Swin-Transformer at f82860bf for Swin V2. Scores: SimMIM's README.md, table
of main results. Parameter counts: counted on SimMIM's models at that commit.
"""

from __future__ import annotations

from typing import Any

# config.py, what no yaml file below changes
DEFAULTS: dict[str, Any] = {
    "DATA.BATCH_SIZE": 128,  # a GPU; README.md trains on 16
    "DATA.INTERPOLATION": "bicubic",
    "DATA.NUM_WORKERS": 8,
    "TRAIN.CLIP_GRAD": 5.0,
    "TRAIN.WEIGHT_DECAY": 0.05,
    "TRAIN.MIN_LR": 5e-6,
    "TRAIN.LR_SCHEDULER.NAME": "cosine",
    "TRAIN.LR_SCHEDULER.GAMMA": 0.1,
    "TRAIN.LR_SCHEDULER.MULTISTEPS": (),
    "TRAIN.LR_SCHEDULER.WARMUP_PREFIX": False,  # SimMIM has no such key: timm's default
    "TRAIN.OPTIMIZER.NAME": "adamw",
    "TRAIN.OPTIMIZER.BETAS": (0.9, 0.999),
    "MODEL.LABEL_SMOOTHING": 0.1,
    "AUG.COLOR_JITTER": 0.4,
    "AUG.AUTO_AUGMENT": "rand-m9-mstd0.5-inc1",
    "AUG.REPROB": 0.25,
    "AUG.MIXUP": 0.8,
    "AUG.CUTMIX": 1.0,
    "TEST.CROP": True,
}

_PRETRAIN_800 = {
    "DATA.MASK_PATCH_SIZE": 32,
    "DATA.MASK_RATIO": 0.6,
    "TRAIN.EPOCHS": 800,
    "TRAIN.WARMUP_EPOCHS": 10,
    "TRAIN.BASE_LR": 1e-4,
    "TRAIN.WARMUP_LR": 5e-7,
    "TRAIN.LR_SCHEDULER.NAME": "multistep",
    "TRAIN.LR_SCHEDULER.MULTISTEPS": (700,),
}
_FINETUNE = {
    "TRAIN.EPOCHS": 100,
    "TRAIN.WARMUP_EPOCHS": 20,
    "TRAIN.BASE_LR": 1.25e-3,
    "TRAIN.WARMUP_LR": 2.5e-7,
    "TRAIN.MIN_LR": 2.5e-7,
}
_SWIN_B = {"EMBED_DIM": 128, "DEPTHS": (2, 2, 18, 2), "NUM_HEADS": (4, 8, 16, 32)}
_SWIN_L = {"EMBED_DIM": 192, "DEPTHS": (2, 2, 18, 2), "NUM_HEADS": (6, 12, 24, 48)}
_VIT_B = {"EMBED_DIM": 768, "DEPTHS": (12,), "NUM_HEADS": (12,)}

# our recipe -> the yaml file's numbers
PRETRAIN: dict[str, dict[str, Any]] = {
    "swin_b_100ep": {
        **_PRETRAIN_800,
        **_SWIN_B,
        "DATA.IMG_SIZE": 192,
        "WINDOW_SIZE": 6,
        "MODEL.DROP_PATH_RATE": 0.0,
        "TRAIN.EPOCHS": 100,
        "TRAIN.BASE_LR": 2e-4,
        "TRAIN.WARMUP_LR": 1e-6,
        "TRAIN.MIN_LR": 1e-5,
        "TRAIN.LR_SCHEDULER.NAME": "cosine",
        "TRAIN.LR_SCHEDULER.MULTISTEPS": (),
    },
    "swin_b_800ep": {
        **_PRETRAIN_800,
        **_SWIN_B,
        "DATA.IMG_SIZE": 192,
        "WINDOW_SIZE": 6,
        "MODEL.DROP_PATH_RATE": 0.0,
    },
    "swin_l_800ep": {
        **_PRETRAIN_800,
        **_SWIN_L,
        "DATA.IMG_SIZE": 192,
        "WINDOW_SIZE": 12,
        "MODEL.DROP_PATH_RATE": 0.0,
    },
    "vit_b_800ep": {
        **_PRETRAIN_800,
        **_VIT_B,
        "DATA.IMG_SIZE": 224,
        "WINDOW_SIZE": None,
        "MODEL.DROP_PATH_RATE": 0.1,
    },
    "swinv2_b_800ep": {
        **_PRETRAIN_800,
        **_SWIN_B,
        "DATA.IMG_SIZE": 192,
        "WINDOW_SIZE": 12,
        "MODEL.DROP_PATH_RATE": 0.1,
        "MODEL.SIMMIM.NORM_TARGET.PATCH_SIZE": 47,
    },
}
FINETUNE: dict[str, dict[str, Any]] = {
    "imagenet_swin_b_100ep_img192": {
        **_FINETUNE,
        "DATA.IMG_SIZE": 192,
        "WINDOW_SIZE": 6,
        "MODEL.DROP_PATH_RATE": 0.1,
        "TRAIN.LAYER_DECAY": 0.9,
    },
    "imagenet_swin_b_100ep": {
        **_FINETUNE,
        "DATA.IMG_SIZE": 224,
        "WINDOW_SIZE": 7,
        "MODEL.DROP_PATH_RATE": 0.1,
        "TRAIN.LAYER_DECAY": 0.9,
    },
    "imagenet_swin_b_800ep": {
        **_FINETUNE,
        "DATA.IMG_SIZE": 224,
        "WINDOW_SIZE": 7,
        "MODEL.DROP_PATH_RATE": 0.1,
        "TRAIN.LAYER_DECAY": 0.8,
    },
    "imagenet_swin_l_800ep": {
        **_FINETUNE,
        "DATA.IMG_SIZE": 224,
        "WINDOW_SIZE": 14,
        "MODEL.DROP_PATH_RATE": 0.2,
        "TRAIN.LAYER_DECAY": 0.7,
    },
    "imagenet_vit_b_800ep": {
        **_FINETUNE,
        "DATA.IMG_SIZE": 224,
        "WINDOW_SIZE": None,
        "MODEL.DROP_PATH_RATE": 0.1,
        "TRAIN.LAYER_DECAY": 0.65,
    },
    # Swin-Transformer: config.py:178. imagenet_swinv2_b_800ep differs in that one number.
    "imagenet_swinv2_b_800ep_prefix": {
        **_FINETUNE,
        "TRAIN.LR_SCHEDULER.WARMUP_PREFIX": True,
        "DATA.IMG_SIZE": 224,
        "WINDOW_SIZE": 14,
        "MODEL.DROP_PATH_RATE": 0.1,
        "TRAIN.LAYER_DECAY": 0.75,
    },
}
# (pretraining, fine-tuning) -> ImageNet top-1
SCORES = {
    ("swin_b_100ep", "imagenet_swin_b_100ep_img192"): "82.8",
    ("swin_b_100ep", "imagenet_swin_b_100ep"): "83.5",
    ("swin_b_800ep", "imagenet_swin_b_800ep"): "84.0",
    ("swin_l_800ep", "imagenet_swin_l_800ep"): "85.4",
    ("vit_b_800ep", "imagenet_vit_b_800ep"): "83.8",
}
