"""Recipes of ADE20K segmentation, each number with its source.

Learning rates are for the recipe's own batch, as the papers give them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from simmim_bench.recipe import Precision, Recipe, check_positive


@dataclass(frozen=True, kw_only=True)
class Ade20kRecipe(Recipe):
    """UPerNet, or a linear classifier of frozen maps, through MMSegmentation.

    Attributes:
        img_size: (H, W) of the training crop; images are resized by a factor of `scale_range` of
            what covers it. Test images are resized to cover it.
        max_iters, warmup_iters: optimizer steps; the rate falls by a polynomial of power 1.
        batch_size: images a step, in total.
        base_lr: for this batch, of the last layer.
        clip_grad: largest norm of the gradient; 0 for no clipping.
        photometric: distort brightness, contrast, saturation and hue while training.
        head: "upernet", or "linear": a 1x1 convolution of the backbone's maps, resized to the finest and
            put together, while the backbone is frozen.
        head_channels: width of UPerNet; the auxiliary FCN head has half of it.
        auxiliary_weight: weight of the auxiliary head's loss; 0 for no such head.
        test_mode: predict an image "whole", or "slide" a window of `img_size` over it by two thirds
            of its side, and take the mean of the logits.
        test_scales: an image is predicted at these multiples of its test size, the probabilities averaged.
        test_flip: and at each of them mirrored as well.
    """

    img_size: tuple[int, int]
    scale_range: tuple[float, float]
    max_iters: int
    warmup_iters: int
    batch_size: int
    base_lr: float
    weight_decay: float
    layer_decay: float
    drop_path_rate: float
    clip_grad: float
    photometric: bool
    head_channels: int
    auxiliary_weight: float
    test_mode: Literal["whole", "slide"]
    head: Literal["upernet", "linear"] = "upernet"
    test_scales: tuple[float, ...] = (1.0,)
    test_flip: bool = False
    window_size: int | None = None
    precision: Precision = "auto"
    num_workers: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "img_size", "max_iters", "batch_size", "base_lr", "test_scales")

    @property
    def views(self) -> int:
        """How often a test image is predicted."""
        return len(self.test_scales) * (1 + self.test_flip)


ADE20K_VIT_160K = Ade20kRecipe(
    name="ade20k_vit_160k",
    # SimMIM gives no ViT on ADE20K; this is what MAE's ViT-B scores 48.1 with there.
    source="MMSegmentation: configs/mae/mae-base_upernet_8xb2-amp-160k_ade20k-512x512.py",
    img_size=(512, 512),
    scale_range=(0.5, 2.0),
    max_iters=160000,
    warmup_iters=1500,
    batch_size=16,
    base_lr=1e-4,
    weight_decay=0.05,
    layer_decay=0.65,
    drop_path_rate=0.1,
    clip_grad=0.0,
    photometric=True,
    head_channels=768,
    auxiliary_weight=0.4,
    test_mode="slide",
    num_workers=8,
)


ADE20K_SWIN_160K = replace(
    ADE20K_VIT_160K,
    name="ade20k_swin_160k",
    # SimMIM's own 52.8 to 54.2 on ADE20K are of several scales and not comparable.
    source="MMSegmentation: configs/swin/swin-base-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py",
    base_lr=6e-5,
    weight_decay=0.01,
    layer_decay=1.0,
    drop_path_rate=0.3,
    head_channels=512,
    test_mode="whole",
)


ADE20K_CONVNEXT_160K = replace(
    ADE20K_VIT_160K,
    name="ade20k_convnext_160k",
    source="MMSegmentation: configs/convnext/convnext-base_upernet_8xb2-amp-160k_ade20k-512x512.py",
    sources={"layer_decay": "ours: 0.9 there, of groups of three blocks; here its cube root"},
    layer_decay=0.9 ** (1 / 3),
    drop_path_rate=0.4,
    head_channels=512,
)


ADE20K_RESNET50_160K = replace(
    ADE20K_SWIN_160K,
    name="ade20k_resnet50_160k",
    source="ours: as ade20k_swin_160k with AdamW 1e-4 and no dropped paths; MMSegmentation's ResNets learn by SGD",
    base_lr=1e-4,
    drop_path_rate=0.0,
)


_SEVERAL_SCALES = "MMSegmentation: configs/_base_/datasets/ade20k.py (tta_pipeline)"


ADE20K_VIT_160K_MS = replace(
    ADE20K_VIT_160K,
    name="ade20k_vit_160k_ms",
    test_scales=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75),
    test_flip=True,
    sources={"test_scales": _SEVERAL_SCALES, "test_flip": _SEVERAL_SCALES},
)


ADE20K_SWIN_160K_MS = replace(
    ADE20K_SWIN_160K,
    name="ade20k_swin_160k_ms",
    test_scales=ADE20K_VIT_160K_MS.test_scales,
    test_flip=True,
    sources=ADE20K_VIT_160K_MS.sources,
)


ADE20K_LINEAR = replace(
    ADE20K_VIT_160K,
    name="ade20k_linear",
    source="DINOv2, arXiv 2304.07193, section 7.4: a linear layer on frozen patch tokens, AdamW 1e-3, 40k "
    "iterations of 16 images; here of all maps",
    max_iters=40000,
    base_lr=1e-3,
    weight_decay=1e-4,
    layer_decay=1.0,
    drop_path_rate=0.0,
    auxiliary_weight=0.0,
    head="linear",
)


ADE20K_POCKET = Ade20kRecipe(
    name="ade20k_pocket",
    source="ours: three hundred pictures of 64 pixels, a CPU, a minute",
    img_size=(64, 64),
    scale_range=(0.8, 1.25),
    max_iters=300,
    warmup_iters=30,
    batch_size=8,
    base_lr=2e-3,
    weight_decay=0.05,
    layer_decay=1.0,
    drop_path_rate=0.0,
    clip_grad=1.0,
    photometric=False,
    head_channels=64,
    auxiliary_weight=0.4,
    test_mode="whole",
)


ADE20K_SMALL = replace(
    ADE20K_POCKET,
    name="ade20k_small",
    source="ours: street scenes by the dozen or the hundred, a CPU, minutes",
    img_size=(96, 128),
    max_iters=400,
    batch_size=4,
)


ADE20K_LINEAR_POCKET = replace(
    ADE20K_POCKET,
    name="ade20k_linear_pocket",
    base_lr=1e-2,
    weight_decay=1e-4,
    auxiliary_weight=0.0,
    head="linear",
)
