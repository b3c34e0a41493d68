"""Numerical checks: the GPU against the CPU, bfloat16 against float32, and which kernels a step runs.

Loss and gradients are compared for the same weights, images and masks. Zero-initialised parameters, such as
position bias tables, are perturbed, since zeros would hide what they compute.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from detection_step import synthetic_batch as synthetic_images
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from gpu_checks.harness import CheckFailed, Setup
from gpu_checks.product import (
    RECIPES,
    CocoRecipe,
    SimMIM,
    autocast,
    build_detector,
    compile_blocks,
    default_recipe,
    find_recipe,
    find_spec,
    read_checkpoint,
    sample_masks,
)
from gpu_checks.report import Findings
from gpu_checks.training import PretrainStep

SMALL = ("vit_pocket", "swin_pocket", "convnext_pocket", "resnet_pocket")
REAL = ("vit_ti", "swin_t", "swinv2_t")
MASK_RATIO = 0.6
PERTURBATION = 0.02  # standard deviation; timm initialises weights with it, too
NEGLIGIBLE = 1e-3  # of the largest gradient's norm: below it, bfloat16 leaves noise
FUSED_KERNELS = ("fmha", "flash", "sdpa")


def gpu_matches_cpu(setup: Setup) -> Findings:
    """Check that loss and gradients in float32 are those of the CPU, within rounding."""
    findings, wrong = {}, []
    with _without_tf32():
        for arch in _archs(setup):
            cpu = _loss_and_gradients(arch, torch.device("cpu"), images=2)
            gpu = _loss_and_gradients(arch, setup.device, images=2)
            findings[arch] = _compare(cpu, gpu, negligible=1e-7)
            if _differ(findings[arch], loss=1e-5, cosine=0.9999):
                wrong.append(arch)
    if wrong:
        raise CheckFailed(f"{', '.join(wrong)}: GPU and CPU differ in float32", findings)
    return findings


def bfloat16_matches_float32(setup: Setup) -> Findings:
    """Check that bfloat16 changes the loss by less than 1 %, and that position bias tables learn."""
    findings, wrong = {}, []
    for arch in _archs(setup):
        single = _loss_and_gradients(arch, setup.device)
        half = _loss_and_gradients(arch, setup.device, "bf16")
        tables = [g for name, g in half[1].items() if name.endswith("bias_table")]
        findings[arch] = {
            **_compare(single, half, negligible=NEGLIGIBLE * _largest(single[1])),
            "bias_tables": len(tables),
        }
        if _differ(findings[arch], loss=0.01, cosine=0.95) or not all(t.norm() > 0 for t in tables):
            wrong.append(arch)
    if wrong:
        raise CheckFailed(f"{', '.join(wrong)}: bfloat16 and float32 differ", findings)
    return findings


def compiled_is_one_graph(setup: Setup) -> Findings:
    """Check that torch.compile captures every block without a graph break, in the precision of training."""
    findings = {}
    for arch in SMALL[: 1 if setup.tiny else 3]:
        torch.compiler.reset()
        model, images, mask = _problem(arch, setup.device, images=2)
        blocks = model.encoder.blocks_in_order
        compile_blocks(blocks, backend="aot_eager", fullgraph=True)
        try:
            with autocast(setup.device, "bf16"):
                model(images, mask).loss.backward()
            findings[arch] = "one graph"
        except Exception as error:  # torch._dynamo.exc.Unsupported, or what a backend raises
            findings[arch] = next(line for line in str(error).splitlines() if line.strip())
    torch.compiler.reset()
    broken = [arch for arch, found in findings.items() if found != "one graph"]
    if broken:
        raise CheckFailed(f"{', '.join(broken)}: {findings[broken[0]]}", findings)
    return findings


def attention_is_fused(setup: Setup) -> Findings:
    """Check that attention runs in fused kernels, in training and in evaluation."""
    findings, plain = {}, []
    for arch in ("vit_ti", "swin_t"):
        step = PretrainStep(setup, arch, batch_size=8)
        for mode, call in (("train", step), ("eval", step.evaluate)):
            call()
            with profile(activities=[ProfilerActivity.CUDA]) as profiler:
                call()
                setup.synchronize()
            kernels = {event.key for event in profiler.key_averages()}
            fused = sorted(k for k in kernels if any(part in k.lower() for part in FUSED_KERNELS))
            findings[f"{arch}, {mode}"] = [kernel[:60] for kernel in fused]
            if not fused or any("softmax" in kernel.lower() for kernel in kernels):
                plain.append(f"{arch}, {mode}")
    if plain:
        raise CheckFailed(f"{'; '.join(plain)}: attention is not fused", findings)
    return findings


def boxes_keep_their_precision(setup: Setup) -> Findings:
    """Check that a detector in bfloat16 pools the regions that were proposed, not rounded ones.

    The poolers of boxes and masks are given noise in the type of the features that they get, and the regions. What
    they return must be what they return for the same numbers in float32. Rounding a coordinate near 1,000 to bfloat16
    moves it by up to two pixels.
    """
    side = 256 if setup.tiny else 1024
    recipe = find_recipe(RECIPES, "coco_pocket")
    assert isinstance(recipe, CocoRecipe)
    model = build_detector(
        read_checkpoint("random:swin_pocket"),
        replace(recipe, img_size=(side, side), precision="bf16"),
        num_classes=80,
        masks=True,
        seed=0,
        device=setup.device,
    )
    poolers = {"boxes": model.roi_heads.box_pooler, "masks": model.roi_heads.mask_pooler}
    pooled: dict[str, tuple[list[Tensor], Any]] = {}

    def record(name: str, _: nn.Module, inputs: tuple[list[Tensor], Any], output: Tensor) -> None:
        pooled[name] = inputs

    hooks = [p.register_forward_hook(partial(record, name)) for name, p in poolers.items()]
    with torch.no_grad(), EventStorage():
        model.train()(synthetic_images(1, side))
    for hook in hooks:
        hook.remove()
    findings: Findings = {}
    for name, (features, regions) in pooled.items():
        noise = [torch.randn_like(level) for level in features]
        with torch.no_grad(), autocast(setup.device, "bf16"):
            half = poolers[name](noise, regions)
        single = poolers[name]([level.float() for level in noise], regions)
        findings[name] = {
            "features": str(features[0].dtype),
            "regions": len(half),
            "cosine": cosine(half, single),
        }
    wrong = [n for n in poolers if n not in findings or findings[n]["cosine"] < 0.9995]
    if wrong:
        raise CheckFailed(
            f"{', '.join(wrong)}: pooled regions in bfloat16 and in float32 have a cosine below 0.9995",
            findings,
        )
    return findings


def _archs(setup: Setup) -> tuple[str, ...]:
    return SMALL if setup.tiny else SMALL + REAL


def _problem(arch: str, device: torch.device, images: int) -> tuple[SimMIM, Tensor, Tensor]:
    """Return a model with perturbed weights, images and masks, the same on every device."""
    recipe = default_recipe(arch)
    spec = find_spec(recipe.arch).at(recipe.img_size, recipe.window_size)
    model = SimMIM(spec, recipe.design, seed=0).train()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(PERTURBATION * torch.randn(parameter.shape, generator=generator))
    pixels = torch.randn(images, 3, *recipe.img_size, generator=generator)
    mask = sample_masks(
        images,
        recipe.img_size,
        mask_patch_size=recipe.mask_patch_size,
        patch_size=spec.patch_size,
        mask_ratio=MASK_RATIO,
        generator=generator,
    )
    return model.to(device), pixels.to(device), mask.to(device)


def _loss_and_gradients(
    arch: str, device: torch.device, precision: str = "fp32", images: int = 4
) -> tuple[float, dict[str, Tensor]]:
    model, pixels, mask = _problem(arch, device, images)
    with autocast(device, precision):
        loss = model(pixels, mask).loss
    loss.backward()
    gradients = {name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None}
    return loss.item(), gradients


def _compare(
    expected: tuple[float, dict[str, Tensor]],
    actual: tuple[float, dict[str, Tensor]],
    *,
    negligible: float,
) -> Findings:
    """Return the losses' relative difference, and the lowest cosine of two gradients of a parameter.

    Args:
        negligible: gradients of a smaller norm are left out.
    """
    (expected_loss, expected_gradients), (loss, gradients) = expected, actual
    cosines = {
        name: cosine(gradient, gradients[name])
        for name, gradient in expected_gradients.items()
        if gradient.norm() > negligible
    }
    lowest = min(cosines, key=lambda name: cosines[name])
    return {
        "loss_difference": abs(loss - expected_loss) / expected_loss,
        "lowest_cosine": cosines[lowest],
        "of": lowest,
    }


def _differ(found: Findings, *, loss: float, cosine: float) -> bool:
    return found["loss_difference"] >= loss or found["lowest_cosine"] <= cosine


def _largest(gradients: dict[str, Tensor]) -> float:
    return max(float(gradient.norm()) for gradient in gradients.values())


def cosine(a: Tensor, b: Tensor) -> float:
    """Return the cosine of two tensors of the same shape."""
    return float(nn.functional.cosine_similarity(a.flatten().double(), b.flatten().double(), dim=0))


@contextmanager
def _without_tf32() -> Iterator[None]:
    """Compute float32 convolutions exactly; matrix products are exact by default."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
