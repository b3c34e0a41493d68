"""Checks of a training step: the host never waits, batches arrive, and a step that overflows changes nothing."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from detection_step import synthetic_batch as synthetic_images
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader

from gpu_checks.harness import CheckFailed, Setup
from gpu_checks.numerics import cosine
from gpu_checks.product import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    RECIPES,
    CocoRecipe,
    DistContext,
    FiniteCheck,
    Precision,
    batches_on_device,
    build_detector,
    find_adapter,
    find_recipe,
    gradient_scaler,
    normalise,
    read_checkpoint,
    step_unless,
)
from gpu_checks.report import Findings
from gpu_checks.training import PretrainStep

PREFETCHED = 6  # batches
LEAST_OVERLAP = 0.5  # of the copies' time; ours: the first copy has nothing to overlap with
OVERFLOWING_SCALE = 2.0**100


def step_never_waits(setup: Setup) -> Findings:
    """Check that no operation of a training step makes the host wait for the GPU."""
    step = PretrainStep(setup, "vit_ti", batch_size=32)
    step()
    step()
    setup.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [
        f"{Path(warning.filename).name}:{warning.lineno}"
        for warning in caught
        if "synchroniz" in str(warning.message)
    ]
    findings = {"waits": waits}
    if waits:
        raise CheckFailed(f"the host waits for the GPU at {', '.join(waits)}", findings)
    return findings


def batches_are_prefetched(setup: Setup) -> Findings:
    """Check a training loop over pinned batches: the host never waits, and copies run while the GPU computes.

    Every batch must reach the step with the values it had on the host.
    """
    arch, batch_size = ("vit_pocket", 8) if setup.tiny else ("vit_b", 128)
    step = PretrainStep(setup, arch, batch_size)
    step()
    on_host = [_another(step.batch, number) for number in range(PREFETCHED)]
    if setup.device.type == "cuda":
        on_host = [[tensor.pin_memory() for tensor in batch] for batch in on_host]
    arrived: list[list[Tensor]] = []
    activities = [ProfilerActivity.CUDA if setup.device.type == "cuda" else ProfilerActivity.CPU]
    setup.synchronize()
    with profile(activities=activities) as profiler:
        with _refused_waits(setup):
            loader = cast("DataLoader[Any]", on_host)
            for batch in batches_on_device(loader, setup.device):
                step(batch)
                arrived.append(batch)
        setup.synchronize()
    wrong = sum(
        not torch.equal(sent, got.cpu())
        for one, other in zip(on_host, arrived, strict=True)
        for sent, got in zip(one, other, strict=True)
    )
    findings: Findings = {"batches": len(arrived), "tensors_that_differ": wrong}
    if wrong:
        raise CheckFailed(f"{wrong} tensors differ from those on the host", findings)
    if setup.device.type == "cuda":
        findings["overlap"] = _copies_overlap(profiler)
        if findings["overlap"] < LEAST_OVERLAP:
            raise CheckFailed(
                f"{findings['overlap']:.0%} of the time of copies to the GPU overlaps with kernels; at least "
                f"{LEAST_OVERLAP:.0%} is expected",
                findings,
            )
    return findings


def overflow_changes_nothing(setup: Setup) -> Findings:
    """Check that a step with an infinite gradient changes neither weights nor moments, and that no host waits."""
    step = PretrainStep(setup, "vit_pocket" if setup.tiny else "vit_ti", batch_size=8)
    step()
    step()
    before = _training_state(step)
    parameter = next(iter(step.model.parameters()))
    hook = parameter.register_hook(lambda gradient: torch.full_like(gradient, torch.inf))
    with _refused_waits(setup):
        step()
        hook.remove()
        step()  # finite, but the run has ended at the step before
    changed = _differences(before, _training_state(step))
    bad = step.finite.first_bad()
    findings: Findings = {"changed": changed, "found_at": None if bad is None else int(bad.number)}
    if changed or findings["found_at"] != 2:
        raise CheckFailed(
            "a step that is not finite changed the training, or was not found", findings
        )
    step()
    if not _differences(before, _training_state(step)):
        raise CheckFailed("a finite step changed nothing", findings)
    return findings


def bytes_are_normalised(setup: Setup) -> Findings:
    """Check that every byte, normalised on the GPU, is the CPU's float32 value, within its last digit."""
    pixels = torch.arange(256, dtype=torch.uint8).expand(1, 3, 1, -1).contiguous()
    mean, std = (torch.tensor(v).double().view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    exact = (pixels.double() / 255 - mean) / std
    cpu, gpu = (
        normalise(pixels, IMAGENET_MEAN, IMAGENET_STD, device).cpu()
        for device in (torch.device("cpu"), setup.device)
    )
    findings = {
        "largest_difference_from_cpu": float((gpu - cpu).abs().max()),
        "largest_error": float((gpu - exact).abs().max()),
    }
    if max(findings.values()) > 1e-6:
        raise CheckFailed("bytes are normalised to other values", findings)
    return findings


def detector_in_float16(setup: Setup) -> Findings:
    """Check a detector's step in float16: scaled gradients equal float32's, and a too large scale is lowered."""
    losses, gradients = dict[str, float](), dict[str, Tensor]()
    precisions: tuple[Precision, ...] = ("fp32", "fp16")
    for precision in precisions:
        model, scaler = _detector(setup, precision), gradient_scaler(precision, setup.device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        loss = _detector_loss(setup, model)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        losses[precision] = loss.item()
        # Of the backbone, which alone is in float16.
        found = [p.grad for p in find_adapter(model).backbone.parameters() if p.grad is not None]
        gradients[precision] = torch.cat([gradient.flatten().float() for gradient in found])
    findings: Findings = {
        "loss_difference": abs(losses["fp16"] / losses["fp32"] - 1),
        "cosine": cosine(gradients["fp16"], gradients["fp32"]),
    }
    if torch.equal(gradients["fp16"], gradients["fp32"]):
        raise CheckFailed("the backbone is not in float16", findings)
    if findings["loss_difference"] > 0.02 or not findings["cosine"] > 0.98:
        raise CheckFailed("a detector's step in float16 differs from float32", findings)
    scaler.update(OVERFLOWING_SCALE)
    weights = [p.detach().clone() for p in model.parameters()]
    optimizer.zero_grad()
    loss = _detector_loss(setup, model)
    scale = scaler.scale(torch.ones((), device=setup.device))
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    check = FiniteCheck(DistContext(device=setup.device))
    step_unless(check.skip(0, [], loss.detach(), norm, scale), optimizer)
    scaler.update()
    unchanged = all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))
    findings["lowered_scale"] = scaler.get_scale() < OVERFLOWING_SCALE
    if not unchanged or not findings["lowered_scale"] or check.first_bad() is not None:
        raise CheckFailed("an overflow in float16 changed weights, or kept the scale", findings)
    return findings


