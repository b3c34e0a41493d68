"""Jointly trained linear heads equal separately trained ones, and reach closed-form solutions."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner, Result
from PIL import Image
from torch import Tensor, nn

from simmim_bench.cli.main import cli
from simmim_bench.errors import DataError
from simmim_bench.probes.logistic import fit_logistic
from simmim_bench.probes.norms import Normaliser
from transfer.frozen.parallel_heads import (
    INITIAL_STD,
    LossGradient,
    ParallelLinearHeads,
    cross_entropy_gradient,
    epoch_steps,
    lr_factor,
    train_epoch,
)
from transfer.frozen.recipes import LINEAR_POCKET, LinearRecipe

CPU = torch.device("cpu")
RECIPE = replace(
    LINEAR_POCKET, epochs=4, batch_size=16, norm=("none", "layer", "batch"), base_lr=(0.01, 0.3)
)


def data(images: int = 50, channels: int = 6, classes: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(images, channels, generator=generator) * 3 + 1
    labels = (features[:, :classes]).argmax(1)
    return features.half(), labels


def train(
    features: Tensor,
    labels: Tensor,
    recipe: LinearRecipe,
    loss_gradient: LossGradient = cross_entropy_gradient,
) -> ParallelLinearHeads:
    heads = ParallelLinearHeads(
        Normaliser(recipe.norm, features),
        features.shape[1],
        int(labels.max()) + 1,
        recipe,
        seed=3,
        device=CPU,
        loss_gradient=loss_gradient,
    )
    for epoch in range(recipe.epochs):
        train_epoch(heads, features, labels, recipe, seed=3, epoch=epoch)
    return heads


def train_separately(x: Tensor, labels: Tensor, recipe: LinearRecipe, rate: float) -> Tensor:
    """Train one classifier with torch's optimizers and autograd; return its logits."""
    layer = nn.Linear(x.shape[1], int(labels.max()) + 1)
    generator = torch.Generator().manual_seed(3)
    initial = torch.randn(layer.weight.shape, generator=generator)
    layer.weight.data.copy_(initial * INITIAL_STD)
    layer.bias.data.zero_()
    peak = rate * recipe.batch_size / 256
    optimizer: torch.optim.Optimizer
    if recipe.optimizer == "adamw":
        optimizer = torch.optim.AdamW(layer.parameters(), lr=peak, weight_decay=1e-4)
    elif recipe.optimizer == "lars":
        # MAE's LARS scales no bias.
        optimizer = torch.optim.SGD(layer.parameters(), lr=peak, momentum=0.9)
    else:
        optimizer = torch.optim.SGD(layer.parameters(), lr=peak, momentum=0.9, weight_decay=1e-4)
    for epoch in range(recipe.epochs):
        for rows, factor in epoch_steps(len(labels), recipe, seed=3, epoch=epoch):
            optimizer.param_groups[0]["lr"] = peak * factor
            optimizer.zero_grad()
            F.cross_entropy(layer(x[rows]), labels[rows]).backward()
            if recipe.optimizer == "lars":
                gradient = layer.weight.grad
                assert gradient is not None
                gradient.mul_(0.001 * layer.weight.detach().norm() / gradient.norm())
            optimizer.step()
    return layer(x).detach()


@pytest.mark.parametrize("optimizer", ["sgd", "lars", "adamw"])
def test_jointly_trained_heads_equal_separately_trained_ones(
    optimizer: Literal["sgd", "lars", "adamw"],
) -> None:
    features, labels = data()
    decay = 0.0 if optimizer == "lars" else 1e-4
    recipe = replace(RECIPE, optimizer=optimizer, weight_decay=decay)
    found = train(features, labels, recipe).predict(features)
    x = features.float()
    versions = {
        "none": x,
        "layer": nn.LayerNorm(6, eps=1e-6, elementwise_affine=False)(x),
        "batch": nn.BatchNorm1d(6, eps=1e-6, affine=False)(x),
    }
    for s, norm in enumerate(recipe.norm):
        for r, rate in enumerate(recipe.base_lr):
            expected = train_separately(versions[norm], labels, recipe, rate)
            torch.testing.assert_close(found[s, r], expected, rtol=1e-3, atol=1e-4)


