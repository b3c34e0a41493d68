"""Recipes of ADE20K segmentation: their type, and those of simmim-bench's own, each number with its source.

`mmseg_recipes.py`, `beit_recipes.py` and `dinov2_recipes.py` have the published protocols. Learning rates are for the
recipe's own batch size, as in the papers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from simmim_bench.errors import UsageError
from simmim_bench.models.spec import MapNorm, MapOptions, Position, RelPos
from simmim_bench.recipe import Precision, Recipe, check_positive

NoDecay = Literal["default", "vectors", "norms", "nothing"]
LrRule = Literal["mmengine", "mmcv"]

_MULTI_SCALE = (
    "MMSegmentation: configs/_base_/datasets/ade20k.py (tta_pipeline); there of the original image"
)


@dataclass(frozen=True, kw_only=True)
class Ade20kRecipe(Recipe):
    """UPerNet, or a linear classifier of frozen maps, through MMSegmentation.

    Attributes:
        img_size: (H, W) of the training crop in pixels. Training images are resized to cover it, times a
            random factor of `scale_range`; test images are resized to cover it.
        scale_range: of the random factor.
        resize_within: (long, short) side in pixels that a resized image has at most, its ratio kept, in place
            of covering `img_size`; () for covering.
        max_iters, warmup_iters: optimizer steps; the learning rate falls by a polynomial of power 1.
        lr_rule: "mmengine" warms up, then falls from the full rate; with "mmcv", of MMSegmentation before 1.0,
            the rate falls from step 0 and the warm-up is a factor on it.
        batch_size: images per step, over all processes.
        base_lr: for this batch size, of the last layer.
        weight_decay: AdamW's, see no_decay.
        layer_decay: factor of the learning rate of each block towards the input.
        stage_decay_layers: number of layers of a ConvNeXt's decay by stage in MMSegmentation; 0 for decay by
            block. See `optim.segmentor_groups`.
        no_decay: parameters without weight decay. "default": vectors, biases, class token, position embedding
            and a Swin's position tables. "vectors": vectors and biases. "norms": the backbone's norms and a
            Swin's position tables. "nothing": all decay.
        clip_grad: maximum norm of the gradient; 0 for no clipping.
        drop_path_rate: stochastic depth of the last block; earlier blocks have less.
        photometric: distort brightness, contrast, saturation and hue in training.
        head: "upernet", or "linear": a 1x1 convolution of the backbone's maps, resized to the finest map and
            concatenated; the backbone is frozen.
        head_channels: width of UPerNet.
        auxiliary_channels: width of the auxiliary FCN head; None for half of `head_channels`.
        linear_maps: which of the backbone's maps the linear head has, "all" or the "last".
        linear_norm: normalise the linear head's input over the batch.
        auxiliary_weight: weight of the auxiliary head's loss; 0 for no auxiliary head.
        test_mode: predict an image "whole", or "slide" a window of `img_size` over it and average the logits.
        slide_stride: (H, W) of the sliding window; None for two thirds of its sides.
        test_scales: multiples of the test size at which an image is predicted; probabilities are averaged.
        views_of: the size that `test_scales` multiply: that of the "resized" test image, or that of the
            "original".
        min_test_side: with `resize_within`, the short side in pixels that no test image is below; the long side
            is then not limited.
        test_flip: predict each of them horizontally flipped as well.
        window_size: of a Swin, or of a ViT's windowed blocks, in tokens; None for the checkpoint's.
        map_blocks, map_norm, rel_pos, layer_scale, position, patch_size: how the backbone makes its maps; see
            `MapOptions`.
        reduce_zero_label: whether label 0 of the data is ignored and label 1 is the first class, as in ADE20K
            (MMSegmentation: configs/_base_/datasets/ade20k.py); otherwise label 0 is the first class and 255 is
            ignored, as in Pascal VOC and in Cityscapes' trainIds.
        precision: "auto" is bfloat16 on GPUs that have it, float16 on others, float32 on CPUs.
        num_workers: processes per GPU that load images; 0 to load in the training process.
        limit: the number of training images and of validation images that are used, for trying things out; None for
            all. They are the same for every seed.
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
    resize_within: tuple[int, ...] = ()
    lr_rule: LrRule = "mmengine"
    stage_decay_layers: int = 0
    no_decay: NoDecay = "default"
    auxiliary_channels: int | None = None
    linear_maps: Literal["all", "last"] = "all"
    linear_norm: bool = False
    slide_stride: tuple[int, int] | None = None
    views_of: Literal["resized", "original"] = "resized"
    min_test_side: int = 0
    map_blocks: tuple[int, ...] = ()
    map_norm: MapNorm = "plain"
    rel_pos: RelPos = "own"
    layer_scale: float | None = None
    position: Position = "antialiased"
    patch_size: int | None = None
    reduce_zero_label: bool = True
    limit: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "img_size", "max_iters", "batch_size", "base_lr", "test_scales")
        stride = self.slide_stride or (1, 1)
        if any(step > side for step, side in zip(stride, self.img_size, strict=True)):
            raise UsageError(
                f"slide_stride {stride} of recipe '{self.name}' is larger than the window, img_size "
                f"{self.img_size}, and would leave pixels without a prediction; use a smaller one."
            )
        sides = self.resize_within
        if len(sides) not in (0, 2) or list(sides) != sorted(sides, reverse=True):
            raise UsageError(
                f"resize_within {self.resize_within} of recipe '{self.name}' is not a long and a short side; use "
                "resize_within=2048,512."
            )
        if self.min_test_side and not sides:
            raise UsageError(
                f"min_test_side {self.min_test_side} of recipe '{self.name}' has no effect without resize_within; set "
                "both, or min_test_side=0."
            )

    @property
    def views(self) -> int:
        """Number of predictions of a test image, which are averaged."""
        return len(self.test_scales) * (1 + self.test_flip)

    @property
    def maps(self) -> MapOptions:
        """How the backbone makes its maps."""
        return MapOptions(
            blocks=self.map_blocks,
            norm=self.map_norm,
            rel_pos=self.rel_pos,
            layer_scale=self.layer_scale,
            position=self.position,
            patch_size=self.patch_size,
        )


