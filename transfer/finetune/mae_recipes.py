"""Recipes of MAE's end-to-end fine-tuning on ImageNet (facebookresearch/mae at efb2a80), each number with its line.

MAE states its learning rate `--blr` for 256 images per step, a recipe for 512: `base_lr` is twice `--blr`. MAE's
`--min_lr` is not scaled by the batch size, so that `min_lr` is half of it for the 1024 images of every run.
"""

from __future__ import annotations

from dataclasses import replace

from transfer.finetune.recipes import FinetuneRecipe

_COMMAND, _MAIN, _DATA = "MAE: FINETUNE.md", "MAE: main_finetune.py", "MAE: util/datasets.py"
# What differs from MAE's code, as far as it is known; tests/transfer/finetune/test_mae_recipes.py tests the rest.
_DIFFERENCES = (
    "differs in the precision, and in that the last epoch is scored (there every epoch, and the best is printed as "
    "well)"
)


def _sources(nodes: int, gpus: int, batch: int) -> dict[str, str]:
    """Return the source of every number.

    Args:
        nodes: line of FINETUNE.md with `--nodes`; the options are in the next lines, in the same order for all models.
        gpus, batch: GPUs in all, and images on each.
    """
    options = f"{_COMMAND}:{nodes + 6}"
    return {
        "img_size": f"{_MAIN}:54 (--input_size)",
        "batch_size": f"{_COMMAND}:{nodes}-{nodes + 1} ({batch} images on each of {gpus} GPUs), 77",
        "epochs": f"{_COMMAND}:{nodes + 4}",
        "base_lr": f"{_COMMAND}:{nodes + 5} (--blr, for 256 images; here for 512), 78",
        "layer_decay": f"{_COMMAND}:{nodes + 5}",
        "weight_decay": options,
        "drop_path_rate": options,
        "random_erasing": options,
        "mixup": options,
        "cutmix": options,
        "warmup_epochs": f"{_MAIN}:76 (--warmup_epochs)",
        "warmup_lr": "MAE: util/lr_sched.py:12 (from 0)",
        "min_lr": f"{_MAIN}:73 (--min_lr 1e-6, of the whole batch; here for 512 images)",
        "warmup_prefix": "MAE: util/lr_sched.py:14-15",
        "lr_rule": "MAE: util/lr_sched.py:16-20, engine_finetune.py:45-47",
        "optimizer": f"{_MAIN}:287 (AdamW, torch's defaults)",
        "layer_groups": "MAE: util/lr_decay.py:64-76",
        "loss": f"{_MAIN}:292-298",
        "clip_grad": f"{_MAIN}:61 (--clip_grad, None)",
        "label_smoothing": f"{_MAIN}:84 (--smoothing)",
        "auto_augment": f"{_MAIN}:82 (--aa)",
        "color_jitter": f"{_MAIN}:80 (--color_jitter, None)",
        "crop_scale": f"{_DATA}:37-48, by timm's default",
        "hflip": f"{_DATA}:37-48, by timm's default",
        "test_crop_ratio": f"{_DATA}:53-61",
        "test_img_size": f"{_DATA}:61 (the training size)",
        "repeated_aug": f"{_MAIN}:179-181 (none)",
        "num_workers": f"{_MAIN}:141 (--num_workers)",
        **dict.fromkeys(("ema_decay", "ema_warmup"), "MAE has no average of the weights"),
        "window_size": "a ViT has none",
        "precision": f"ours; MAE has float16 by torch.cuda.amp ({_COMMAND}:131)",
    }


def _published(top1: str, model: str, trials: str) -> str:
    return (
        f"top-1 {top1} after MAE's {model} of 1600 epochs with normalised pixels ({_COMMAND}:25-28, 129)"
        f"{trials}"
    )


IMAGENET_MAE_VIT_B = FinetuneRecipe(
    name="imagenet_mae_vit_b",
    source=f"{_COMMAND}:65-74 and main_finetune.py; {_DIFFERENCES}",
    sources=_sources(67, gpus=32, batch=32),
    published=_published("83.664", "ViT-B", "; four trials have a mean of 83.57 (line 79)"),
    img_size=(224, 224),
    epochs=100,
    warmup_epochs=5,
    batch_size=1024,
    base_lr=1e-3,  # --blr 5e-4
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
    color_jitter=0.0,
    crop_scale=(0.08, 1.0),
    hflip=0.5,
    test_crop_ratio=224 / 256,
    warmup_prefix=True,
    lr_rule="mae",
    num_workers=10,
)
IMAGENET_MAE_VIT_L = replace(
    IMAGENET_MAE_VIT_B,
    name="imagenet_mae_vit_l",
    source=f"{_COMMAND}:84-93 and main_finetune.py; {_DIFFERENCES}",
    sources=_sources(86, gpus=32, batch=32),
    published=_published("85.952", "ViT-L", "; four trials have a mean of 85.87 (line 95)"),
    epochs=50,
    base_lr=2e-3,  # --blr 1e-3
    layer_decay=0.75,
    drop_path_rate=0.2,
)
IMAGENET_MAE_VIT_H = replace(
    IMAGENET_MAE_VIT_L,
    name="imagenet_mae_vit_h",
    source=f"{_COMMAND}:100-109 and main_finetune.py; {_DIFFERENCES}",
    sources=_sources(102, gpus=64, batch=16),
    published=_published("86.928", "ViT-H", ""),
    drop_path_rate=0.3,
)
