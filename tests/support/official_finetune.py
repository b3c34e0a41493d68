"""Published fine-tunings other than SimMIM's and MAE's, transcribed: what their files say, under their own names.

Sources: amazon-science/semi-vit at 4785cbc; microsoft/unilm (folder beit) at 768a3c8; Westlake-AI/A2MIM at ccca6dc with
Westlake-AI/openmixup at 37e1372; keyu-tian/SparK at a63e386; facebookresearch/ConvNeXt-V2 at 2553895.
"""

from __future__ import annotations

import math
from typing import Any

# FINETUNE.md over main_finetune.py
_SEMIVIT: dict[str, Any] = {
    "input_size": 224,  # line 49
    "gpus": 8,  # --nproc_per_node
    "batch_size": 64,
    "warmup_epochs": 5,  # line 77
    "min_lr": 1e-6,  # line 74
    "clip_grad": None,  # line 62
    "color_jitter": None,  # line 81
    "aa": "rand-m9-mstd0.5-inc1",  # line 83
    "smoothing": 0.1,  # line 85
    "weight_decay": 0.05,
    "ema": 0.0,  # no command but ViT-H's on 10 % has --model_ema
    "num_workers": 10,  # line 150
    "rates": "mae",
}
_NO_MIXING = {"drop_path": 0.0, "reprob": 0.0, "mixup": 0.0, "cutmix": 0.0}
_MIXING = {"drop_path": 0.1, "reprob": 0.25, "mixup": 0.8, "cutmix": 1.0}
SEMIVIT: dict[str, dict[str, Any]] = {
    # FINETUNE.md:5-14, README.md:70
    "fewshot_semivit_vit_b_1pct": {
        **_SEMIVIT,
        **_NO_MIXING,
        "epochs": 100,
        "blr": 0.00005,
        "layer_decay": 0.65,
        "score": "57.4",
    },
    # FINETUNE.md:19-28, README.md:70
    "fewshot_semivit_vit_b_10pct": {
        **_SEMIVIT,
        **_MIXING,
        "epochs": 100,
        "blr": 0.00025,
        "layer_decay": 0.65,
        "score": "73.7",
    },
    # FINETUNE.md:33-42, README.md:72
    "fewshot_semivit_vit_l_1pct": {
        **_SEMIVIT,
        **_NO_MIXING,
        "epochs": 50,
        "blr": 0.001,
        "layer_decay": 0.75,
        "score": "67.1",
    },
    # FINETUNE.md:47-56, README.md:72
    "fewshot_semivit_vit_l_10pct": {
        **_SEMIVIT,
        **_MIXING,
        "epochs": 50,
        "blr": 0.001,
        "layer_decay": 0.75,
        "score": "79.2",
    },
}

# get_started_for_image_classification.md over run_class_finetuning.py
_BEIT: dict[str, Any] = {
    "input_size": 224,  # line 55
    "gpus": 8,  # --nproc_per_node
    "min_lr": 1e-6,  # line 94
    "clip_grad": None,  # no command sets it
    "color_jitter": 0.4,  # line 103
    "aa": "rand-m9-mstd0.5-inc1",  # line 105
    "smoothing": 0.1,  # line 107
    "reprob": 0.25,  # line 116
    "mixup": 0.0,  # line 126
    "cutmix": 0.0,  # line 128
    "ema": 0.0,
    "num_workers": 10,  # line 184
    "rates": "beit",
}
BEIT: dict[str, dict[str, Any]] = {
    # lines 64-69, README.md:71
    "imagenet_beit_vit_b": {
        **_BEIT,
        "batch_size": 128,
        "update_freq": 1,
        "lr": 4e-3,
        "warmup_epochs": 20,
        "epochs": 100,
        "layer_decay": 0.65,
        "drop_path": 0.1,
        "weight_decay": 0.05,
        "mixup": 0.8,
        "cutmix": 1.0,
        "score": "83.7",
    },
    # lines 57-62, README.md:74
    "imagenet_beit_vit_l": {
        **_BEIT,
        "batch_size": 64,
        "update_freq": 2,
        "lr": 1e-3,
        "warmup_epochs": 5,
        "epochs": 50,
        "layer_decay": 0.75,
        "drop_path": 0.2,
        "weight_decay": 0.05,
        "mixup": 0.8,
        "cutmix": 1.0,
        "score": "86.0",
    },
    # lines 45-50, README.md:72
    "imagenet_beit_vit_b_ft22k": {
        **_BEIT,
        "batch_size": 64,
        "update_freq": 1,
        "lr": 2e-5,
        "warmup_epochs": 5,
        "epochs": 30,
        "layer_decay": 0.85,
        "drop_path": 0.1,
        "weight_decay": 1e-8,
        "score": "85.2",
    },
    # lines 29-34, README.md:75
    "imagenet_beit_vit_l_ft22k": {
        **_BEIT,
        "batch_size": 32,
        "update_freq": 2,
        "lr": 2e-5,
        "warmup_epochs": 5,
        "epochs": 30,
        "layer_decay": 0.9,
        "drop_path": 0.4,
        "weight_decay": 1e-8,
        "score": "87.4",
    },
}

