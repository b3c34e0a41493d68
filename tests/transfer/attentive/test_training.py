"""Probes that are trained jointly equal probes that are trained one at a time, by plain torch."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from support.commands import two_processes_of
from support.probing import BATCHES, CLASSES, RECIPE, WIDTHS, build, save_probes, step_batches
from torch import Tensor, nn

from transfer.attentive.heads import AttentiveHead
from transfer.attentive.probes import Candidate, build_optimizer
from transfer.attentive.recipes import AttentiveRecipe
from transfer.attentive.train import build_schedule


class Plain(nn.Module):
    """One probe as efficient-probing writes it: every token is projected, torch normalises."""

    def __init__(self, head: AttentiveHead, recipe: AttentiveRecipe) -> None:
        super().__init__()
        pooling: Any = head.pooling
        self.latent = copy.deepcopy(getattr(pooling, "pool", None))
        if self.latent is None:
            self.query = nn.Parameter(pooling.query.detach().clone())
            channels = head.classifier.in_features
            self.value = nn.Linear(channels, channels, bias=False)
            self.key = nn.Linear(channels, channels, bias=False)
            self.value.load_state_dict(pooling.value.state_dict())
            self.projects = hasattr(pooling, "key")
            if self.projects:
                self.key.load_state_dict(pooling.key.state_dict())
        width = head.classifier.in_features
        self.token_norm = nn.BatchNorm1d(width, affine=False, eps=1e-6)
        self.normalises = recipe.token_norm == "batch"
        self.norm = nn.BatchNorm1d(width, affine=False, eps=1e-6)
        self.classifier = nn.Linear(width, CLASSES)
        self.classifier.load_state_dict(head.classifier.state_dict())

    def forward(self, x: Tensor) -> Tensor:
        if self.normalises:
            x = self.token_norm(x.transpose(1, 2)).transpose(1, 2)
        if self.latent is not None:
            return self.classifier(self.norm(self.latent(x)))
        queries = self.query.shape[0]
        values = self.value(x).unflatten(2, (queries, -1))
        if self.projects:
            keys = self.key(x).unflatten(2, (queries, -1))
            scores = torch.einsum("qd,blqd->blq", self.query, keys)
        else:
            scores = x @ self.query.T
        weights = (scores * self.query.shape[1] ** -0.5).softmax(1)
        pooled = torch.einsum("blq,blqd->bqd", weights, values).flatten(1)
        return self.classifier(self.norm(pooled))


class PlainLars(torch.optim.Optimizer):
    """LARS as MAE and efficient-probing define it: vectors are neither scaled nor decayed."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.0})

    def step(self, closure: Any = None) -> Any:
        with torch.no_grad():
            self._step()

    def _step(self) -> None:
        for p in self.param_groups[0]["params"]:
            update = p.grad
            if update is None:
                continue
            if p.ndim > 1 and p.norm() > 0 and update.norm() > 0:
                update = update * 0.001 * p.norm() / update.norm()
            velocity = self.state[p].get("v", torch.zeros_like(p)) * 0.9 + update
            self.state[p]["v"] = velocity
            p -= self.param_groups[0]["lr"] * velocity


def train_plainly(
    head: AttentiveHead, candidate: Candidate, recipe: AttentiveRecipe, part: int
) -> Plain:
    """Train one probe on the images of one part, with torch's modules and autograd."""
    dtype = head.classifier.weight.dtype
    plain = Plain(head, recipe).to(dtype)
    optimizer: torch.optim.Optimizer = PlainLars(plain.parameters())
    if recipe.optimizer == "adamw":
        weights = [p for p in plain.parameters() if p.ndim > 1]
        vectors = [p for p in plain.parameters() if p.ndim <= 1]
        groups: list[dict[str, Any]] = [
            {"params": weights, "weight_decay": recipe.weight_decay},
            {"params": vectors},
        ]
        optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    peak = candidate.base_lr * recipe.batch_size / 256
    schedule = build_schedule(recipe, len(BATCHES) // recipe.epochs)
    for step, (tokens, labels, learnt) in enumerate(step_batches(dtype)):
        x, rows = tokens[candidate.block], learnt[part] > 0
        for group in optimizer.param_groups:
            group["lr"] = peak * schedule.lr(step) / schedule.peak_lr
        optimizer.zero_grad()
        F.cross_entropy(plain(x[rows]), labels[rows]).backward()
        optimizer.step()
    return plain


# In float32, AdamW makes full steps of gradients that are zero up to rounding.
@pytest.mark.parametrize(
    ("optimizer", "norm", "dtype"),
    [("lars", "batch", torch.float32), ("adamw", "none", torch.float64)],
)
def test_joint_training_equals_training_each_head_alone(
    optimizer: Literal["lars", "adamw"], norm: Literal["none", "batch"], dtype: torch.dtype
) -> None:
    recipe = replace(RECIPE, optimizer=optimizer, token_norm=norm)
    if optimizer == "adamw":
        recipe = replace(recipe, base_lr=(0.003, 0.03), weight_decay=0.1)
    probes = build(recipe).to(dtype)
    plain = [
        [train_plainly(probes.head(n, part), c, recipe, part) for part in range(2)]
        for n, c in enumerate(probes.candidates)
    ]
    assert len(plain) == len(WIDTHS) * len(recipe.heads) * len(recipe.base_lr)
    trained, schedule = (
        build_optimizer(probes, recipe),
        build_schedule(recipe, len(BATCHES) // recipe.epochs),
    )
    for step, (tokens, labels, learnt) in enumerate(step_batches(dtype)):
        schedule.apply(trained, step)
        trained.zero_grad()
        probes([tokens[block] for block in probes.blocks], labels, learnt).sum().backward()
        trained.step()

    tokens, _, learnt = step_batches(dtype)[0]
    with torch.no_grad():
        logits = probes.eval().logits([tokens[block] for block in probes.blocks], learnt)
    slow, fast = (logits[number, 1] for number in range(2))
    assert (slow - fast).abs().max() > 1e-2  # far beyond the tolerance
    for (number, part), found in logits.items():
        x = tokens[probes.candidates[number].block]
        with torch.no_grad():
            wanted = plain[number][part].eval()(x)
        limit = 1e-5 * float(wanted.abs().max())
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=limit)


@pytest.mark.heavy
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    save_probes(tmp_path / "one.pt")
    two_processes_of(partial(save_probes, tmp_path / "two.pt"))
    one, two = (torch.load(tmp_path / f"{name}.pt") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, two[name], rtol=1e-6, atol=1e-7)
