"""Time a SimMIM pretraining step: the plain way, and as this project takes it.

    python benchmarks/pretrain_step.py --arch vit_b --batch-size 16 --official ../SimMIM

The first row is what the others are compared with: the official code in float32, where a checkout of
github.com/microsoft/SimMIM is given, else our model with float32, torch's own attention and an optimizer
step of its own for every parameter. The share is the distance to the limit: floating-point operations a
second of the step, against those of a large bfloat16 matrix product in the same process.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from side_by_side import compare, report
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pretrain.masking import random_masks
from pretrain.recipes import PretrainRecipe, default_recipe
from pretrain.simmim import SimMIM
from simmim_bench.archs import find_spec
from simmim_bench.kernels import autocast, best_device, choose_attention, keep_freed_memory
from simmim_bench.optim import parameter_groups

OFFICIAL_CONFIGS = {
    "vit_b": "configs/vit_base__800ep/simmim_pretrain__vit_base__img224__800ep.yaml",
    "swin_b": "configs/swin_base__100ep/simmim_pretrain__swin_base__img192_window6__100ep.yaml",
    "swin_l": "configs/swin_large__800ep/simmim_pretrain__swin_large__img192_window12__800ep.yaml",
}


def main() -> None:
    """Read the arguments, time, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--arch", default="vit_b")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--official", type=Path, help="checkout of microsoft/SimMIM")
    parser.add_argument("--compile", action="store_true", help="time torch.compile as well")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    arguments = parser.parse_args()
    if arguments.rounds < 3:
        sys.exit("--rounds must be at least 3: quartiles need them.")
    recipe = default_recipe(arguments.arch)
    device = best_device()
    spec = find_spec(recipe.arch).at(recipe.img_size, recipe.window_size)
    images = torch.randn(arguments.batch_size, 3, *spec.img_size, device=device)
    masks = random_masks(
        arguments.batch_size,
        spec.img_size,
        mask_patch_size=recipe.mask_patch_size,
        patch_size=spec.patch_size,
        mask_ratio=recipe.mask_ratio,
    ).to(device)

    work: dict[str, Callable[[], object]] = {}
    if arguments.official is not None:
        work["official code, float32"] = _official_step(arguments, images, masks)
    for name, precision, plain in (
        ("plain: float32, torch's attention, plain AdamW", "fp32", True),
        ("ours, float32", "fp32", False),
        ("ours, bfloat16", "bf16", False),
    ):
        work[name] = _our_step(recipe, images, masks, precision, plain=plain)
    if arguments.compile:
        work["ours, bfloat16, compiled"] = _our_step(
            recipe, images, masks, "bf16", plain=False, compiled=True
        )
    keep_freed_memory()  # for all of them alike: an allocator belongs to the process
    products: list[float] = []

    def product() -> None:
        products.append(_matrix_product(device))

    timings = compare(work, rounds=arguments.rounds, between=product)
    with FlopCounterMode(display=False) as counter:
        work["ours, bfloat16"]()
    ours = next(t for t in timings if t.name == "ours, bfloat16")
    reached, limit = counter.get_total_flops() / ours.seconds, median(products)
    report(
        f"pretraining step of {arguments.arch}, {'x'.join(map(str, spec.img_size))} pixels, "
        f"batch {arguments.batch_size}",
        timings,
        arguments.json,
        images_per_s=round(arguments.batch_size / ours.seconds, 2),
        gflop_per_s=round(reached / 1e9, 1),
        gflop_per_s_of_a_bf16_matrix_product=round(limit / 1e9, 1),
        share_of_that_product=round(reached / limit, 3),
        **_memory(device),
    )


def _our_step(
    recipe: PretrainRecipe,
    images: Tensor,
    masks: Tensor,
    precision: str,
    *,
    plain: bool,
    compiled: bool = False,
) -> Callable[[], object]:
    """Give a function that takes one step of our model."""
    spec = find_spec(recipe.arch).at(recipe.img_size, recipe.window_size)
    model = SimMIM(spec, drop_path_rate=recipe.drop_path_rate).to(images.device)
    groups = parameter_groups(model, model.encoder, lr=1e-4, weight_decay=0.05, pretraining=True)
    own = {"fused": False, "foreach": False} if plain else {"fused": True}
    optimizer = torch.optim.AdamW(groups, **own)
    model.train()
    if plain:
        choose_attention(model, training=False)
    forward = torch.compile(model) if compiled else model
    return _step(model, optimizer, lambda: forward(images, masks).loss, images.device, precision)


def _official_step(
    arguments: argparse.Namespace, images: Tensor, masks: Tensor
) -> Callable[[], object]:
    """Give a function that takes one step of the official model, in float32, with its own loss."""
    warnings.filterwarnings("ignore", category=FutureWarning)  # its timm imports are old
    sys.path.insert(0, str(arguments.official))
    from config import _C
    from models import build_model

    config = _C.clone()
    config.merge_from_file(str(arguments.official / OFFICIAL_CONFIGS[arguments.arch]))
    model = build_model(config, is_pretrain=True).to(images.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05)
    return _step(model, optimizer, lambda: model(images, masks), images.device, "fp32")


def _step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_of: Callable[[], Tensor],
    device: torch.device,
    precision: str,
) -> Callable[[], object]:
    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast(device, precision):
            loss = loss_of()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()

    return step


def _matrix_product(device: torch.device, side: int = 4096) -> float:
    """Give the operations a second of a square bfloat16 product."""
    a = torch.ones(side, side, device=device, dtype=torch.bfloat16)
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    a @ a
    if device.type == "cuda":
        torch.cuda.synchronize()
    return float(2 * side**3 / (time.perf_counter() - started))


def _memory(device: torch.device) -> dict[str, float]:
    if device.type != "cuda":
        return {}
    return {"peak_memory_gib": round(torch.cuda.max_memory_allocated(device) / 2**30, 2)}


if __name__ == "__main__":
    main()
