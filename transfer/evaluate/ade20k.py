"""Score a trained segmentor on ADE20K's validation split."""

from __future__ import annotations

import numpy as np

from simmim_bench.errors import DataError
from simmim_bench.results.record import Record
from simmim_bench.runs.context import RunContext
from transfer.evaluate.evaluation import Evaluation, EvaluationRequest, Score
from transfer.evaluate.framework_file import TrainedModel, load_model, prepare_framework
from transfer.segmentation.ade20k_classes import ADE20K_CLASSES
from transfer.segmentation.ade20k_layout import find_split, read_class_names
from transfer.segmentation.confusion import write_predictions
from transfer.segmentation.label_check import check_splits
from transfer.segmentation.label_maps import LabelScheme
from transfer.segmentation.recipes import Ade20kRecipe
from transfer.segmentation.run import message_of, require_mmseg, set_local_rank


def prepare_ade20k(request: EvaluationRequest) -> tuple[Evaluation, Score]:
    """Read a segmentor and resolve its recipe; see `prepare_framework`."""
    evaluation, trained = prepare_framework(request)
    return evaluation, lambda context: _score(context, evaluation, trained)


def _score(context: RunContext, evaluation: Evaluation, trained: TrainedModel) -> Record | None:
    """Predict the validation split and write predictions and record."""
    require_mmseg()
    set_local_rank(context.dist)
    from mmseg import __version__ as mmseg_version

    from transfer.segmentation.loop import predict_validation
    from transfer.segmentation.model import build_segmentor

    recipe, data = evaluation.recipe, evaluation.request.options.data
    assert isinstance(recipe, Ade20kRecipe)
    every = find_split(data, "validation")
    names = read_class_names(data) or list(ADE20K_CLASSES)
    scheme = LabelScheme(classes=len(names), reduce_zero_label=recipe.reduce_zero_label)
    for remark in check_splits((every,), names, scheme, trained.checkpoint.pixel_format):
        context.run.log(f"ade20k: data: {remark}")
    validation = every.limited(recipe.limit)
    classes = len(trained.state.get("decode_head.conv_seg.bias", ()))
    if classes != len(names):
        raise DataError(
            f"{evaluation.request.ckpt} predicts {classes or 'no'} classes, and {data} has {len(names)}; use the data "
            "that it was trained for, or name its classes in classes.txt."
        )
    model = build_segmentor(trained.checkpoint, recipe, classes, evaluation.seed)
    load_model(model, trained.state, evaluation)
    context.run.log(
        f"ade20k: evaluate arch={evaluation.scored.arch} images={len(validation):,} classes={classes} "
        f"recipe={evaluation.named.name}"
    )
    try:
        metric = predict_validation(context, model, trained.checkpoint, recipe, validation, names)
    except DataError as error:
        raise DataError(message_of(error)) from error
    if not context.dist.is_main:
        return None
    palette = np.array(metric.dataset_meta["palette"])
    predictions = write_predictions(
        context.run,
        validation,
        names,
        metric.confusions,
        metric.shown,
        palette,
        scheme,
        trained.checkpoint.pixel_format,
    )
    return evaluation.write_record(
        context,
        predictions=predictions,
        data={"root": str(data), "fingerprint": validation.fingerprint()},
        evaluated=len(metric.confusions),
        expected=len(validation),
        details={
            "classes": classes,
            "mmsegmentation": mmseg_version,
            "model_sha256": trained.sha256,
        },
    )
