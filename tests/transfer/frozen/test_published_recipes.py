"""Every published protocol has the numbers of its official code, field by field, and computes the same.

Lines are those of facebookresearch/mae at efb2a80, facebookresearch/dino at 7c446df, facebookresearch/dinov2 at
b8931f7 and microsoft/unilm at 768a3c8.
"""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from PIL import Image
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torchvision import transforms as T

from simmim_bench.backbones import load_backbone
from simmim_bench.checkpoints.checkpoint import IMAGENET_MEAN, IMAGENET_STD
from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.cli.main import cli
from simmim_bench.data.class_splits import class_folders
from simmim_bench.data.datasets import eval_transform
from simmim_bench.display import Display
from simmim_bench.distributed import DistContext
from simmim_bench.errors import UsageError
from simmim_bench.models.vit import ViT
from simmim_bench.overrides import override
from simmim_bench.probes.knn import knn_votes
from simmim_bench.probes.norms import Normaliser
from simmim_bench.recipe import MACHINE
from simmim_bench.results.metrics import classification_scores, rank_votes
from simmim_bench.runs.run_dir import RunDir
from transfer.frozen.crops import sample_crop, single_draw_transform
from transfer.frozen.feature_store import FeatureStore
from transfer.frozen.features import FeatureSet, feature_sets, token_norm
from transfer.frozen.parallel_heads import ParallelLinearHeads, epoch_steps
from transfer.frozen.published_recipes import (
    KNN_DINO,
    LINEAR_BEIT,
    LINEAR_DINOV2,
    LINEAR_MAE,
    LINEAR_MAE_VIT_B,
    LINEAR_MAE_VIT_L,
)
from transfer.frozen.recipes import FrozenRecipe, LinearRecipe
from transfer.recipes import RECIPES

IMAGENET_IMAGES = 1_281_167
VIT: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 192,
    "depth": 5,
    "num_heads": 3,
    "num_classes": 0,
}
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
SMALL = ("img_size=32", "num_workers=0")

