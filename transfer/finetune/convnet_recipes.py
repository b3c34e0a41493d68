"""Recipes of the end-to-end fine-tuning of ConvNeXt and ResNet on ImageNet, each number with its source.

`imagenet_resnet50_rsb_a2` and `_a3` are A2MIM's use of "ResNet strikes back" (arXiv 2110.00476), read in its repository
(Westlake-AI/A2MIM at ccca6dc); timm's own arguments of A2 and A3 were not seen. `imagenet_spark_*` are SparK's
(keyu-tian/SparK at a63e386), `imagenet_convnextv2_*` ConvNeXt V2's (facebookresearch/ConvNeXt-V2 at 2553895). All
three state learning rates in their own way; `base_lr` is for 512 images, and their other rates are scaled by the same
factor.

SparK's and A2MIM's loaders keep an epoch's last incomplete batch, ours drops it.
"""

from __future__ import annotations

from dataclasses import replace

from transfer.finetune.recipes import FinetuneRecipe
from transfer.finetune.simmim_recipes import IMAGENET_VIT_B_800EP, SOURCES

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
    source="ours: ConvNeXt V2: TRAINING.md (fine-tuning of its Base after FCMAE) with a rate per block and SimMIM's "
    "schedule; imagenet_convnextv2_b has its own. Nobody publishes one after SimMIM with AdamW",
    sources={
        **{key: SOURCES[key] for key in _INPUTS},
        **_LAST_RATE,
        "batch_size": "ConvNeXt V2: TRAINING.md (32 images on each of 32 GPUs)",
        "layer_decay": "ConvNeXt V2: TRAINING.md, 0.6 a group; ours is its cube root, as a group is three blocks",
        "ema_decay": "ConvNeXt V2: main_finetune.py:55",
        "ema_warmup": "ours",
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
    "SparK fine-tune ResNets for 300 epochs by LAMB: imagenet_resnet50_rsb_a2, imagenet_spark_resnet50",
    sources={
        **SOURCES,
        **_LAST_RATE,
        "weight_decay": "SparK: downstream_imagenet/arg.py:20",
        "mixup": "SparK: downstream_imagenet/arg.py:20",
        "drop_path_rate": "SparK: downstream_imagenet/arg.py:20",
    },
    published=None,
    warmup_epochs=5,
    base_lr=5e-4,
    weight_decay=0.02,
    layer_decay=0.9,
    drop_path_rate=0.05,
    mixup=0.1,
)