def test_batches_cover_every_image_once_per_epoch_in_a_new_order() -> None:
    recipe = replace(RECIPE, batch_size=10)
    orders = [
        torch.cat([rows for rows, _ in epoch_steps(50, recipe, seed=0, epoch=e)]) for e in (0, 1)
    ]
    assert all(torch.equal(order.sort().values, torch.arange(50)) for order in orders)
    assert not torch.equal(*orders)
    assert len(list(epoch_steps(7, recipe, seed=0, epoch=0))) == 1
    assert len(list(epoch_steps(29, recipe, seed=0, epoch=0))) == 2


def test_the_learning_rate_follows_the_schedule_of_mae() -> None:
    recipe = replace(RECIPE, epochs=90, warmup_epochs=10)
    assert [lr_factor(e, recipe) for e in (0, 5, 10)] == [0.0, 0.5, 1.0]
    # MAE: util/lr_sched.py
    assert lr_factor(33.3, recipe) == pytest.approx(
        0.5 * (1 + math.cos(math.pi * (33.3 - 10) / (90 - 10)))
    )
    assert lr_factor(90, recipe) == pytest.approx(0.0)


def test_the_squared_error_reaches_the_least_squares_solution() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(64, 5, generator=generator)
    labels = torch.randint(0, 3, (64,), generator=generator)

    def squared_error_gradient(logits: Tensor, targets: Tensor) -> Tensor:
        return 2 * (logits - targets)

    recipe = replace(RECIPE, norm=("none",), epochs=400, batch_size=64, base_lr=(0.4,))
    found = train(features, labels, recipe, loss_gradient=squared_error_gradient).predict(features)[
        0, 0
    ]
    with_bias = torch.cat([features, torch.ones(64, 1)], 1)
    answer = torch.linalg.lstsq(with_bias, F.one_hot(labels, 3).float()).solution
    torch.testing.assert_close(found, with_bias @ answer, rtol=1e-4, atol=1e-4)


def test_cross_entropy_reaches_the_frequencies_of_a_table() -> None:
    # Images of one kind have equal features: the optimum is the frequency of each class within the kind.
    counts = torch.tensor([[8, 1, 1], [2, 6, 2], [1, 1, 8], [5, 4, 1]])
    kinds = torch.arange(4).repeat_interleave(10)
    labels = torch.cat([torch.arange(3).repeat_interleave(row) for row in counts])
    features = F.one_hot(kinds, 4).float()
    expected = counts[kinds] / 10
    recipe = replace(RECIPE, norm=("none",), epochs=600, batch_size=40, base_lr=(20.0,))
    trained = train(features, labels, recipe).predict(features)[0, 0].softmax(1)
    torch.testing.assert_close(trained, expected, rtol=0, atol=1e-3)
    fit = fit_logistic(features, labels, 3, 0.0)
    assert fit.converged
    torch.testing.assert_close(fit.logits(features).softmax(1), expected, rtol=0, atol=1e-3)


def test_a_regression_that_does_not_converge_is_reported() -> None:
    generator = torch.Generator().manual_seed(0)
    ill_conditioned = torch.randn(400, 60, generator=generator) * torch.logspace(-2, 2, 60)
    labels = torch.randint(0, 3, (400,), generator=generator)
    assert not fit_logistic(ill_conditioned, labels, 3, 0.0).converged
    assert fit_logistic(torch.randn(400, 60, generator=generator), labels, 3, 1e-2).converged


def test_a_diverged_head_has_accuracy_zero_and_affects_no_other() -> None:
    features, labels = data()
    features = features * 1000
    recipe = replace(RECIPE, norm=("none",), base_lr=(1e-5, 1e38))
    both = train(features, labels, recipe)
    accuracy = both.accuracy(features, labels)
    assert accuracy[0, 0] > 0.6
    assert accuracy[0, 1] == 0
    only = train(features, labels, replace(recipe, base_lr=(1e-5,)))
    torch.testing.assert_close(both.predict(features)[0, 0], only.predict(features)[0, 0])


