"""Jointly fitted regressions are those that torch's L-BFGS fits one after another."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import simmim_bench.probes.logistic as logistic_module
from simmim_bench.probes import lbfgs
from simmim_bench.probes.lbfgs import minimise
from simmim_bench.probes.logistic import Fit, cross_validate, fit_jointly, fit_logistic
from simmim_bench.probes.norms import Normaliser
from transfer.frozen.candidates import assign_folds

STRENGTHS = (1e-6, 1e-4, 1e-2)


def data(images: int = 90, spread: float = 0.0) -> tuple[Tensor, Tensor]:
    """Return features (N, 12) of three overlapping classes, ill-conditioned by `spread`, and labels."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(images) % 3
    centres = torch.randn(3, 12, generator=generator)
    features = centres[labels] + torch.randn(images, 12, generator=generator)
    return features * torch.logspace(-spread, spread, 12), labels


def fit_by_torch(x: Tensor, labels: Tensor, l2: float) -> Fit:
    """Fit one regression with torch's optimizer and autograd, in as many iterations as ours."""
    weight = torch.zeros(x.shape[1], 3, dtype=x.dtype, requires_grad=True)
    bias = torch.zeros(3, dtype=x.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=lbfgs.MAX_ITERATIONS,  # torch allows 1.25 evaluations for each
        history_size=10,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = loss_of(x @ weight + bias, labels, l2, weight)
        value.backward()
        return value

    optimizer.step(loss)
    state = optimizer.state[weight]
    limits = lbfgs.MAX_ITERATIONS, lbfgs.MAX_EVALUATIONS
    converged = state["n_iter"] < limits[0] and state["func_evals"] < limits[1]
    return Fit(weight.detach().T, bias.detach(), converged)


def loss_of(logits: Tensor, labels: Tensor, l2: float, weight: Tensor) -> Tensor:
    """Return what a regression minimises."""
    return F.cross_entropy(logits, labels) + l2 * weight.square().sum()


@pytest.mark.parametrize(("spread", "iterations"), [(0.0, 100), (0.6, 60)])
def test_joint_fits_of_unequal_parts_are_those_of_torch(
    spread: float, iterations: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ill-conditioned fits are compared early: the distance of two paths grows tenfold every ten iterations."""
    monkeypatch.setattr(lbfgs, "MAX_ITERATIONS", iterations)
    monkeypatch.setattr(lbfgs, "MAX_EVALUATIONS", iterations * 5 // 4)
    # The second part has other images, and enough rows of logits to be computed in chunks.
    monkeypatch.setattr(logistic_module, "LOGITS", 9 * 70)
    x, labels = data(spread=spread)
    x = x.double()
    parts = [(x[:60], labels[:60]), (x[5:], labels[5:])]
    fits = fit_jointly(parts, 3, STRENGTHS)
    for number, fit in enumerate(fits):
        features, truth = parts[number // 3]
        torchs = fit_by_torch(features, truth, STRENGTHS[number % 3])
        expected = torchs.logits(features)
        assert fit.converged == torchs.converged
        atol = 1e-5 * float(expected.abs().max())
        torch.testing.assert_close(fit.logits(features), expected, rtol=0, atol=atol)
        assert torch.equal(fit.logits(features).argmax(1), expected.argmax(1))
    assert any(fit.converged for fit in fits)
    assert spread == 0 or not all(fit.converged for fit in fits)


def test_fits_that_are_cut_off_have_reached_torchs_loss() -> None:
    """After the default limit of ill-conditioned iterations, rounding differs too much to compare logits."""
    x, labels = data(spread=0.6)
    parts = [(x[:60].double(), labels[:60]), (x[5:].double(), labels[5:])]
    for number, fit in enumerate(fit_jointly(parts, 3, STRENGTHS[:2])):
        features, truth = parts[number // 2]
        l2 = STRENGTHS[number % 2]
        torchs = fit_by_torch(features, truth, l2)
        assert (fit.converged, torchs.converged) == (False, False)
        ours, expected = (
            float(loss_of(f.logits(features), truth, l2, f.weight)) for f in (fit, torchs)
        )
        gained = math.log(3) - expected  # from weights of zero
        assert ours == pytest.approx(expected, rel=0, abs=1e-5 * gained)


@pytest.mark.heavy
def test_the_cross_validation_counts_what_separate_fits_predict(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, labels = data()
    folds = assign_folds(torch.cat([labels, torch.tensor([3])]), 5, 0)
    assert folds is not None  # the only image of class 3 is always learnt and never predicted
    x, labels = torch.cat([x, x[:1]]), torch.cat([labels, torch.tensor([3])])
    expected = []
    for l2 in STRENGTHS:
        correct = 0
        for fold in range(5):
            held_out = folds == fold
            normaliser = Normaliser(["batch"], x[~held_out])
            fit = fit_logistic(normaliser(x[~held_out])[0], labels[~held_out], 4, l2)
            predicted = fit.logits(normaliser(x[held_out])[0]).argmax(1)
            correct += int((predicted == labels[held_out]).sum())
        expected.append(100 * correct / 90)
    for at_once in (2 * x.numel(), 2**29):
        monkeypatch.setattr(logistic_module, "FEATURES", at_once)
        for found in cross_validate([x, x], "batch", STRENGTHS, labels, 4, folds):
            assert found == pytest.approx(expected, abs=100 / 90)  # ties apart
    assert 60 < min(expected) < 100


def test_fewer_images_than_channels_are_fitted_as_by_torch() -> None:
    """The solver steps in the span of the images; parts of unequal length, cut off and converged."""
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(20, 40, generator=generator).double() * torch.logspace(-0.5, 0.5, 40)
    parts = [(features[:17], torch.arange(17) % 3), (features, torch.arange(20) % 3)]
    unseen = torch.randn(9, 40, generator=generator).double()
    strengths = (1e-7, 1e-2)
    fits = fit_jointly(parts, 3, strengths)
    for number, fit in enumerate(fits):
        x, truth = parts[number // 2]
        expected = fit_by_torch(x, truth, strengths[number % 2])
        assert fit.weight.shape == (3, 40)
        torch.testing.assert_close(fit.logits(unseen), expected.logits(unseen), rtol=0, atol=1e-4)
        assert fit.converged == expected.converged


def test_one_class_is_fitted_without_a_step() -> None:
    fit = fit_logistic(torch.randn(4, 3), torch.zeros(4, dtype=torch.long), 1, 1e-3)
    assert fit.converged
    assert not fit.weight.any()


def test_problems_that_end_early_do_not_disturb_the_others() -> None:
    """Quadratics of unlike condition, whose minima are known, end after unlike numbers of iterations."""
    scales = torch.stack([torch.logspace(0, exponent, 6) for exponent in (0, 1, 2, 3)]).double()
    minima = torch.arange(24).reshape(4, 6) / 7.0

    def objective(x: Tensor, problems: Sequence[int]) -> tuple[Tensor, Tensor]:
        rows = list(problems)
        gradient = scales[rows] * (x - minima[rows])
        sizes.append(len(problems))
        return 0.5 * (gradient * (x - minima[rows])).sum(1), gradient

    sizes: list[int] = []
    found, converged = minimise(objective, torch.zeros(4, 6, dtype=torch.float64))
    torch.testing.assert_close(found, minima.double(), rtol=0, atol=1e-4)
    assert all(converged)
    assert {1, 4} <= set(sizes)
