"""Recipes of SimMIM's end-to-end fine-tuning on ImageNet, each number with its source; ViT-L's is ours.

In a name such as `imagenet_vit_b_800ep`, 800ep is the length of the pretraining that the recipe is published for;
`epochs` is that of the fine-tuning.
"""

from __future__ import annotations

from dataclasses import replace

from transfer.finetune.recipes import FinetuneRecipe

# Of the fields that are not in the yaml files.
SOURCES = {
    "batch_size": "SimMIM: README.md (Fine-tuning pre-trained models), config.py (DATA.BATCH_SIZE)",
    "clip_grad": "SimMIM: config.py (TRAIN.CLIP_GRAD)",
    "label_smoothing": "SimMIM: config.py (MODEL.LABEL_SMOOTHING)",
    "mixup": "SimMIM: config.py (AUG.MIXUP)",
    "cutmix": "SimMIM: config.py (AUG.CUTMIX)",
    "auto_augment": "SimMIM: config.py (AUG.AUTO_AUGMENT)",
    "random_erasing": "SimMIM: config.py (AUG.REPROB)",
    "color_jitter": "SimMIM: config.py (AUG.COLOR_JITTER)",
    "num_workers": "SimMIM: config.py (DATA.NUM_WORKERS)",
    "optimizer": "SimMIM: config.py:125-129 (TRAIN.OPTIMIZER)",
    "layer_groups": "SimMIM: optimizer.py:109-136",
    "loss": "SimMIM: main_finetune.py:95-101",
    "repeated_aug": "SimMIM: data/data_finetune.py:27-29 (none)",
    "test_img_size": "SimMIM: data/data_finetune.py:105 (the training size)",
    "crop_scale": "SimMIM: data/data_finetune.py, by timm's default",
    "hflip": "SimMIM: data/data_finetune.py, by timm's default",
    "test_crop_ratio": "SimMIM: data/data_finetune.py (256 / 224)",
    "precision": "ours; SimMIM has apex O1",
}
_SCORES = "SimMIM: README.md (Main Results)"
IMAGENET_VIT_B_800EP = FinetuneRecipe(
    name="imagenet_vit_b_800ep",
    source="SimMIM: configs/vit_base__800ep/simmim_finetune__vit_base__img224__800ep.yaml",
    sources=SOURCES,
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
        **SOURCES,
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
        "optimizer": f"{_SWINV2_DEFAULTS}:185-189 (TRAIN.OPTIMIZER)",
        "layer_groups": "Swin-Transformer: optimizer.py:104-117",
        "loss": "Swin-Transformer: main_simmim_ft.py:98-104",
        "repeated_aug": f"{_SWINV2_DATA}:26-28 (none)",
        "test_img_size": f"{_SWINV2_DATA}:103 (the training size)",
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
