"""L-BFGS for many small problems at once, with a line search for the strong Wolfe conditions.

The problems are independent: each has its own history and step length, and stops by itself. Only their vectors are
computed together, which spares a GPU, or a CPU with few channels, the overhead of one small operation per problem. The
algorithm, its constants and its stopping rules are those of `torch.optim.LBFGS(line_search_fn="strong_wolfe")`:
Nocedal and Wright, Numerical Optimization, 2nd edition, algorithms 7.4 (directions), 3.5 and 3.6 (line search), with
the cubic interpolation and safeguards of minFunc (www.cs.ubc.ca/~schmidtm/Software/minFunc.html).

Legend: P problems, A of them active, n variables of each.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

MAX_ITERATIONS, MAX_EVALUATIONS = 100, 125  # torch's default: 1.25 evaluations an iteration
HISTORY = 10
GRADIENT_TOLERANCE, CHANGE_TOLERANCE = 1e-7, 1e-9  # torch's defaults
MIN_CURVATURE = (
    1e-10  # torch: a smaller product of step and change of the gradient is not remembered
)
DECREASE, CURVATURE = (
    1e-4,
    0.9,
)  # constants of the Wolfe conditions: torch's, and Nocedal and Wright's for L-BFGS

# Maps variables (A, n) and the numbers of their problems to losses (A,) and gradients (A, n).
Objective = Callable[[Tensor, Sequence[int]], tuple[Tensor, Tensor]]


class Trial(NamedTuple):
    """The loss at a step along a direction, and the loss's derivative along it."""

    step: float
    loss: float
    slope: float


def minimise(
    objective: Objective,
    start: Tensor,
    expand: Callable[[Tensor, Sequence[int]], Tensor] = lambda gradients, _: gradients,
) -> tuple[Tensor, list[bool]]:
    """Minimise P smooth functions of n variables each.

    Args:
        objective: computes losses and gradients of some of the problems.
        start: first variables (P, n).
        expand: maps gradients (A, n) and the numbers of their problems to another orthonormal basis, (A, m), where the
            variables are few coordinates of many: the largest gradient ends a problem, and the sum of the absolute
            ones determines the first step, in that basis.

    Returns:
        The variables (P, n), and whether each problem converged before the limits of iterations and evaluations.
    """
    result, converged = start.clone(), [True] * len(start)
    problems = list(range(len(start)))
    x, history = start.clone(), _History()
    losses, gradient = objective(x, problems)
    loss, used = losses.tolist(), [1] * len(problems)
    magnitudes = expand(gradient, problems).abs()
    lengths = (1 / magnitudes.sum(1)).clamp_max(1).tolist()
    going = [steepest > GRADIENT_TOLERANCE for steepest in magnitudes.amax(1).tolist()]
    for iteration in range(1, MAX_ITERATIONS + 1):
        # Finished problems leave the batch; their variables are final.
        kept = [row for row, goes_on in enumerate(going) if goes_on]
        if len(kept) < len(going):
            result[problems] = x
            if not kept:
                return result, converged
            rows = torch.tensor(kept, device=x.device)
            x, gradient = x[rows], gradient[rows]
            history.keep(rows)
            problems, loss, used = ([values[r] for r in kept] for values in (problems, loss, used))
        direction = history.direction(gradient)
        slope, extent = torch.stack(
            [
                _dot(gradient, direction),
                direction.abs().amax(1),
            ]
        ).tolist()
        steps = [lengths[problem] if iteration == 1 else 1.0 for problem in problems]
        # A direction that does not descend ends its problem where it is.
        searches = {
            row: _search_step(
                Trial(0.0, loss[row], slope[row]),
                steps[row],
                extent[row],
                MAX_EVALUATIONS - used[row],
            )
            for row in range(len(problems))
            if slope[row] <= -CHANGE_TOLERANCE
        }
        chosen, new_gradient, counts = _search_together(
            objective, problems, searches, x, direction, gradient
        )
        taken = [chosen[row].step if row in chosen else 0.0 for row in range(len(problems))]
        step = torch.tensor(taken, device=x.device, dtype=x.dtype)[:, None]
        x = x + step * direction
        history.update(step * direction, new_gradient - gradient)
        gradient = new_gradient
        steepest = expand(gradient, problems).abs().amax(1).tolist()
        going = [False] * len(problems)
        for row, end in chosen.items():
            used[row] += counts[row]
            limited = iteration == MAX_ITERATIONS or used[row] >= MAX_EVALUATIONS
            converged[problems[row]] = not limited
            going[row] = not (
                limited
                or steepest[row] <= GRADIENT_TOLERANCE
                or end.step * extent[row] <= CHANGE_TOLERANCE
                or abs(end.loss - loss[row]) < CHANGE_TOLERANCE
            )
            loss[row] = end.loss
    result[problems] = x
    return result, converged


