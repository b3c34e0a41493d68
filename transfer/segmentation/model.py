"""Build UPerNet, or a linear head, from MMSegmentation's modules on a checkpoint's backbone.

Follows UPerNet (arXiv 1807.10221) as MMSegmentation configures it for MAE and Swin. The framework's config dicts are
built here and used nowhere else.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from mmcv.cnn import build_norm_layer
from mmengine.config import ConfigDict
from mmengine.model import is_model_wrapper
from mmseg.models import EncoderDecoder
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn

from simmim_bench.checkpoints.checkpoint import Checkpoint
from simmim_bench.models.spec import BackboneSpec
from transfer.mmseg_backbone import SimMIMBackbone, SimMIMDataPreProcessor, pyramid_rescales
from transfer.segmentation.label_maps import IGNORED
from transfer.segmentation.recipes import Ade20kRecipe

Config = dict[str, Any]


class NormedLinearHead(BaseDecodeHead):
    """DINOv2's head: a batch norm and a 1x1 convolution."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.norm = build_norm_layer(self.norm_cfg, self.in_channels)[1]

    def forward(self, maps: tuple[Tensor, ...]) -> Tensor:
        """Map the backbone's maps (B, C, h, w) to logits (B, K, h, w)."""
        logits: Tensor = self.cls_seg(self.norm(self._transform_inputs(maps)))
        return logits


def build_segmentor(
    checkpoint: Checkpoint, recipe: Ade20kRecipe, classes: int, seed: int, *, synced: bool = False
) -> EncoderDecoder:
    """Build the recipe's model on a checkpoint's backbone.

    Args:
        classes: number of classes K; the logits are (B, K, H, W).
        seed: initialises the heads, and the weights that the checkpoint does not have.
        synced: normalise over the batches of all processes, as the published configs do; on GPUs only.
    """
    norm = {"type": "SyncBN" if synced else "BN", "requires_grad": True}
    spec = checkpoint.spec.at(recipe.img_size, patch_size=recipe.patch_size)
    spec = spec.with_maps(recipe.maps, trained=checkpoint.spec)
    config = {
        "data_preprocessor": build_preprocessor(checkpoint, recipe),
        "backbone": _backbone_config(checkpoint, recipe, seed),
        "neck": _neck_config(spec, recipe, norm),
        "decode_head": _decode_head_config(spec, recipe, classes, norm),
        "auxiliary_head": _auxiliary_head_config(spec, recipe, classes, norm),
        "train_cfg": {},
        "test_cfg": _test_config(recipe),
    }
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # The published configs average the loss over ignored pixels too; every loss warns of it.
        warnings.filterwarnings("ignore", message="Default ``avg_non_ignore``")
        torch.manual_seed(seed)
        model = EncoderDecoder(**config)
    if recipe.head == "linear":
        model.backbone.requires_grad_(False)
    if synced:
        convert_sync_batchnorm(model.backbone)  # with the activation of timm's BatchNormAct2d
    return model


def build_preprocessor(checkpoint: Checkpoint, recipe: Ade20kRecipe) -> SimMIMDataPreProcessor:
    """Build what normalises the loaders' images, and pads those of training to the recipe's crop."""
    return SimMIMDataPreProcessor(
        checkpoint,
        unit=checkpoint.pixel_format.decoded_unit,
        pad_val=0,
        seg_pad_val=IGNORED,
        size=recipe.img_size,
    )


def _backbone_config(checkpoint: Checkpoint, recipe: Ade20kRecipe, seed: int) -> Config:
    return {
        "type": SimMIMBackbone,
        "ckpt": checkpoint,
        "img_size": recipe.img_size,
        "window_size": recipe.window_size,
        "drop_path_rate": recipe.drop_path_rate,
        "seed": seed,
        "maps": recipe.maps,
    }


def _neck_config(spec: BackboneSpec, recipe: Ade20kRecipe, norm: Config) -> Config | None:
    """Return the feature pyramid of a ViT; other backbones have maps of several strides already."""
    if not spec.is_plain or recipe.head != "upernet":
        return None
    return {
        "type": "Feature2Pyramid",
        "embed_dim": spec.embed_dim,
        "rescales": list(pyramid_rescales(spec)),
        "norm_cfg": norm,
    }


def _decode_head_config(
    spec: BackboneSpec, recipe: Ade20kRecipe, classes: int, norm: Config
) -> Config:
    channels = [level.channels for level in spec.feature_levels]
    config: Config = {
        **_common_head_config(classes, norm),
        "in_channels": channels,
        "in_index": list(range(len(channels))),
        "loss_decode": {"type": "CrossEntropyLoss", "loss_weight": 1.0},
    }
    if recipe.head == "upernet":
        return {
            **config,
            "type": "UPerHead",
            "pool_scales": (1, 2, 3, 6),
            "channels": recipe.head_channels,
        }
    first = len(channels) - 1 if recipe.linear_maps == "last" else 0
    config |= {
        "in_channels": channels[first:],
        "in_index": list(range(first, len(channels))),
        "input_transform": "resize_concat",
        "channels": sum(channels[first:]),
        "dropout_ratio": 0.0,
    }
    if recipe.linear_norm:
        return {**config, "type": NormedLinearHead}
    return {**config, "type": "FCNHead", "num_convs": 0, "concat_input": False}


def _auxiliary_head_config(
    spec: BackboneSpec, recipe: Ade20kRecipe, classes: int, norm: Config
) -> Config | None:
    if not recipe.auxiliary_weight:
        return None
    level = max(0, len(spec.feature_levels) - 2)
    return {
        **_common_head_config(classes, norm),
        "type": "FCNHead",
        "in_channels": spec.feature_levels[level].channels,
        "in_index": level,
        "channels": recipe.auxiliary_channels or recipe.head_channels // 2,
        "num_convs": 1,
        "concat_input": False,
        "loss_decode": {"type": "CrossEntropyLoss", "loss_weight": recipe.auxiliary_weight},
    }


def _common_head_config(classes: int, norm: Config) -> Config:
    return {
        "num_classes": classes,
        "dropout_ratio": 0.1,
        "norm_cfg": norm,
        "align_corners": False,
    }


def _test_config(recipe: Ade20kRecipe) -> ConfigDict:
    """Return how an image is predicted, as a ConfigDict: EncoderDecoder reads its attributes."""
    if recipe.test_mode == "whole":
        return ConfigDict(mode="whole")
    height, width = recipe.img_size
    stride = recipe.slide_stride or (height * 2 // 3, width * 2 // 3)
    return ConfigDict(mode="slide", crop_size=(height, width), stride=stride)


def unwrap(model: nn.Module) -> Any:
    """Return the model itself, without the wrapper of distributed training."""
    return model.module if is_model_wrapper(model) else model