ADE20K_VIT_160K = Ade20kRecipe(
    name="ade20k_vit_160k",
    source="ours: after MMSegmentation's configs/mae/mae-base_upernet_8xb2-amp-160k_ade20k-512x512.py, which has other "
    "levels, no norm of the maps, position tables, layer scale 1 and 256 auxiliary channels: ade20k_mae_vit_b has its "
    "numbers",
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
    source="ours: after MMSegmentation's configs/swin/swin-base-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-"
    "512x512.py, which has windows of 7, norms with weights on the maps and weight decay of biases: ade20k_swin_w7 has "
    "its numbers",
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
    source="ours: after MMSegmentation's configs/convnext/convnext-base_upernet_8xb2-amp-160k_ade20k-512x512.py, whose "
    "layer decay is by stage and whose maps have norms with weights: ade20k_convnext_512 has its numbers",
    sources={"layer_decay": "ours: 0.9 there, by stage; here its cube root by block"},
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
    source="ours: after DINOv2, arXiv 2304.07193, section 7.4: a linear layer on frozen patch tokens, AdamW 1e-3, 40k "
    "iterations of 16 images; here of all maps, and without DINOv2's batch norm, which ade20k_dinov2_linear has",
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
    source="ours: three hundred images of 64 pixels, a CPU, a minute",
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
ADE20K_DEMO = replace(
    ADE20K_POCKET,
    name="ade20k_demo",
    source="ours: `simmim-bench demo`; a normalised linear layer on the frozen maps, as in DINOv2, arXiv 2304.07193, "
    "section 7.4: trained on a backbone of four blocks, UPerNet scores as high from random weights. The rate is the "
    "best of 5e-3, 1e-2 and 2e-2 for random weights",
    img_size=(32, 32),
    resize_within=(64, 64),
    warmup_iters=30,
    batch_size=16,
    base_lr=5e-3,
    weight_decay=1e-4,
    auxiliary_weight=0.0,
    head="linear",
    linear_norm=True,
    test_mode="slide",
    slide_stride=(16, 16),
)
ADE20K_SMALL = replace(
    ADE20K_POCKET,
    name="ade20k_small",
    source="ours: street scenes by the dozen or the hundred, a CPU, minutes",
    img_size=(96, 128),
    max_iters=400,
    batch_size=4,
)
ADE20K_96PX = replace(
    ADE20K_DEMO,
    name="ade20k_96px",
    source="ours: street scenes by the hundred, a CPU core, minutes; a normalised linear layer on the frozen maps, as "
    "in DINOv2, arXiv 2304.07193, section 7.4",
    img_size=(96, 128),
    resize_within=(240, 180),
    slide_stride=None,
    max_iters=200,
    batch_size=8,
    base_lr=1e-2,
)
ADE20K_LINEAR_POCKET = replace(
    ADE20K_POCKET,
    name="ade20k_linear_pocket",
    base_lr=1e-2,
    weight_decay=1e-4,
    auxiliary_weight=0.0,
    head="linear",
)