EVERY: dict[str, Any] = {
    "img_size": (
        224,
        224,
    ),  # MAE: main_linprobe.py:133; DINO: eval_knn.py:34; DINOv2: transforms.py:57
    "test_crop_ratio": 224
    / 256,  # MAE: main_linprobe.py:138-139; DINO: eval_knn.py:33-34; DINOv2: transforms.py:79-81
    "resizing": "pil",  # torchvision's transforms of PIL's images, in all of them
    "window_size": None,
    "precision": "auto",
}
MAE: dict[str, Any] = EVERY | {
    "blocks": (-1,),  # models_vit.py:43-51
    "pooling": ("cls",),  # FINETUNE.md:143 (--cls_token), models_vit.py:51
    "n_last_blocks": (1,),
    "token_norm": "final",  # models_vit.py:50
    "norm": ("batch",),  # main_linprobe.py:222
    "norm_images": 512,  # FINETUNE.md:142, a GPU; no SyncBN in main_linprobe.py
    "epochs": 90,  # FINETUNE.md:145
    "warmup_epochs": 10,  # main_linprobe.py:66
    "epoch_steps": None,
    "batch_size": 16384,  # FINETUNE.md:150
    "base_lr": (0.1,),  # FINETUNE.md:146
    "optimizer": "lars",  # main_linprobe.py:252
    "momentum": 0.9,  # util/lars.py:18
    "weight_decay": 0.0,  # FINETUNE.md:147
    "held_out": 0.1,  # one candidate: unused
    "crops": 90,  # a new crop each epoch
    "crop_rule": "mae",  # main_linprobe.py:35 and 133
    "crop_scale": (0.08, 1.0),  # torchvision's default
    "hflip": 0.5,  # torchvision's default
}
OFFICIAL: dict[str, dict[str, Any]] = {
    "linear_mae_vit_b": MAE,
    "linear_mae_vit_l": MAE | {"epochs": 50, "crops": 50},  # FINETUNE.md:155
    "linear_mae_vit_h": MAE | {"epochs": 50, "crops": 50},  # FINETUNE.md:155
    # Ours before linear_mae_vit_b; the differences are in its source.
    "linear_mae": MAE
    | {
        "token_norm": "none",
        "norm": ("layer+batch",),
        "norm_images": None,
        "crop_rule": "torchvision",
    },
    "linear_beit": EVERY
    | {
        "blocks": None,  # run_linear_eval.py:107-109, a classifier for every block
        "pooling": ("cls+mean",),  # run_linear_eval.py:198-200
        "n_last_blocks": (1,),
        "token_norm": "none",  # modeling_finetune.py:359-375
        "norm": ("none",),
        "norm_images": None,
        "epochs": 100,  # run_linear_eval.py:335
        "warmup_epochs": 0,  # run_linear_eval.py:129
        "epoch_steps": None,
        "batch_size": 1024,  # run_linear_eval.py:341 (128), get_started_for_image_classification.md:121 (8 GPUs)
        "base_lr": (1e-3,),  # get_started_for_image_classification.md:127 (4e-3 for 1024)
        "optimizer": "adamw",  # run_linear_eval.py:332
        "momentum": 0.9,  # of SGD: unused
        "weight_decay": 1e-4,  # run_linear_eval.py:126
        "held_out": 0.1,  # ours
        "crops": 100,
        "crop_rule": "torchvision",  # run_linear_eval.py:58
        "crop_scale": (0.08, 1.0),
        "hflip": 0.5,
    },
    "linear_dinov2": EVERY
    | {
        "blocks": (-1,),
        "n_last_blocks": (1, 4),  # linear.py:503
        "pooling": ("cls", "cls+mean"),  # linear.py:174-181, 239
        "token_norm": "final",  # vision_transformer.py:311-312
        "norm": ("none",),  # linear.py:171-183
        "norm_images": None,
        "epochs": 10,  # linear.py:139
        "warmup_epochs": 0,  # linear.py:519
        "epoch_steps": 1250,  # linear.py:142
        "batch_size": 1024,  # linear.py:140 (128), run/submit.py:39-46 (8 GPUs, 1 node)
        # linear.py:145
        "base_lr": (*(a * 10**b for b in range(-5, -1) for a in (1, 2, 5)), 0.1),
        "optimizer": "sgd",  # linear.py:517
        "momentum": 0.9,  # linear.py:517
        "weight_decay": 0.0,  # linear.py:517
        "held_out": 0.01,  # ours
        "crops": 10,
        "crop_rule": "torchvision",  # transforms.py:63
        "crop_scale": (0.08, 1.0),
        "hflip": 0.5,  # transforms.py:59
    },
    "knn_dino": EVERY
    | {
        "blocks": (-1,),  # vision_transformer.py:211-214
        "pooling": ("cls",),  # vision_transformer.py:214
        "n_last_blocks": (1,),
        "token_norm": "final",  # vision_transformer.py:213
        "norm": ("none",),  # eval_knn.py:81-82
        "k": (10, 20, 100, 200),  # eval_knn.py:194
        "temperature": 0.07,  # eval_knn.py:196
        "precision": "fp32",  # eval_knn.py:105
        "choose_on": 5000,  # ours
        "leave_one_out": False,
        "choose_votes": None,
    },
}


@pytest.mark.parametrize("name", OFFICIAL)
def test_every_field_is_that_of_the_official_code(name: str) -> None:
    found = {k: v for k, v in RECIPES[name].fields().items() if k not in MACHINE}
    expected = dict(OFFICIAL[name])
    assert found.pop("draw", "balanced") == "balanced"  # of few-shot learning: unused
    assert found.pop("limit") is None
    assert found.pop("val_fraction") is None
    if "base_lr" in expected:
        assert found.pop("base_lr") == pytest.approx(expected.pop("base_lr"), rel=1e-12)
    assert found == expected


