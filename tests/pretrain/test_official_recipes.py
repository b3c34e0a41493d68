"""Test that the official recipes have the official numbers, field by field."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from support import official

from pretrain.design import Design
from pretrain.recipes import RECIPES as PRETRAIN
from pretrain.recipes import PretrainRecipe
from simmim_bench.checkpoints.checkpoint import IMAGENET_MEAN, IMAGENET_STD
from simmim_bench.data.pixel_format import RGB
from simmim_bench.models.archs import find_spec
from simmim_bench.recipe import ABOUT, deviations
from transfer.finetune.recipes import FinetuneRecipe
from transfer.recipes import RECIPES as TRANSFER
from transfer.recipes import default_recipe as transfer_recipe

GPUS = 16  # SimMIM: README.md, for pretraining and for fine-tuning
COMMON = {
    "DATA.NUM_WORKERS": "num_workers",
    "TRAIN.EPOCHS": "epochs",
    "TRAIN.WARMUP_EPOCHS": "warmup_epochs",
    "TRAIN.BASE_LR": "base_lr",
    "TRAIN.WARMUP_LR": "warmup_lr",
    "TRAIN.MIN_LR": "min_lr",
    "TRAIN.WEIGHT_DECAY": "weight_decay",
    "TRAIN.CLIP_GRAD": "clip_grad",
    "MODEL.DROP_PATH_RATE": "drop_path_rate",
    "WINDOW_SIZE": "window_size",
}
OURS_ALONE = {
    "precision",
    "draw",
    "limit",
    "val_fraction",
}  # the official recipes learn from all images


def checked_fields(recipe: Any, found: dict[str, Any], keys: dict[str, str]) -> set[str]:
    """Compare the fields of a recipe with official values; return the names of the compared fields."""
    for theirs, ours in keys.items():
        assert getattr(recipe, ours) == found[theirs], (recipe.name, ours)
    assert recipe.img_size == (found["DATA.IMG_SIZE"],) * 2
    assert recipe.batch_size == found["DATA.BATCH_SIZE"] * GPUS
    return {*keys.values(), "img_size", "batch_size"}


def unchecked_fields(recipe: Any, fields: set[str]) -> set[str]:
    every = {f.name for f in dataclasses.fields(recipe)}
    return every - fields - set(ABOUT) - OURS_ALONE


@pytest.mark.parametrize("name", sorted(official.PRETRAIN))
def test_pretraining_recipes_have_the_official_numbers(name: str) -> None:
    recipe, found = PRETRAIN[name], {**official.DEFAULTS, **official.PRETRAIN[name]}
    assert isinstance(recipe, PretrainRecipe)
    keys = {
        **COMMON,
        "DATA.MASK_PATCH_SIZE": "mask_patch_size",
        "DATA.MASK_RATIO": "mask_ratio",
        "TRAIN.LR_SCHEDULER.NAME": "schedule",
        "TRAIN.LR_SCHEDULER.MULTISTEPS": "milestones",
        "TRAIN.OPTIMIZER.BETAS": "betas",
    }
    fields = checked_fields(recipe, found, keys)
    norm_target = found.get("MODEL.SIMMIM.NORM_TARGET.PATCH_SIZE", 0)
    assert recipe.design == Design(norm_target=norm_target)
    assert recipe.crop_scale == (0.67, 1.0)  # data/data_simmim.py
    spec = find_spec(recipe.arch)
    sizes = (spec.embed_dim, spec.depths, spec.num_heads)
    assert sizes == (found["EMBED_DIM"], found["DEPTHS"], found["NUM_HEADS"])
    fields |= {f.name for f in dataclasses.fields(Design)}
    assert recipe.pixel_format == RGB
    assert recipe.statistics == (IMAGENET_MEAN, IMAGENET_STD)  # data/data_simmim.py
    assert recipe.crops_per_decode == 1  # data/data_simmim.py decodes every image for one crop
    fields |= {"in_chans", "value_range", "mean", "std", "crops_per_decode"}
    assert not unchecked_fields(recipe, fields | {"crop_scale", "masking", "arch"})


@pytest.mark.parametrize("name", sorted(official.FINETUNE))
def test_fine_tuning_recipes_have_the_official_numbers(name: str) -> None:
    recipe, found = TRANSFER[name], {**official.DEFAULTS, **official.FINETUNE[name]}
    assert isinstance(recipe, FinetuneRecipe)
    keys = {
        **COMMON,
        "TRAIN.LAYER_DECAY": "layer_decay",
        "TRAIN.LR_SCHEDULER.WARMUP_PREFIX": "warmup_prefix",
        "MODEL.LABEL_SMOOTHING": "label_smoothing",
        "AUG.COLOR_JITTER": "color_jitter",
        "AUG.AUTO_AUGMENT": "auto_augment",
        "AUG.REPROB": "random_erasing",
        "AUG.MIXUP": "mixup",
        "AUG.CUTMIX": "cutmix",
    }
    fields = checked_fields(recipe, found, keys)
    assert found["TRAIN.LR_SCHEDULER.NAME"] == "cosine"  # the only schedule of fine-tuning
    assert recipe.test_crop_ratio == 224 / 256  # data/data_finetune.py
    assert recipe.crop_scale == (0.08, 1.0)  # timm's create_transform, by default
    assert recipe.hflip == 0.5
    assert recipe.lr_rule == "simmim"  # tests/transfer/finetune/test_mae_recipes.py has MAE's
    assert recipe.ema_decay == 0  # main_finetune.py scores the last weights
    assert recipe.optimizer == found["TRAIN.OPTIMIZER.NAME"]
    assert recipe.loss == "ce"  # main_finetune.py:95-97
    assert recipe.repeated_aug == 1  # data/data_finetune.py:27-29
    assert recipe.layer_groups == "block"  # optimizer.py:109-136
    assert (
        recipe.resizing == "pil"
    )  # data/data_finetune.py:97-114, as timm's and torchvision's loaders
    assert (recipe.test_img_size, recipe.ema_warmup) == (
        None,
        True,
    )  # the training size; no average
    fields |= {"test_crop_ratio", "crop_scale", "hflip", "ema_decay", "lr_rule", "optimizer"}
    fields |= {"loss", "repeated_aug", "layer_groups", "test_img_size", "ema_warmup", "resizing"}
    assert not unchecked_fields(recipe, fields)


def test_the_corrected_swin_v2_recipe_differs_in_the_start_of_the_cosine_alone() -> None:
    corrected, earlier = (
        TRANSFER[name] for name in ("imagenet_swinv2_b_800ep_prefix", "imagenet_swinv2_b_800ep")
    )
    assert deviations(corrected, earlier) == {"warmup_prefix": True}
    assert transfer_recipe("imagenet", find_spec("swinv2_b")) is corrected
    lines = {key: corrected.source_of(key) for key in corrected.fields() if key != "ema_decay"}
    assert not [key for key, line in lines.items() if ":" not in line and key not in OURS_ALONE]


@pytest.mark.parametrize(("names", "score"), official.SCORES.items())
def test_recipes_name_the_published_score_and_each_other(
    names: tuple[str, str], score: str
) -> None:
    pretraining, fine_tuning = PRETRAIN[names[0]], TRANSFER[names[1]]
    assert f"{score} after {names[1]}" in (pretraining.published or "")
    assert f"{score} after {names[0]}" in (fine_tuning.published or "")
    assert "README.md" in (fine_tuning.published or "")


@pytest.mark.parametrize("name", [*official.PRETRAIN, *official.FINETUNE])
def test_official_recipes_have_a_source_for_every_number(name: str) -> None:
    recipe = {**PRETRAIN, **TRANSFER}[name]
    assert recipe.source.endswith(".yaml")
    assert set(recipe.sources) <= {f.name for f in dataclasses.fields(recipe)}
    # These fields are not in the yaml files, but in config.py or a data file.
    for key in ("batch_size", "clip_grad", "num_workers", "crop_scale"):
        assert recipe.source_of(key) != recipe.source
