"""Recipes, their overrides, and the schedules that follow from them."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from timm.scheduler.cosine_lr import CosineLRScheduler

from pretrain.recipes import POCKET, default_recipe
from pretrain.recipes import RECIPES as PRETRAIN
from simmim_bench.errors import UsageError
from simmim_bench.models.archs import ARCHS, find_spec
from simmim_bench.models.build import build_backbone
from simmim_bench.overrides import override
from simmim_bench.recipe import deviations, find_recipe
from simmim_bench.tasks import TASKS
from simmim_bench.training.optim import Schedule, parameter_groups, scaled_lr
from transfer.finetune.recipes import IMAGENET_POCKET, FinetuneRecipe
from transfer.finetune.train import build_schedule
from transfer.frozen.recipes import LINEAR
from transfer.recipes import RECIPES as TRANSFER
from transfer.recipes import default_recipe as transfer_recipe


def test_overrides_take_the_type_of_their_field() -> None:
    changed = override(
        POCKET, ["epochs=3", "base_lr=1e-3", "img_size=32x48", "milestones=2,3", "precision=bf16"]
    )
    assert (changed.epochs, changed.base_lr, changed.img_size) == (3, 1e-3, (32, 48))
    assert (changed.milestones, changed.precision) == ((2, 3), "bf16")
    assert override(POCKET, ["img_size=96"]).img_size == (96, 96)
    assert override(IMAGENET_POCKET, ["auto_augment=none"]).auto_augment is None


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("epoch=3", "unknown override key 'epoch' .* did you mean 'epochs'"),
        ("epochs", "has no value; write -o epochs=VALUE"),
        ("epochs=many", "epochs=many is not of type int"),
        ("img_size=1,2,3", "has 3 values; it takes 2"),
        ("precision=fp8", "is not one of the allowed values"),
        ("mask_ratio=1.5", r"mask_ratio 1.5 is not in \(0, 1\)"),
        ("batch_size=0", "batch_size 0 .* is out of range; use 1 or more"),
        ("crop_scale=-1,2", "crop_scale -1.0 .* use 0.001 to 1"),
        ("base_lr=nan", "base_lr=nan is not a finite number"),
        ("base_lr=0", "base_lr 0.0 .* must be above 0"),
    ],
)
def test_an_invalid_override_is_reported_with_its_fix(assignment: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        override(POCKET, [assignment])


@pytest.mark.parametrize(
    ("name", "length", "warmup"),
    [
        ("vit_b_800ep", "epochs", "warmup_epochs"),
        ("imagenet_vit_b_800ep", "epochs", "warmup_epochs"),
        ("linear_mae", "epochs", "warmup_epochs"),
        ("coco_vitdet_b", "max_iters", "warmup_iters"),
        ("ade20k_swin_w7", "max_iters", "warmup_iters"),
    ],
)
def test_a_warm_up_as_long_as_the_training_is_refused(name: str, length: str, warmup: str) -> None:
    recipe = {**PRETRAIN, **TRANSFER}[name]
    steps = recipe.fields()[warmup]
    for total in (1, steps):
        message = (
            f"{warmup}={steps} .* is not less than {length}={total}, .* -o {warmup}={total // 5}"
        )
        with pytest.raises(UsageError, match=message):
            override(recipe, [f"{length}={total}"])
        override(recipe, [f"{length}={total}", f"{warmup}={total // 5}"])
    override(recipe, [f"{length}={steps + 1}"])


@pytest.mark.parametrize(
    ("name", "assignment", "message"),
    [
        ("knn", "k=()", "k of recipe 'knn' is empty; use k=A,B"),
        ("linear", "base_lr=()", "base_lr .* is empty"),
        ("logistic", "l2=[]", "l2 .* is empty"),
        ("linear", "norm=()", "norm .* is empty"),
        ("linear", "blocks=()", "blocks .* is empty"),
        ("coco_pocket", "anchor_ratios=()", "anchor_ratios .* is empty"),
        ("linear", "pooling=mean,mean", "pooling .* lists mean twice"),
        ("knn", "k=10,20,10", "k .* lists 10 twice"),
    ],
)
def test_empty_lists_and_duplicate_items_are_refused(
    name: str, assignment: str, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        override(TRANSFER[name], [assignment])


def test_lists_that_may_repeat_or_be_empty_are_accepted() -> None:
    assert override(POCKET, ["milestones=()"]).milestones == ()
    assert override(LINEAR, ["img_size=32,32"]).img_size == (32, 32)


def test_an_unknown_augmentation_policy_is_refused() -> None:
    with pytest.raises(UsageError, match="auto_augment=foo is not a policy"):
        override(IMAGENET_POCKET, ["auto_augment=foo"])


def test_deviations_are_exactly_the_changed_fields() -> None:
    changed = override(POCKET, ["epochs=3", f"batch_size={POCKET.batch_size}"])
    assert deviations(changed, POCKET) == {"epochs": 3}


def test_the_hash_depends_on_the_numbers_and_not_on_the_name() -> None:
    renamed = dataclasses.replace(POCKET, name="other", source="elsewhere")
    assert renamed.sha256() == POCKET.sha256()
    assert override(POCKET, ["epochs=3"]).sha256() != POCKET.sha256()


def test_the_error_for_an_unknown_recipe_suggests_the_nearest() -> None:
    with pytest.raises(UsageError, match="unknown recipe 'poket'; did you mean 'pocket'"):
        find_recipe(PRETRAIN, "poket")


@pytest.mark.parametrize("arch", sorted(ARCHS))
def test_every_arch_has_a_recipe_for_every_task(arch: str) -> None:
    assert default_recipe(arch).arch == arch
    for task in TASKS:
        assert transfer_recipe(task, find_spec(arch)).name in TRANSFER


def test_every_recipe_names_its_source() -> None:
    for name, recipe in {**PRETRAIN, **TRANSFER}.items():
        assert recipe.name == name
        assert len(recipe.source) > 10


def test_the_base_learning_rate_is_for_512_images() -> None:
    # SimMIM, main_simmim.py: base * batch * world / 512; ViT-B's 2048 images at 1e-4 give 4e-4.
    assert scaled_lr(1e-4, 2048) == pytest.approx(4e-4)


def test_the_cosine_schedule_starts_with_the_warm_up_and_ends_at_its_minimum() -> None:
    schedule = Schedule(
        kind="cosine", peak_lr=1.0, total_steps=100, warmup_steps=20, warmup_lr=0.1, min_lr=0.01
    )
    assert schedule.lr(0) == schedule.lr(1) == 0.1
    assert schedule.lr(11) == pytest.approx(0.1 + 10 * 0.9 / 20)
    assert schedule.lr(51) == pytest.approx(0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * 0.5)))
    assert schedule.lr(101) == pytest.approx(0.01)


@pytest.mark.parametrize("scale", [1.0, 0.75**25])
def test_the_cosine_after_the_warm_up_equals_timms_at_every_step(scale: float) -> None:
    # microsoft/Swin-Transformer, lr_scheduler.py:24-34: the cosine is as long as the rest after the warm-up.
    recipe = TRANSFER["imagenet_swinv2_b_800ep_prefix"]
    assert isinstance(recipe, FinetuneRecipe)
    schedule = build_schedule(recipe, steps_per_epoch=7)
    total, warmup = schedule.total_steps, schedule.warmup_steps
    assert (total, warmup) == (700, 140)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=schedule.peak_lr * scale)
    theirs = CosineLRScheduler(
        optimizer,
        t_initial=total - warmup,
        lr_min=schedule.min_lr,
        warmup_lr_init=schedule.warmup_lr,
        warmup_t=warmup,
        cycle_limit=1,
        t_in_epochs=False,
        warmup_prefix=True,
    )
    for step in range(total):  # main_simmim_ft.py:203 sets the rate after a step, by its number
        (group,) = optimizer.param_groups
        assert schedule.lr(step, scale) == pytest.approx(group["lr"], rel=1e-12), step
        theirs.step_update(step)


def test_a_cosine_that_starts_at_step_0_loses_a_fifth_of_the_rate() -> None:
    earlier, corrected = (
        build_schedule(recipe, steps_per_epoch=10)
        for name in ("imagenet_swinv2_b_800ep", "imagenet_swinv2_b_800ep_prefix")
        for recipe in [TRANSFER[name]]
        if isinstance(recipe, FinetuneRecipe)
    )
    sums = [sum(map(one.lr, range(one.total_steps))) for one in (earlier, corrected)]
    assert sums[0] / sums[1] == pytest.approx(0.81, abs=0.005)


def test_the_multistep_schedule_divides_by_ten_at_its_milestones() -> None:
    schedule = Schedule(
        kind="multistep", peak_lr=1.0, total_steps=100, warmup_steps=0, milestones=[70]
    )
    assert schedule.lr(70) == 1.0
    assert schedule.lr(71) == pytest.approx(0.1)


def test_layer_decay_halves_the_rate_of_each_lower_layer() -> None:
    model = build_backbone(find_spec("vit_pocket"), num_classes=3)
    groups = parameter_groups(model, model, lr=1.0, weight_decay=0.05, layer_decay=0.5)
    by_parameter = {id(p): g for g in groups for p in g["params"]}
    named = dict(model.named_parameters())
    depth = model.spec.num_blocks
    assert by_parameter[id(named["head.weight"])]["lr_scale"] == 1.0
    assert by_parameter[id(named[f"blocks.{depth - 1}.attn.qkv.weight"])]["lr_scale"] == 0.5
    assert by_parameter[id(named["patch_embed.proj.weight"])]["lr_scale"] == 0.5 ** (depth + 1)
    assert sum(len(g["params"]) for g in groups) == len(named)


def test_vectors_biases_and_the_class_token_have_no_weight_decay() -> None:
    model = build_backbone(find_spec("vit_pocket"), num_classes=3)
    groups = parameter_groups(model, model, lr=1.0, weight_decay=0.05)
    decayed = {id(p) for g in groups if g["weight_decay"] for p in g["params"]}
    for name, parameter in model.named_parameters():
        exempt = parameter.ndim == 1 or name == "cls_token"
        assert (id(parameter) in decayed) != exempt, name


def test_parameters_outside_the_backbone_have_the_rate_of_the_last_layer() -> None:
    backbone = build_backbone(find_spec("vit_pocket"))
    model = torch.nn.ModuleDict({"backbone": backbone, "neck": torch.nn.Linear(4, 4)})
    groups = parameter_groups(model, backbone, lr=1.0, weight_decay=0.05, layer_decay=0.5)
    neck = next(g for g in groups if any(p is model["neck"].weight for p in g["params"]))
    assert neck["lr_scale"] == 1.0


def test_settings_for_the_machine_are_not_deviations() -> None:
    found = TRANSFER["linear"]
    changed = override(found, ["num_workers=3", "forward_batch_size=7"])
    assert changed != found
    assert deviations(changed, found) == {}
    assert changed.sha256() == found.sha256()
    assert deviations(override(found, ["epochs=3"]), found) == {"epochs": 3}
