"""The weights of a detector or segmentor: of a run of ours, or of a framework's model file with our adapter."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from simmim_bench.checkpoints.checkpoint import Checkpoint, StateDict
from simmim_bench.checkpoints.fit import shorten
from simmim_bench.checkpoints.load import check_statistics_fit
from simmim_bench.checkpoints.read import (
    checkpoint_path,
    find_checkpoint_directory,
    read_checkpoint,
    read_training_state,
)
from simmim_bench.errors import DataError, UsageError
from simmim_bench.files import sha256_file
from simmim_bench.models.archs import ARCHS
from simmim_bench.overrides import override
from simmim_bench.recipe import Recipe, find_recipe
from simmim_bench.results.record import describe_checkpoint
from transfer.evaluate.evaluation import Evaluation, EvaluationRequest, evaluation_of_run
from transfer.evaluate.trained_run import find_trained_run
from transfer.evaluate.weights_file import read_model_state
from transfer.recipes import RECIPES, check_recipe_type, default_recipe
from transfer.tasks import TASK_RECIPES

# Names of the adapter's weights within a model: transfer/detectron2_backbone.py in a ViT's pyramid and in an FPN,
# transfer/mmseg_backbone.py.
ADAPTERS = ("backbone.net.backbone.", "backbone.bottom_up.backbone.", "backbone.backbone.")


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """A detector's or segmentor's weights, and the backbone by which its model is built.

    Attributes:
        checkpoint: its architecture, its sizes and its pixel statistics count; its weights are replaced.
        state: all weights of the model.
        training: the run's other training state; empty for a file.
        sha256: hash of all weights.
    """

    checkpoint: Checkpoint
    state: StateDict
    training: dict[str, Any]
    sha256: str


def prepare_framework(request: EvaluationRequest) -> tuple[Evaluation, TrainedModel]:
    """Read the model of a `coco` or `ade20k` evaluation and resolve its recipe.

    Raises:
        UsageError: an option that does not apply, or one that a file needs.
        DataError: the CKPT cannot be read, is of another task or kind, or its training is not complete.
    """
    if request.model is not None:
        raise UsageError("--model is for imagenet; for coco and ade20k, use --backbone.")
    run = find_trained_run(request.ckpt, request.task)
    if run is not None:
        _check_trains_model(request.task, run.recipe)
        model = _of_run(request.ckpt)
        done = model.training.get("iterations", model.training["progress"].get("iterations"))
        wanted = run.recipe.fields()["max_iters"]
        if isinstance(done, int) and done < wanted:
            raise DataError(
                f"{request.ckpt} has trained {done:,} of {wanted:,} iterations; finish it with `simmim-bench transfer "
                f"{request.task} --resume` first."
            )
        return evaluation_of_run(request, run, model.checkpoint), model
    path = Path(request.ckpt)
    if not path.is_file():
        raise DataError(
            f"{request.ckpt} is neither a run of `simmim-bench transfer {request.task}` nor a model file of "
            "Detectron2 or MMSegmentation."
        )
    model = _of_file(request, path)
    options, spec = request.options, model.checkpoint.spec
    named = (
        default_recipe(request.task, spec)
        if options.recipe is None
        else find_recipe(RECIPES, options.recipe)
    )
    check_recipe_type(request.task, named)
    _check_trains_model(request.task, named)
    backbone = describe_checkpoint(model.checkpoint)
    provenance = {
        "method": backbone.provenance.get("method", "weights"),
        "label": path.stem,
        "backbone": request.backbone,
    }
    # All keys: the file does not show the sizes of heads by which it may differ from the named recipe.
    recipe = override(named, options.overrides)
    stated = options.recipe is not None and recipe.sha256() == named.sha256()
    evaluation = Evaluation(
        request=request,
        named=named,
        recipe=recipe,
        scored=replace(
            backbone,
            label=path.stem,
            name=request.ckpt,
            sha256=model.sha256,
            provenance=provenance,
        ),
        published=named.published if stated else None,
    )
    return evaluation, model


def _check_trains_model(task: str, recipe: Recipe) -> None:
    """Refuse a recipe on frozen features.

    Raises:
        UsageError: the recipe trains no model of the framework.
    """
    if type(recipe) is not TASK_RECIPES[task].recipe_types[0]:
        raise UsageError(
            f"recipe '{recipe.name}' is of frozen features and trains no model that could be evaluated; its score is "
            "in the record.json of its run."
        )


def _of_run(ckpt: str) -> TrainedModel:
    """Read the model of a run of ours from its checkpoint and training state."""
    directory = find_checkpoint_directory(checkpoint_path(ckpt))
    training = read_training_state(directory, resuming=False)
    state, progress = training.pop("model", None), training.setdefault("progress", {})
    if not isinstance(progress, dict) or not isinstance(state, dict) or not _are_weights(state):
        raise DataError(f"{directory / 'training.pt'} holds no model; use a run of coco or ade20k.")
    return TrainedModel(
        checkpoint=read_checkpoint(ckpt),
        state=state,
        training=training,
        sha256=sha256_file(directory / "training.pt"),
    )


def _are_weights(state: dict[Any, Any]) -> bool:
    return all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items())


def _of_file(request: EvaluationRequest, path: Path) -> TrainedModel:
    """Read a model file of Detectron2 or MMSegmentation.

    Raises:
        UsageError: --backbone is missing.
        DataError: the file is damaged, or its model has another backbone than our adapter's.
    """
    state = read_model_state(path)
    if not any(name.startswith(ADAPTERS) for name in state):
        raise DataError(
            f"{path} holds no model with simmim-bench's backbone: no weight starts with {', '.join(ADAPTERS)}; "
            f"the first ones are {shorten(list(state))}."
        )
    if request.backbone is None:
        raise UsageError(
            f"{path} does not show its backbone; add --backbone with the checkpoint that it was fine-tuned from, or "
            "its architecture, such as vit_b."
        )
    backbone = f"random:{request.backbone}" if request.backbone in ARCHS else request.backbone
    checkpoint = read_checkpoint(backbone)
    check_statistics_fit(checkpoint)
    return TrainedModel(
        checkpoint=checkpoint,
        state=state,
        training={},
        sha256=sha256_file(path),
    )


def load_model(model: nn.Module, state: StateDict, evaluation: Evaluation) -> None:
    """Load all weights into a model of the recipe, strictly.

    Raises:
        DataError: a weight is missing, is not in the model, or has another shape.
    """
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in state.items()}
    faults = {
        "lacks": [name for name in wanted if name not in found],
        "also has": [name for name in found if name not in wanted],
        "has other shapes of": [n for n in wanted if n in found and wanted[n] != found[n]],
    }
    said = [f"{what} {len(names)} ({shorten(names)})" for what, names in faults.items() if names]
    if said:
        raise DataError(
            f"{evaluation.request.ckpt} is not the model of recipe {evaluation.named.name}: of its weights, it "
            f"{'; '.join(said)}. Choose the recipe and the backbone that it was trained with: --recipe, --backbone."
        )
    model.load_state_dict(state)
