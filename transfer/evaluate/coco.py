"""Score a trained detector on COCO's val split."""

from __future__ import annotations

from simmim_bench.errors import DataError
from simmim_bench.files import sha256_file
from simmim_bench.results.record import Record
from simmim_bench.runs.after import warn_only
from simmim_bench.runs.context import RunContext
from transfer.detection import figure
from transfer.detection.coco_layout import CocoSplit, read_split
from transfer.detection.framework import require_detectron2, silence_detectron2
from transfer.detection.recipes import CocoRecipe
from transfer.detection.run import detect_val, log_split
from transfer.evaluate.evaluation import Evaluation, EvaluationRequest, Score
from transfer.evaluate.framework_file import TrainedModel, load_model, prepare_framework


def prepare_coco(request: EvaluationRequest) -> tuple[Evaluation, Score]:
    """Read a detector and resolve its recipe; see `prepare_framework`."""
    evaluation, trained = prepare_framework(request)
    return evaluation, lambda context: _score(context, evaluation, trained)


@silence_detectron2()
def _score(context: RunContext, evaluation: Evaluation, trained: TrainedModel) -> Record | None:
    """Detect in the val split and write predictions, record and figure."""
    require_detectron2()
    from transfer.detection.model import build_detector

    recipe, data = evaluation.recipe, evaluation.request.options.data
    assert isinstance(recipe, CocoRecipe)
    val = read_split(data, "val", recipe.bad_annotations, recipe.many_crowds)
    log_split(context, val)
    masks = any(name.startswith("roi_heads.mask_head.") for name in trained.state)
    if masks and val.without_mask:
        raise DataError(
            f"{val.annotations}: annotation {val.without_mask[0]} has no mask ({len(val.without_mask)} annotations "
            "have none, crowds included), but the detector predicts masks; add the masks."
        )
    _check_classes(trained, val, evaluation)
    model = build_detector(
        trained.checkpoint,
        recipe,
        num_classes=len(val.category_ids),
        masks=masks,
        seed=evaluation.seed,
        device=context.dist.device,
    )
    load_model(model, trained.state, evaluation)
    context.run.log(
        f"coco: evaluate arch={evaluation.scored.arch} images={val.count:,} recipe={evaluation.named.name} "
        f"heads={'boxes+masks' if masks else 'boxes'}"
    )
    pixel_format = trained.checkpoint.pixel_format
    detected = detect_val(context, model, val, recipe, masks=masks, pixel_format=pixel_format)
    if detected is None:
        return None
    record = evaluation.write_record(
        context,
        predictions=detected.predictions,
        data={
            "root": str(data),
            "annotations": str(val.annotations),
            "fingerprint": sha256_file(val.annotations),
        },
        evaluated=detected.evaluated,
        expected=val.count,
        details={
            "masks": masks,
            "detections": detected.detections,
            "model_sha256": trained.sha256,
        },
    )
    with warn_only(context.run.log, "predictions.png"):
        figure.write_figure(val, detected.shown, context.run, pixel_format)
    return record


def _check_classes(trained: TrainedModel, val: CocoSplit, evaluation: Evaluation) -> None:
    """Check that a detector predicts the categories of the val split.

    Raises:
        DataError: their numbers differ, or, where the run has kept them, their ids or names.
    """
    # A cascade has a predictor per stage; each has one output more, the background.
    names = [name for name in trained.state if name.endswith("cls_score.bias")]
    outputs = {len(trained.state[name]) - 1 for name in names}
    if outputs != {len(val.category_ids)}:
        found = ", ".join(map(str, sorted(outputs))) or "no"
        raise DataError(
            f"{evaluation.request.ckpt} predicts {found} classes, and {val.annotations} has "
            f"{len(val.category_ids)} categories; use the data that it was trained for."
        )
    kept = trained.training.get("progress", {}).get("categories", ())
    for learnt, own in zip(kept, zip(val.category_ids, val.class_names, strict=True), strict=False):
        if tuple(learnt) != own:
            raise DataError(
                f"{evaluation.request.ckpt} was trained with category {learnt[0]}, '{learnt[1]}', and "
                f"{val.annotations} has {own[0]}, '{own[1]}', in its place; number the categories as in training."
            )