def official_mae_rate(epoch: float, epochs: int) -> float:
    """util/lr_sched.py:9-21 with lr 0.1 * 16384 / 256 (main_linprobe.py:240), warm-up 10 and min_lr 0."""
    if epoch < 10:
        return 6.4 * epoch / 10
    return 6.4 * (math.cos(math.pi * (epoch - 10) / (epochs - 10)) + 1) / 2


def heads_of(recipe: LinearRecipe, channels: int = 4, classes: int = 3) -> ParallelLinearHeads:
    features = torch.randn(32, channels, generator=torch.Generator().manual_seed(0))
    normaliser = Normaliser(recipe.norm, features, batch_images=recipe.norm_images)
    return ParallelLinearHeads(
        normaliser, channels, classes, recipe, seed=0, device=torch.device("cpu")
    )


def rates(recipe: LinearRecipe, epochs: range) -> list[list[float]]:
    """Return the rates of the weights at every step of some epochs of ImageNet."""
    heads = heads_of(recipe)
    found = []
    for epoch in epochs:
        factors = [f for _, f in epoch_steps(IMAGENET_IMAGES, recipe, seed=0, epoch=epoch)]
        for factor in factors:
            found.append(step_rates(heads, len(recipe.base_lr), factor))
    return found


def step_rates(heads: ParallelLinearHeads, count: int, factor: float) -> list[float]:
    """Take a step and return its rates: an optimizer's, or those of the step that SGD takes from zero."""
    x, y = torch.randn(2, 4), torch.tensor([0, 1])
    if heads._sgd is None:
        heads.step(x, y, factor)
        return [group["lr"] for group in heads._optimizer.param_groups[:count]]
    for parameter, _, velocity in heads._sgd._joint:
        parameter.zero_()
        velocity.zero_()
    heads.step(x, y, factor)
    gradient = (
        1 / 3 - 1 + 1 / 3
    ) / 2  # of the bias of class 0, which one image has and one has not
    return [float(bias) / -gradient for bias in heads._biases[0, :: heads._shape[2], 0]]


