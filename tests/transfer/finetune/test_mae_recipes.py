"""MAE's fine-tuning: the numbers, the parameter groups, the schedule and the new layers are MAE's."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from support import official_mae
from torchvision import transforms as T

from simmim_bench.data.datasets import covering_size
from simmim_bench.models.archs import find_spec
from simmim_bench.models.build import build_backbone
from simmim_bench.models.shapes import shapes_only
from simmim_bench.recipe import ABOUT
from simmim_bench.training.optim import parameter_groups, scaled_lr
from transfer.finetune.recipes import FinetuneRecipe
from transfer.finetune.train import build_optimizer, build_schedule
from transfer.recipes import RECIPES

KEYS = {
    "epochs": "epochs",
    "warmup_epochs": "warmup_epochs",
    "layer_decay": "layer_decay",
    "weight_decay": "weight_decay",
    "drop_path": "drop_path_rate",
    "reprob": "random_erasing",
    "mixup": "mixup",
    "cutmix": "cutmix",
    "aa": "auto_augment",
    "smoothing": "label_smoothing",
    "num_workers": "num_workers",
}
NAMES = sorted(official_mae.FINETUNE)


def recipe_and_options(name: str) -> tuple[FinetuneRecipe, dict[str, Any]]:
    recipe = RECIPES[name]
    assert isinstance(recipe, FinetuneRecipe)
    return recipe, official_mae.FINETUNE[name]


@pytest.mark.parametrize("name", NAMES)
def test_every_number_is_maes_and_has_its_line(name: str) -> None:
    recipe, found = recipe_and_options(name)
    for theirs, ours in KEYS.items():
        assert getattr(recipe, ours) == found[theirs], ours
    assert recipe.img_size == (found["input_size"],) * 2
    assert recipe.batch_size == official_mae.images_per_step(found) == 1024
    assert recipe.base_lr == 2 * found["blr"]  # for 512 images, and not for 256
    peak = official_mae.peak_lr(found)
    assert scaled_lr(recipe.base_lr, recipe.batch_size) == pytest.approx(peak, rel=1e-12)
    assert scaled_lr(recipe.min_lr, recipe.batch_size) == pytest.approx(found["min_lr"], rel=1e-12)
    assert recipe.warmup_lr == 0  # util/lr_sched.py:12
    assert (recipe.warmup_prefix, recipe.lr_rule) == (True, "mae")
    assert found["clip_grad"] is found["color_jitter"] is None
    assert (recipe.clip_grad, recipe.color_jitter) == (0, 0)
    assert (recipe.crop_scale, recipe.hflip) == ((0.08, 1.0), 0.5)  # timm's create_transform
    assert recipe.test_crop_ratio == 224 / 256  # util/datasets.py:54
    assert (recipe.ema_decay, recipe.window_size) == (0, None)
    assert (recipe.optimizer, recipe.loss) == ("adamw", "ce")  # main_finetune.py:287, 290-296
    assert (recipe.layer_groups, recipe.repeated_aug) == ("block", 1)
    assert (recipe.test_img_size, recipe.ema_warmup) == (None, True)
    checked = {*KEYS.values(), "img_size", "batch_size", "base_lr", "min_lr", "warmup_lr"}
    checked |= {"warmup_prefix", "lr_rule", "clip_grad", "color_jitter", "crop_scale", "hflip"}
    checked |= {"test_crop_ratio", "ema_decay", "window_size", "precision"}
    checked |= {"optimizer", "loss", "layer_groups", "repeated_aug", "test_img_size", "ema_warmup"}
    fields = {f.name for f in dataclasses.fields(recipe)} - set(ABOUT)
    # Learning from all images, the recipe samples none.
    assert recipe.resizing == "pil"  # util/datasets.py, of PIL images
    assert fields - {"draw", "limit", "resizing", "val_fraction"} == checked == set(recipe.sources)
    assert f"top-1 {official_mae.SCORES[name]} after MAE's" in (recipe.published or "")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", [1.0, 0.65**13])
def test_the_schedule_is_maes_at_every_step(name: str, scale: float) -> None:
    recipe, found = recipe_and_options(name)
    steps_per_epoch = 9
    schedule = build_schedule(recipe, steps_per_epoch)
    for step in range(found["epochs"] * steps_per_epoch):
        expected = official_mae.rate(found, step / steps_per_epoch, scale)
        assert schedule.lr(step, scale) == pytest.approx(expected, rel=1e-9), step
    assert schedule.lr(0, scale) == 0


@pytest.mark.parametrize("arch", ["vit_b", "vit_l"])
def test_layer_decay_and_weight_decay_are_maes_for_every_weight(arch: str) -> None:
    # A backbone as MAE's files have it: an absolute position embedding, no layer scale, no relative position.
    recipe, found = recipe_and_options(f"imagenet_mae_{arch}")
    spec = dataclasses.replace(
        find_spec(arch), abs_pos_embed=True, rel_pos_bias=False, init_values=None
    )
    with shapes_only():
        model = build_backbone(spec, num_classes=1000)
    groups = parameter_groups(
        model, model, lr=1.0, weight_decay=recipe.weight_decay, layer_decay=recipe.layer_decay
    )
    of = {id(p): group for group in groups for p in group["params"]}
    layers = spec.depths[0] + 1  # util/lr_decay.py:23
    for name, weight in model.named_parameters():
        layer = layers  # util/lr_decay.py:64-76
        if name in ("cls_token", "pos_embed") or name.startswith("patch_embed"):
            layer = 0
        elif name.startswith("blocks"):
            layer = int(name.split(".")[1]) + 1
        # util/lr_decay.py:32; models_vit.py inherits timm's no_weight_decay
        exempt = weight.ndim == 1 or name in ("cls_token", "pos_embed")
        group = of.pop(id(weight))
        assert group["lr_scale"] == pytest.approx(found["layer_decay"] ** (layers - layer)), name
        assert group["weight_decay"] == (0 if exempt else found["weight_decay"]), name
    assert not of


def test_the_optimizer_has_maes_settings() -> None:
    recipe, _ = recipe_and_options("imagenet_mae_vit_b")
    optimizer = build_optimizer(recipe, build_backbone(find_spec("vit_pocket"), num_classes=3))
    for group in optimizer.param_groups:  # main_finetune.py:287: torch's defaults
        assert (group["betas"], group["eps"]) == ((0.9, 0.999), 1e-8)


def test_a_new_head_and_norm_are_initialised_as_maes() -> None:
    model = build_backbone(
        dataclasses.replace(find_spec("vit_pocket"), narrow_init=True), num_classes=1000
    )
    weights = model.state_dict()
    assert weights["head.weight"].std().item() == pytest.approx(2e-5, rel=0.15)  # main_finetune:257
    assert not weights["head.bias"].any()
    assert (weights["fc_norm.weight"] == 1).all()  # models_vit.py:28-32: a new norm, none before
    assert "norm.weight" not in weights
    assert find_spec("vit_b").narrow_init


@pytest.mark.parametrize("size", [(375, 500), (500, 333), (256, 256), (1000, 301)])
def test_the_validation_image_is_resized_as_maes(size: tuple[int, int]) -> None:
    image = torch.zeros(1, *size)
    theirs = T.Resize(int(224 / (224 / 256)))(image).shape[1:]  # util/datasets.py:53-61
    assert covering_size(size, (224, 224), 224 / 256) == tuple(theirs)
