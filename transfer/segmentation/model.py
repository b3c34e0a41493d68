"""UPerNet, or a linear head, built from MMSegmentation's parts on a checkpoint's backbone."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from mmengine.config import ConfigDict
from mmengine.model import is_model_wrapper
from mmseg.models import EncoderDecoder, SegDataPreProcessor
from torch import nn

from simmim_bench.checkpoints.checkpoint import Checkpoint
from transfer.mmseg_backbone import SimMIMBackbone, pyramid_rescales
from transfer.segmentation.data import IGNORED
from transfer.segmentation.recipes import Ade20kRecipe


def build_segmentor(
    checkpoint: Checkpoint, recipe: Ade20kRecipe, classes: int, seed: int, *, synced: bool = False
) -> EncoderDecoder:
    """Build the recipe's model on a checkpoint's backbone; heads are drawn from the seed.

    Args:
        synced: normalise over the batches of all processes, as the published configs do; on GPUs only.
    """
    norm = {"type": "SyncBN" if synced else "BN", "requires_grad": True}
    spec = checkpoint.spec
    levels = spec.feature_levels
    head = {
        "num_classes": classes,
        "dropout_ratio": 0.1,
        "norm_cfg": norm,
        "align_corners": False,
    }
    height, width = recipe.img_size
    sliding = {"crop_size": (height, width), "stride": (height * 2 // 3, width * 2 // 3)}
    config = {
        "data_preprocessor": {
            "type": SegDataPreProcessor,
            "mean": [255 * value for value in checkpoint.mean],
            "std": [255 * value for value in checkpoint.std],
            "bgr_to_rgb": True,
            "pad_val": 0,
            "seg_pad_val": IGNORED,
            "size": recipe.img_size,
        },
        "backbone": {
            "type": SimMIMBackbone,
            "ckpt": checkpoint,
            "img_size": recipe.img_size,
            "window_size": recipe.window_size,
            "drop_path_rate": recipe.drop_path_rate,
            "seed": seed,
        },
        "neck": {
            "type": "Feature2Pyramid",
            "embed_dim": spec.embed_dim,
            "rescales": list(pyramid_rescales(spec)),
            "norm_cfg": norm,
        }
        if spec.family == "vit" and recipe.head == "upernet"
        else None,
        "decode_head": {
            **head,
            "in_channels": [level.channels for level in levels],
            "in_index": list(range(len(levels))),
            "loss_decode": {"type": "CrossEntropyLoss", "loss_weight": 1.0},
            **(
                {
                    "type": "UPerHead",
                    "pool_scales": (1, 2, 3, 6),
                    "channels": recipe.head_channels,
                }
                if recipe.head == "upernet"
                else {
                    "type": "FCNHead",
                    "input_transform": "resize_concat",
                    "num_convs": 0,
                    "concat_input": False,
                    "channels": sum(level.channels for level in levels),
                    "dropout_ratio": 0.0,
                }
            ),
        },
        "auxiliary_head": {
            "type": "FCNHead",
            "in_channels": levels[2].channels,
            "in_index": 2,
            "channels": recipe.head_channels // 2,
            "num_convs": 1,
            "concat_input": False,
            "loss_decode": {"type": "CrossEntropyLoss", "loss_weight": recipe.auxiliary_weight},
            **head,
        }
        if recipe.auxiliary_weight
        else None,
        "train_cfg": {},
        # Attributes of this one are asked for, which a dict does not have.
        "test_cfg": ConfigDict(
            mode=recipe.test_mode, **(sliding if recipe.test_mode == "slide" else {})
        ),
    }
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # The published configs average the loss over ignored pixels too, of which each loss warns.
        warnings.filterwarnings("ignore", message="Default ``avg_non_ignore``")
        torch.manual_seed(seed)
        model = EncoderDecoder(**config)
    if recipe.head == "linear":
        model.backbone.requires_grad_(False)
    if synced:
        nn.SyncBatchNorm.convert_sync_batchnorm(model.backbone)
    return model


def unwrapped(model: nn.Module) -> Any:
    """Give the model itself."""
    return model.module if is_model_wrapper(model) else model
