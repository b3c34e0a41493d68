"""Read the classifier that `transfer shift` scores: of a run of ours, or a file with a classification head.

A run of `imagenet`, or of `fewshot` with all weights trained, has its classifier in its checkpoint. Other runs keep a
classifier that was fitted on a frozen backbone; see `transfer/fitted.py`. A file is read as `evaluate imagenet` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from simmim_bench.checkpoints.checkpoint import Checkpoint
from simmim_bench.checkpoints.read import checkpoint_path
from simmim_bench.errors import DataError, UsageError
from simmim_bench.files import sha256_file, sha256_json
from simmim_bench.recipe import Recipe, deviations
from simmim_bench.results.record import Record, ScoredModel, read_record
from simmim_bench.untrusted.json_text import read_json
from simmim_bench.untrusted.paths import path_below
from transfer.evaluate.classifier import Classifier
from transfer.evaluate.evaluation import EvaluationRequest, override_scoring
from transfer.evaluate.imagenet import IMAGENET_1K, forward_plan, read_classifier
from transfer.evaluate.trained_run import TRAINING_DATA, TrainedRun, find_trained_run
from transfer.finetune.recipes import FinetuneRecipe
from transfer.fitted import FOLDER, build_fitted, read_backbone, read_fitted
from transfer.frozen.crops import centre_crop
from transfer.shift.imagenet_classes import imagenet_classes

FITTED = ("linear", "attentive", "fewshot")  # tasks that fit a classifier on a frozen backbone
OF_FILES = "evaluate"  # in place of the task, for a classifier that no run of ours has trained
BUILT_FOR = (
    "img_size",
    "window_size",
)  # a classifier on frozen features fits its backbone at one size


@dataclass(frozen=True, kw_only=True)
class StoredPredictions:
    """The predictions of a run on the validation set that it was scored on.

    Attributes:
        path: a file of `metrics.write_ranking`.
        fingerprint: of the validation images.
    """

    path: Path
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class ShiftClassifier:
    """A classifier and everything that a record of its scores describes.

    Attributes:
        ckpt: as given on the command line.
        task: the task that trained it, as records name it; "evaluate" for a file.
        model: maps normalised images (B, 3, H, W) to logits (B, K).
        classes: names of the classes in the order of the logits.
        scored: the backbone, whose row of the leaderboard gets the scores.
        sha256: hash of all weights.
        named: the named recipe by which the classifier was trained, and is scored.
        recipe: the resolved recipe.
        seed: of the run.
        source: what the transform is built from: a checkpoint, or the classifier of a file.
        training_data: what the run's record stores of its training data.
        metrics: the scores that the run has recorded.
        stored: the run's predictions; None for a file, where overrides change how the run's model is scored, and for
            a run that was scored on a part of the validation images.
        warning: what a file leaves open; else empty.
    """

    ckpt: str
    task: str
    model: nn.Module
    classes: tuple[str, ...]
    scored: ScoredModel
    sha256: str
    named: Recipe
    recipe: Recipe
    seed: int
    source: Checkpoint | Classifier
    training_data: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    stored: StoredPredictions | None = None
    warning: str = ""

    @property
    def deviates(self) -> dict[str, Any]:
        """Every difference from the named recipe."""
        return deviations(self.recipe, self.named)

    @property
    def is_imagenet(self) -> bool:
        """Whether the classes are those of ImageNet-1k, in any order."""
        return sorted(self.classes) == [*imagenet_classes()]

    def plan(self, *, whole_images: bool = False) -> dict[str, Any]:
        """Return the arguments of `forward_batches` that the recipe determines, and the `transform`.

        Args:
            whole_images: take the whole image instead of a crop of the recipe's ratio.
        """
        recipe: Any = self.recipe
        if whole_images:
            recipe = replace(recipe, test_crop_ratio=1.0)
        if isinstance(self.source, Classifier):
            return forward_plan(recipe, self.source)
        return {
            "transform": centre_crop(recipe, self.source),
            "batch_size": recipe.forward_batch_size,
            "num_workers": recipe.num_workers,
            "precision": recipe.precision,
            "statistics": (self.source.mean, self.source.std),
        }


def open_classifier(request: EvaluationRequest) -> ShiftClassifier:
    """Read the classifier of a run, or of a file.

    Raises:
        UsageError: an option that does not apply.
        DataError: the run has no classifier or is not finished, or the file cannot be used.
    """
    arguments = _run_arguments(request.ckpt)
    task = arguments.get("task")
    if arguments.get("command") == "evaluate":
        raise DataError(
            f"{request.ckpt} is an evaluation, which has no classifier of its own; pass the one that it scored: --ckpt "
            f"{arguments.get('ckpt')}."
        )
    if task is not None and task not in ("imagenet", *FITTED):
        raise DataError(
            f"{request.ckpt} is a run of {task}, which has no classifier to score on other images; use a run of "
            f"imagenet, {', '.join(FITTED[:-1])} or {FITTED[-1]}."
        )
    run = find_trained_run(request.ckpt, str(task)) if task is not None else None
    if run is None:
        return _with_head(request, OF_FILES, None)
    record = _read_record(run, str(task))
    if isinstance(run.recipe, FinetuneRecipe):
        return _with_head(request, str(task), record)
    return _fitted(request, run, record, arguments)


def _run_arguments(ckpt: str) -> Mapping[str, Any]:
    """Return the arguments that a run directory describes; empty for another CKPT."""
    path = checkpoint_path(ckpt)
    folders = [path, path.parent.parent] if path.parent.name == "checkpoints" else [path]
    folder = next((f for f in folders if (f / "recipe.json").is_file()), None)
    if folder is None:
        return {}
    description = read_json(folder / "recipe.json", "run description", finite=False)
    arguments = description.get("arguments") if isinstance(description, dict) else None
    return arguments if isinstance(arguments, dict) else {}


def _read_record(run: TrainedRun, task: str) -> Record:
    path = run.path / "record.json"
    if not path.is_file():
        raise DataError(
            f"{run.path} has no record; finish it with `simmim-bench transfer {task} --resume` first."
        )
    return read_record(path)


def _with_head(request: EvaluationRequest, task: str, record: Record | None) -> ShiftClassifier:
    """Read a classifier whose head is in its file."""
    evaluation, classifier = read_classifier(request, "imagenet" if task == OF_FILES else task)
    classes, count = classifier.classes, classifier.num_classes
    if classes is None:
        if count != IMAGENET_1K:
            raise DataError(
                f"{request.ckpt} has {count:,} outputs and no names of classes, so that class folders cannot be "
                "related to its outputs; use a run of simmim-bench, or a classifier of ImageNet-1k."
            )
        classes = imagenet_classes()  # the order of all published classifiers
    own = {} if record is None else _of_record(evaluation.run, record, evaluation.recipe)
    return ShiftClassifier(
        **{
            "ckpt": request.ckpt,
            "task": task,
            "model": classifier.model,
            "classes": classes,
            "scored": evaluation.scored,
            "sha256": evaluation.scored.sha256,
            "named": evaluation.named,
            "recipe": evaluation.recipe,
            "seed": evaluation.seed,
            "source": classifier,
            "warning": evaluation.warning,
            **own,
        }
    )


def _fitted(
    request: EvaluationRequest, run: TrainedRun, record: Record, arguments: Mapping[str, Any]
) -> ShiftClassifier:
    """Read a classifier on frozen features and its backbone.

    Raises:
        UsageError: an option that the run determines itself.
        DataError: the run keeps no classifier, or its backbone has changed.
    """
    options = request.options
    if options.recipe not in (None, run.named.name):
        raise UsageError(
            f"{request.ckpt} was fitted with recipe {run.named.name}, by which it is scored; remove --recipe "
            f"{options.recipe}."
        )
    if request.model is not None:
        raise UsageError(f"{request.ckpt} is a run, which holds its model; remove --model.")
    recipe = override_scoring(run.recipe, options.overrides)
    for name in BUILT_FOR:
        if getattr(recipe, name, None) != getattr(run.recipe, name, None):
            raise UsageError(
                f"-o {name} does not apply: the classifier of {request.ckpt} was fitted at {name}="
                f"{getattr(run.recipe, name)}; remove it."
            )
    fitted = read_fitted(run.path)
    checkpoint = read_backbone(run.path, record)
    head = sha256_file(path_below(run.path, f"{FOLDER}/head.safetensors", "classifier"))
    return ShiftClassifier(
        ckpt=request.ckpt,
        model=build_fitted(fitted, checkpoint),
        classes=fitted.classes,
        sha256=sha256_json([checkpoint.sha256, head]),
        named=run.named,
        recipe=recipe,
        seed=run.seed,
        source=checkpoint,
        warning=checkpoint.warning,
        **_of_record(run, record, recipe),
    )


def _of_record(run: TrainedRun | None, record: Record, recipe: Recipe) -> dict[str, Any]:
    """Return the fields of a classifier that its run's record determines.

    Args:
        recipe: by which the classifier is scored; the run's predictions are those of its own recipe alone, and with a
            limit those of a part of the validation images.
    """
    assert run is not None
    stored = StoredPredictions(
        path=path_below(run.path, record.predictions["file"], "record"),
        fingerprint=record.data["fingerprint"],
    )
    known = ("label", "name", "sha256", "arch", "params", "provenance")
    described: dict[str, Any] = {key: record.checkpoint.get(key) for key in known}
    keys = (*TRAINING_DATA, "sampled_images")
    same = recipe.sha256() == run.recipe.sha256()
    return {
        "task": record.task,
        "scored": ScoredModel(**described),
        "training_data": {key: record.data[key] for key in keys if key in record.data},
        "metrics": record.metrics,
        "stored": stored if same and getattr(recipe, "limit", None) is None else None,
    }