class _History:
    """The last steps of A problems and the changes of their gradients, which approximate the inverse Hessian."""

    def __init__(self) -> None:
        self._steps: list[Tensor] = []
        self._changes: list[Tensor] = []
        self._inverses: list[Tensor] = []  # 1 / (step . change), (A, 1); 0 for an empty entry
        self._scale: Tensor | None = None

    def keep(self, rows: Tensor) -> None:
        """Keep the problems of some rows."""
        for entries in (self._steps, self._changes, self._inverses):
            entries[:] = [entry[rows] for entry in entries]
        if self._scale is not None:
            self._scale = self._scale[rows]

    def update(self, step: Tensor, change: Tensor) -> None:
        """Remember a step of every problem, (A, n); forget the oldest of more than `HISTORY`."""
        product = _dot(step, change)[:, None]
        curved = product > MIN_CURVATURE
        scale = product / _dot(change, change)[:, None]
        before = torch.ones_like(scale) if self._scale is None else self._scale
        self._scale = torch.where(curved, scale, before)
        self._steps.append(step)
        self._changes.append(change)
        self._inverses.append(torch.where(curved, 1 / product, 0.0))
        idle = (~curved[:, 0]).nonzero()[:, 0]
        if len(idle):
            # A problem that remembers nothing this time keeps all that it had: its entries move up by one.
            for entries in (self._steps, self._changes, self._inverses):
                for newer, older in zip(entries[:0:-1], entries[-2::-1], strict=True):
                    newer[idle] = older[idle]
            self._inverses[0][idle] = 0
        if len(self._steps) > HISTORY:
            for entries in (self._steps, self._changes, self._inverses):
                entries.pop(0)

    def direction(self, gradient: Tensor) -> Tensor:
        """Return the quasi-Newton direction (A, n) of gradients (A, n)."""
        direction = -gradient
        if self._scale is None:
            return direction
        entries = list(zip(self._steps, self._changes, self._inverses, strict=True))
        factors = []
        for step, change, inverse in reversed(entries):
            factor = _dot(step, direction)[:, None] * inverse
            direction.addcmul_(change, factor, value=-1)
            factors.append(factor)
        direction *= self._scale
        for (step, change, inverse), factor in zip(entries, reversed(factors), strict=True):
            direction.addcmul_(step, factor - _dot(change, direction)[:, None] * inverse)
        return direction


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the dot products (A,) of the rows of two matrices."""
    product: Tensor = torch.linalg.vecdot(a, b)
    return product


Search = Generator[float, tuple[float, float], Trial]


def _search_together(
    objective: Objective,
    problems: Sequence[int],
    searches: dict[int, Search],
    x: Tensor,
    direction: Tensor,
    gradient: Tensor,
) -> tuple[dict[int, Trial], Tensor, dict[int, int]]:
    """Run the line searches of some rows; evaluate their trials together.

    Returns:
        The chosen trial of each row, the gradients (A, n) after the steps, and the evaluations of each row.
    """
    chosen: dict[int, Trial] = {}
    gradient, counts = gradient.clone(), dict.fromkeys(searches, 0)
    steps = {row: next(search) for row, search in searches.items()}
    while steps:
        trials = _evaluate(objective, problems, steps, x, direction, gradient)
        tried, steps = steps, {}
        for row, trial in trials.items():
            counts[row] += 1
            try:
                steps[row] = searches[row].send(trial)
            except StopIteration as end:
                chosen[row] = end.value
        # A search may choose a trial before its last one, whose gradient was not kept.
        again = {
            row: chosen[row].step
            for row in trials
            if row in chosen and chosen[row].step != tried[row]
        }
        if again:
            _evaluate(objective, problems, again, x, direction, gradient)
    return chosen, gradient, counts


def _evaluate(
    objective: Objective,
    problems: Sequence[int],
    steps: dict[int, float],
    x: Tensor,
    direction: Tensor,
    gradient: Tensor,
) -> dict[int, tuple[float, float]]:
    """Return the loss and slope at a step of some rows; write the gradients into these rows of `gradient`."""
    rows = list(steps)
    along = direction if len(rows) == len(x) else direction[rows]
    lengths = torch.tensor([steps[row] for row in rows], device=x.device, dtype=x.dtype)
    points = (x if len(rows) == len(x) else x[rows]) + lengths[:, None] * along
    losses, gradients = objective(points, [problems[row] for row in rows])
    gradient[rows] = gradients
    found = torch.stack([losses, _dot(gradients, along)], 1).tolist()
    return {row: (loss, slope) for row, (loss, slope) in zip(rows, found, strict=True)}


def _search_step(start: Trial, step: float, extent: float, limit: int) -> Search:
    """Search a step that fulfils the strong Wolfe conditions: yield steps, be sent their loss and slope.

    Args:
        start: the trial of step 0.
        step: the first step.
        extent: the largest absolute component of the direction.
        limit: largest number of trials after the first one.

    Returns:
        The chosen trial: where the limit is reached, the lowest end of the last interval.
    """

    def too_high(trial: Trial) -> bool:
        return trial.loss > start.loss + DECREASE * trial.step * start.slope

    def flat(trial: Trial) -> bool:
        return abs(trial.slope) <= -CURVATURE * start.slope

    before, trial = start, Trial(step, *(yield step))
    for number in range(limit):
        if too_high(trial) or (number > 1 and trial.loss >= before.loss):
            break
        if flat(trial):
            return trial
        if trial.slope >= 0:
            break
        furthest = trial.step + 0.01 * (trial.step - before.step), 10 * trial.step
        step = _cubic_minimum(before, trial, *furthest)
        before, trial = trial, Trial(step, *(yield step))
    else:
        number, before = limit, start
    ends = [before, trial]  # an interval that holds a suitable step, in no order
    low = 0 if before.loss <= trial.loss else 1
    stalled = False
    for _ in range(number, limit):
        left, right = sorted(end.step for end in ends)
        if (right - left) * extent < CHANGE_TOLERANCE:
            break
        step = _cubic_minimum(ends[0], ends[1], left, right)
        margin = 0.1 * (right - left)
        near_an_end = min(right - step, step - left) < margin
        if near_an_end and (stalled or not left < step < right):
            step = right - margin if right - step < step - left else left + margin
            stalled = False
        else:
            stalled = near_an_end
        trial = Trial(step, *(yield step))
        if too_high(trial) or trial.loss >= ends[low].loss:
            ends[1 - low] = trial
            low = 0 if ends[0].loss <= ends[1].loss else 1
        elif flat(trial):
            return trial
        else:
            if trial.slope * (ends[1 - low].step - ends[low].step) >= 0:
                ends[1 - low] = ends[low]
            ends[low] = trial
    return ends[low]


def _cubic_minimum(a: Trial, b: Trial, least: float, most: float) -> float:
    """Return the step, within bounds, of the minimum of the cubic through two trials; else the middle."""
    if a.step > b.step:
        a, b = b, a
    if a.step == b.step:
        return (least + most) / 2
    d1 = a.slope + b.slope - 3 * (a.loss - b.loss) / (a.step - b.step)
    square = d1**2 - a.slope * b.slope
    if not square >= 0:
        return (least + most) / 2
    d2 = square**0.5
    curvature = b.slope - a.slope + 2 * d2
    if curvature == 0:
        return (least + most) / 2
    step = b.step - (b.step - a.step) * ((b.slope + d2 - d1) / curvature)
    return min(max(step, least), most)
