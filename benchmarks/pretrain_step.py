"""Time a SimMIM pretraining step: the official code, a plain implementation, and simmim-bench.

    python benchmarks/pretrain_step.py --arch vit_b --batch-size 16 --official ../SimMIM
    python benchmarks/pretrain_step.py --arch swin_b --official ../SimMIM --before ../older-checkout --precision fp32

The first row is the reference: the official code in float32 if a checkout of github.com/microsoft/SimMIM is given,
otherwise our model in float32 with torch's own attention and an optimizer that updates each parameter separately. The
report also compares our step with the limit of the machine: its floating-point operations per second divided by
those of a large matrix product in the same rounds and in the precision that `pretrain` would choose, bfloat16 if the
machine computes in it, or in float32 with `--precision fp32`. `--before` adds a row of another checkout of this
project. Each row runs in a separate process, because our step also changes how the C library of
its process returns freed memory.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from separate_process import SeparateProcess
from timing import Timing, compare, report
from torch import Tensor, nn

from pretrain.masking.masks import sample_masks
from pretrain.recipes import PretrainRecipe, default_recipe
from pretrain.simmim import SimMIM
from simmim_bench.distributed import best_device
from simmim_bench.models.archs import find_spec
from simmim_bench.models.attention import select_attention
from simmim_bench.training.flops import count_flops, peak_flops_per_s
from simmim_bench.training.memory import GIB, retain_freed_memory
from simmim_bench.training.optim import parameter_groups
from simmim_bench.training.precision import autocast, decide_precision

OFFICIAL_CONFIGS = {
    "vit_b": "configs/vit_base__800ep/simmim_pretrain__vit_base__img224__800ep.yaml",
    "swin_b": "configs/swin_base__100ep/simmim_pretrain__swin_base__img192_window6__100ep.yaml",
    "swin_l": "configs/swin_large__800ep/simmim_pretrain__swin_large__img192_window12__800ep.yaml",
}
OURS = {"fp32": "ours, float32", "bf16": "ours, bfloat16"}


def main() -> None:
    """Parse the arguments, time the alternatives and report."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--arch", default="vit_b")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--official", type=Path, help="checkout of microsoft/SimMIM")
    parser.add_argument("--before", type=Path, help="checkout of simmim-bench to compare with")
    parser.add_argument(
        "--precision", choices=("auto", "fp32"), default="auto", help="fp32: no rows in bfloat16"
    )
    parser.add_argument("--compile", action="store_true", help="time torch.compile as well")
    parser.add_argument("--json", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    if arguments.rounds < 3:
        sys.exit(f"--rounds {arguments.rounds} is too few for quartiles; use 3 or more.")
    official = arguments.official
    if official is not None:
        if arguments.arch not in OFFICIAL_CONFIGS:
            parser.error(f"--official supports --arch {', '.join(OFFICIAL_CONFIGS)}")
        if not (official / OFFICIAL_CONFIGS[arguments.arch]).is_file():
            parser.error(f"--official {official} is not a checkout of microsoft/SimMIM")
    before = arguments.before
    if before is not None and not (before / "simmim_bench").is_dir():
        parser.error(f"--before {before} is not a checkout of simmim-bench")
    device = best_device()
    recipe = default_recipe(arguments.arch)
    width = find_spec(recipe.arch).num_features
    precision = decide_precision(arguments.precision, device, width)
    flops = count_flops(_our_step(recipe, arguments.batch_size, "fp32", plain=True))
    ours_in_process = partial(SeparateProcess, _our_step, recipe, arguments.batch_size)
    steps: dict[str, Callable[[], object]] = {}
    if official is not None:
        steps["official code, float32"] = SeparateProcess(
            _official_step, official, recipe, arguments.batch_size, "fp32"
        )
        if precision == "bf16":
            steps["official code, bfloat16"] = SeparateProcess(
                _official_step, official, recipe, arguments.batch_size, "bf16"
            )
    steps["plain: float32, torch's attention, plain AdamW"] = ours_in_process("fp32", plain=True)
    if before is not None:
        with _imports_from(before):
            steps["ours before, float32"] = ours_in_process("fp32")
    steps[OURS["fp32"]] = ours_in_process("fp32")
    if precision == "bf16":
        steps[OURS["bf16"]] = ours_in_process("bf16")
    if arguments.compile:
        steps[f"{OURS[precision]}, compiled"] = ours_in_process(precision, compiled=True)
    products: list[float] = []

    def product() -> None:
        products.append(peak_flops_per_s(device, precision))

    timings = compare(steps, rounds=arguments.rounds, between=product)
    ours = next(t for t in timings if t.name == OURS[precision])
    reached, limit = flops / ours.seconds, median(products)
    size = recipe.img_size
    report(
        f"pretraining step of {arguments.arch}, {size[0]}x{size[1]} pixels, "
        f"batch {arguments.batch_size}" + (", float32" if precision == "fp32" else ""),
        timings,
        arguments.json,
        images_per_s=round(arguments.batch_size / ours.seconds, 2),
        gflop_per_s=round(reached / 1e9, 1),
        **{f"gflop_per_s_of_a_{precision}_matrix_product": round(limit / 1e9, 1)},
        share_of_that_product=round(reached / limit, 3),
        **(_shares(timings, flops, limit) if precision == "fp32" else {}),
        each_in="a separate process",
        **(_memory(steps[OURS[precision]]) if device.type == "cuda" else {}),
    )


@contextmanager
def _imports_from(checkout: Path) -> Iterator[None]:
    """Import this project from another checkout in the processes that start in the block."""
    sys.path.insert(0, str(checkout.resolve()))
    try:
        yield
    finally:
        sys.path.pop(0)


def _shares(timings: list[Timing], flops: int, limit: float) -> dict[str, float]:
    """Return the share of the matrix product's rate that every row reaches."""
    return {f"share_of_{t.name}": round(flops / t.seconds / limit, 3) for t in timings}


def _our_step(
    recipe: PretrainRecipe,
    batch_size: int,
    precision: str,
    *,
    plain: bool = False,
    compiled: bool = False,
) -> Callable[[], object]:
    """Build our model; return a function that takes one step.

    Args:
        plain: without our attention, fused optimizer and allocator setting.
    """
    device = best_device()
    if not plain:
        retain_freed_memory()
    spec = find_spec(recipe.arch).at(recipe.img_size, recipe.window_size)
    images, masks = _batch(recipe, batch_size)
    model = SimMIM(spec, drop_path_rate=recipe.drop_path_rate).to(device)
    groups = parameter_groups(model, model.encoder, lr=1e-4, weight_decay=0.05, pretraining=True)
    options: dict[str, Any] = {"fused": False, "foreach": False} if plain else {"fused": True}
    optimizer = torch.optim.AdamW(groups, **options)
    model.train()
    if plain:
        select_attention(model, training=False)
    forward = torch.compile(model) if compiled else model
    return _step(model, optimizer, lambda: forward(images, masks).loss, device, precision)


def _official_step(
    checkout: Path, recipe: PretrainRecipe, batch_size: int, precision: str
) -> Callable[[], object]:
    """Build the official model; return a function that takes one step with the official loss, under autocast."""
    warnings.filterwarnings("ignore", category=FutureWarning)  # from its outdated timm imports
    sys.path.insert(0, str(checkout))
    from config import _C  # type: ignore[import-not-found]
    from models import build_model  # type: ignore[attr-defined]

    device = best_device()
    images, masks = _batch(recipe, batch_size)
    config = _C.clone()
    config.merge_from_file(str(checkout / OFFICIAL_CONFIGS[recipe.arch]))
    model = build_model(config, is_pretrain=True).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05)
    return _step(model, optimizer, lambda: model(images, masks), device, precision)


def _batch(recipe: PretrainRecipe, batch_size: int) -> tuple[Tensor, Tensor]:
    """Sample images and masks, the same in every process."""
    torch.manual_seed(0)
    device = best_device()
    spec = find_spec(recipe.arch).at(recipe.img_size, recipe.window_size)
    masks = sample_masks(
        batch_size,
        spec.img_size,
        mask_patch_size=recipe.mask_patch_size,
        patch_size=spec.patch_size,
        mask_ratio=recipe.mask_ratio,
    )
    return torch.randn(batch_size, 3, *spec.img_size, device=device), masks.to(device)


def _step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_of: Callable[[], Tensor],
    device: torch.device,
    precision: str,
) -> Callable[[], object]:
    """Return a function that takes one step and returns the peak GPU memory in bytes."""

    def step() -> int:
        optimizer.zero_grad(set_to_none=True)
        with autocast(device, precision):
            loss = loss_of()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        if device.type != "cuda":
            return 0
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated(device)

    return step


def _memory(step: Callable[[], Any]) -> dict[str, float]:
    return {"peak_memory_gib": round(step() / GIB, 2)}


if __name__ == "__main__":
    main()
