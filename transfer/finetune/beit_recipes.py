"""Recipes of BEiT's end-to-end fine-tuning on ImageNet (microsoft/unilm, folder beit), each number with its line.

BEiT states its learning rates `--lr` and `--min_lr` for the whole batch, a recipe for 512 images: both are halved here
where a batch has 1024. Its pixels have mean and standard deviation 0.5, which a checkpoint of BEiT's keeps.
"""

from __future__ import annotations

from dataclasses import replace

from transfer.finetune.recipes import FinetuneRecipe

_COMMAND = "BEiT: get_started_for_image_classification.md"
_MAIN, _DATA, _GROUPS = (
    "BEiT: run_class_finetuning.py",
    "BEiT: datasets.py",
    "BEiT: optim_factory.py",
)
_RESULTS = "BEiT: README.md"
_DIFFERENCES = (
    "differs in the precision, and in that the last epoch is scored (there every epoch, and the best is printed as "
    "well)"
)


def _sources(model: int, batch: str, *, mixing: bool) -> dict[str, str]:
    """Return the source of every number.

    Args:
        model: line of the command with `--model`.
        batch: how many images a step has.
        mixing: whether the command sets Mixup and CutMix.
    """
    rates, last = f"{_COMMAND}:{model + 2} ({batch})", f"{_COMMAND}:{model + 4}"
    return {
        "img_size": f"{_MAIN}:55 (--input_size)",
        "batch_size": rates,
        "base_lr": f"{_COMMAND}:{model + 2} (--lr, of the whole batch; here for 512 images)",
        "warmup_epochs": f"{_COMMAND}:{model + 3}",
        "epochs": f"{_COMMAND}:{model + 3}",
        "layer_decay": f"{_COMMAND}:{model + 3}, {_GROUPS}:33-55",
        "drop_path_rate": f"{_COMMAND}:{model + 3}",
        "weight_decay": last,
        "mixup": last if mixing else f"{_MAIN}:126 (--mixup, off)",
        "cutmix": last if mixing else f"{_MAIN}:128 (--cutmix, off)",
        "warmup_lr": "BEiT: utils.py:384 (from 0)",
        "min_lr": f"{_MAIN}:94 (--min_lr 1e-6, of the whole batch; here for 512 images)",
        "warmup_prefix": "BEiT: utils.py:393-395",
        "lr_rule": "BEiT: utils.py:383-400, engine_for_finetuning.py:63",
        "optimizer": "BEiT: utils.py:567-580 (AdamW, torch's defaults)",
        "layer_groups": f"{_GROUPS}:33-44",
        "loss": f"{_MAIN}:513-519",
        "clip_grad": "BEiT: utils.py:560-587 (none with DeepSpeed)",
        "label_smoothing": f"{_MAIN}:107 (--smoothing)",
        "auto_augment": f"{_MAIN}:105 (--aa)",
        "random_erasing": f"{_MAIN}:116 (--reprob)",
        "color_jitter": f"{_MAIN}:103 (--color_jitter)",
        "crop_scale": f"{_DATA}:135-146, by timm's default",
        "hflip": f"{_DATA}:135-146, by timm's default",
        "test_crop_ratio": f"{_DATA}:156-165",
        "test_img_size": f"{_DATA}:165 (the training size)",
        "repeated_aug": f"{_MAIN}:244-246 (none)",
        "ema_decay": f"{_MAIN}:67 (--model_ema, off)",
        "ema_warmup": "no average",
        "window_size": "a ViT has none",
        "precision": "ours; BEiT has float16 by DeepSpeed (utils.py:581-586)",
        "num_workers": f"{_MAIN}:184 (--num_workers)",
    }


def _published(top1: str, weights: str, line: int) -> str:
    return f"top-1 {top1} after {weights} ({_RESULTS}:{line})"


IMAGENET_BEIT_VIT_B = FinetuneRecipe(
    name="imagenet_beit_vit_b",
    source=f"{_COMMAND}:63-69 and run_class_finetuning.py; {_DIFFERENCES}",
    sources=_sources(65, "128 images on each of 8 GPUs", mixing=True),
    published=_published("83.7", "beit_base_patch16_224_pt22k", 71),
    img_size=(224, 224),
    epochs=100,
    warmup_epochs=20,
    batch_size=1024,
    base_lr=2e-3,  # --lr 4e-3
    warmup_lr=0.0,
    min_lr=5e-7,  # --min_lr 1e-6
    weight_decay=0.05,
    layer_decay=0.65,
    drop_path_rate=0.1,
    clip_grad=0.0,
    label_smoothing=0.1,
    mixup=0.8,
    cutmix=1.0,
    auto_augment="rand-m9-mstd0.5-inc1",
    random_erasing=0.25,
    color_jitter=0.4,
    crop_scale=(0.08, 1.0),
    hflip=0.5,
    test_crop_ratio=224 / 256,
    warmup_prefix=True,
    lr_rule="beit",
    num_workers=10,
)
IMAGENET_BEIT_VIT_L = replace(
    IMAGENET_BEIT_VIT_B,
    name="imagenet_beit_vit_l",
    source=f"{_COMMAND}:56-62 and run_class_finetuning.py; {_DIFFERENCES}",
    sources=_sources(58, "64 images on each of 8 GPUs, twice", mixing=True),
    published=_published("86.0", "beit_large_patch16_224_pt22k", 74),
    epochs=50,
    warmup_epochs=5,
    base_lr=5e-4,  # --lr 1e-3
    layer_decay=0.75,
    drop_path_rate=0.2,
)
IMAGENET_BEIT_VIT_B_FT22K = replace(
    IMAGENET_BEIT_VIT_B,
    name="imagenet_beit_vit_b_ft22k",
    source=f"{_COMMAND}:45-50 and run_class_finetuning.py; {_DIFFERENCES}",
    sources=_sources(46, "64 images on each of 8 GPUs", mixing=False),
    published=_published("85.2", "beit_base_patch16_224_pt22k_ft22k", 72),
    epochs=30,
    warmup_epochs=5,
    batch_size=512,
    base_lr=2e-5,
    min_lr=1e-6,
    weight_decay=1e-8,
    layer_decay=0.85,
    mixup=0.0,
    cutmix=0.0,
)
IMAGENET_BEIT_VIT_L_FT22K = replace(
    IMAGENET_BEIT_VIT_B_FT22K,
    name="imagenet_beit_vit_l_ft22k",
    source=f"{_COMMAND}:29-34 and run_class_finetuning.py; {_DIFFERENCES}",
    sources=_sources(30, "32 images on each of 8 GPUs, twice", mixing=False),
    published=_published("87.4", "beit_large_patch16_224_pt22k_ft22k", 75),
    layer_decay=0.9,
    drop_path_rate=0.4,
)
