"""COCO transfer: fine-tune Mask R-CNN on a checkpoint through Detectron2, and score it.

In: a checkpoint, a folder in COCO's layout, a recipe, a seed. Out: `predictions/coco_results.json`, the
record with box AP and, where the data has masks, mask AP, and `predictions.png`. Follows section 4.3 of
arXiv 2111.09886 with the detectors of ViTDet (arXiv 2203.16527) and Mask R-CNN (arXiv 1703.06870).
Nothing of Detectron2 is imported before `run_coco` has made sure that it is there.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from simmim_bench.checkpoints.checkpoint import Checkpoint, write_checkpoint
from simmim_bench.checkpoints.read import read_training_state
from simmim_bench.distributed import DistContext, best_device, per_process_batch
from simmim_bench.errors import DataError, MissingFrameworkError
from simmim_bench.files import replacing, write_json, write_text
from simmim_bench.results.coco import evaluate_coco
from simmim_bench.results.record import Record, write_record
from simmim_bench.runs.run_dir import RunDir
from simmim_bench.training.optim import Schedule, parameter_groups
from transfer.detection.coco_layout import CocoSplit, data_identity, read_splits
from transfer.detection.data import train_loader, training_stream, val_loader
from transfer.detection.recipes import CocoRecipe

if TYPE_CHECKING:
    from detectron2.structures import Instances

PICTURES = 8
PICTURE_SIDE = 256
DRAWN_ABOVE = 0.3  # score of the detections in the pictures
TALKATIVE = (
    "detectron2",
    "fvcore",
    "iopath",
    "torch.fx._symbolic_trace",
)  # their warnings are not for users


def require_detectron2() -> None:
    """Make sure that Detectron2 and what it needs can be imported.

    Raises:
        MissingEngineError: something is missing, or Detectron2 is from before ViTDet.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it still uses torch.jit.script
            import pycocotools.mask  # noqa: F401
            import shapely.geometry  # noqa: F401  # fvcore imports it at the first crop of a polygon
            from detectron2.modeling import SimpleFeaturePyramid  # noqa: F401
    except ImportError as error:
        raise MissingFrameworkError(
            f"coco needs Detectron2, which cannot be imported ({error}); install the extra [det] and "
            "Detectron2's sources as README, section 'Installation', says."
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Detectron2's log lines and deprecation warnings from the terminal."""
    loggers = [logging.getLogger(name) for name in TALKATIVE]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning)  # torch.cuda.amp, torch.jit
            warnings.filterwarnings("ignore", message=".*torch.meshgrid")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


