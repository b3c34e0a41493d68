"""Test that a step that is not finite changes no weight, and that its batch is the one that is found."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.optim import Lamb
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from simmim_bench.data.loader import EpochLoader
from simmim_bench.distributed import DistContext
from simmim_bench.training.accumulation import accumulate_gradients
from simmim_bench.training.finite import FiniteCheck
from simmim_bench.training.optim import Schedule
from simmim_bench.training.state import TrainState

CPU = torch.device("cpu")


def fused_adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, 0.1, fused=True)


def lamb(parameters: Any) -> torch.optim.Optimizer:
    return Lamb(parameters, 0.1)


def state_of(precision: str = "fp32", build: Any = fused_adamw) -> TrainState:
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    images: Any = TensorDataset(torch.zeros(8, 4), torch.zeros(8))
    return TrainState(
        model=model,
        parallel_model=model,
        optimizer=build(model.parameters()),
        schedule=Schedule(kind="cosine", peak_lr=0.1, total_steps=100, warmup_steps=0),
        loader=EpochLoader(images, batch_size=8, num_workers=0, seed=0),
        precision=precision,
    )


def batch_of(step: int) -> list[Tensor]:
    return [torch.randn(8, 4, generator=torch.Generator().manual_seed(step))]


def train(state: TrainState, check: FiniteCheck, steps: range, bad: dict[int, float]) -> None:
    """Take steps without reading a value, as on a GPU; `bad` holds what a step's batch contains."""

    def compute_loss(model: nn.Module, batch: list[Tensor], epoch: int) -> Tensor:
        loss: Tensor = (model(batch[0]).float() - 1).square().mean()
        return loss

    for step in steps:
        batch = batch_of(step)
        batch[0][3, 1] = bad.get(step, batch[0][3, 1])
        state.optimizer.zero_grad()
        loss = accumulate_gradients(
            state.model, batch, 0, compute_loss, state.precision, CPU, 2, state.scaler
        )
        scale = state.scaler.scale(torch.ones(()))
        state.scaler.unscale_(state.optimizer)
        norm = nn.utils.clip_grad_norm_(state.model.parameters(), 1.0)
        state.optimizer_step(check.skip(step, batch, loss, norm, scale))


def assert_same_state(found: TrainState, wanted: TrainState) -> None:
    for one, other in zip(found.model.parameters(), wanted.model.parameters(), strict=True):
        assert torch.equal(one, other)
    moments, others = found.optimizer.state, wanted.optimizer.state
    for one, other in zip(moments.values(), others.values(), strict=True):
        assert one.keys() == other.keys() >= {"exp_avg", "exp_avg_sq"}
        assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("build", [fused_adamw, lamb])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_the_first_bad_step_is_found_and_no_later_one_counts(value: float, build: Any) -> None:
    state, check = state_of(build=build), FiniteCheck(DistContext())
    # 1e30: the square of the loss overflows. The sixth batch is bad as well, the others are innocent.
    train(state, check, range(9), {3: value, 5: float("nan")})
    found = check.first_bad()
    assert found is not None
    assert found.number == 3
    assert torch.equal(found.batch[0][0], batch_of(3)[0][0])
    assert not found.loss.isfinite() or not found.grad_norm.isfinite()

    undisturbed, other = state_of(build=build), FiniteCheck(DistContext())
    train(undisturbed, other, range(3), {})
    assert other.first_bad() is None
    assert_same_state(state, undisturbed)


@pytest.mark.heavy
def test_float16_lowers_a_scale_that_overflows_and_loses_only_these_steps() -> None:
    state, check = state_of("fp16"), FiniteCheck(DistContext())
    overflowing = {"scale": 2.0**126, "growth_factor": 2.0, "backoff_factor": 0.5}
    state.scaler.load_state_dict(overflowing | {"growth_interval": 2000, "_growth_tracker": 0})
    before = state_of("fp16")
    train(state, check, range(1), {})
    assert check.first_bad() is None
    assert state.scaler.get_scale() == 2.0**125
    for one, other in zip(state.model.parameters(), before.model.parameters(), strict=True):
        assert torch.equal(one, other)
    train(state, check, range(1, 150), {})
    assert check.first_bad() is None
    assert 1 < state.scaler.get_scale() < 2.0**125
    steps = next(iter(state.optimizer.state.values()))["step"]
    assert 0 < steps < 150 - 1


@pytest.mark.heavy
def test_float16_ends_a_run_whose_gradient_overflows_at_any_scale() -> None:
    state, check = state_of("fp16"), FiniteCheck(DistContext())
    # Its loss is finite; the gradient, 2 * x * (wx - 1), is not.
    model, kept = state.model, [p.clone() for p in state.model.parameters()]

    def overflow(gradient: Tensor) -> Tensor:
        return gradient * float("inf")

    for parameter in model.parameters():
        parameter.register_hook(overflow)
    train(state, check, range(20), {})
    found = check.first_bad()
    assert found is not None
    assert found.number == 16  # the scale starts at 2 ** 16
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), kept, strict=True))
