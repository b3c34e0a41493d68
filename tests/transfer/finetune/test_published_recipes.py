"""Published fine-tunings: every number, step, layer, transform and loss is that of the source.

The sources are transcribed in tests/support: `official.py` (SimMIM, Swin V2), `official_mae.py` (MAE) and
`official_finetune.py` (Semi-ViT, BEiT, ConvNeXt V2, SparK, A2MIM).
"""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from support import official, official_finetune, official_mae
from timm.data import create_transform
from timm.scheduler.cosine_lr import CosineLRScheduler
from torch import Tensor, nn
from torchvision import transforms as T

from simmim_bench.checkpoints.checkpoint import IMAGENET_MEAN, IMAGENET_STD
from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.data.class_splits import class_folders
from simmim_bench.data.datasets import eval_transform
from simmim_bench.data.loader import seed_everything
from simmim_bench.errors import UsageError
from simmim_bench.models.archs import find_spec
from simmim_bench.models.build import Backbone, build_backbone
from simmim_bench.models.shapes import shapes_only
from simmim_bench.overrides import override
from simmim_bench.recipe import ABOUT
from simmim_bench.runs.context import RunContext
from simmim_bench.runs.options import RunOptions
from simmim_bench.training.optim import scaled_lr
from simmim_bench.training.precision import decide_precision
from transfer.finetune.recipes import FinetuneRecipe
from transfer.finetune.train import build_loader, build_optimizer, build_schedule, loss_and_mixing
from transfer.job import TransferJob
from transfer.launch import TransferRequest, plan_transfer
from transfer.recipes import RECIPES

EVERY = official_finetune.EVERY
SAME_NAME = {
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
    "ema": "ema_decay",
    "rates": "lr_rule",
}


def recipe_of(name: str) -> FinetuneRecipe:
    recipe = RECIPES[name]
    assert isinstance(recipe, FinetuneRecipe)
    return recipe


@pytest.mark.parametrize("name", sorted(EVERY))
def test_every_number_is_the_source_s_and_has_its_line(name: str) -> None:
    recipe, found = recipe_of(name), EVERY[name]
    for theirs, ours in SAME_NAME.items():
        assert getattr(recipe, ours) == found[theirs], ours
    images, peak = official_finetune.images_per_step(found), official_finetune.peak_lr(found)
    assert recipe.batch_size == images
    assert scaled_lr(recipe.base_lr, images) == pytest.approx(peak, rel=1e-12)
    steps = 10  # of an epoch
    first = official_finetune.rate(found, 0, steps)
    assert scaled_lr(recipe.warmup_lr, images) == pytest.approx(first, rel=1e-9)
    low = found.get("min_lr", 0.001 * peak)  # SparK: lr_decay.py:17
    assert scaled_lr(recipe.min_lr, images) == pytest.approx(low, rel=1e-12)
    assert recipe.clip_grad == (found["clip_grad"] or 0)
    assert recipe.color_jitter == (found["color_jitter"] or 0)
    assert recipe.img_size == (found["input_size"],) * 2
    assert (recipe.test_img_size or recipe.img_size) == (found.get("test_size", 224),) * 2
    assert recipe.test_crop_ratio == found.get("crop_pct", 224 / 256)
    assert recipe.repeated_aug == (found.get("rep_aug") or 1)
    assert (recipe.crop_scale, recipe.hflip) == ((0.08, 1.0), 0.5)  # timm's, torchvision's defaults
    assert recipe.warmup_prefix == (found["rates"] != "mmcv")
    if recipe.ema_decay:
        assert not recipe.ema_warmup
    assert recipe.window_size is None
    assert recipe.resizing == "pil"  # torchvision's ImageFolder reads PIL images
    assert recipe.draw == "balanced"  # SimCLR's lists, which Semi-ViT takes; others do not sample
    compared = {"batch_size", "base_lr", "warmup_lr", "min_lr", "clip_grad", "color_jitter"}
    compared |= {"img_size", "test_img_size", "test_crop_ratio", "repeated_aug", "crop_scale"}
    compared |= {"hflip", "warmup_prefix", "ema_warmup", "window_size", *SAME_NAME.values()}
    # The tests below compare what these four lead to.
    compared |= {"optimizer", "layer_groups", "loss", "precision"}
    assert {f.name for f in dataclasses.fields(recipe)} - {
        *ABOUT,
        "draw",
        "limit",
        "val_fraction",
        "resizing",
    } == compared
    assert compared == set(recipe.sources)
    assert f"top-1 {found['score']} " in (recipe.published or "")


