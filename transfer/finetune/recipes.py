"""The recipe of end-to-end fine-tuning, and simmim-bench's own ones for small images.

The published ones are in `simmim_recipes.py`, `mae_recipes.py`, `beit_recipes.py`, `semivit_recipes.py` and
`convnet_recipes.py`. Learning rates are stated for 512 images per step, as in SimMIM, and are scaled to the total
batch size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from simmim_bench.errors import UsageError
from simmim_bench.recipe import Draw, Precision, Recipe, Resizing, check_positive

LayerGroups = Literal["block", "group", "convnextv2"]
POLICIES = ("rand", "augmix", "original", "v0", "3a", "trivial")


@dataclass(frozen=True, kw_only=True)
class FinetuneRecipe(Recipe):
    """End-to-end classification: `imagenet`, and `fewshot` with fine-tuning.

    Attributes:
        img_size: (H, W) in pixels.
        test_img_size: (H, W) of the evaluation; None for `img_size`.
        epochs, warmup_epochs: passes over the training set.
        batch_size: images per step, in total over all processes.
        base_lr, warmup_lr, min_lr: learning rates for 512 images per step.
        weight_decay: of all weights but vectors, biases and position tables.
        drop_path_rate: stochastic depth of the last block; earlier blocks have less.
        clip_grad: largest norm of the gradient; 0 for no clipping.
        label_smoothing: probability that the targets give to all classes together.
        random_erasing: probability that a rectangle of an image is erased.
        color_jitter: strength of random brightness, contrast and saturation, where auto_augment is none; 0 for off.
        hflip: probability of a horizontal flip.
        test_crop_ratio: fraction of the shorter side that the centre crop covers.
        optimizer: "adamw", or "lamb" (arXiv 1904.00962) as in timm; "lamb_spark" does not correct the bias of the
            moments, and adapts the rate of vectors as well.
        layer_decay: learning-rate factor per layer from the last to the first.
        layer_groups: the layers; "block" for one per block. "group" and "convnextv2" are for convolutional
            networks: see `layers_after`.
        loss: "ce" for cross-entropy; "bce" for the mean of every class's binary cross-entropy, "bce_sum" for
            their sum. The targets are those of Mixup and CutMix.
        mixup, cutmix: alpha of Mixup and CutMix; 0 for off.
        auto_augment: timm's name of an augmentation policy, or "trivial" for torchvision's TrivialAugmentWide;
            None for crop and flip alone.
        repeated_aug: augmentations of an image in an epoch, which shows one image in as many.
        crop_scale: range of the fraction of the image's area that a random crop covers.
        ema_decay: decay of a moving average of the weights, which then is scored and saved; 0 for the last weights.
        ema_warmup: whether the decay has timm's warm-up, which limits it to 1 - step ** (-2 / 3).
        window_size: a Swin's window; None for the checkpoint's own.
        warmup_prefix: whether the cosine starts after the warm-up, and not at step 0 as in SimMIM.
        lr_rule: "simmim": layer decay scales the peak, and a step has the rate of the step before it;
            "mae": layer decay scales the whole schedule, and a step has its own rate. "beit", "spark" and "mmcv"
            are as "mae", but for what `Schedule` describes.
        precision: "auto" is bfloat16 on GPUs that have it, float16 on others, float32 on CPUs.
        num_workers: processes per GPU that load images; 0 to load in the training process.
        draw: which training images `fewshot` samples: "balanced", equally many of every class as in SimCLR's lists,
            or "proportional", the same fraction of every class.
        resizing: "pil", as the published pipelines, or "fast", which differs by about a level of 255.
        limit: the number of training images and of validation images that are used, for trying things out; None for
            all. They are the same for every seed, as evenly from the classes as these allow.
        val_fraction: fraction of the training images of every class that is scored instead of trained on, for data
            without a validation split; None for data with one. They are the same for every seed.
    """

    img_size: tuple[int, int]
    epochs: int
    warmup_epochs: int
    batch_size: int
    base_lr: float
    warmup_lr: float
    min_lr: float
    weight_decay: float
    layer_decay: float
    drop_path_rate: float
    clip_grad: float
    label_smoothing: float
    mixup: float
    cutmix: float
    auto_augment: str | None
    random_erasing: float
    color_jitter: float
    crop_scale: tuple[float, float]
    hflip: float
    test_crop_ratio: float
    ema_decay: float = 0.0
    window_size: int | None = None
    warmup_prefix: bool = False
    lr_rule: Literal["simmim", "mae", "beit", "spark", "mmcv"] = "simmim"
    optimizer: Literal["adamw", "lamb", "lamb_spark"] = "adamw"
    layer_groups: LayerGroups = "block"
    loss: Literal["ce", "bce", "bce_sum"] = "ce"
    repeated_aug: int = 1
    ema_warmup: bool = True
    test_img_size: tuple[int, int] | None = None
    precision: Precision = "auto"
    resizing: Resizing = "pil"
    draw: Draw = "balanced"
    num_workers: int = 0
    limit: int | None = None
    val_fraction: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "img_size", "epochs", "batch_size", "base_lr")
        if self.test_img_size is not None:
            check_positive(self, "test_img_size")
        if self.auto_augment is not None and not self.auto_augment.startswith(POLICIES):
            raise UsageError(
                f"auto_augment={self.auto_augment} is not a policy of timm; it starts with one of "
                f"{', '.join(POLICIES)}, such as rand-m9-mstd0.5-inc1, or is none."
            )

    @property
    def eval_img_size(self) -> tuple[int, int]:
        """(H, W) of the evaluation in pixels."""
        return self.test_img_size or self.img_size


IMAGENET_POCKET = FinetuneRecipe(
    name="imagenet_pocket",
    source="ours: thousands of small images, a CPU, a minute",
    img_size=(32, 32),
    epochs=2,
    warmup_epochs=1,
    batch_size=32,
    base_lr=1.6e-2,
    warmup_lr=1e-6,
    min_lr=1e-6,
    weight_decay=0.05,
    layer_decay=1.0,
    drop_path_rate=0.0,
    clip_grad=5.0,
    label_smoothing=0.1,
    mixup=0.0,
    cutmix=0.0,
    auto_augment=None,
    random_erasing=0.0,
    color_jitter=0.0,
    crop_scale=(0.5, 1.0),
    hflip=0.5,
    test_crop_ratio=1.0,
)
IMAGENET_DEMO = replace(
    IMAGENET_POCKET,
    name="imagenet_demo",
    source="ours: `simmim-bench demo`; half of imagenet_pocket",
    epochs=1,
    warmup_epochs=0,
)
IMAGENET_CIFAR = replace(
    IMAGENET_POCKET,
    name="imagenet_cifar",
    source="ours: tens of thousands of small photographs, a CPU core, a quarter of an hour",
    epochs=3,
    batch_size=128,
    base_lr=6e-3,
)
IMAGENET_64PX = replace(
    IMAGENET_CIFAR,
    name="imagenet_64px",
    source="ours: tens of thousands of photographs of 64 pixels, a CPU core, five minutes",
    img_size=(64, 64),
    epochs=2,
)