# TRAINING.md over main_finetune.py
_CONVNEXTV2: dict[str, Any] = {
    "input_size": 224,  # line 45
    "gpus": 4 * 8,  # --nodes 4 --ngpus 8
    "batch_size": 32,
    "min_lr": 1e-6,  # line 69
    "clip_grad": None,  # line 60
    "color_jitter": None,  # line 89
    "aa": "rand-m9-mstd0.5-inc1",  # line 91
    "weight_decay": 0.05,
    "reprob": 0.25,
    "mixup": 0.8,
    "cutmix": 1.0,
    "smoothing": 0.1,
    "ema": 0.9999,  # line 55
    "num_workers": 10,  # line 165
    "rates": "mae",
}
CONVNEXTV2: dict[str, dict[str, Any]] = {
    # TRAINING.md:45-63, README.md:41
    "imagenet_convnextv2_b": {
        **_CONVNEXTV2,
        "blr": 6.25e-4,
        "epochs": 100,
        "warmup_epochs": 20,
        "layer_decay_type": "group",
        "layer_decay": 0.6,
        "drop_path": 0.1,
        "score": "84.9",
    },
    # TRAINING.md:149-167, README.md:40
    "imagenet_convnextv2_t": {
        **_CONVNEXTV2,
        "blr": 8e-4,
        "epochs": 300,
        "warmup_epochs": 40,
        "layer_decay_type": "single",
        "layer_decay": 0.9,
        "drop_path": 0.2,
        "score": "83.0",
    },
}

# downstream_imagenet/arg.py:13: the names of the columns of lines 15 to 21
_COLUMNS = (
    "bs",
    "epochs",
    "warmup_epochs",
    "opt",
    "blr",
    "layer_decay",
    "weight_decay",
    "mixup",
    "rep_aug",
    "drop_path",
    "ema",
)
_SPARK: dict[str, Any] = {
    "input_size": 224,  # arg.py:35
    "clip_grad": None,  # arg.py:48 (-1); util.py:75 (1e7)
    "color_jitter": 0.4,  # timm's default
    "aa": "trivial",  # data.py:43-46
    "reprob": 0.25,  # data.py:39
    "cutmix": 1.0,  # util.py:82
    "smoothing": 0.1,  # util.py:84
    "crop_pct": 0.95,  # data.py:47
    "num_workers": 8,  # arg.py:36
    "rates": "spark",
}
_SPARK_ROWS: dict[str, tuple[Any, ...]] = {
    "convnext_s": (4096, 400, 20, "adam", 0.0002, 0.7, 0.01, 0.8, 3, 0.3, 0.9999),
    "convnext_b": (4096, 400, 20, "adam", 0.0001, 0.7, 0.01, 0.8, 3, 0.4, 0.9999),
    "resnet50": (2048, 300, 5, "lamb", 0.002, 0.7, 0.02, 0.1, 0, 0.05, 0.9999),
    "resnet101": (2048, 300, 5, "lamb", 0.001, 0.8, 0.02, 0.1, 0, 0.2, 0.9999),
}
# README.md:119-124
_SPARK_SCORES = {
    "resnet50": "80.6",
    "resnet101": "82.2",
    "convnext_s": "84.1",
    "convnext_b": "84.8",
}
SPARK: dict[str, dict[str, Any]] = {
    f"imagenet_spark_{arch}": {
        **_SPARK,
        **dict(zip(_COLUMNS, row, strict=True)),
        "score": _SPARK_SCORES[arch],
    }
    for arch, row in _SPARK_ROWS.items()
}

# configs/openmixup/finetune: imagenet/r50_rsb_a*.py with its bases; README.md:111-112
_A2MIM: dict[str, Any] = {
    "bs": 2048,
    "warmup_epochs": 5,
    "min_lr": 1e-6,
    "warmup_ratio": 1e-5,
    "weight_decay": 0.02,
    "clip_grad": 1.0,  # openmixup/core/optimizers/lamb.py:107
    "opt": "lamb",
    "mixup": 0.1,
    "cutmix": 1.0,
    "smoothing": 0.0,
    "reprob": 0.0,
    "color_jitter": None,
    "layer_decay": 1.0,
    "crop_pct": 224 / 236,
    "test_size": 224,
    "num_workers": 10,
    "rates": "mmcv",
}
A2MIM: dict[str, dict[str, Any]] = {
    "imagenet_resnet50_rsb_a2": {
        **_A2MIM,
        "input_size": 224,
        "epochs": 300,
        "lr": 0.005,
        "drop_path": 0.05,
        "aa": "rand-m7-mstd0.5-inc1",
        "rep_aug": 3,  # RepeatAugSampler's num_repeats
        "ema": 0.9999,
        "score": "80.4",
    },
    "imagenet_resnet50_rsb_a3": {
        **_A2MIM,
        "input_size": 160,
        "epochs": 100,
        "lr": 0.008,
        "drop_path": 0.0,
        "aa": "rand-m6-mstd0.5-inc1",
        "rep_aug": 0,
        "ema": 0.0,
        "score": "78.8",
    },
}
EVERY = {**SEMIVIT, **BEIT, **CONVNEXTV2, **SPARK, **A2MIM}


