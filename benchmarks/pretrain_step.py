"""Time a SimMIM pretraining step: in float32, and as this project takes it.

    python benchmarks/pretrain_step.py --arch vit_b --batch-size 8

The first row is the plain way: float32, eager, an optimizer step of its own for every parameter. The last
line is the distance to the limit: the step's floating-point operations a second as a share of those of a
large plain bfloat16 matrix product on the same machine.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from side_by_side import compare, report
from torch.utils.flop_counter import FlopCounterMode

from pretrain.masking import random_masks
from pretrain.recipes import default_recipe
from pretrain.simmim import SimMIM
from simmim_bench.archs import find_spec
from simmim_bench.engine import autocast, best_device
from simmim_bench.optim import parameter_groups


def main() -> None:
    """Read the arguments, time, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--arch", default="vit_b")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    arguments = parser.parse_args()
    if arguments.rounds < 3:
        sys.exit("--rounds must be at least 3: quartiles need them.")
    recipe = default_recipe(arguments.arch)
    device = best_device()
    work: dict[str, Callable[[], object]] = {}
    for name, precision, fused in (
        ("float32, plain AdamW", "fp32", False),
        ("float32, fused AdamW", "fp32", True),
        ("bfloat16, fused AdamW", "bf16", True),
    ):
        work[name] = _step(recipe, arguments.batch_size, device, precision, fused=fused)
    timings = compare(work, rounds=arguments.rounds)
    with FlopCounterMode(display=False) as counter:
        next(iter(work.values()))()
    best = min(t.seconds for t in timings)
    reached = counter.get_total_flops() / best
    limit = _matrix_product(device)
    report(
        f"pretraining step of {arguments.arch}, batch {arguments.batch_size}",
        timings,
        arguments.json,
        images_per_s=round(arguments.batch_size / best, 2),
        gflop_per_s=round(reached / 1e9, 1),
        share_of_bf16_matrix_product=round(reached / limit, 3),
    )


def _step(
    recipe: object, batch_size: int, device: torch.device, precision: str, *, fused: bool
) -> Callable[[], object]:
    """Give a function that takes one step on a batch of noise."""
    spec = find_spec(recipe.arch).at(recipe.img_size, recipe.window_size)  # type: ignore[attr-defined]
    model = SimMIM(spec).to(device)
    groups = parameter_groups(model, model.encoder, lr=1e-4, weight_decay=0.05, pretraining=True)
    optimizer = torch.optim.AdamW(groups, fused=fused, foreach=False if not fused else None)
    images = torch.randn(batch_size, 3, *spec.img_size, device=device)
    masks = random_masks(
        batch_size,
        spec.img_size,
        mask_patch_size=recipe.mask_patch_size,  # type: ignore[attr-defined]
        patch_size=spec.patch_size,
        mask_ratio=recipe.mask_ratio,  # type: ignore[attr-defined]
    ).to(device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast(device, precision):
            loss = model(images, masks).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()

    return step


def _matrix_product(device: torch.device, side: int = 2048) -> float:
    """Give the operations a second of a square bfloat16 product, the best of five."""
    a = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    best = 0.0
    for _ in range(6):
        if device.type == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = max(best, 2 * side**3 / (time.perf_counter() - started))
    return best


if __name__ == "__main__":
    main()