_A2MIM = "A2MIM: configs/openmixup/finetune"
_A2, _A3 = (
    f"{_A2MIM}/imagenet/r50_rsb_a2_ft_sz224_8xb256_cos_fp16_ep300.py",
    f"{_A2MIM}/imagenet/r50_rsb_a3_ft_sz160_4xb512_cos_fp16_ep100.py",
)
_A2_MODEL, _A3_MODEL = (
    f"{_A2MIM}/_base_/models/r50_rsb_a2.py",
    f"{_A2MIM}/_base_/models/r50_rsb_a3.py",
)
_A2_DATA, _A3_DATA = (
    f"{_A2MIM}/_base_/datasets/imagenet_rsb_a2_ft_sz224_8xbs256.py",
    f"{_A2MIM}/_base_/datasets/imagenet_rsb_a3_ft_sz160_4xbs512.py",
)
# A2MIM runs on OpenMixup (Westlake-AI/openmixup at 37e1372), whose files have what its configurations do not set.
_OPENMIXUP = "OpenMixup: openmixup"
_SUM = (
    f"{_OPENMIXUP}/models/heads/cls_mixup_head.py:293, 311 and models/losses/utils.py:35 (the sum over the classes of "
    "the binary cross-entropy with the mixed labels)"
)
_RSB_SOURCES = {
    "weight_decay": f"{_A2}:22-25",
    "optimizer": f"{_A2}:22, {_OPENMIXUP}/core/optimizers/lamb.py:99-109 (timm's LAMB)",
    "clip_grad": f"{_OPENMIXUP}/core/optimizers/lamb.py:107 (max_grad_norm)",
    "loss": f"{_A2_MODEL}:20-22; {_SUM}",
    "label_smoothing": f"{_A2_MODEL}:20-22 (none)",
    "mixup": f"{_A2_MODEL}:5-7",
    "cutmix": f"{_A2_MODEL}:5-7",
    "drop_path_rate": f"{_A2_MODEL}:16",
    "layer_decay": f"{_A2}:22-25 (none)",
    "layer_groups": f"{_A2}:22-25 (none)",
    "img_size": f"{_A2_DATA}:38",
    "crop_scale": f"{_A2_DATA}:38, by torchvision's default",
    "hflip": f"{_A2_DATA}:39, by torchvision's default",
    "auto_augment": f"{_A2_DATA}:2-22, 40-45 (magnitude 7); timm's implementation here",
    "color_jitter": f"{_A2_DATA}:37-46 (none)",
    "random_erasing": f"{_A2_DATA}:37-46 (none)",
    "repeated_aug": f"{_A2_DATA}:33, {_OPENMIXUP}/datasets/loader/sampler.py:339 (3 times)",
    "test_crop_ratio": f"{_A2_DATA}:48-49 (224 / 236)",
    "test_img_size": f"{_A2_DATA}:49",
    "batch_size": f"{_A2}:8, 11 (256 images on each of 8 GPUs)",
    "base_lr": f"{_A2}:22 (0.005 for 2048 images; here for 512)",
    "min_lr": f"{_A2}:35 (1e-6 for 2048 images)",
    "warmup_lr": f"{_A2}:38 (1e-5 of the peak)",
    "warmup_epochs": f"{_A2}:37",
    "warmup_prefix": "mmcv 1: runner/hooks/lr_updater.py (the cosine starts at step 0)",
    "lr_rule": f"{_A2}:33-39, mmcv 1: runner/hooks/lr_updater.py",
    "epochs": f"{_A2}:42",
    "ema_decay": f"{_A2}:13-18",
    "ema_warmup": f"{_A2}:15-16 has a linear warm-up of 20 epochs; here none, which 280 epochs later is the same",
    "window_size": "a ResNet has none",
    "precision": f"ours; A2MIM has float16 ({_A2}:27-28)",
    "num_workers": f"{_A2}:8",
}
_RSB_DIFFERENCES = (
    "differs in the precision, in that BatchNorm's weights in the shortcuts do not decay, and in the new head's "
    "standard deviation of 0.02 (there 0.01)"
)
IMAGENET_RESNET50_RSB_A2 = FinetuneRecipe(
    name="imagenet_resnet50_rsb_a2",
    source=f"{_A2}; {_RSB_DIFFERENCES}, and BatchNorm's statistics are averaged as the weights are",
    sources=_RSB_SOURCES,
    published="top-1 80.4 after A2MIM's ResNet-50 of 300 epochs, 79.9 after SimMIM's (A2MIM: README.md:110-112)",
    img_size=(224, 224),
    epochs=300,
    warmup_epochs=5,
    batch_size=2048,
    base_lr=1.25e-3,  # 5e-3
    warmup_lr=1.25e-8,  # 5e-8
    min_lr=2.5e-7,  # 1e-6
    weight_decay=0.02,
    layer_decay=1.0,
    drop_path_rate=0.05,
    clip_grad=1.0,
    label_smoothing=0.0,
    mixup=0.1,
    cutmix=1.0,
    auto_augment="rand-m7-mstd0.5-inc1",
    random_erasing=0.0,
    color_jitter=0.0,
    crop_scale=(0.08, 1.0),
    hflip=0.5,
    test_crop_ratio=224 / 236,
    ema_decay=0.9999,
    ema_warmup=False,
    lr_rule="mmcv",
    optimizer="lamb",
    loss="bce_sum",
    repeated_aug=3,
    num_workers=10,
)
IMAGENET_RESNET50_RSB_A3 = replace(
    IMAGENET_RESNET50_RSB_A2,
    name="imagenet_resnet50_rsb_a3",
    source=f"{_A3}; {_RSB_DIFFERENCES}",
    sources=_RSB_SOURCES
    | {
        "weight_decay": f"{_A3}:14-17",
        "optimizer": f"{_A3}:14, {_OPENMIXUP}/core/optimizers/lamb.py:99-109 (timm's LAMB)",
        "layer_decay": f"{_A3}:14-17 (none)",
        "layer_groups": f"{_A3}:14-17 (none)",
        "loss": f"{_A3_MODEL}:19-21; {_SUM}",
        "label_smoothing": f"{_A3_MODEL}:19-21 (none)",
        "mixup": f"{_A3_MODEL}:5-7",
        "cutmix": f"{_A3_MODEL}:5-7",
        "drop_path_rate": f"{_A3_MODEL}:9-16 (none)",
        "img_size": f"{_A3_DATA}:35",
        "crop_scale": f"{_A3_DATA}:35, by torchvision's default",
        "hflip": f"{_A3_DATA}:36, by torchvision's default",
        "auto_augment": f"{_A3_DATA}:2-22, 37-42 (magnitude 6); timm's implementation here",
        "color_jitter": f"{_A3_DATA}:34-43 (none)",
        "random_erasing": f"{_A3_DATA}:34-43 (none)",
        "repeated_aug": f"{_A3_DATA} (no sampler, so none)",
        "test_crop_ratio": f"{_A3_DATA}:45-46 (224 / 236)",
        "test_img_size": f"{_A3_DATA}:46",
        "batch_size": f"{_A3}:8, 11 (512 images on each of 4 GPUs)",
        "base_lr": f"{_A3}:14 (0.008 for 2048 images; here for 512)",
        "min_lr": f"{_A3}:27 (1e-6 for 2048 images)",
        "warmup_lr": f"{_A3}:30 (1e-5 of the peak)",
        "warmup_epochs": f"{_A3}:29",
        "lr_rule": f"{_A3}:25-31, mmcv 1: runner/hooks/lr_updater.py",
        "epochs": f"{_A3}:34",
        "ema_decay": f"{_A3} (no EMAHook)",
        "ema_warmup": "no average",
        "precision": f"ours; A2MIM has float16 ({_A3}:19-20)",
        "num_workers": f"{_A3}:8",
    },
    published="top-1 78.8 after A2MIM's ResNet-50 of 100 epochs (A2MIM: README.md:111), 78.9 after that of 300 "
    "(OpenMixup: configs/selfsup/a2mim/README.md)",
    img_size=(160, 160),
    test_img_size=(224, 224),
    epochs=100,
    base_lr=2e-3,  # 8e-3
    warmup_lr=2e-8,  # 8e-8
    drop_path_rate=0.0,
    auto_augment="rand-m6-mstd0.5-inc1",
    ema_decay=0.0,
    ema_warmup=True,
    repeated_aug=1,
)
_SPARK = "SparK: downstream_imagenet"
_SPARK_DIFFERENCES = (
    "differs in that the average of the last epoch is scored (there the best of all epochs, with and without the "
    "average)"
)


