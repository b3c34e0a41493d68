"""Recipes of ADE20K segmentation, each number with its source.

Learning rates are for the recipe's own batch size, as in the papers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from simmim_bench.recipe import Recipe, UnscaledPrecision, check_positive

_MULTI_SCALE = "MMSegmentation: configs/_base_/datasets/ade20k.py (tta_pipeline)"


@dataclass(frozen=True, kw_only=True)
class Ade20kRecipe(Recipe):
    """UPerNet, or a linear classifier of frozen maps, through MMSegmentation.

    Attributes:
        img_size: (H, W) of the training crop in pixels. Training images are resized to cover it, times a
            random factor of `scale_range`; test images are resized to cover it.
        max_iters, warmup_iters: optimizer steps; the learning rate falls by a polynomial of power 1.
        batch_size: images per step, over all processes.
        base_lr: for this batch size, of the last layer.
        clip_grad: maximum norm of the gradient; 0 for no clipping.
        photometric: distort brightness, contrast, saturation and hue in training.
        head: "upernet", or "linear": a 1x1 convolution of the backbone's maps, resized to the finest map and
            concatenated; the backbone is frozen.
        head_channels: width of UPerNet; the auxiliary FCN head has half as many channels.
        auxiliary_weight: weight of the auxiliary head's loss; 0 for no auxiliary head.
        test_mode: predict an image "whole", or "slide" a window of `img_size` over it with a stride of two
            thirds of the window's side, and average the logits.
        test_scales: multiples of the test size at which an image is predicted; probabilities are averaged.
        test_flip: predict each of them horizontally flipped as well.
        window_size: of a Swin, or of a ViT's windowed blocks, in tokens; None for the checkpoint's.
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
    precision: UnscaledPrecision = "auto"
    num_workers: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "img_size", "max_iters", "batch_size", "base_lr", "test_scales")

    @property
    def views(self) -> int:
        """Number of predictions of a test image, which are averaged."""
        return len(self.test_scales) * (1 + self.test_flip)


ADE20K_VIT_160K = Ade20kRecipe(
    name="ade20k_vit_160k",
    # SimMIM reports no ViT on ADE20K. With this config, MAE's ViT-B scores 48.1 there.
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
    # SimMIM's 52.8 to 54.2 on ADE20K are multi-scale results and not comparable.
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
ADE20K_VIT_160K_MS = replace(
    ADE20K_VIT_160K,
    name="ade20k_vit_160k_ms",
    test_scales=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75),
    test_flip=True,
    sources={"test_scales": _MULTI_SCALE, "test_flip": _MULTI_SCALE},
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