def test_precision_is_ours_but_for_spark_which_trains_in_float32() -> None:
    gpu = torch.device("cuda")
    for name in (*EVERY, *official.FINETUNE, *official_mae.FINETUNE):
        precision = recipe_of(name).precision
        assert precision == ("fp32" if name.startswith("imagenet_spark") else "auto")
    assert decide_precision("fp32", gpu, 768, lambda: 9.0) == "fp32"


@pytest.mark.parametrize("name", sorted(EVERY))
@pytest.mark.parametrize("scale", [1.0, 0.65**13])
def test_the_schedule_is_the_source_s_at_every_step(name: str, scale: float) -> None:
    recipe, found = recipe_of(name), EVERY[name]
    steps = 7  # of an epoch
    schedule = build_schedule(recipe, steps)
    for step in range(found["epochs"] * steps):
        expected = scale * official_finetune.rate(found, step, steps)
        assert schedule.lr(step, scale) == pytest.approx(expected, rel=1e-9, abs=1e-15), step


@pytest.mark.parametrize("name", sorted(official.FINETUNE))
@pytest.mark.parametrize("power", [0, 13])
def test_simmims_schedule_is_timms_as_its_files_build_it(name: str, power: int) -> None:
    recipe, found = recipe_of(name), {**official.DEFAULTS, **official.FINETUNE[name]}
    steps = 7
    prefix = found["TRAIN.LR_SCHEDULER.WARMUP_PREFIX"]
    warmup, total = found["TRAIN.WARMUP_EPOCHS"] * steps, found["TRAIN.EPOCHS"] * steps
    whole_batch = found["DATA.BATCH_SIZE"] * 16 / 512  # main_finetune.py:322-324
    scale = found["TRAIN.LAYER_DECAY"] ** power
    # optimizer.py:166-167: a group starts with the scaled peak, which is the scheduler's base value.
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=found["TRAIN.BASE_LR"] * whole_batch * scale)
    theirs = CosineLRScheduler(
        optimizer,
        t_initial=total - warmup if prefix else total,
        lr_min=found["TRAIN.MIN_LR"] * whole_batch,
        warmup_lr_init=found["TRAIN.WARMUP_LR"] * whole_batch,
        warmup_t=warmup,
        cycle_limit=1,
        t_in_epochs=False,
        warmup_prefix=prefix,
    )
    schedule = build_schedule(recipe, steps)
    for step in range(total):  # main_finetune.py:208: the rate is set after a step, by its number
        assert schedule.lr(step, scale) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        theirs.step_update(step)


def swin_name(name: str) -> str:
    """Return the official name of a Swin's parameter: a downsampling ends a stage there, and begins one here."""
    parts = name.split(".")
    if parts[0] == "layers" and parts[2] == "downsample":
        parts[1] = str(int(parts[1]) - 1)
    return ".".join(parts)


def convnext_name(name: str) -> str:
    """Return the official name of a ConvNeXt's parameter, as far as its layer depends on it."""
    parts = name.split(".")
    if parts[0] == "stem":
        return "downsample_layers.0"
    if parts[0] == "stages":
        down = parts[2] == "downsample"
        return f"downsample_layers.{parts[1]}" if down else f"stages.{parts[1]}.{parts[3]}"
    return name


def resnet_name(name: str) -> str:
    return name.replace("head.", "fc.")