@_quiet()
def run_coco(
    *,
    checkpoint: Checkpoint,
    data: Path,
    run: RunDir,
    recipe: CocoRecipe,
    deviates: dict[str, Any],
    seed: int,
    resume: bool = False,
    dist: DistContext | None = None,
    accumulate: int | None = None,
    grad_checkpointing: bool = False,
) -> Record | None:
    """Fine-tune, detect in the val split, and write the record.

    Args:
        team: the processes that share each batch; None for this one alone.
        accumulate: parts that a process cuts its share of a batch into; None for as few as fit. The losses of
            regions are means over a part, so that more parts are not exactly the same training.
        grad_checkpointing: compute the backbone's blocks again in the backward pass, to save memory.

    Returns:
        The record, on the main process.

    Raises:
        MissingEngineError: Detectron2 is not installed.
        UsageError: the recipe's pyramid cannot be had from the backbone.
        DataError: annotations or images that cannot be used.
        DivergedError: the loss is not finite.
        InterruptedRun: SIGINT or SIGTERM came; the iterations done are saved.
    """
    require_detectron2()
    from transfer.detection.loop import choose_parts, detect, train_detector
    from transfer.detection.model import build_detector, find_adapter

    dist = dist or DistContext(device=best_device())
    share = per_process_batch(recipe.batch_size, dist.size)
    train, val = read_splits(data, recipe.bad_annotations)
    for kind, numbers in train.skipped.items():
        run.log(f"left out of the training: {len(numbers)} annotations with {kind}")
    model = build_detector(
        checkpoint,
        recipe,
        num_classes=len(train.category_ids),
        masks=train.has_masks,
        seed=seed,
        device=dist.device,
    )
    backbone = find_adapter(model).backbone
    backbone.set_grad_checkpointing(grad_checkpointing)
    run.log(
        f"{checkpoint.label}: {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters, "
        f"{backbone.load_report}, {train.count} images to train on, {recipe.max_iters} iterations of "
        f"{recipe.batch_size}, " + ("boxes and masks" if train.has_masks else "boxes only")
    )
    optimizer = torch.optim.AdamW(
        parameter_groups(
            model,
            backbone,
            lr=recipe.base_lr,
            weight_decay=recipe.weight_decay,
            layer_decay=recipe.layer_decay,
        )
    )
    schedule = Schedule(
        kind="multistep",
        peak_lr=recipe.base_lr,
        warmup_lr=recipe.base_lr / 1000,  # detectron2: WarmupParamScheduler's factor in ViTDet
        total_steps=recipe.max_iters,
        warmup_steps=recipe.warmup_iters,
        milestones=[round(share * recipe.max_iters) for share in recipe.milestones],
    )
    identity = data_identity(data, train, val)
    progress: dict[str, Any] = {"iterations": 0, "losses": {}, "parts": None}
    state = None
    if resume and run.last_checkpoint.is_dir():
        state = read_training_state(run.last_checkpoint)
        progress = state["progress"]
        if progress["train_fingerprint"] != identity["train_fingerprint"]:
            raise DataError(
                f"{train.annotations} is not what {run.path} was begun with; put it back, or start anew with "
                "another --out."
            )
        run.log(f"resumed after iteration {progress['iterations']}")
        run.rewind(progress["iterations"] + 1)
    progress["train_fingerprint"] = identity["train_fingerprint"]

    def save(iterations: int, losses: dict[str, float]) -> None:
        if not dist.is_main:
            return
        progress.update(iterations=iterations, losses=losses)
        write_checkpoint(
            run.last_checkpoint,
            state=backbone.state_dict(),
            spec=backbone.spec,
            form="transfer",
            mean=checkpoint.mean,
            std=checkpoint.std,
            provenance={
                **checkpoint.provenance,
                "label": f"{checkpoint.label}, then {recipe.name}",
                "fine_tuned": {"task": "coco", "iterations": iterations, "seed": seed},
            },
            training={
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "progress": progress,
            },
        )

    first_iter = progress["iterations"]
    if first_iter < recipe.max_iters:
        stream = training_stream(train, recipe, seed)
        # What is saved goes on in its own parts, of a smaller share in at most as many as it has images.
        request = accumulate or (progress["parts"] and min(progress["parts"], share))
        # The optimizer's state would count twice while measuring.
        progress["parts"] = choose_parts(model, stream[0], recipe, request, run, dist)
        if state is not None:
            optimizer.load_state_dict(state["optimizer"])
            model.load_state_dict(state["model"])
        train_detector(
            dist.wrap_model(model),
            optimizer,
            schedule,
            train_loader(stream, recipe, first_iter, dist),
            recipe=recipe,
            first_iter=first_iter,
            seed=seed,
            run=run,
            save=save,
            dist=dist,
            parts=progress["parts"],
        )
    elif state is not None:
        model.load_state_dict(state["model"])
    dist.broadcast_buffers(model)
    with run.display.task("coco: val", val.count) as task:
        results, kept, evaluated = detect(
            model, val_loader(val, recipe), val, task, keep=PICTURES, dist=dist
        )
    if not dist.is_main:
        return None
    predictions = run.predictions / "coco_results.json"
    write_text(predictions, json.dumps(results) + "\n")
    scores = evaluate_coco(val.annotations, predictions, masks=train.has_masks)
    write_json(run.path / "ap_by_class.json", scores.by_class)
    record = write_record(
        run,
        task="coco",
        checkpoint=checkpoint,
        recipe=recipe,
        deviates=deviates,
        seed=seed,
        data=identity,
        predictions=predictions,
        evaluated=evaluated,
        expected=val.count,
        images_seen=recipe.max_iters * recipe.batch_size + val.count,
        dist=dist,
        details={
            "iterations": progress["iterations"],
            "losses": progress["losses"],
            "load_report": str(backbone.load_report),
            "processes": dist.size,
            "parts": progress["parts"],
            "masks": train.has_masks,
            "left_out_of_training": {kind: len(ids) for kind, ids in train.skipped.items()},
            "detections": len(results),
        },
    )
    _draw(val, kept, run)
    return record


def _draw(val: CocoSplit, found: list[Instances], run: RunDir) -> None:
    """Write predictions.png: pairs of the truth, on the left, and the detections, on the right."""
    from detectron2.data.catalog import Metadata
    from detectron2.data.detection_utils import read_image
    from detectron2.utils.visualizer import Visualizer
    from torchvision.utils import make_grid, save_image

    names = Metadata(name="", thing_classes=list(val.class_names))
    pictures = []
    for truth, instances in zip(val.dataset_dicts(), found, strict=False):
        if not all("segmentation" in annotation for annotation in truth["annotations"]):
            for annotation in truth["annotations"]:  # the picture's first decides for all
                annotation.pop("segmentation", None)
        image = read_image(truth["file_name"], format="RGB")
        scale = PICTURE_SIDE / max(image.shape[:2])
        sure = instances[instances.scores > DRAWN_ABOVE]
        for drawn in (
            Visualizer(image, names, scale=scale).draw_dataset_dict(truth),
            Visualizer(image, names, scale=scale).draw_instance_predictions(sure),
        ):
            pixels = torch.from_numpy(drawn.get_image().copy()).permute(2, 0, 1) / 255
            height, width = pixels.shape[1:]
            pictures.append(F.pad(pixels, (0, PICTURE_SIDE - width, 0, PICTURE_SIDE - height)))
    grid = make_grid(pictures, nrow=4, padding=4, pad_value=1.0)
    with replacing(run.path / "predictions.png") as temporary:
        save_image(grid, temporary, format="png")
    run.tensorboard.add_image("predictions", grid)
