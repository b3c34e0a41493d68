"""Time a step of one attentive probe, and a step of all candidates of a recipe on the same forward pass.

    python benchmarks/attentive.py --arch vit_b --recipe attentive --images 16

The first alternative trains the last block's head at one rate on all images. Ours trains every block, head and rate of
the recipe, each once without the held-out images and once on all. Both forward the same random images through a
backbone with random weights, in the precision of the recipe, and step their optimizer. A step of a recipe computes many
such parts before it steps the optimizer once.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from timing import compare, report

from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.distributed import DistContext, best_device
from simmim_bench.recipe import find_recipe
from simmim_bench.training.kernels import fast_kernels
from simmim_bench.training.precision import autocast
from transfer.attentive.batch_norm import total_over
from transfer.attentive.probes import AttentiveProbes, build_optimizer, list_candidates
from transfer.attentive.recipes import AttentiveRecipe
from transfer.attentive.tokens import load_tokens
from transfer.frozen.features import block_width
from transfer.recipes import RECIPES


def main() -> None:
    """Parse the arguments, time the alternatives and report."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--arch", default="vit_b")
    parser.add_argument("--recipe", default="attentive")
    parser.add_argument("--images", type=int, help="images a part; the recipe's by default")
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    recipe = find_recipe(RECIPES, arguments.recipe)
    assert isinstance(recipe, AttentiveRecipe), f"{recipe.name} is not a recipe of attentive"
    device, images = best_device(), arguments.images or recipe.norm_images
    single = replace(recipe, blocks=(-1,), heads=recipe.heads[:1], base_lr=recipe.base_lr[:1])
    count, train_all = _step(recipe, arguments.arch, images, arguments.classes, device)
    _, train_one = _step(single, arguments.arch, images, arguments.classes, device)
    with fast_kernels(device, recipe.precision):
        timings = compare(
            {"one head": train_one, f"{count} candidates, {2 * count} heads": train_all},
            rounds=arguments.rounds,
        )
    report(
        f"attentive probes of {recipe.name} on {arguments.arch}, {images} images, {arguments.classes} classes",
        timings,
        arguments.json,
        cost_of_all_relative_to_one=round(1 / timings[1].speed, 3),
    )


def _step(
    recipe: AttentiveRecipe, arch: str, images: int, classes: int, device: torch.device
) -> tuple[int, Callable[[], None]]:
    """Return the number of candidates, and a function that takes a step of all of them."""
    checkpoint = read_checkpoint(f"random:{arch}")
    tokens = load_tokens(recipe, checkpoint, device)
    candidates = list_candidates(tokens.blocks, recipe)
    probes = AttentiveProbes(
        candidates,
        {block: block_width(checkpoint.spec, block) for block in tokens.blocks},
        classes,
        recipe,
        parts=2 if len(candidates) > 1 else 1,
        seed=0,
        total=total_over(DistContext()),
    ).to(device)
    optimizer = build_optimizer(probes, recipe)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(images, 3, *recipe.img_size, generator=generator).to(device)
    labels = torch.arange(images, device=device) % classes
    counted = torch.ones(probes.parts, images, device=device)

    def step() -> None:
        with autocast(device, recipe.precision, allow_fp16=True):
            found = tokens(pixels)
        probes(found, labels, counted).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return len(candidates), step


if __name__ == "__main__":
    main()