def _spark_sources(line: int) -> dict[str, str]:
    """Return the source of every number; `line` of arg.py has the model's own."""
    own = f"{_SPARK}/arg.py:{line}"
    return {
        **dict.fromkeys(("batch_size", "epochs", "warmup_epochs", "weight_decay", "mixup"), own),
        **dict.fromkeys(("drop_path_rate", "ema_decay"), own),
        "base_lr": f"{own}, 135 (for 256 images; here for 512)",
        "layer_decay": f"{own} (lr_scale), {_SPARK}/lr_decay.py:29-61",
        "layer_groups": f"{_SPARK}/models/__init__.py:18-82",
        "repeated_aug": f"{own} (rep_aug), {_SPARK}/data.py:63-67",
        "optimizer": f"{own}, {_SPARK}/util.py:73-79",
        "loss": f"{_SPARK}/util.py:87-91",
        "img_size": f"{_SPARK}/arg.py:35",
        "num_workers": f"{_SPARK}/arg.py:36",
        "clip_grad": f"{_SPARK}/arg.py:48 (--clip, none), util.py:75",
        "label_smoothing": f"{_SPARK}/util.py:84",
        "cutmix": f"{_SPARK}/util.py:82",
        "warmup_lr": f"{_SPARK}/lr_decay.py:14 (0.005 of the peak)",
        "min_lr": f"{_SPARK}/lr_decay.py:17 (0.001 of the peak)",
        "warmup_prefix": f"{_SPARK}/lr_decay.py:16",
        "lr_rule": f"{_SPARK}/lr_decay.py:11-22, main.py:122-123",
        "auto_augment": f"{_SPARK}/data.py:42-46",
        "random_erasing": f"{_SPARK}/data.py:39",
        "color_jitter": f"{_SPARK}/data.py:37-41, timm's default, off under a policy",
        "crop_scale": f"{_SPARK}/data.py:37-41, by timm's default",
        "hflip": f"{_SPARK}/data.py:37-41, by timm's default",
        "test_crop_ratio": f"{_SPARK}/data.py:47",
        "test_img_size": f"{_SPARK}/data.py:47 (the training size)",
        "ema_warmup": f"{_SPARK}/util.py:67, main.py:150 (none)",
        "window_size": "a convolutional network has none",
        "precision": f"{_SPARK}/main.py:130-149 (no autocast)",
    }