@contextmanager
def _refused_waits(setup: Setup) -> Iterator[None]:
    """Raise where the host waits for the GPU."""
    if setup.device.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _another(batch: list[Tensor], number: int) -> list[Tensor]:
    """Return a batch of the same shapes and masks on the host, with other pixels."""
    pixels, *rest = (tensor.cpu() for tensor in batch)
    generator = torch.Generator().manual_seed(number)
    return [
        torch.randint(0, 256, pixels.shape, dtype=torch.uint8, generator=generator),
        *(tensor.clone() for tensor in rest),
    ]


def _copies_overlap(profiler: profile) -> float:
    """Return the fraction of the time of copies to the GPU during which a kernel runs."""
    copies, kernels = list[tuple[float, float]](), list[tuple[float, float]]()
    for event in profiler.events() or ():
        if event.device_type.name != "CUDA":
            continue
        span = event.time_range.start, event.time_range.end
        if "HtoD" in event.name:
            copies.append(span)
        elif not event.name.startswith(("Memcpy", "Memset")):
            kernels.append(span)
    return overlap(copies, kernels)


def overlap(spans: list[tuple[float, float]], others: list[tuple[float, float]]) -> float:
    """Return the fraction of the spans' total length that lies within the union of the others."""
    merged = list[list[float]]()
    for start, end in sorted(others):
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([start, end])
    shared = sum(
        max(0.0, min(end, last) - max(start, first))
        for start, end in spans
        for first, last in merged
    )
    return shared / max(sum(end - start for start, end in spans), 1e-9)


def _training_state(step: PretrainStep) -> dict[str, Tensor]:
    """Return copies of weights, moments and step counts by name."""
    state = {name: p.detach().clone() for name, p in step.model.named_parameters()}
    for name, parameter in step.model.named_parameters():
        for key, value in step.optimizer.state[parameter].items():
            state[f"{name}, {key}"] = value.clone()
    return state


def _differences(before: dict[str, Tensor], after: dict[str, Tensor]) -> list[str]:
    return [name for name, value in before.items() if not torch.equal(value, after[name])]


def _detector(setup: Setup, precision: Precision) -> nn.Module:
    side = 128 if setup.tiny else 512
    recipe = find_recipe(RECIPES, "coco_pocket")
    assert isinstance(recipe, CocoRecipe)
    model = build_detector(
        read_checkpoint("random:vit_pocket"),
        replace(recipe, img_size=(side, side), precision=precision),
        num_classes=80,
        masks=True,
        seed=0,
        device=setup.device,
    )
    return model.train()


def _detector_loss(setup: Setup, model: nn.Module) -> Tensor:
    """Return the loss of an image, with the same sampled anchors and regions in every call."""
    torch.manual_seed(0)
    with EventStorage():
        losses: dict[str, Tensor] = model(synthetic_images(1, 128 if setup.tiny else 512))
    return torch.stack(list(losses.values())).sum()
