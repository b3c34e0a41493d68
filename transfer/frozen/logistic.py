"""Logistic regression by L-BFGS: where it stops depends on neither a seed nor a rate.

That is its end, or after `MOST_STEPS` steps where the weights are hardly bound; the log says so.

Legend: N images, D channels, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import torch
import torch.nn.functional as F
from torch import Tensor

from simmim_bench.results.metrics import rank_logits
from simmim_bench.runs.run_dir import RunDir
from transfer.frozen.candidates import ProbeResult, TrainingSubset, assign_folds, best
from transfer.frozen.feature_store import Features
from transfer.frozen.features import FeatureSet
from transfer.frozen.norms import Normaliser
from transfer.frozen.recipes import LogisticRecipe, Norm

MOST_STEPS, MOST_EVALUATIONS = 100, 125  # of L-BFGS; of the loss, as torch has it for so many steps


def fit_logistic(
    features: Tensor, labels: Tensor, classes: int, l2: float
) -> tuple[Tensor, Tensor, bool]:
    """Fit a multinomial logistic regression by L-BFGS.

    Args:
        features: (N, D) float32, normalised; labels: (N,).
        l2: weight of the squared norm of the classifier's weights, per element of the mean loss.

    Returns:
        Weights (D, K), bias (K,), and whether the end was reached.
    """
    weight = torch.zeros(features.shape[1], classes, device=features.device, requires_grad=True)
    bias = torch.zeros(classes, device=features.device, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=MOST_STEPS,
        max_eval=MOST_EVALUATIONS,
        history_size=10,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(features @ weight + bias, labels) + l2 * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    done = optimizer.state[weight]
    ended = done["n_iter"] < MOST_STEPS and done["func_evals"] < MOST_EVALUATIONS
    return weight.detach(), bias.detach(), ended


def probe_logistic(
    seen: TrainingSubset,
    val: Features,
    sets: Sequence[FeatureSet],
    recipe: LogisticRecipe,
    *,
    seed: int,
    run: RunDir,
    device: torch.device,
) -> ProbeResult:
    """Choose feature set, norm and l2 by cross-validation, fit on all training images, and score `val`.

    A class of one image is learnt in every fold. Where no class has two there is nothing to compare on:
    the last of each and the strongest l2 serve.
    """
    labels = seen.labels.to(device)
    folds = assign_folds(seen.labels, recipe.folds, seed)
    compared, remark = [], None
    if folds is not None:
        with run.display.task("compare", len(sets) * len(recipe.norm) * len(recipe.l2)) as task:
            for one in sets:
                features = seen.read(one).to(device)
                for norm in recipe.norm:
                    for l2 in recipe.l2:
                        top1 = _cross_validate(
                            features, norm, l2, labels, seen.classes, folds.to(device)
                        )
                        compared.append(
                            {**asdict(one), "norm": norm, "l2": l2, "held_out_top1": top1}
                        )
                        task.advance()
        chosen = best(compared)
        if single := int((folds < 0).sum()):
            remark = (
                f"compared on classes of two images or more: {single} of {seen.classes} have one"
            )
    else:
        remark = "nothing compared: no class has two images"
        chosen = {**asdict(sets[-1]), "norm": recipe.norm[-1], "l2": max(recipe.l2)}
    one = FeatureSet(chosen["block"], chosen["pooling"])
    features = seen.read(one).to(device)
    normalise = Normaliser([chosen["norm"]], features)
    weight, bias, ended = fit_logistic(
        normalise.whole(features), labels, seen.classes, chosen["l2"]
    )
    if not ended:
        run.log(f"stopped after {MOST_STEPS} steps of L-BFGS, short of the end")
    logits = normalise.whole(val.read(one)) @ weight + bias
    return ProbeResult(rank_logits(logits.cpu().numpy()), chosen, compared, remark=remark)


def _cross_validate(
    features: Tensor, norm: Norm, l2: float, labels: Tensor, classes: int, folds: Tensor
) -> float:
    """Give the top-1, in percent, of predicting each fold from all other images."""
    right = 0
    for fold in folds[folds >= 0].unique():
        request = folds == fold
        x = Normaliser([norm], features[~request]).whole(features)
        weight, bias, _ = fit_logistic(x[~request], labels[~request], classes, l2)
        right += int(((x[request] @ weight + bias).argmax(1) == labels[request]).sum())
    return 100 * right / int((folds >= 0).sum())
