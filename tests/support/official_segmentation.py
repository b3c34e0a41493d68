"""Published segmentation configs that no installed package has, transcribed under their own names.

Sources: microsoft/unilm at 768a3c87, beit/semantic_segmentation/configs (line numbers of the file that a comment
names, else of beit/upernet/upernet_beit_base_12_512_slide_160k_ade20k_pt.py), and DINOv2's
dinov2_vitb14_ade20k_linear_config.py, which is published beside the head's weights and was read in a copy.
"""

from __future__ import annotations

from typing import Any

_BEIT: dict[str, Any] = {
    "crop_size": (512, 512),  # line 18
    "img_scale": (2048, 512),  # _base_/datasets/ade20k.py:10, 23
    "ratio_range": (0.5, 2.0),  # _base_/datasets/ade20k.py:10
    "cat_max_ratio": 0.75,  # _base_/datasets/ade20k.py:11
    "flip_prob": 0.5,  # _base_/datasets/ade20k.py:12
    "use_rel_pos_bias": True,  # line 31
    "drop_path_rate": 0.1,  # line 33
    "out_indices": [3, 5, 7, 11],  # line 34
    "channels": 768,  # line 39
    "aux_channels": 256,  # _base_/models/upernet_beit.py:44
    "aux_loss_weight": 0.4,  # _base_/models/upernet_beit.py:52
    "dropout_ratio": 0.1,  # _base_/models/upernet_beit.py:34, 47
    "test_cfg": {"mode": "slide", "crop_size": (512, 512), "stride": (341, 341)},  # line 45
    "lr": 7e-4,  # line 54
    "betas": (0.9, 0.999),  # line 54
    "weight_decay": 0.05,  # line 54
    "layer_decay_rate": 0.65,  # line 56
    "warmup_iters": 1500,  # line 60
    "warmup_ratio": 1e-6,  # line 61
    "power": 1.0,  # line 62
    "min_lr": 0.0,  # line 62
    "samples_per_gpu": 2,  # line 65, on 8 GPUs
    "grad_clip": None,  # line 74
    "update_interval": 1,  # line 73
    "use_fp16": True,  # line 77
    "max_iters": 160000,  # _base_/schedules/schedule_160k.py:7
}
_BEIT_LARGE = {
    **_BEIT,
    "drop_path_rate": 0.2,  # upernet_beit_large_24_512_slide_160k_ade20k_pt2ft.py:33
    "out_indices": [7, 11, 15, 23],  # :34
    "channels": 1024,  # :39
    "lr": 2e-5,  # :54
    "layer_decay_rate": 0.95,  # :56
}

BEIT: dict[str, dict[str, Any]] = {
    "ade20k_beit_vit_b_512_pt": _BEIT,
    "ade20k_beit_vit_b_512_pt2ft": {
        **_BEIT,
        "lr": 3e-5,  # upernet_beit_base_12_512_slide_160k_ade20k_pt2ft.py:54
        "layer_decay_rate": 0.9,  # :56
    },
    "ade20k_beit_vit_l_512_pt2ft": _BEIT_LARGE,
    "ade20k_beit_vit_l_640": {
        **_BEIT_LARGE,
        "crop_size": (640, 640),  # upernet_beit_large_24_640_slide_160k_ade20k_pt2ft.py:19
        "img_scale": (2560, 640),  # _base_/datasets/ade20k_640x640.py:10, 23
        "test_cfg": {"mode": "slide", "crop_size": (640, 640), "stride": (426, 426)},  # :46
        "warmup_iters": 3000,  # :61
        "samples_per_gpu": 1,  # :66
        "update_interval": 2,  # :75
        "max_iters": 320000,  # _base_/schedules/schedule_320k.py:7
    },
}

DINOV2_LINEAR: dict[str, Any] = {
    "crop_size": (512, 512),
    "img_scale": (2048, 512),
    "ratio_range": (0.5, 2.0),
    "cat_max_ratio": 0.75,
    "flip_prob": 0.5,
    "in_index": [3],
    "channels": 768,
    "dropout_ratio": 0,
    "test_cfg": {"mode": "slide", "crop_size": (512, 512), "stride": (341, 341)},
    "lr": 1e-3,
    "betas": (0.9, 0.999),
    "weight_decay": 1e-4,
    "warmup_iters": 1500,
    "warmup_ratio": 1e-6,
    "power": 1.0,
    "min_lr": 0.0,
    "samples_per_gpu": 2,  # on 8 GPUs (gpu_ids)
    "grad_clip": None,
    "update_interval": 1,
    "use_fp16": False,
    "max_iters": 40000,
}


def poly_lr(config: dict[str, Any], iteration: int) -> float:
    """Return MMCV 1.x's rate of an iteration: a polynomial from iteration 0, times a linear warm-up.

    Source: mmcv/runner/hooks/lr_updater.py, PolyLrUpdaterHook.get_lr and LrUpdaterHook.get_warmup_lr.
    """
    progress = iteration / config["max_iters"]
    regular = (config["lr"] - config["min_lr"]) * (1 - progress) ** config["power"]
    regular += config["min_lr"]
    if iteration >= config["warmup_iters"]:
        return float(regular)
    cut = (1 - iteration / config["warmup_iters"]) * (1 - config["warmup_ratio"])
    return float(regular * (1 - cut))