IMAGENET_SPARK_RESNET50 = FinetuneRecipe(
    name="imagenet_spark_resnet50",
    source=f"{_SPARK}/arg.py:20; {_SPARK_DIFFERENCES}",
    sources=_spark_sources(20),
    published="top-1 80.6 after SparK's ResNet-50 (SparK: README.md:119)",
    img_size=(224, 224),
    epochs=300,
    warmup_epochs=5,
    batch_size=2048,
    base_lr=4e-3,  # 0.002 for 256 images
    warmup_lr=2e-5,
    min_lr=4e-6,
    weight_decay=0.02,
    layer_decay=0.7,
    drop_path_rate=0.05,
    clip_grad=0.0,
    label_smoothing=0.1,
    mixup=0.1,
    cutmix=1.0,
    auto_augment="trivial",
    random_erasing=0.25,
    color_jitter=0.4,
    crop_scale=(0.08, 1.0),
    hflip=0.5,
    test_crop_ratio=0.95,
    ema_decay=0.9999,
    ema_warmup=False,
    warmup_prefix=True,
    lr_rule="spark",
    optimizer="lamb_spark",
    layer_groups="group",
    loss="bce",
    precision="fp32",
    num_workers=8,
)
IMAGENET_SPARK_RESNET101 = replace(
    IMAGENET_SPARK_RESNET50,
    name="imagenet_spark_resnet101",
    source=f"{_SPARK}/arg.py:21; {_SPARK_DIFFERENCES}",
    sources=_spark_sources(21),
    published="top-1 82.2 after SparK's ResNet-101 (SparK: README.md:120)",
    base_lr=2e-3,  # 0.001 for 256 images
    warmup_lr=1e-5,
    min_lr=2e-6,
    layer_decay=0.8,
    drop_path_rate=0.2,
)
IMAGENET_SPARK_CONVNEXT_S = replace(
    IMAGENET_SPARK_RESNET50,
    name="imagenet_spark_convnext_s",
    source=f"{_SPARK}/arg.py:15; {_SPARK_DIFFERENCES}",
    sources=_spark_sources(15),
    published="top-1 84.1 after SparK's ConvNeXt-S (SparK: README.md:123)",
    epochs=400,
    warmup_epochs=20,
    batch_size=4096,
    base_lr=4e-4,  # 0.0002 for 256 images
    warmup_lr=2e-6,
    min_lr=4e-7,
    weight_decay=0.01,
    layer_decay=0.7,
    drop_path_rate=0.3,
    mixup=0.8,
    optimizer="adamw",
    loss="ce",
    repeated_aug=3,
)
IMAGENET_SPARK_CONVNEXT_B = replace(
    IMAGENET_SPARK_CONVNEXT_S,
    name="imagenet_spark_convnext_b",
    source=f"{_SPARK}/arg.py:16; {_SPARK_DIFFERENCES}",
    sources=_spark_sources(16),
    published="top-1 84.8 after SparK's ConvNeXt-B (SparK: README.md:124)",
    base_lr=2e-4,  # 0.0001 for 256 images
    warmup_lr=1e-6,
    min_lr=2e-7,
    drop_path_rate=0.4,
)
_V2, _V2_MAIN, _V2_DATA = (
    "ConvNeXt V2: TRAINING.md",
    "ConvNeXt V2: main_finetune.py",
    "ConvNeXt V2: datasets.py",
)
_V2_DIFFERENCES = (
    "differs in the network (ConvNeXt, with layer scale and without GRN), the new head's standard deviation of 0.02 "
    "(there 2e-5), the precision, and in that the average of the last epoch is scored (there the best of all epochs)"
)