def linear(out: Path, pocket: Path, *more: str, ckpt: str = "random:vit_pocket") -> Result:
    arguments = ["transfer", "linear", "--ckpt", ckpt, "--data", str(pocket / "imagenet")]
    return CliRunner().invoke(cli, [*arguments, "--out", str(out), "--quiet", *more])


FEW_EPOCHS = ("-o", "epochs=3", "-o", "batch_size=32")


def test_every_candidate_is_compared_and_the_best_one_is_scored(
    tmp_path: Path, pocket: Path
) -> None:
    done = linear(tmp_path / "run", pocket, *FEW_EPOCHS)
    assert done.exception is None
    compared = json.loads((tmp_path / "run" / "compared.json").read_text())
    keys = {(c["block"], c["pooling"], c["norm"], c["base_lr"]) for c in compared}
    assert len(keys) == len(compared) == 4 * 3 * 3 * 7
    details = json.loads((tmp_path / "run" / "record.json").read_text())["details"]
    assert details["held_out_top1"] == max(c["held_out_top1"] for c in compared)
    assert {k: details[k] for k in compared[0]} in compared
    assert details["candidates"] == len(compared)
    # The candidate alone has the same logits as the candidate chosen among all.
    named = [f"blocks={details['block']}", *(f"{k}={details[k]}" for k in ("pooling", "norm"))]
    named.append(f"base_lr={details['base_lr']}")
    more = [x for assignment in named for x in ("-o", assignment)]
    assert linear(tmp_path / "named", pocket, *FEW_EPOCHS, *more).exception is None
    hashes = [
        json.loads((tmp_path / name / "record.json").read_text())["predictions"]["sha256"]
        for name in ("run", "named")
    ]
    assert hashes[0] == hashes[1]


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("recipe", "more"),
    [
        ("linear_mae", ["-o", "crops=3"]),
        ("linear_simmim", ["-o", "crops=2", "-o", "blocks=3"]),
        ("linear_beit", ["-o", "crops=1"]),
        ("linear_beit", ["-o", "crops=0"]),
    ],
)
def test_published_protocols_train_on_random_crops_and_remove_their_features(
    tmp_path: Path, pocket: Path, recipe: str, more: list[str]
) -> None:
    small = ["-o", "img_size=32", "-o", "num_workers=0", "-o", "epochs=3", "-o", "warmup_epochs=1"]
    done = linear(tmp_path / "run", pocket, "--recipe", recipe, *small, *more)
    assert done.exception is None
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert record["recipe"]["name"] == recipe
    assert {"epochs", "img_size"} <= set(record["deviates"])
    stored = [json.loads(p.read_text()) for p in tmp_path.rglob("features.json")]
    assert [k["count"] for k in stored if "number" in k["crop"]] == []
    assert sorted(k["count"] for k in stored) == [30, 60]


def test_too_few_images_and_too_long_a_warm_up_are_refused(tmp_path: Path, pocket: Path) -> None:
    few = ["transfer", "fewshot", "--fraction", "1%", "--recipe", "linear_pocket", "--quiet"]
    few += ["--ckpt", "random:vit_pocket", "--data", str(tmp_path / "data")]
    for split in ("train", "val"):
        for label in ("a", "b"):
            (tmp_path / "data" / split / label).mkdir(parents=True)
            for number in range(100):
                image = Image.new("RGB", (8, 8), (number, 0, 9 * (label == "b")))
                image.save(tmp_path / "data" / split / label / f"{number}.png")
    done = CliRunner().invoke(cli, [*few, "--out", str(tmp_path / "few")])
    assert isinstance(done.exception, DataError)
    assert "2 images in 2 classes are too few to hold out some of each class" in str(done.exception)
    named = [f"-o{x}" for x in ("blocks=2", "pooling=mean", "norm=batch", "base_lr=0.1")]
    done = CliRunner().invoke(cli, [*few, *named, "--out", str(tmp_path / "named")])
    assert done.exception is None
