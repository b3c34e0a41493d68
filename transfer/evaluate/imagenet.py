"""Score a classifier on the validation images of an ImageNet folder."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.data.class_splits import class_files, has_validation
from simmim_bench.data.datasets import ImageDataset, LoadImage, eval_transform
from simmim_bench.data.packed import describe_packing
from simmim_bench.data.sharing import open_once
from simmim_bench.data.sources import NamedImages, describe_left_out
from simmim_bench.data.subsets import limit_images
from simmim_bench.errors import DataError, DivergedError, UsageError
from simmim_bench.models.convnet import ConvNet
from simmim_bench.recipe import Recipe, find_recipe
from simmim_bench.results.metrics import write_logits
from simmim_bench.results.record import Record
from simmim_bench.runs.context import RunContext
from simmim_bench.training.kernels import fast_kernels, use_channels_last
from transfer.evaluate.classifier import Classifier
from transfer.evaluate.evaluation import (
    Evaluation,
    EvaluationRequest,
    Score,
    evaluation_of_run,
    override_scoring,
)
from transfer.evaluate.load import load_classifier, of_checkpoint
from transfer.evaluate.preprocessing import build_transform
from transfer.evaluate.recipes import EVALUATE_IMAGENET, EvaluateRecipe
from transfer.evaluate.recipes import RECIPES as EVALUATE_RECIPES
from transfer.evaluate.trained_run import find_trained_run
from transfer.finetune.recipes import FinetuneRecipe
from transfer.finetune.run import EVAL_BATCH
from transfer.inference import Statistics, forward_batches, gather_rows
from transfer.recipes import RECIPES
from transfer.split_description import describe_held_out

# TAG of the official fine-tuning configurations, which their files hold, and the recipe of the same numbers here.
# SimMIM: configs/*/simmim_finetune__*.yaml; the last one is microsoft/Swin-Transformer's, in configs/simmim.
FINETUNE_TAGS = {
    "simmim_finetune__vit_base__img224__800ep": "imagenet_vit_b_800ep",
    "simmim_finetune__swin_base__img192_window6__100ep": "imagenet_swin_b_100ep_img192",
    "simmim_finetune__swin_base__img224_window7__100ep": "imagenet_swin_b_100ep",
    "simmim_finetune__swin_base__img224_window7__800ep": "imagenet_swin_b_800ep",
    "simmim_finetune__swin_large__img224_window14__800ep": "imagenet_swin_l_800ep",
    "simmim_finetune__swinv2_base__img224_window14__800ep": "imagenet_swinv2_b_800ep_prefix",
}
WORDNET_ID = re.compile(r"n\d{8}")
IMAGENET_1K, IMAGENET_22K = 1000, (21_841, 21_842, 21_843)  # 21k-P and others have other numbers


def prepare_imagenet(request: EvaluationRequest) -> tuple[Evaluation, Score]:
    """Read a classifier and resolve the recipe it is scored by; see `read_classifier`.

    Returns:
        The evaluation, and the function that runs it in a run directory.
    """
    if request.backbone is not None:
        raise UsageError("--backbone is for coco and ade20k; for imagenet, use --model.")
    evaluation, classifier = read_classifier(request)
    return evaluation, lambda context: _score(context, evaluation, classifier)


def read_classifier(
    request: EvaluationRequest, task: str = "imagenet"
) -> tuple[Evaluation, Classifier]:
    """Read a classifier whose head is in its file, and resolve the recipe it is scored by.

    Args:
        task: the task that has trained it, where the CKPT is a run of ours.

    Raises:
        UsageError: an option that does not apply.
        DataError: the CKPT has no classification head or cannot be read, or its training is not complete.
    """
    run = find_trained_run(request.ckpt, task)
    if run is None:
        evaluation, classifier = _prepare_file(request)
    else:
        checkpoint = read_checkpoint(request.ckpt)
        assert isinstance(run.recipe, FinetuneRecipe)
        done = checkpoint.provenance.get("epochs", run.recipe.epochs)
        if done < run.recipe.epochs:
            raise DataError(
                f"{request.ckpt} has trained {done:g} of {run.recipe.epochs} epochs; finish it with `simmim-bench "
                f"transfer {task} --resume` first."
            )
        evaluation = evaluation_of_run(request, run, checkpoint)
        assert isinstance(evaluation.recipe, FinetuneRecipe)
        classifier = of_checkpoint(
            checkpoint, evaluation.recipe.img_size, evaluation.recipe.window_size
        )
    return evaluation, classifier


def _prepare_file(request: EvaluationRequest) -> tuple[Evaluation, Classifier]:
    """Read a classifier that no run of ours here has trained."""
    options = request.options
    named = _named_recipe(request)
    # Parsed before the file is read, so that a wrong option is reported at once.
    recipe: EvaluateRecipe | FinetuneRecipe = override_scoring(named, options.overrides)
    sized = any(assignment.startswith("img_size=") for assignment in options.overrides)
    classifier = load_classifier(
        request.ckpt,
        request.model,
        # Without an override, a file is evaluated at the size that it was trained for.
        recipe.img_size if sized or isinstance(named, FinetuneRecipe) else None,
        recipe.window_size,
    )
    if recipe.window_size is not None and classifier.code != "simmim-bench":
        raise UsageError(
            f"window_size={recipe.window_size} applies to a Swin that simmim-bench computes, but {request.ckpt} is "
            f"computed by {classifier.code}; remove it or use -o window_size=none."
        )
    wanted = classifier.preprocessing
    if isinstance(recipe, EvaluateRecipe):
        recipe.check_channels(wanted.pixel_format.in_chans)
    published = named.published if recipe.sha256() == named.sha256() else None
    if isinstance(named, EvaluateRecipe):
        resolved = replace(
            named,
            img_size=wanted.img_size,
            test_crop_ratio=wanted.test_crop_ratio,
            crop_mode=wanted.crop_mode,
            interpolation=wanted.interpolation,
        )
        recipe = override_scoring(resolved, options.overrides)
        tagged = FINETUNE_TAGS.get(str(classifier.described.provenance.get("tag", "")))
        if tagged is not None and recipe.sha256() == resolved.sha256():
            published = RECIPES[tagged].published
    evaluation = Evaluation(
        request=request,
        named=named,
        recipe=recipe,
        scored=classifier.described,
        published=published,
        warning=_unsettled(wanted.warning, recipe),
    )
    return evaluation, classifier


def _unsettled(warning: str, recipe: Recipe) -> str:
    """Return a warning about preprocessing, or nothing if mean and std were set on the command line."""
    settled = isinstance(recipe, EvaluateRecipe) and recipe.mean and recipe.std
    return "" if settled else warning


def _named_recipe(request: EvaluationRequest) -> EvaluateRecipe | FinetuneRecipe:
    """Return the recipe that is named, else that of a checkpoint of ours, else `evaluate_imagenet`.

    Raises:
        UsageError: an unknown recipe, or one of another task.
    """
    name = request.options.recipe
    if name is None:
        return EVALUATE_IMAGENET
    found = find_recipe({**RECIPES, **EVALUATE_RECIPES}, name)
    if not isinstance(found, EvaluateRecipe | FinetuneRecipe):
        raise UsageError(
            f"recipe '{name}' is not for imagenet; use {EVALUATE_IMAGENET.name} or a fine-tuning recipe, such as "
            "imagenet_vit_b_800ep."
        )
    return found


def _score(context: RunContext, evaluation: Evaluation, classifier: Classifier) -> Record | None:
    """Classify the validation images and write predictions and record."""
    request, recipe, dist = evaluation.request, evaluation.recipe, context.dist
    assert isinstance(recipe, EvaluateRecipe | FinetuneRecipe)
    # A run that held out a part of its training images is scored on it, unless these data have a validation split.
    data = request.options.data
    fraction = None if has_validation(data) else getattr(recipe, "val_fraction", None)
    every = open_once(partial(class_files, data, "val", fraction), dist)
    val = limit_images(every, recipe.limit, "val")
    warning = check_classes(classifier, val, request.ckpt)
    for line in describe_left_out(val, "val"):
        context.run.log(line)
    for text in (evaluation.warning, warning):
        if text:
            context.run.log(f"imagenet: warning: {text}")
    plan = forward_plan(recipe, classifier)
    context.run.log(
        f"imagenet: evaluate arch={evaluation.scored.arch} images={len(val):,} classes={classifier.num_classes:,} "
        f"code={classifier.code} recipe={evaluation.named.name}"
        + "".join(f" {key}={value}" for key, value in evaluation.deviates.items())
    )
    transform = plan.pop("transform")
    model = classifier.model.to(dist.device).eval()
    convolutional = isinstance(model, ConvNet)
    if isinstance(model, ConvNet):
        use_channels_last(model, model.spec, dist.device)  # as `transfer imagenet` scores it
    device, precision = dist.device, plan["precision"]
    with fast_kernels(device, precision, benchmark=convolutional, run=context.run):
        batches = forward_batches(
            model,
            ImageDataset(val, transform),
            run=context.run,
            dist=dist,
            description="evaluate",
            **plan,
        )
        logits = gather_rows(batches, dist).numpy()
    if not dist.is_main:
        return None
    predictions = context.run.predictions / "logits.npz"
    try:
        write_logits(predictions, logits, np.array(val.labels))
    except DivergedError as error:
        raise DataError(
            f"the logits of {request.ckpt} are not finite; use another copy of the file, or -o precision=fp32."
        ) from error
    mean, std = _statistics(recipe, classifier)
    return evaluation.write_record(
        context,
        predictions=predictions,
        data={
            "root": str(data),
            "classes": len(val.classes),
            "fingerprint": val.fingerprint(),
            **describe_packing(val),
            **describe_held_out(fraction),
        },
        evaluated=len(logits),
        expected=len(val),
        details={
            "code": classifier.code,
            "mean": list(mean),
            "std": list(std),
            "preprocessing": classifier.preprocessing.source,
        },
    )


def _statistics(
    recipe: Recipe, classifier: Classifier
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation: the recipe's, else the model's."""
    own = classifier.preprocessing
    if isinstance(recipe, EvaluateRecipe):
        return recipe.mean or own.mean, recipe.std or own.std
    return own.mean, own.std