def _v2_sources(command: int) -> dict[str, str]:
    """Return the source of every number; `command` is the line of TRAINING.md with `submitit_finetune.py`."""
    options = {
        "base_lr": 3,
        "epochs": 4,
        "warmup_epochs": 5,
        "layer_groups": 6,
        "layer_decay": 7,
        "weight_decay": 8,
        "drop_path_rate": 9,
        "random_erasing": 10,
        "mixup": 11,
        "cutmix": 12,
        "label_smoothing": 13,
    }
    return {
        **{key: f"{_V2}:{command + line}" for key, line in options.items()},
        "base_lr": f"{_V2}:{command + 3} (--blr, for 256 images; here for 512), {_V2_MAIN}:306",
        "layer_groups": f"{_V2}:{command + 6}, ConvNeXt V2: optim_factory.py:32-79",
        "batch_size": f"{_V2}:{command}, {command + 2} (32 images on each of 32 GPUs)",
        "img_size": f"{_V2_MAIN}:45 (--input_size)",
        "ema_decay": f"{_V2}:{command + 14}, {_V2_MAIN}:55",
        "ema_warmup": f"{_V2_MAIN}:286-294 (timm's ModelEma has none)",
        "clip_grad": f"{_V2_MAIN}:60 (--clip_grad, None)",
        "min_lr": f"{_V2_MAIN}:69 (--min_lr 1e-6, of the whole batch; here for 512 images)",
        "warmup_lr": "ConvNeXt V2: utils.py:534 (from 0)",
        "warmup_prefix": "ConvNeXt V2: utils.py:536-537",
        "lr_rule": "ConvNeXt V2: utils.py:531-543, engine_finetune.py:37-38",
        "optimizer": f"{_V2_MAIN}:76-81 (AdamW, torch's defaults)",
        "loss": f"{_V2_MAIN}:339-345",
        "color_jitter": f"{_V2_MAIN}:89 (--color_jitter, None)",
        "auto_augment": f"{_V2_MAIN}:91 (--aa)",
        "repeated_aug": f"{_V2_MAIN}:204-206 (none)",
        "crop_scale": f"{_V2_DATA}:58-69, by timm's default",
        "hflip": f"{_V2_DATA}:58-69, by timm's default",
        "test_crop_ratio": f"{_V2_DATA}:85-87",
        "test_img_size": f"{_V2_DATA}:92 (the training size)",
        "window_size": "a ConvNeXt has none",
        "precision": f"ours; ConvNeXt V2 has float16 by torch.cuda.amp ({_V2}:{command + 15})",
        "num_workers": f"{_V2_MAIN}:165 (--num_workers)",
    }


IMAGENET_CONVNEXTV2_B = FinetuneRecipe(
    name="imagenet_convnextv2_b",
    source=f"{_V2}:45-63; {_V2_DIFFERENCES}",
    sources=_v2_sources(45),
    published="top-1 84.9 of ConvNeXt V2-B after FCMAE (ConvNeXt V2: README.md:41), which its authors trained by "
    "their JAX code (TRAINING.md:196)",
    img_size=(224, 224),
    epochs=100,
    warmup_epochs=20,
    batch_size=1024,
    base_lr=1.25e-3,  # --blr 6.25e-4
    warmup_lr=0.0,
    min_lr=5e-7,  # --min_lr 1e-6
    weight_decay=0.05,
    layer_decay=0.6,
    drop_path_rate=0.1,
    clip_grad=0.0,
    label_smoothing=0.1,
    mixup=0.8,
    cutmix=1.0,
    auto_augment="rand-m9-mstd0.5-inc1",
    random_erasing=0.25,
    color_jitter=0.0,
    crop_scale=(0.08, 1.0),
    hflip=0.5,
    test_crop_ratio=224 / 256,
    ema_decay=0.9999,
    ema_warmup=False,
    warmup_prefix=True,
    lr_rule="mae",
    layer_groups="group",
    num_workers=10,
)
IMAGENET_CONVNEXTV2_T = replace(
    IMAGENET_CONVNEXTV2_B,
    name="imagenet_convnextv2_t",
    source=f"{_V2}:149-167; {_V2_DIFFERENCES}",
    sources=_v2_sources(149),
    published="top-1 83.0 of ConvNeXt V2-T after FCMAE (ConvNeXt V2: README.md:40), which its authors trained by "
    "their JAX code (TRAINING.md:196)",
    epochs=300,
    warmup_epochs=40,
    base_lr=1.6e-3,  # --blr 8e-4
    layer_decay=0.9,
    drop_path_rate=0.2,
    layer_groups="convnextv2",
)
