"""Random tokens that attentive probes are trained on, in one process or in two."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from simmim_bench.distributed import DistContext, init_distributed
from transfer.attentive.batch_norm import total_over
from transfer.attentive.probes import AttentiveProbes, build_optimizer, list_candidates
from transfer.attentive.recipes import ATTENTIVE_POCKET, AttentiveRecipe
from transfer.attentive.train import build_schedule

WIDTHS = {2: 16, 3: 24}  # channels by block
CLASSES = 5
RECIPE = replace(
    ATTENTIVE_POCKET,
    heads=("efficient", "latent", "cross"),
    queries=4,
    num_heads=4,
    base_lr=(2.0, 8.0),
    epochs=2,
    batch_size=24,
)
BATCHES = range(6)
Batch = tuple[dict[int, Tensor], Tensor, Tensor]


def step_batches(dtype: torch.dtype = torch.float32) -> list[Batch]:
    """Return tokens by block, labels, and the images that each of two parts learns from, of every step."""
    generator = torch.Generator().manual_seed(0)
    centres = {
        block: torch.randn(CLASSES, width, generator=generator) for block, width in WIDTHS.items()
    }
    batches = []
    for _ in BATCHES:
        labels = torch.randint(CLASSES, (24,), generator=generator)
        tokens = {
            block: torch.randn(24, 6, width, generator=generator) + centres[block][labels, None]
            for block, width in WIDTHS.items()
        }
        learnt = torch.ones(2, 24)
        learnt[0, torch.randperm(24, generator=generator)[:5]] = 0
        converted = {block: x.to(dtype) for block, x in tokens.items()}
        batches.append((converted, labels, learnt.to(dtype)))
    return batches


def build(recipe: AttentiveRecipe = RECIPE, dist: DistContext | None = None) -> AttentiveProbes:
    """Build the probes of all candidates of both blocks."""
    dist = dist or DistContext()
    return AttentiveProbes(
        list_candidates(list(WIDTHS), recipe),
        WIDTHS,
        CLASSES,
        recipe,
        parts=2,
        seed=3,
        total=total_over(dist),
        processes=dist.size,
    )


def save_probes(path: Path) -> None:
    """Train the probes by all processes of the launcher, each on its images, and write rank 0's weights."""
    recipe = replace(RECIPE, token_norm="batch")
    with init_distributed() as dist:
        dist = replace(dist, device=torch.device("cpu"))
        probes = build(recipe, dist).double()
        model, optimizer = dist.wrap_model(probes), build_optimizer(probes, recipe)
        schedule = build_schedule(recipe, len(BATCHES) // recipe.epochs)
        for step, (tokens, labels, learnt) in enumerate(step_batches(torch.float64)):
            own = slice(dist.rank, None, dist.size)
            schedule.apply(optimizer, step)
            optimizer.zero_grad()
            found = [tokens[block][own] for block in probes.blocks]
            model(found, labels[own], learnt[:, own]).sum().backward()
            optimizer.step()
        if dist.is_main:
            torch.save(probes.state_dict(), path)
