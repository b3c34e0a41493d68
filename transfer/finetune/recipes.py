"""Recipes of end-to-end fine-tuning on ImageNet, each number with its source.

In a name such as `imagenet_vit_b_800ep` (SimMIM's fine-tuning of ViT-B), 800ep is the length of the pretraining
that the recipe is published for; `epochs` is that of the fine-tuning.

Learning rates are stated for 512 images per step, as in SimMIM, and are scaled to the total batch size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from simmim_bench.errors import UsageError
from simmim_bench.recipe import Precision, Recipe, check_positive, check_warmup

POLICIES = ("rand", "augmix", "original", "v0", "3a")


@dataclass(frozen=True, kw_only=True)
class FinetuneRecipe(Recipe):
    """End-to-end classification: `imagenet`, and `fewshot` with fine-tuning.

    Attributes:
        img_size: (H, W) in pixels.
        epochs, warmup_epochs: passes over the training set.
        batch_size: images per step, in total over all processes.
        base_lr, warmup_lr, min_lr: learning rates for 512 images per step.
        layer_decay: learning-rate factor per layer from the last to the first.
        mixup, cutmix: alpha of Mixup and CutMix; 0 for off.
        auto_augment: timm's name of an augmentation policy; None for crop and flip alone.
        crop_scale: range of the fraction of the image's area that a random crop covers.
        ema_decay: decay of a moving average of the weights, which then is scored and saved; its warm-up is
            timm's. 0 for the last weights.
        window_size: a Swin's window; None for the checkpoint's own.
        warmup_prefix: whether the cosine starts after the warm-up, and not at step 0 as in SimMIM.
        lr_rule: "simmim": layer decay scales the peak, and a step has the rate of the step before it;
            "mae": layer decay scales the whole schedule, and a step has its own rate.
        precision: "auto" is bfloat16 on GPUs that have it, float16 on others, float32 on CPUs.
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
    lr_rule: Literal["simmim", "mae"] = "simmim"
    precision: Precision = "auto"
    num_workers: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "img_size", "epochs", "batch_size", "base_lr")
        check_warmup(self.warmup_epochs, self.epochs)
        if self.auto_augment is not None and not self.auto_augment.startswith(POLICIES):
            raise UsageError(
                f"auto_augment={self.auto_augment} is not a policy of timm; it starts with one of "
                f"{', '.join(POLICIES)}, such as rand-m9-mstd0.5-inc1, or is none."
            )