def images_per_step(found: dict[str, Any]) -> int:
    """Return the total batch size."""
    if "bs" in found:
        return int(found["bs"])
    return int(found["batch_size"] * found["gpus"] * found.get("update_freq", 1))


def peak_lr(found: dict[str, Any]) -> float:
    """Return the learning rate of the whole batch; `blr` is stated for 256 images."""
    return float(found["lr"] if "lr" in found else found["blr"] * images_per_step(found) / 256)


def rate(found: dict[str, Any], step: int, epoch_steps: int) -> float:
    """Return the learning rate of a step, counted from 0, as the closed form of the source's schedule."""
    peak, total = peak_lr(found), found["epochs"] * epoch_steps
    warmup = found["warmup_epochs"] * epoch_steps

    def cosine(low: float, phase: float) -> float:
        return low + (peak - low) * (0.5 + 0.5 * math.cos(math.pi * phase))

    if found["rates"] == "mmcv":  # lr_updater.py of mmcv 1: by_epoch, warmup "linear"
        regular = cosine(found["min_lr"], step // epoch_steps / found["epochs"])
        k = max(1 - step / warmup, 0) * (1 - found["warmup_ratio"])
        return regular * (1 - k)
    if found["rates"] == "spark":  # lr_decay.py:11-17
        if step < warmup:
            return 0.005 * peak + 0.995 * peak * step / warmup
        return cosine(0.001 * peak, (step - warmup) / (total - 1 - warmup))
    if step >= warmup:
        return cosine(found["min_lr"], (step - warmup) / (total - warmup))
    if found["rates"] == "beit":  # utils.py:390: np.linspace(0, peak, warmup)
        return peak * step / (warmup - 1)
    return peak * step / warmup  # lr_sched.py:16 of Semi-ViT, utils.py:534 of ConvNeXt V2


def spark_resnet_exponent(name: str, depths: tuple[int, ...]) -> int:
    """Return the power of the layer decay of timm's parameter (models/__init__.py:43-82)."""
    per2, per3 = {(4, 6): (2, 3), (4, 23): (2, 3), (8, 36): (4, 4), (24, 36): (4, 4)}[
        depths[1], depths[2]
    ]
    n2, n3 = -(-depths[1] // per2), -(-depths[2] // per3)
    last = 2 + n2 + n3
    layer = 0
    if name.startswith("layer"):
        stage, block = int(name[5]), int(name.split(".")[1])
        layer = {1: 1, 2: 2 + block // per2, 3: 2 + n2 + block // per3, 4: last}[stage]
    elif name.startswith("fc."):
        layer = last + 1
    return last + 1 - layer


def convnext_group_exponent(name: str, depths: tuple[int, ...]) -> int:
    """Return the power of the layer decay of ConvNeXt's parameter.

    SparK: models/__init__.py:18-40; ConvNeXt V2: optim_factory.py:51-79 and main_finetune.py:316-321.
    """
    last = 12 if depths[2] > 9 else 6
    parts = name.split(".")
    if parts[0] == "downsample_layers":
        layer = {0: 0, 1: 2, 2: 3, 3: last}[int(parts[1])]
    elif parts[0] == "stages":
        stage, block = int(parts[1]), int(parts[2])
        layer = {0: 1, 1: 2, 2: 3 + block // 3, 3: last}[stage]
    else:
        layer = last + 1
    return last + 1 - layer


def convnextv2_single_exponent(name: str, depths: tuple[int, ...]) -> int:
    """Return the power of the layer decay of ConvNeXt V2's parameter (optim_factory.py:32-48, main_finetune.py:319)."""
    parts = name.split(".")
    if parts[0] == "downsample_layers":
        layer = sum(depths[: int(parts[1])]) + 1
    elif parts[0] == "stages":
        layer = sum(depths[: int(parts[1])]) + int(parts[2]) + 1
    else:
        layer = sum(depths) + 1
    return sum(depths) + 1 - layer


def beit_exponent(name: str, depth: int) -> int:
    """Return the power of the layer decay of BEiT's, MAE's and SimMIM's ViT.

    BEiT: optim_factory.py:33-44; SimMIM: optimizer.py:109-120; Semi-ViT: util/lr_decay.py:60-72.
    """
    layer = depth + 1
    if name in ("cls_token", "mask_token", "pos_embed") or name.startswith("patch_embed"):
        layer = 0
    elif name.startswith("blocks"):
        layer = int(name.split(".")[1]) + 1
    return depth + 1 - layer


def swin_exponent(name: str, depths: tuple[int, ...]) -> int:
    """Return the power of the layer decay of SimMIM's Swin (optimizer.py:123-136)."""
    layer = sum(depths) + 1
    parts = name.split(".")
    if name.startswith("patch_embed"):
        layer = 0
    elif name.startswith("layers"):
        stage = int(parts[1])
        if parts[3] in ("reduction", "norm"):
            layer = sum(depths[: stage + 1])
        else:
            layer = sum(depths[:stage]) + int(parts[3]) + 1
    return sum(depths) + 1 - layer
