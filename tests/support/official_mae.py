"""MAE's fine-tuning, transcribed: what its files say, under its own names.

Source: facebookresearch/mae at efb2a80, FINETUNE.md (the three commands) over the defaults of main_finetune.py.
"""

from __future__ import annotations

import math
from typing import Any

# main_finetune.py, what no command below changes
DEFAULTS: dict[str, Any] = {
    "input_size": 224,  # line 54
    "clip_grad": None,  # line 61
    "min_lr": 1e-6,  # line 73
    "warmup_epochs": 5,  # line 76
    "color_jitter": None,  # line 80
    "aa": "rand-m9-mstd0.5-inc1",  # line 82
    "smoothing": 0.1,  # line 84
    "num_workers": 10,  # line 141
}
FINETUNE: dict[str, dict[str, Any]] = {
    "imagenet_mae_vit_b": {  # FINETUNE.md:65-74
        **DEFAULTS,
        "nodes": 4,
        "batch_size": 32,
        "epochs": 100,
        "blr": 5e-4,
        "layer_decay": 0.65,
        "weight_decay": 0.05,
        "drop_path": 0.1,
        "reprob": 0.25,
        "mixup": 0.8,
        "cutmix": 1.0,
    },
    "imagenet_mae_vit_l": {  # FINETUNE.md:84-93
        **DEFAULTS,
        "nodes": 4,
        "batch_size": 32,
        "epochs": 50,
        "blr": 1e-3,
        "layer_decay": 0.75,
        "weight_decay": 0.05,
        "drop_path": 0.2,
        "reprob": 0.25,
        "mixup": 0.8,
        "cutmix": 1.0,
    },
    "imagenet_mae_vit_h": {  # FINETUNE.md:100-109
        **DEFAULTS,
        "nodes": 8,
        "batch_size": 16,
        "epochs": 50,
        "blr": 1e-3,
        "layer_decay": 0.75,
        "weight_decay": 0.05,
        "drop_path": 0.3,
        "reprob": 0.25,
        "mixup": 0.8,
        "cutmix": 1.0,
    },
}
GPUS_PER_NODE = 8  # FINETUNE.md:63
# recipe -> "reference ImageNet accuracy" (FINETUNE.md:27)
SCORES = {
    "imagenet_mae_vit_b": "83.664",
    "imagenet_mae_vit_l": "85.952",
    "imagenet_mae_vit_h": "86.928",
}


def images_per_step(found: dict[str, Any]) -> int:
    """Return the total batch size (FINETUNE.md:77)."""
    total: int = found["batch_size"] * found["nodes"] * GPUS_PER_NODE
    return total


def peak_lr(found: dict[str, Any]) -> float:
    """Return the learning rate for the total batch size (FINETUNE.md:78, main_finetune.py:270)."""
    peak: float = found["blr"] * images_per_step(found) / 256
    return peak


def rate(found: dict[str, Any], epoch: float, lr_scale: float) -> float:
    """Return the rate of a group, as a closed form of util/lr_sched.py:9-21.

    Args:
        epoch: completed epochs before the step, with their fraction (engine_finetune.py:47).
    """
    peak, low, warmup = peak_lr(found), found["min_lr"], found["warmup_epochs"]
    if epoch < warmup:
        return peak * epoch / warmup * lr_scale
    phase = (epoch - warmup) / (found["epochs"] - warmup)
    return (low + (peak - low) * 0.5 * (1 + math.cos(math.pi * phase))) * lr_scale