_SOURCES = {
    "batch_size": "SimMIM: README.md (Fine-tuning pre-trained models), config.py (DATA.BATCH_SIZE)",
    "clip_grad": "SimMIM: config.py (TRAIN.CLIP_GRAD)",
    "label_smoothing": "SimMIM: config.py (MODEL.LABEL_SMOOTHING)",
    "mixup": "SimMIM: config.py (AUG.MIXUP)",
    "cutmix": "SimMIM: config.py (AUG.CUTMIX)",
    "auto_augment": "SimMIM: config.py (AUG.AUTO_AUGMENT)",
    "random_erasing": "SimMIM: config.py (AUG.REPROB)",
    "color_jitter": "SimMIM: config.py (AUG.COLOR_JITTER)",
    "num_workers": "SimMIM: config.py (DATA.NUM_WORKERS)",
    "crop_scale": "SimMIM: data/data_finetune.py, by timm's default",
    "hflip": "SimMIM: data/data_finetune.py, by timm's default",
    "test_crop_ratio": "SimMIM: data/data_finetune.py (256 / 224)",
    "precision": "ours; SimMIM has apex O1",
}
_SCORES = "SimMIM: README.md (Main Results)"
IMAGENET_VIT_B_800EP = FinetuneRecipe(
    name="imagenet_vit_b_800ep",
    source="SimMIM: configs/vit_base__800ep/simmim_finetune__vit_base__img224__800ep.yaml",
    sources=_SOURCES,
    published=f"top-1 83.8 after vit_b_800ep ({_SCORES})",
    img_size=(224, 224),
    epochs=100,
    warmup_epochs=20,
    batch_size=2048,
    base_lr=1.25e-3,
    warmup_lr=2.5e-7,
    min_lr=2.5e-7,
    weight_decay=0.05,
    layer_decay=0.65,
    drop_path_rate=0.1,
    clip_grad=5.0,
    label_smoothing=0.1,
    mixup=0.8,
    cutmix=1.0,
    auto_augment="rand-m9-mstd0.5-inc1",
    random_erasing=0.25,
    color_jitter=0.4,
    crop_scale=(0.08, 1.0),
    hflip=0.5,
    test_crop_ratio=224 / 256,
    num_workers=8,
)
_MAE = "MAE: FINETUNE.md"
IMAGENET_VIT_L_800EP = replace(
    IMAGENET_VIT_B_800EP,
    name="imagenet_vit_l_800ep",
    source="ours: as imagenet_vit_b_800ep, with the layer decay and the drop path by which MAE's ViT-L differs from "
    "its ViT-B; SimMIM publishes no ViT-L",
    sources={
        **_SOURCES,
        "layer_decay": f"{_MAE}:91 (ViT-L 0.75; ViT-B 0.65 as here in line 72)",
        "drop_path_rate": f"{_MAE}:92 (ViT-L 0.2; ViT-B 0.1 as here in line 73)",
    },
    published=None,
    layer_decay=0.75,
    drop_path_rate=0.2,
)
IMAGENET_SWIN_B_800EP = replace(
    IMAGENET_VIT_B_800EP,
    name="imagenet_swin_b_800ep",
    source="SimMIM: configs/swin_base__800ep/simmim_finetune__swin_base__img224_window7__800ep.yaml",
    published=f"top-1 84.0 after swin_b_800ep ({_SCORES})",
    window_size=7,
    layer_decay=0.8,
)
IMAGENET_SWIN_B_100EP = replace(
    IMAGENET_SWIN_B_800EP,
    name="imagenet_swin_b_100ep",
    source="SimMIM: configs/swin_base__100ep/simmim_finetune__swin_base__img224_window7__100ep.yaml",
    published=f"top-1 83.5 after swin_b_100ep ({_SCORES})",
    layer_decay=0.9,
)
IMAGENET_SWIN_B_100EP_IMG192 = replace(
    IMAGENET_SWIN_B_100EP,
    name="imagenet_swin_b_100ep_img192",
    source="SimMIM: configs/swin_base__100ep/simmim_finetune__swin_base__img192_window6__100ep.yaml",
    published=f"top-1 82.8 after swin_b_100ep ({_SCORES})",
    img_size=(192, 192),
    window_size=6,
)
IMAGENET_SWIN_L_800EP = replace(
    IMAGENET_SWIN_B_800EP,
    name="imagenet_swin_l_800ep",
    source="SimMIM: configs/swin_large__800ep/simmim_finetune__swin_large__img224_window14__800ep.yaml",
    published=f"top-1 85.4 after swin_l_800ep ({_SCORES})",
    window_size=14,
    drop_path_rate=0.2,
    layer_decay=0.7,
)
IMAGENET_SWINV2_B_800EP = replace(
    IMAGENET_SWIN_B_800EP,
    name="imagenet_swinv2_b_800ep",
    source="Swin-Transformer: configs/simmim/simmim_finetune__swinv2_base__img224_window14__800ep.yaml",
    published="top-1 85.04, 500,000 iterations on ImageNet-1K (Swin-Transformer: MODELHUB.md); whether "
    "by this recipe is not said there",
    window_size=14,
    layer_decay=0.75,
)
_SWINV2 = (
    "Swin-Transformer: configs/simmim/simmim_finetune__swinv2_base__img224_window14__800ep.yaml"
)
_SWINV2_DEFAULTS, _SWINV2_DATA = (
    "Swin-Transformer: config.py",
    "Swin-Transformer: data/data_simmim_ft.py",
)
# A correction of imagenet_swinv2_b_800ep, whose cosine starts at step 0: the sum of its rates is 19 % less.
IMAGENET_SWINV2_B_800EP_PREFIX = replace(
    IMAGENET_SWINV2_B_800EP,
    name="imagenet_swinv2_b_800ep_prefix",
    source=_SWINV2,
    sources={
        "drop_path_rate": f"{_SWINV2}:4",
        "window_size": f"{_SWINV2}:9",
        "img_size": f"{_SWINV2}:12",
        "epochs": f"{_SWINV2}:14",
        "warmup_epochs": f"{_SWINV2}:15",
        "base_lr": f"{_SWINV2}:16",
        "warmup_lr": f"{_SWINV2}:17",
        "min_lr": f"{_SWINV2}:18",
        "weight_decay": f"{_SWINV2}:19",
        "layer_decay": f"{_SWINV2}:20",
        "batch_size": f"{_SWINV2_DEFAULTS}:26 (DATA.BATCH_SIZE), on 16 GPUs as in get_started.md:308",
        "num_workers": f"{_SWINV2_DEFAULTS}:43 (DATA.NUM_WORKERS)",
        "label_smoothing": f"{_SWINV2_DEFAULTS}:70 (MODEL.LABEL_SMOOTHING)",
        "clip_grad": f"{_SWINV2_DEFAULTS}:160 (TRAIN.CLIP_GRAD)",
        "warmup_prefix": f"{_SWINV2_DEFAULTS}:178 (TRAIN.LR_SCHEDULER.WARMUP_PREFIX), lr_scheduler.py:24-34",
        "color_jitter": f"{_SWINV2_DEFAULTS}:205 (AUG.COLOR_JITTER)",
        "auto_augment": f"{_SWINV2_DEFAULTS}:207 (AUG.AUTO_AUGMENT)",
        "random_erasing": f"{_SWINV2_DEFAULTS}:209 (AUG.REPROB)",
        "mixup": f"{_SWINV2_DEFAULTS}:215 (AUG.MIXUP)",
        "cutmix": f"{_SWINV2_DEFAULTS}:217 (AUG.CUTMIX)",
        "crop_scale": f"{_SWINV2_DATA}:79-88, by timm's default",
        "hflip": f"{_SWINV2_DATA}:79-88, by timm's default",
        "test_crop_ratio": f"{_SWINV2_DATA}:98 (256 / 224)",
        "precision": "ours; Swin-Transformer has float16 by torch.cuda.amp",
    },
    warmup_prefix=True,
)
_INPUTS = (
    "auto_augment",
    "color_jitter",
    "crop_scale",
    "hflip",
    "test_crop_ratio",
    "num_workers",
    "precision",
)
_LAST_RATE = {"warmup_lr": "ours, SimMIM's", "min_lr": "ours, SimMIM's"}
IMAGENET_CONVNEXT_B_100EP = replace(
    IMAGENET_VIT_B_800EP,
    name="imagenet_convnext_b_100ep",
    source="ConvNeXt V2: TRAINING.md (fine-tuning of its Base after FCMAE); nobody publishes one after SimMIM "
    "with AdamW",
    sources={
        **{key: _SOURCES[key] for key in _INPUTS},
        **_LAST_RATE,
        "batch_size": "ConvNeXt V2: TRAINING.md (32 images on each of 32 GPUs)",
        "layer_decay": "ConvNeXt V2: TRAINING.md, 0.6 a group; ours is its cube root, as a group is three blocks",
        "ema_decay": "ours; ConvNeXt V2 says that there is an average",
        "clip_grad": "ours: none",
    },
    published=None,
    batch_size=1024,
    layer_decay=0.6 ** (1 / 3),
    clip_grad=0.0,
    ema_decay=0.9999,
)
IMAGENET_RESNET50_100EP = replace(
    IMAGENET_VIT_B_800EP,
    name="imagenet_resnet50_100ep",
    source="ours: as imagenet_vit_b_800ep with less of all that keeps large models from overfitting; A2MIM and "
    "SparK fine-tune ResNets for 300 epochs by LAMB",
    sources={
        **_SOURCES,
        **_LAST_RATE,
        "weight_decay": "SparK: downstream_imagenet/arg.py",
        "mixup": "SparK: downstream_imagenet/arg.py",
        "drop_path_rate": "SparK: downstream_imagenet/arg.py",
    },
    published=None,
    warmup_epochs=5,
    base_lr=5e-4,
    weight_decay=0.02,
    layer_decay=0.9,
    drop_path_rate=0.05,
    mixup=0.1,
)
IMAGENET_POCKET = FinetuneRecipe(
    name="imagenet_pocket",
    source="ours: thousands of small pictures, a CPU, a minute",
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
IMAGENET_CIFAR = replace(
    IMAGENET_POCKET,
    name="imagenet_cifar",
    source="ours: tens of thousands of small photographs, a CPU core, a quarter of an hour",
    epochs=3,
    batch_size=128,
    base_lr=6e-3,
)