def forward_plan(recipe: Recipe, classifier: Classifier) -> dict[str, Any]:
    """Return the transform, the batch size, the loader's processes, the precision and the pixel statistics of a recipe.

    A fine-tuning recipe has those by which `transfer imagenet` scores, so that the predictions are the same.
    """
    mean, std = _statistics(recipe, classifier)
    pixel_format = classifier.preprocessing.pixel_format
    transform: LoadImage
    statistics: Statistics | None = None
    if isinstance(recipe, EvaluateRecipe):
        transform = build_transform(recipe, mean, std, pixel_format)
        batch_size = recipe.forward_batch_size
    else:
        assert isinstance(recipe, FinetuneRecipe)
        transform = eval_transform(
            recipe.eval_img_size,
            crop_ratio=recipe.test_crop_ratio,
            mean=mean,
            std=std,
            as_bytes=True,
            pixel_format=pixel_format,
            resizing=recipe.resizing,
        )
        batch_size, statistics = min(recipe.batch_size, EVAL_BATCH), (mean, std)
    return {
        "transform": transform,
        "batch_size": batch_size,
        "num_workers": recipe.num_workers,
        "precision": recipe.precision,
        "statistics": statistics,
    }


def check_classes(classifier: Classifier, val: NamedImages, ckpt: str) -> str:
    """Check that a classifier's outputs are the classes of a folder, in the order of the folders' names.

    Returns:
        A warning where the order of the classes is an assumption; else an empty text.

    Raises:
        DataError: the number or the names of the classes differ.
    """
    folder, count = val.folder, classifier.num_classes
    folders = f"{folder} has {len(val.classes):,} class folders"
    if classifier.classes is not None and classifier.classes != val.classes:
        different = sorted({*classifier.classes} ^ {*val.classes})
        raise DataError(
            f"{ckpt} was trained for {count:,} classes, and {folders}: {', '.join(different[:5])} differ; use the data "
            "that it was trained on."
        )
    if count in IMAGENET_22K and len(val.classes) == IMAGENET_1K:
        raise DataError(
            f"{ckpt} has {count:,} outputs, the classes of ImageNet-22k, and {folders}; use the file that was "
            "fine-tuned on ImageNet-1k afterwards."
        )
    if count != len(val.classes):
        raise DataError(
            f"{ckpt} has {count:,} outputs, but {folders}; use the data set that it was trained for."
        )
    named = classifier.classes is not None
    if not named and not all(WORDNET_ID.fullmatch(name) for name in val.classes):
        return (
            f"{ckpt} has no names of classes, and those of {folder} are not WordNet ids: output k is "
            "taken for the k-th folder in alphabetical order."
        )
    return ""
