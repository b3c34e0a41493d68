"""One evaluation, from the request to the record, whatever its task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from simmim_bench.checkpoints.checkpoint import Checkpoint
from simmim_bench.errors import UsageError
from simmim_bench.overrides import override
from simmim_bench.recipe import Recipe, deviations
from simmim_bench.results.record import Record, ScoredModel, describe_checkpoint, write_record
from simmim_bench.runs.context import RunContext
from simmim_bench.runs.options import RunOptions
from transfer.evaluate.trained_run import TrainedRun

AnyRecipe = TypeVar("AnyRecipe", bound=Recipe)
Score = Callable[[RunContext], Record | None]  # scores in a run directory; the record on rank 0
# Fields of the recipes that change how a trained model is scored; "test_..." belong to them.
SCORING = (
    *("img_size", "crop_mode", "interpolation", "mean", "std", "window_size"),
    *("precision", "num_workers", "forward_batch_size", "limit"),
    *("score_threshold", "detections"),
)


@dataclass(frozen=True, kw_only=True)
class EvaluationRequest:
    """What to evaluate, as the command line asks for it.

    Attributes:
        task: `imagenet`, `coco` or `ade20k`.
        model: for `imagenet`, the model of a file that does not show it: `timm:NAME` or `torchvision:NAME`.
        backbone: for `coco` and `ade20k`, the backbone of a framework's model file: a CKPT or an architecture.
    """

    task: str
    ckpt: str
    options: RunOptions
    model: str | None = None
    backbone: str | None = None

    @property
    def command(self) -> list[str]:
        """The command that repeats the evaluation."""
        words = ["simmim-bench", "evaluate", self.task, "--ckpt", self.ckpt]
        words += ["--data", str(self.options.data)]
        given = {"model": self.model, "backbone": self.backbone, "recipe": self.options.recipe}
        for name, value in given.items():
            words += [] if value is None else [f"--{name}", value]
        for assignment in self.options.overrides:
            words += ["-o", assignment]
        return words

    @property
    def arguments(self) -> dict[str, Any]:
        """What determines the result besides the recipe and the weights; kept in `recipe.json`."""
        return {
            "command": "evaluate",
            "task": self.task,
            "ckpt": self.ckpt,
            "data": str(self.options.data),
            "model": self.model,
            "backbone": self.backbone,
        }


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """An evaluation whose CKPT is read and whose recipe is resolved.

    Attributes:
        named: the named recipe.
        recipe: the resolved recipe, whose differences from the named one the record keeps.
        scored: the model as the record describes it.
        run: the run of ours that trained the model; None for a third-party file.
        published: a published score that the model's can be laid beside, in words; None where none is known.
        warning: what a file leaves open; else empty.
    """

    request: EvaluationRequest
    named: Recipe
    recipe: Recipe
    scored: ScoredModel
    run: TrainedRun | None = None
    published: str | None = None
    warning: str = ""

    @property
    def deviates(self) -> dict[str, Any]:
        """Every difference from the named recipe."""
        return deviations(self.recipe, self.named)

    @property
    def seed(self) -> int:
        """Seed of the run that trained the model; 0 for a third-party file. Scoring samples nothing."""
        return 0 if self.run is None else self.run.seed

    def write_record(
        self,
        context: RunContext,
        *,
        predictions: Path,
        data: Mapping[str, Any],
        evaluated: int,
        expected: int,
        details: Mapping[str, Any],
    ) -> Record:
        """Score the stored predictions and write the record; on rank 0.

        Args:
            predictions: the file that the score is computed from.
            data: of the validation split, as a record stores it.
            evaluated, expected: images that were scored, and images of the split.
            details: figures that do not follow from the predictions.
        """
        trained = {} if self.run is None else {"trained": dict(self.run.metrics)}
        return write_record(
            context.run,
            task=self.request.task,
            checkpoint=self.scored,
            recipe=self.recipe,
            deviates=self.deviates,
            seed=self.seed,
            data={**data, **({} if self.run is None else self.run.training_data)},
            predictions=predictions,
            evaluated=evaluated,
            expected=expected,
            images_seen=evaluated,
            dist=context.dist,
            details={"evaluated_without_training": True, **trained, **details},
            command=self.request.command,
        )


def evaluation_of_run(
    request: EvaluationRequest, run: TrainedRun, checkpoint: Checkpoint
) -> Evaluation:
    """Return the evaluation of a run of ours, under its own recipe.

    Raises:
        UsageError: an option that the run determines itself, or an override that only training uses.
    """
    options = request.options
    if options.recipe not in (None, run.named.name):
        raise UsageError(
            f"{request.ckpt} was trained with recipe {run.named.name}, by which it is evaluated; remove --recipe "
            f"{options.recipe}."
        )
    for flag, value in (("--model", request.model), ("--backbone", request.backbone)):
        if value is not None:
            raise UsageError(f"{request.ckpt} is a run, which holds its model; remove {flag}.")
    recipe = override_scoring(run.recipe, options.overrides)
    same = recipe.sha256() == run.named.sha256()
    return Evaluation(
        request=request,
        named=run.named,
        recipe=recipe,
        scored=describe_checkpoint(checkpoint),
        run=run,
        published=run.named.published if same else None,
        warning=checkpoint.warning,
    )


def override_scoring(recipe: AnyRecipe, assignments: tuple[str, ...]) -> AnyRecipe:
    """Return a recipe with fields changed by `key=value` texts that change how a trained model is scored.

    Raises:
        UsageError: an unknown key, a value of the wrong type, or a field that only training uses.
    """
    changed = override(recipe, assignments)
    for key in (assignment.partition("=")[0] for assignment in assignments):
        if key not in SCORING and not key.startswith("test_"):
            known = [f for f in recipe.fields() if f in SCORING or f.startswith("test_")]
            raise UsageError(
                f"-o {key} changes the training, which is done; use one of {', '.join(known)}."
            )
    return changed