@pytest.mark.parametrize(("recipe", "epochs"), [(LINEAR_MAE_VIT_B, 90), (LINEAR_MAE_VIT_L, 50)])
def test_the_rate_of_every_step_is_maes(recipe: LinearRecipe, epochs: int) -> None:
    # DistributedSampler gives each of 32 GPUs 40,037 images, whose loader drops the last incomplete 512.
    steps = math.ceil(IMAGENET_IMAGES / 32) // 512
    for chosen in (range(2), range(9, 11), range(epochs - 1, epochs)):
        expected = [
            [official_mae_rate(e + s / steps, epochs)] for e in chosen for s in range(steps)
        ]
        np.testing.assert_allclose(rates(recipe, chosen), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.heavy
def test_the_rate_of_every_step_is_dinov2s() -> None:
    parameters = [nn.Parameter(torch.zeros(1)) for _ in range(13)]
    values = OFFICIAL["linear_dinov2"]["base_lr"]
    optimizer = torch.optim.SGD(
        [{"params": [p], "lr": v * 1024 / 256} for p, v in zip(parameters, values, strict=True)]
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 12_500, eta_min=0)
    expected = []
    for _ in range(12_500):
        expected.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    found = rates(LINEAR_DINOV2, range(1)) + rates(LINEAR_DINOV2, range(9, 10))
    np.testing.assert_allclose(found, expected[:1250] + expected[-1250:], rtol=1e-6, atol=1e-12)


def test_the_update_is_that_of_maes_lars() -> None:
    """util/lars.py:22-47: a bias takes its plain gradient, a weight one of 0.001 times the weight's norm."""
    recipe = override(LINEAR_MAE_VIT_B, ["norm=none", "norm_images=none"])
    heads = heads_of(recipe)
    weight, bias = heads._weights[0].clone(), torch.zeros(3)
    momentum = [torch.zeros(3, 4), torch.zeros(3)]
    generator = torch.Generator().manual_seed(2)
    for step in range(8):
        x = torch.randn(16, 4, generator=generator) * (
            step != 5
        )  # a gradient of zero is not scaled
        y = torch.randint(0, 3, (16,), generator=generator)
        heads.step(x, y, step / 8)
        error = (x @ weight.T + bias).softmax(1) - F.one_hot(y, 3)
        gradient = error.T @ x / 16
        if gradient.norm() > 0:
            gradient = gradient / gradient.norm() * weight.norm() * 0.001
        for value, change, buffer in zip(
            (weight, bias), (gradient, error.mean(0)), momentum, strict=True
        ):
            buffer.copy_(0.9 * buffer + change)
            value -= 6.4 * step / 8 * buffer
    torch.testing.assert_close(heads._weights[0], weight, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(heads._biases[0, :, 0], bias, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("recipe", [LINEAR_MAE_VIT_B, LINEAR_BEIT, LINEAR_DINOV2])
def test_a_new_classifier_is_normal_with_deviation_one_hundredth(recipe: LinearRecipe) -> None:
    """MAE: main_linprobe.py:218; BEiT: run_linear_eval.py:292-293; DINOv2: linear.py:196-197."""
    heads = heads_of(recipe, channels=768, classes=100)
    for weight in heads._weights[0].split(100):
        assert weight.std().item() == pytest.approx(0.01, rel=0.02)
        assert abs(weight.mean().item()) < 2e-4
    assert not heads._biases.any()


def random_image(height: int, width: int) -> Image.Image:
    pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def png(image: Image.Image) -> bytes:
    content = io.BytesIO()
    image.save(content, "png")
    return content.getvalue()


def official_crop(height: int, width: int) -> tuple[int, int, int, int]:
    """MAE: util/crop.py:24-42, with torchvision's default scale and ratio."""
    area = torch.empty(1).uniform_(0.08, 1).item() * (height * width)
    bounds = torch.log(torch.tensor((3 / 4, 4 / 3)))
    ratio = torch.exp(torch.empty(1).uniform_(bounds[0].item(), bounds[1].item())).item()
    w, h = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
    w, h = (width if w > width else w), (height if h > height else h)
    i = torch.randint(0, height - h + 1, size=(1,)).item()
    j = torch.randint(0, width - w + 1, size=(1,)).item()
    return int(i), int(j), h, w


@pytest.mark.parametrize("size", [(375, 500), (500, 120), (64, 64)])
def test_a_crop_is_maes_and_not_torchvisions(size: tuple[int, int]) -> None:
    crops = []
    for seed in range(200):
        torch.manual_seed(seed)
        crops.append(sample_crop(size, (0.08, 1.0), (3 / 4, 4 / 3)))
        torch.manual_seed(seed)
        assert crops[-1] == official_crop(*size)
    cut = sum(h == size[0] or w == size[1] for _, _, h, w in crops)
    assert cut > 5  # torchvision samples these crops again
    image = random_image(*size)
    transform = single_draw_transform(
        (224, 224), mean=IMAGENET_MEAN, std=IMAGENET_STD, crop_scale=(0.08, 1.0), hflip=0.5
    )
    torch.manual_seed(3)
    found = transform(png(image), "image.png")
    torch.manual_seed(3)
    top, left, height, width = official_crop(*size)
    box = (left, top, left + width, top + height)
    resized = image.crop(box).resize((224, 224), Image.Resampling.BICUBIC)
    if torch.rand(1).item() < 0.5:
        resized = resized.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    expected = T.Normalize(IMAGENET_MEAN, IMAGENET_STD)(T.ToTensor()(resized))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", OFFICIAL)
@pytest.mark.parametrize("size", [(375, 500), (501, 333), (600, 257)])
def test_the_scored_pixels_are_official(name: str, size: tuple[int, int]) -> None:
    """DINO: eval_knn.py:32-37; MAE: main_linprobe.py:137-141; DINOv2: transforms.py:77-91."""
    recipe = RECIPES[name]
    assert isinstance(recipe, FrozenRecipe)
    image = random_image(*size)
    ours = eval_transform(
        recipe.img_size, crop_ratio=recipe.test_crop_ratio, mean=IMAGENET_MEAN, std=IMAGENET_STD
    )
    official = T.Compose(
        [
            T.Resize(256, interpolation=T.InterpolationMode.BICUBIC),
            T.CenterCrop(224),
            T.ToTensor(),
            T.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    assert torch.equal(ours(png(image), "image.png"), official(image))


def checkpoint_file(path: Path, **changed: Any) -> tuple[VisionTransformer, str]:
    """Return timm's ViT with random weights everywhere, and its file, whose names are DINO's, DINOv2's and MAE's."""
    model = VisionTransformer(**VIT | changed)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    torch.save(model.state_dict(), path)
    return model.eval(), str(path)


def close(found: Tensor, wanted: Tensor) -> bool:
    return bool((found - wanted).abs().max() <= 1e-5 * wanted.abs().max())


@torch.no_grad()
@pytest.mark.parametrize("recipe", [KNN_DINO, LINEAR_MAE_VIT_B])
def test_the_class_token_is_that_after_the_last_norm(tmp_path: Path, recipe: FrozenRecipe) -> None:
    """DINO: vision_transformer.py:209-214; MAE: models_vit.py:43-51."""
    theirs, name = checkpoint_file(tmp_path / "dino.pth")
    checkpoint = read_checkpoint(name)
    ours, norm = load_backbone(checkpoint).eval(), token_norm(recipe, checkpoint)
    assert isinstance(ours, ViT)
    expected = theirs.forward_features(IMAGES)[:, 0]
    assert close(ours.forward_pooled(IMAGES, norm)[:, -1, 1], expected)
    assert not close(ours.forward_pooled(IMAGES)[:, -1, 1], expected)


def dinov2_input(blocks: list[tuple[Tensor, Tensor]], n: int, avgpool: bool) -> Tensor:
    """linear.py:171-183, of the patch tokens and the class token after every block."""
    parts = [class_token for _, class_token in blocks[len(blocks) - n :]]
    return torch.cat(parts + ([blocks[-1][0].mean(1)] if avgpool else []), dim=1)


@torch.no_grad()
def test_the_features_are_dinov2s(tmp_path: Path, pocket: Path) -> None:
    theirs, name = checkpoint_file(tmp_path / "dinov2.pth", init_values=0.5)
    checkpoint = read_checkpoint(name)
    recipe = override(LINEAR_DINOV2, [*SMALL, "test_crop_ratio=1"])
    images = class_folders(pocket / "imagenet", "val").subset(range(4))
    sets = tuple(feature_sets(recipe, checkpoint.spec))
    assert [(s.block, s.n_last_blocks, s.pooling) for s in sets] == [
        (5, n, pooling) for n in (1, 4) for pooling in ("cls", "cls+mean")
    ]
    run = RunDir(tmp_path, Display(quiet=True), writes=False)
    store = FeatureStore(tmp_path / "store", checkpoint, recipe, sets, 0, run, DistContext())
    stored = store.load_or_compute(images)
    transform = T.Compose([T.ToTensor(), T.Normalize(checkpoint.mean, checkpoint.std)])
    pixels = torch.stack([transform(Image.open(path).convert("RGB")) for path in images.paths])
    blocks = [
        (patches.flatten(2).transpose(1, 2), prefix[:, 0])
        for patches, prefix in theirs.forward_intermediates(
            pixels, norm=True, intermediates_only=True, return_prefix_tokens=True
        )
    ]
    for feature_set in sets:
        wanted = dinov2_input(blocks, feature_set.n_last_blocks, feature_set.pooling == "cls+mean")
        found = stored.read(feature_set).float()
        assert found.shape == wanted.shape
        torch.testing.assert_close(found, wanted, rtol=2e-3, atol=2e-3)  # float16
    run.close()
    vit, norm = load_backbone(checkpoint).eval(), token_norm(recipe, checkpoint)
    assert isinstance(vit, ViT)
    pooled = vit.forward_pooled(pixels, norm)
    for feature_set in sets:
        columns = [pooled[:, b - 1, int(p == "cls")] for b, p in feature_set.parts]
        wanted = dinov2_input(blocks, feature_set.n_last_blocks, feature_set.pooling == "cls+mean")
        assert close(torch.cat(columns, 1), wanted)


def test_the_norm_before_maes_classifier_is_batchnorm_on_every_process() -> None:
    """main_linprobe.py:222 on 512 images a GPU, of which rank 0's running statistics predict."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(96, 6, generator=generator) * 3 + 1
    official = nn.BatchNorm1d(6, affine=False, eps=1e-6)
    ours = Normaliser(["none", "batch"], features, batch_images=8)
    for step in range(3):
        batch = features[32 * step : 32 * (step + 1)]
        groups = [official(batch[:8])]
        others = nn.BatchNorm1d(6, affine=False, eps=1e-6)
        groups += [others(batch[start : start + 8]) for start in (8, 16, 24)]
        found = ours.normalise_batch(batch)
        torch.testing.assert_close(found[1], torch.cat(groups))
        assert torch.equal(found[0], batch)
    official.eval()
    torch.testing.assert_close(ours(features)[1], official(features))
    assert not torch.allclose(Normaliser(["batch"], features)(features)[0], official(features))


def test_a_batch_norm_cancels_the_last_norms_weights_up_to_sign_and_epsilon() -> None:
    """linear_mae leaves the weights out, linear_mae_vit_b does not."""
    assert (LINEAR_MAE.token_norm, LINEAR_MAE_VIT_B.token_norm) == ("none", "final")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(256, 4, generator=generator)
    norm = nn.LayerNorm(4, eps=1e-6).requires_grad_(False)
    norm.weight.copy_(torch.tensor([2.0, 0.5, -1.0, 1e-3]))
    norm.bias.copy_(torch.tensor([5.0, -3.0, 0.1, 7.0]))
    exact = nn.BatchNorm1d(4, affine=False, eps=1e-6)(norm(x))
    without = Normaliser(["layer+batch"], x)(x)[0]
    torch.testing.assert_close(exact[:, :2], without[:, :2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(exact[:, 2], -without[:, 2], rtol=1e-4, atol=1e-5)
    variance = F.layer_norm(x, (4,), eps=1e-6)[:, 3].var(correction=0).item()
    shrunk = math.sqrt((variance + 1e-6) / (variance + 1e-6 / 1e-6))
    torch.testing.assert_close(exact[:, 3], shrunk * without[:, 3], rtol=1e-2, atol=1e-3)


def official_knn(train: Tensor, labels: Tensor, queries: Tensor, k: int) -> Tensor:
    """Rank all classes of every query: eval_knn.py:157-173, one image at a time."""
    ranked = []
    for query in queries:
        similarity = [float(query @ other) for other in train]
        nearest = sorted(range(len(train)), key=lambda i: -similarity[i])[:k]
        votes = [0.0] * (int(labels.max()) + 1)
        for i in nearest:
            votes[labels[i]] += math.exp(similarity[i] / 0.07)
        ranked.append(sorted(range(len(votes)), key=lambda c: -votes[c]))
    return torch.tensor(ranked)


def test_top1_and_top5_of_every_k_are_dinos() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(240) % 8
    centres = torch.randn(8, 16, generator=generator)
    train = F.normalize(centres[labels] + 2 * torch.randn(240, 16, generator=generator))
    truth = torch.arange(40) % 8
    queries = F.normalize(centres[truth] + 2 * torch.randn(40, 16, generator=generator))
    chunks = knn_votes(train, labels, queries, 8, ks=KNN_DINO.k, temperature=KNN_DINO.temperature)
    found = [torch.cat(votes) for votes in zip(*chunks, strict=True)]
    for k, votes in zip(KNN_DINO.k, found, strict=True):
        ranked = official_knn(train, labels, queries, k)
        voted = min(5, k)
        ours = rank_votes(votes.numpy()).ranked
        assert (ours[:, :1] == ranked[:, :1].numpy()).all()
        expected = {
            "top1": 100 * (ranked[:, 0] == truth).double().mean().item(),
            "top5": 100 * (ranked[:, :voted] == truth[:, None]).any(1).double().mean().item(),
        }
        assert classification_scores(ours, truth.numpy(), 8) == pytest.approx(expected)
        assert 20 < expected["top1"] < 95


def run_transfer(task: str, out: Path, pocket: Path, *more: str) -> dict[str, Any]:
    arguments = ["transfer", task, "--data", str(pocket / "imagenet"), "--out", str(out), "--quiet"]
    done = CliRunner().invoke(cli, [*arguments, *more], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    record: dict[str, Any] = json.loads((out / "record.json").read_text())
    return record


def options(*assignments: str) -> list[str]:
    return [word for assignment in assignments for word in ("-o", assignment)]


def test_knn_dino_scores_every_k(tmp_path: Path, pocket: Path) -> None:
    _, name = checkpoint_file(tmp_path / "dino.pth")
    more = ["--ckpt", name, "--recipe", "knn_dino", *options(*SMALL)]
    record = run_transfer("knn", tmp_path / "run", pocket, *more)
    details = record["details"]
    assert list(details["by_k"]) == ["10", "20", "100", "200"]
    assert details["by_k"][str(details["k"])] == record["metrics"]
    for k in (10, 20):
        alone = run_transfer("knn", tmp_path / str(k), pocket, *more, "-o", f"k={k}")
        assert alone["metrics"] == details["by_k"][str(k)]


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("recipe", "more"),
    [
        ("linear_mae_vit_b", ("epochs=3", "warmup_epochs=1", "crops=3", "norm_images=16")),
        ("linear_dinov2", ("epochs=2", "crops=2", "held_out=0.2")),
    ],
)
def test_published_probes_run_on_a_checkpoint_and_on_random_weights(
    tmp_path: Path, pocket: Path, recipe: str, more: tuple[str, ...]
) -> None:
    _, name = checkpoint_file(tmp_path / "vit.pth")
    for ckpt in (name, "random:vit_pocket"):
        arguments = ["--ckpt", ckpt, "--recipe", recipe, *options(*SMALL, *more)]
        record = run_transfer("linear", tmp_path / Path(ckpt).stem, pocket, *arguments)
        assert record["recipe"]["name"] == recipe
        if recipe == "linear_dinov2":
            assert record["details"]["candidates"] == 52
            assert record["details"].get("n_last_blocks") in (None, 4)


def test_a_norm_or_blocks_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    fine_tuned, _ = checkpoint_file(tmp_path / "vit.pth")
    state = {
        k.replace("norm.", "fc_norm.", 1) if k.startswith("norm.") else k: v
        for k, v in fine_tuned.state_dict().items()
    }
    torch.save(state, tmp_path / "fine_tuned.pth")
    for ckpt in (str(tmp_path / "fine_tuned.pth"), "random:swin_pocket"):
        with pytest.raises(UsageError, match=r"token_norm=final needs .* -o token_norm=none"):
            token_norm(KNN_DINO, read_checkpoint(ckpt))
    spec = read_checkpoint(str(tmp_path / "vit.pth")).spec
    with pytest.raises(
        UsageError, match=r"n_last_blocks=4 does not fit blocks=3: .* n_last_blocks=3"
    ):
        feature_sets(override(LINEAR_DINOV2, ["blocks=3"]), spec)
    with pytest.raises(UsageError, match=r"n_last_blocks=4 .* pooling=mean has none"):
        feature_sets(override(LINEAR_DINOV2, ["pooling=mean"]), spec)
    assert FeatureSet(3, "cls+mean", 2).parts == [(2, "cls"), (3, "cls"), (3, "mean")]
