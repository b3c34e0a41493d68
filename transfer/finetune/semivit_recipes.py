"""Recipes of Semi-ViT's supervised fine-tuning on 1 % and 10 % of ImageNet, each number with its line.

The numbers (arXiv 2208.05688) are those of amazon-science/semi-vit at 4785cbc. It fine-tunes MAE's ViTs with the
classes of the few images first, and trains on its own predictions for the others afterwards; these recipes are the
first part. Its code is MAE's: `--blr` is stated for 256 images per step, and `--min_lr` is not scaled (see
`mae_recipes.py`). Use them as in `simmim-bench transfer fewshot --fraction 1% --recipe fewshot_semivit_vit_b_1pct`.

Its ViT-H classifies the class token after MAE's last norm, which the transfer form of a ViT does not have: no recipe.
"""

from __future__ import annotations

from dataclasses import replace

from transfer.finetune.recipes import FinetuneRecipe

_COMMAND, _MAIN, _DATA = (
    "Semi-ViT: FINETUNE.md",
    "Semi-ViT: main_finetune.py",
    "Semi-ViT: util/datasets.py",
)
_RESULTS = "Semi-ViT: README.md"
# The lists are CSV files of row numbers, which a web address in Semi-ViT's README.md:33 has.
_DIFFERENCES = (
    "differs in the precision, and in the images if they are sampled (its lists train_1p_index.csv and "
    "train_10p_index.csv were not seen)"
)


def _sources(command: int) -> dict[str, str]:
    """Return the source of every number.

    Args:
        command: line of FINETUNE.md with the command's first line.
    """
    options = f"{_COMMAND}:{command + 8}"
    return {
        "img_size": f"{_MAIN}:49 (--input_size)",
        "batch_size": f"{_COMMAND}:{command}, {command + 5} (64 images on each of 8 GPUs)",
        "epochs": f"{_COMMAND}:{command + 6}",
        "base_lr": f"{_COMMAND}:{command + 7} (--blr, for 256 images; here for 512), {_MAIN}:320",
        "layer_decay": f"{_COMMAND}:{command + 7}, Semi-ViT: util/lr_decay.py:10-72",
        "weight_decay": options,
        "drop_path_rate": options,
        "random_erasing": options,
        "mixup": options,
        "cutmix": options,
        "warmup_epochs": f"{_MAIN}:77 (--warmup_epochs)",
        "warmup_lr": "Semi-ViT: util/lr_sched.py:16 (from 0)",
        "min_lr": f"{_MAIN}:74 (--min_lr 1e-6, of the whole batch of 512)",
        "warmup_prefix": "Semi-ViT: util/lr_sched.py:18-19",
        "lr_rule": "Semi-ViT: util/lr_sched.py:20-24, engine_finetune.py:44-45",
        "optimizer": f"{_MAIN}:342 (AdamW, torch's defaults)",
        "layer_groups": "Semi-ViT: util/lr_decay.py:60-72",
        "loss": f"{_MAIN}:346-352",
        "clip_grad": f"{_MAIN}:62 (--clip_grad, None)",
        "label_smoothing": f"{_MAIN}:85 (--smoothing)",
        "auto_augment": f"{_MAIN}:83 (--aa)",
        "color_jitter": f"{_MAIN}:81 (--color_jitter, None)",
        "crop_scale": f"{_DATA}:112-123, by timm's default",
        "hflip": f"{_DATA}:112-123, by timm's default",
        "test_crop_ratio": f"{_DATA}:128-136",
        "test_img_size": f"{_DATA}:136 (the training size)",
        "repeated_aug": f"{_MAIN}:191-193 (none)",
        "ema_decay": f"{_MAIN}:55 (--model_ema, off)",
        "ema_warmup": "no average",
        "window_size": "a ViT has none",
        "precision": "ours; Semi-ViT has float16 by torch.cuda.amp (engine_finetune.py:53)",
        "num_workers": f"{_MAIN}:150 (--num_workers)",
    }


FEWSHOT_SEMIVIT_VIT_B_1PCT = FinetuneRecipe(
    name="fewshot_semivit_vit_b_1pct",
    source=f"{_COMMAND}:5-14; {_DIFFERENCES}",
    sources=_sources(5),
    published=f"top-1 57.4 on 1 % after MAE's ViT-B ({_RESULTS}:70, Finetune)",
    img_size=(224, 224),
    epochs=100,
    warmup_epochs=5,
    batch_size=512,
    base_lr=1e-4,  # --blr 0.00005
    warmup_lr=0.0,
    min_lr=1e-6,
    weight_decay=0.05,
    layer_decay=0.65,
    drop_path_rate=0.0,
    clip_grad=0.0,
    label_smoothing=0.1,
    mixup=0.0,
    cutmix=0.0,
    auto_augment="rand-m9-mstd0.5-inc1",
    random_erasing=0.0,
    color_jitter=0.0,
    crop_scale=(0.08, 1.0),
    hflip=0.5,
    test_crop_ratio=224 / 256,
    warmup_prefix=True,
    lr_rule="mae",
    num_workers=10,
)
FEWSHOT_SEMIVIT_VIT_B_10PCT = replace(
    FEWSHOT_SEMIVIT_VIT_B_1PCT,
    name="fewshot_semivit_vit_b_10pct",
    source=f"{_COMMAND}:19-28; {_DIFFERENCES}",
    sources=_sources(19),
    published=f"top-1 73.7 on 10 % after MAE's ViT-B ({_RESULTS}:70, Finetune)",
    base_lr=5e-4,  # --blr 0.00025
    drop_path_rate=0.1,
    random_erasing=0.25,
    mixup=0.8,
    cutmix=1.0,
)
FEWSHOT_SEMIVIT_VIT_L_1PCT = replace(
    FEWSHOT_SEMIVIT_VIT_B_1PCT,
    name="fewshot_semivit_vit_l_1pct",
    source=f"{_COMMAND}:33-42; {_DIFFERENCES}",
    sources=_sources(33),
    published=f"top-1 67.1 on 1 % after MAE's ViT-L ({_RESULTS}:72, Finetune)",
    epochs=50,
    base_lr=2e-3,  # --blr 0.001
    layer_decay=0.75,
)
FEWSHOT_SEMIVIT_VIT_L_10PCT = replace(
    FEWSHOT_SEMIVIT_VIT_B_10PCT,
    name="fewshot_semivit_vit_l_10pct",
    source=f"{_COMMAND}:47-56; {_DIFFERENCES}",
    sources=_sources(47),
    published=f"top-1 79.2 on 10 % after MAE's ViT-L ({_RESULTS}:72, Finetune)",
    epochs=50,
    base_lr=2e-3,  # --blr 0.001
    layer_decay=0.75,
)