Exponent = Callable[[str, Any], int]
PUBLISHED_LAYERS: list[tuple[str, str, Exponent]] = [
    *(
        (name, arch, lambda name, spec: official_finetune.beit_exponent(name, spec.depths[0]))
        for name, arch in (
            ("imagenet_vit_b_800ep", "vit_b"),
            ("imagenet_beit_vit_b", "vit_b"),
            ("imagenet_beit_vit_l", "vit_l"),
            ("imagenet_beit_vit_b_ft22k", "vit_b"),
            ("imagenet_beit_vit_l_ft22k", "vit_l"),
            ("fewshot_semivit_vit_b_1pct", "vit_b"),
            ("fewshot_semivit_vit_l_10pct", "vit_l"),
        )
    ),
    *(
        (name, arch, lambda n, spec: official_finetune.swin_exponent(swin_name(n), spec.depths))
        for name, arch in (
            ("imagenet_swin_b_100ep", "swin_b"),
            ("imagenet_swin_b_800ep", "swin_b"),
            ("imagenet_swin_l_800ep", "swin_l"),
            ("imagenet_swinv2_b_800ep_prefix", "swinv2_b"),
        )
    ),
    *(
        (
            f"imagenet_spark_{arch}",
            arch,
            lambda n, spec: official_finetune.spark_resnet_exponent(resnet_name(n), spec.depths),
        )
        for arch in ("resnet50", "resnet101")
    ),
    *(
        (
            name,
            arch,
            lambda n, spec: official_finetune.convnext_group_exponent(
                convnext_name(n), spec.depths
            ),
        )
        for name, arch in (
            ("imagenet_spark_convnext_s", "convnext_s"),
            ("imagenet_spark_convnext_b", "convnext_b"),
            ("imagenet_spark_convnext_b", "convnext_t"),
            ("imagenet_convnextv2_b", "convnext_b"),
        )
    ),
    (
        "imagenet_convnextv2_t",
        "convnext_t",
        lambda n, spec: official_finetune.convnextv2_single_exponent(convnext_name(n), spec.depths),
    ),
    ("imagenet_resnet50_rsb_a2", "resnet50", lambda n, spec: 0),
    ("imagenet_resnet50_rsb_a3", "resnet50", lambda n, spec: 0),
]
# Swin: models/swin_transformer.py:561-562; Swin V2: models/swin_transformer_v2.py:604-605; ViT: its line 298
EXEMPT = ("relative_position_bias_table", "cpb_mlp", "logit_scale")


@pytest.mark.heavy
@pytest.mark.parametrize(("name", "arch", "exponent"), PUBLISHED_LAYERS)
def test_every_weight_has_the_source_s_rate_and_decay(
    name: str, arch: str, exponent: Exponent
) -> None:
    recipe, spec = recipe_of(name), find_spec(arch)
    with shapes_only():
        model = build_backbone(spec, num_classes=1000)
    of = {
        id(p): group
        for group in build_optimizer(recipe, model).param_groups
        for p in group["params"]
    }
    for weight_name, weight in model.named_parameters():
        group = of.pop(id(weight))
        scale = recipe.layer_decay ** exponent(weight_name, spec)
        assert group["lr_scale"] == pytest.approx(scale, rel=1e-9), weight_name
        swin = spec.family.startswith("swin") and any(word in weight_name for word in EXEMPT)
        exempt = weight.ndim == 1 or weight_name.endswith(".bias") or swin
        exempt = exempt or weight_name in ("cls_token", "pos_embed")
        assert group["weight_decay"] == (0 if exempt else recipe.weight_decay), weight_name
    assert not of


def test_groups_of_layers_are_refused_for_networks_that_have_none() -> None:
    recipe = recipe_of("imagenet_vit_b_800ep")
    for groups, arch in (("group", "vit_pocket"), ("convnextv2", "resnet_pocket")):
        changed = override(recipe, [f"layer_groups={groups}"])
        with pytest.raises(UsageError, match=rf"{groups} applies .* not to {arch}; use"):
            build_optimizer(changed, build_backbone(find_spec(arch), num_classes=3))


