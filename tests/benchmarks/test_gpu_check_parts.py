"""Parts of the GPU check against independent answers, on a CPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.tiny import TINY

from pretrain.simmim import SimMIM

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def benchmarks_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.mark.parametrize("family", ["vit", "swin"])
def test_the_official_operations_compute_our_loss_and_gradients(family: str) -> None:
    """They differ in how they compute, not in what: a ratio of speeds compares equal work."""
    from gpu_checks.official import OfficialSimMIM

    spec = replace(TINY[family], sincos_position=False)
    ours = SimMIM(spec).train()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    official = OfficialSimMIM(spec).train()
    official.load_state_dict(
        {name.replace("encoder.", "backbone."): v for name, v in ours.state_dict().items()}
    )
    images = torch.randn(2, 3, *spec.img_size, generator=generator)
    mask = (torch.rand(2, *spec.grid, generator=generator) < 0.6).float()
    losses = ours(images, mask).loss, official(images, mask)
    torch.testing.assert_close(*losses)
    for loss in losses:
        loss.backward()
    gradients = {name: p.grad for name, p in ours.named_parameters() if p.grad is not None}
    assert len(gradients) == len(list(official.parameters()))
    for name, parameter in official.named_parameters():
        expected = gradients[name.replace("backbone.", "encoder.")]
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-4, atol=1e-6)


def test_the_overlap_of_copies_and_kernels_counts_every_moment_once() -> None:
    from gpu_checks.steps import overlap

    kernels = [(4.0, 8.0), (0.0, 2.0), (1.0, 3.0), (5.0, 6.0)]  # together 0 to 3 and 4 to 8
    assert overlap([(2.0, 5.0)], kernels) == pytest.approx(2 / 3)
    assert overlap([(1.0, 2.0), (8.0, 9.0)], kernels) == pytest.approx(1 / 2)
    assert overlap([(3.0, 4.0)], kernels) == 0
