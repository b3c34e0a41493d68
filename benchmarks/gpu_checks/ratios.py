"""Ratio checks: a pretraining step relative to the official code's operations, and compiled relative to eager.

The alternatives of a ratio run in turn, round by round (`timing.py`), so that the state of the GPU affects both. The
ratios are for the report; no check fails for one that is low.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

from timing import Timing, compare

from gpu_checks.harness import Setup
from gpu_checks.official import OfficialStep
from gpu_checks.product import peak_flops_per_s
from gpu_checks.report import Findings
from gpu_checks.training import TINY_ARCH, TINY_BATCH, PretrainStep, training_flops

ROUNDS = 9


def vit_against_official(setup: Setup) -> Findings:
    """Measure pretraining of ViT-B, 224 pixels, relative to the official code under autocast and a matrix product."""
    return _against_official(setup, "vit_b", 128)


def swin_against_official(setup: Setup) -> Findings:
    """Measure pretraining of Swin-B, 192 pixels, relative to the official code under autocast and a matrix product."""
    return _against_official(setup, "swin_b", 128)


def pretrain_vit_compiled(setup: Setup) -> Findings:
    """Measure pretraining of ViT-B through torch.compile, relative to eager."""
    return _against_eager(setup, "vit_b", 256)


def pretrain_swin_compiled(setup: Setup) -> Findings:
    """Measure pretraining of Swin-B through torch.compile, relative to eager."""
    return _against_eager(setup, "swin_b", 128)


def _against_official(setup: Setup, arch: str, batch_size: int) -> Findings:
    arch, batch_size = (TINY_ARCH, TINY_BATCH) if setup.tiny else (arch, batch_size)
    ours = PretrainStep(setup, arch, batch_size)
    official = OfficialStep(setup, ours.spec, batch_size, ours.recipe.drop_path_rate)
    products: list[float] = []

    def measure_product() -> None:
        products.append(peak_flops_per_s(setup.device, setup.precision))

    first, second = _compare(setup, {"official": official, "ours": ours}, between=measure_product)
    flops_per_s = training_flops(ours.spec, ours.recipe) * batch_size / second.seconds
    share = flops_per_s / median(products)
    return {
        "official": _rate(first, batch_size),
        "ours": _rate(second, batch_size),
        "share_of_product": share,
        "summary": f"{_ratio(second)} the official code's rate, and {share:.0%} of the rate of operations of a matrix "
        "product",
    }


def _against_eager(setup: Setup, arch: str, batch_size: int) -> Findings:
    eager = PretrainStep(setup, arch, batch_size)
    compiled = PretrainStep(setup, arch, batch_size, compiled=True)
    found = compiled.measure()
    first, second = _compare(setup, {"eager": eager, "compiled": compiled})
    return {**found, "eager": _rate(first, batch_size), "summary": f"{_ratio(second)} eager's rate"}


def _compare(
    setup: Setup,
    steps: dict[str, Callable[[], object]],
    between: Callable[[], object] | None = None,
) -> list[Timing]:
    """Time a step of each alternative in every round, after two rounds that do not count."""
    for step in steps.values():
        step()
    setup.synchronize()
    return compare(steps, rounds=3 if setup.tiny else ROUNDS, between=between)


def _rate(timing: Timing, batch_size: int) -> Findings:
    return {"images_per_s": batch_size / timing.seconds, "step_ms": 1e3 * timing.seconds}


def _ratio(timing: Timing) -> str:
    return f"{timing.speed:.2f} times ({timing.speed_low:.2f} to {timing.speed_high:.2f})"