def lamb_step(
    weight: Tensor,
    moments: tuple[Tensor, Tensor],
    gradient: Tensor,
    step: int,
    *,
    lr: float,
    decay: float,
    spark: bool,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Return LAMB's next weight and moments: arXiv 1904.00962, algorithm 2, with timm's trust ratio."""
    m = 0.9 * moments[0] + 0.1 * gradient
    v = 0.999 * moments[1] + 0.001 * gradient**2
    m_hat, v_hat = (m, v) if spark else (m / (1 - 0.9**step), v / (1 - 0.999**step))
    update = m_hat / (v_hat.sqrt() + 1e-6) + decay * weight
    ratio = 1.0
    if (decay or spark) and weight.norm() > 0 and update.norm() > 0:
        ratio = float(weight.norm() / update.norm())
    return weight - lr * ratio * update, (m, v)


@pytest.mark.parametrize("name", ["imagenet_resnet50_rsb_a2", "imagenet_spark_resnet50"])
def test_lamb_is_its_algorithm(name: str) -> None:
    recipe = recipe_of(name)
    spark = name == "imagenet_spark_resnet50"
    torch.manual_seed(0)
    model = build_backbone(find_spec("resnet_pocket"), num_classes=3).double()
    optimizer = build_optimizer(recipe, model)
    rates = {id(p): g for g in optimizer.param_groups for p in g["params"]}
    weights = [p.detach().clone() for p in model.parameters()]
    moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in weights]
    for step in (1, 2, 3):
        for number, parameter in enumerate(model.parameters()):
            parameter.grad = torch.randn_like(parameter)
            group = rates[id(parameter)]
            weights[number], moments[number] = lamb_step(
                weights[number],
                moments[number],
                parameter.grad.clone(),
                step,
                lr=group["lr"],
                decay=group["weight_decay"],
                spark=spark,
            )
        optimizer.step()
    for expected, parameter in zip(weights, model.parameters(), strict=True):
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["imagenet_vit_b_800ep", "imagenet_beit_vit_b"])
def test_adamw_has_the_source_s_settings(name: str) -> None:
    optimizer = build_optimizer(
        recipe_of(name), build_backbone(find_spec("vit_pocket"), num_classes=3)
    )
    assert isinstance(optimizer, torch.optim.AdamW)
    for group in optimizer.param_groups:  # SimMIM: config.py:125-129; BEiT: utils.py:574-578
        assert (group["betas"], group["eps"]) == ((0.9, 0.999), 1e-8)


def naive_loss(kind: str, logits: Tensor, target: Tensor) -> float:
    """Compute a loss image by image and class by class."""
    total = 0.0
    for row, wanted in zip(logits.tolist(), target.tolist(), strict=True):
        log_sum = math.log(sum(math.exp(x) for x in row))
        for x, y in zip(row, wanted, strict=True):
            if kind == "ce":
                total -= y * (x - log_sum)
            else:
                p = 1 / (1 + math.exp(-x))
                total -= y * math.log(p) + (1 - y) * math.log(1 - p)
    classes = logits.shape[1] if kind == "bce" else 1
    return total / (len(logits) * classes)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, "ce") for name in ("imagenet_vit_b_800ep", "imagenet_mae_vit_b")),
        ("imagenet_beit_vit_b_ft22k", "ce"),
        ("fewshot_semivit_vit_b_1pct", "ce"),
        ("imagenet_spark_convnext_b", "ce"),
        ("imagenet_spark_resnet50", "bce"),  # util.py:89: timm's mean
        # cls_mixup_head.py:293 divides the sum over images and classes by the images
        ("imagenet_resnet50_rsb_a2", "bce_sum"),
        ("imagenet_resnet50_rsb_a3", "bce_sum"),
    ],
)
def test_the_loss_is_the_source_s_on_the_same_logits(name: str, kind: str) -> None:
    recipe, classes = recipe_of(name), 5
    criterion, mixup = loss_and_mixing(recipe, classes)
    torch.manual_seed(1)
    logits = torch.randn(6, classes, dtype=torch.float64)
    labels = torch.tensor([0, 4, 2, 2, 1, 3])
    smoothing = recipe.label_smoothing
    one_hot = F.one_hot(labels, classes).double()
    expected = one_hot * (1 - smoothing) + smoothing / classes
    targets = labels
    if mixup is not None:
        assert mixup.mode == "batch"
        assert (mixup.mix_prob, mixup.switch_prob) == (1.0, 0.5)  # every source's default
        assert (mixup.mixup_alpha, mixup.cutmix_alpha) == (recipe.mixup, recipe.cutmix)
        seed_everything(3)
        images = torch.zeros(6, 3, 8, 8)
        images[0] = 1.0
        mixed, targets = mixup(images, labels)
        lam = (
            1 - mixed[5].double().mean()
        )  # the last image is mixed with the first, whose pixels are 1
        expected = lam * expected + (1 - lam) * expected.flip(0)
    found = criterion(logits, targets)
    assert float(found) == pytest.approx(naive_loss(kind, logits, expected), rel=1e-6)


def photograph(height: int = 90, width: int = 120) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()


def official_transform(name: str, mean: tuple[float, ...], std: tuple[float, ...]) -> T.Compose:
    """Build the training transform as the source's file does."""
    if name in official.FINETUNE:  # SimMIM: data/data_finetune.py:81-90
        found = {**official.DEFAULTS, **official.FINETUNE[name]}
        options = {
            "input_size": found["DATA.IMG_SIZE"],
            "color_jitter": found["AUG.COLOR_JITTER"],
            "auto_augment": found["AUG.AUTO_AUGMENT"],
            "re_prob": found["AUG.REPROB"],
        }
    else:  # Semi-ViT: util/datasets.py:112; BEiT: datasets.py:135; ConvNeXt V2: datasets.py:58; SparK: data.py:37
        found = {**official_mae.FINETUNE, **EVERY}[name]
        options = {
            "input_size": found["input_size"],
            "color_jitter": found["color_jitter"],
            "auto_augment": "v0" if found["aa"] == "trivial" else found["aa"],
            "re_prob": found["reprob"],
        }
    transform: T.Compose = create_transform(
        **options,
        is_training=True,
        interpolation="bicubic",
        re_mode="pixel",
        re_count=1,
        mean=mean,
        std=std,
    )
    if found.get("aa") == "trivial":  # SparK: data.py:43-46
        transform.transforms[2] = T.TrivialAugmentWide(interpolation=T.InterpolationMode.BICUBIC)
    return transform


@pytest.mark.parametrize("name", sorted({**official.FINETUNE, **official_mae.FINETUNE, **EVERY}))
def test_training_images_are_those_of_the_source(name: str, pocket: Path) -> None:
    recipe = recipe_of(name)
    means, stds = IMAGENET_MEAN, IMAGENET_STD
    if name in official_finetune.BEIT:  # datasets.py:129-131
        means = stds = (0.5, 0.5, 0.5)
    checkpoint = dataclasses.replace(read_checkpoint("random:vit_pocket"), mean=means, std=stds)
    job = TransferJob(
        task="imagenet", checkpoint=checkpoint, data=pocket, recipe=recipe, deviates={}
    )
    train = class_folders(pocket / "imagenet", "train")
    nothing: Any = None  # the loader reads seed and rank alone
    context = RunContext(run=nothing, seed=0)
    small = dataclasses.replace(job, recipe=dataclasses.replace(recipe, num_workers=0))
    images: Any = build_loader(context, small, train).dataset
    load = images.load
    (ours,) = load.args
    theirs = official_transform(name, means, stds)
    assert [str(step) for step in ours.transforms] == [str(step) for step in theirs.transforms]
    image = photograph()
    for seed in range(3):
        seed_everything(seed)
        expected = theirs(image)
        seed_everything(seed)
        assert torch.equal(load(png(image), "any.png"), expected)


# (recipe, side that Resize takes, side of the crop)
TEST_SIZES = [
    *(  # SimMIM: data/data_finetune.py:100; Swin V2: data/data_simmim_ft.py:98
        (name, int((256 / 224) * found["DATA.IMG_SIZE"]), found["DATA.IMG_SIZE"])
        for name, found in official.FINETUNE.items()
    ),
    ("imagenet_mae_vit_b", 256, 224),
    ("imagenet_beit_vit_l", 256, 224),
    ("imagenet_convnextv2_b", 256, 224),
    ("fewshot_semivit_vit_b_1pct", 256, 224),
    ("imagenet_spark_resnet50", math.floor(224 / 0.95), 224),  # timm's transforms_imagenet_eval
    ("imagenet_resnet50_rsb_a2", 236, 224),  # imagenet_rsb_a2_ft_sz224_8xbs256.py:48-49
    ("imagenet_resnet50_rsb_a3", 236, 224),  # imagenet_rsb_a3_ft_sz160_4xbs512.py:45-46
]


@pytest.mark.parametrize(("name", "side", "crop"), TEST_SIZES)
def test_validation_images_are_those_of_the_source(name: str, side: int, crop: int) -> None:
    recipe = recipe_of(name)
    ours = eval_transform(
        recipe.eval_img_size,
        crop_ratio=recipe.test_crop_ratio,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )
    bicubic = T.InterpolationMode.BICUBIC
    theirs = T.Compose(
        [
            T.Resize(side, interpolation=bicubic),
            T.CenterCrop(crop),
            T.ToTensor(),
            T.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    image = photograph(301, 277)
    assert torch.equal(ours(png(image), "any.png"), theirs(image))


@pytest.mark.parametrize("fraction", ["1%", "10%"])
@pytest.mark.parametrize("arch", ["vit_b", "vit_l"])
def test_semi_vits_recipes_are_for_few_shot(fraction: str, arch: str, tmp_path: Path) -> None:
    name = f"fewshot_semivit_{arch}_{fraction.rstrip('%')}pct"
    options = RunOptions(data=tmp_path, recipe=name)
    request = TransferRequest(task="fewshot", options=options)
    plan = plan_transfer(request, f"random:{arch}", [0])
    assert plan.transfer.recipe == recipe_of(name)


def test_a_model_is_trained_and_tested_at_its_own_sizes() -> None:
    recipe = recipe_of("imagenet_resnet50_rsb_a3")
    model: Backbone = build_backbone(find_spec("resnet_pocket"), num_classes=3).eval()
    assert isinstance(model, nn.Module)
    for size in (recipe.img_size, recipe.test_img_size):
        assert size is not None
        assert model(torch.zeros(1, 3, *size)).shape == (1, 3)
