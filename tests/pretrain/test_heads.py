"""Check the sizes of the prediction heads."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pretrain.design import Design
from pretrain.heads import HEADS, HeadShape
from pretrain.simmim import SimMIM
from simmim_bench.models.archs import find_spec
from simmim_bench.models.shapes import shapes_only


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("head", "millions"),
    # Parameters of Swin-B with the head, as we recall SimMIM's table 2; 86.7 M are Swin-B's.
    [("linear", 89.9), ("mlp", 90.9), ("inverse_swin_t", 115.2), ("inverse_swin_b", 174.8)],
)
def test_parameter_counts_of_heads_equal_the_papers_table(head: Any, millions: float) -> None:
    with shapes_only():
        model = SimMIM(find_spec("swin_b"), Design(head=head))
    found = sum(p.numel() for p in model.parameters()) / 1e6
    assert found == pytest.approx(millions, abs=0.4)


@pytest.mark.heavy
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("factor", [1, 4, 7, 14, 32])
def test_every_head_predicts_the_requested_number_of_points(head: str, factor: int) -> None:
    shape = HeadShape(width=64, channels=5, factor=factor, grid=(2, 3), window=2)
    with shapes_only():
        found = HEADS[head](shape, torch.Generator())(torch.zeros(2, 64, 2, 3))
    assert found.shape == (2, 5, 2 * factor, 3 * factor)


def test_windows_of_an_inverse_swin_do_not_reach_across_the_border() -> None:
    """Seven rows in windows of four: shifted windows must not join the last row and the first."""
    shape = HeadShape(width=8, channels=3, factor=1, grid=(7, 7), window=4)
    head = HEADS["inverse_swin_t"](shape, torch.Generator().manual_seed(0)).eval()
    features = torch.randn(1, 8, 7, 7)
    changed = features.clone()
    changed[..., 6, 6] += 1
    moved = (head(changed) - head(features)).abs().amax(1)[0]
    assert (moved[4:, 4:] > 0).all()  # the window of the first block
    assert (moved[:2] == 0).all()
    assert (moved[:, :2] == 0).all()
