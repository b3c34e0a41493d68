"""Score a fine-tuned model without training: `simmim_bench.evaluate` and `simmim-bench evaluate`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from simmim_bench.api.arguments import check_ckpt, check_data
from simmim_bench.api.display import open_display
from simmim_bench.api.keys import Overrides
from simmim_bench.api.options import AnyPath, check_task, read_ckpt, read_path, read_run_options
from simmim_bench.api.recipes import scoring_recipes
from simmim_bench.data.named import DataSet
from simmim_bench.imports import without_collection
from simmim_bench.library import as_library
from simmim_bench.recipe import Precision, find_recipe
from simmim_bench.runs.options import RunOptions

if TYPE_CHECKING:
    from simmim_bench.results.record import Record
    from simmim_bench.results.scored_runs import ScoredRuns

TASKS = ("imagenet", "coco", "ade20k")


@as_library()
def evaluate(
    task: str,
    *,
    ckpt: AnyPath,
    data: AnyPath,
    recipe: str | None = None,
    out: AnyPath | None = None,
    model: str | None = None,
    backbone: AnyPath | None = None,
    img_size: int | tuple[int, int] | None = None,
    workers: int | None = None,
    precision: Precision | None = None,
    limit: int | None = None,
    overrides: Overrides | None = None,
    resume: bool = False,
    overwrite: bool = False,
    deterministic: bool = False,
    log: str | Iterable[str] = (),
    quiet: bool = False,
) -> Record:
    """Score a fine-tuned model without training, and return the record of its score.

    Args:
        task: "imagenet" (a classifier on val/CLASS/*), "coco" (a detector on val2017/) or "ade20k" (a segmentor on
            images/validation/).
        ckpt: run of `transfer`, a weights file with its head, a folder of timm, or "timm:NAME".
        data: folder of the data set. Class k of a classifier is the k-th folder in alphabetical order.
        recipe: named recipe; by default a run's own, or that of the model's publisher.
        out: run directory; by default runs/CKPT/evaluate-TASK, or -TASK-DATA for a second data set.
        model: for "imagenet", "timm:NAME" or "torchvision:NAME", the model of a file that does not show it.
        backbone: for "coco" and "ade20k", the backbone of a framework's model file: a CKPT or an architecture.
        img_size: side of square images, or (H, W), in pixels.
        workers: processes per GPU that load images; 0 loads in this process.
        precision: "auto", "bf16", "fp16" or "fp32".
        limit: number of validation images that are scored, to try things out.
        overrides: further settings that change the scoring, such as {"test_crop_ratio": 1.0}.
        resume: return the record of a finished evaluation in `out`.
        overwrite: replace the evaluation in `out`.
        deterministic: use deterministic kernels alone, which are slower.
        log: "wandb", "mlflow" or "trackio", or several, which also receive the score.
        quiet: no log and no progress.

    Returns:
        The record; `record.metrics` holds percentages in [0, 100].

    Raises:
        UsageError: an unknown name, a setting of the training, or a run directory that is not empty.
        DataError: the model or the data cannot be read.
        MissingFrameworkError: Detectron2 or MMSegmentation is not installed.

    Example:
        >>> sb.evaluate("imagenet", ckpt="timm:deit_small_patch16_224", data="imagenet").metrics["top1"]
    """
    check_task(task, TASKS)
    options = read_run_options(
        DataSet(read_path(data)),
        recipe=recipe,
        out=out,
        resume=resume,
        overwrite=overwrite,
        overrides=overrides,
        deterministic=deterministic,
        log=log,
        quiet=quiet,
        img_size=img_size,
        workers=workers,
        precision=precision,
        limit=limit,
    )
    whose = None if backbone is None else read_ckpt(backbone)
    return run_evaluate(task, read_ckpt(ckpt), options, model=model, backbone=whose).record


@dataclass(frozen=True)
class Evaluated:
    """The result of an evaluation.

    Attributes:
        runs: the evaluation's run alone, with its uncertainty; None on processes that are not rank 0.
        trained: the scores that training recorded, by metric; empty for a third-party file.
        published: a published score, in words; None where none is known.
    """

    record: Record
    runs: ScoredRuns | None
    trained: Mapping[str, float]
    published: str | None


def run_evaluate(
    task: str,
    ckpt: str,
    options: RunOptions,
    *,
    model: str | None = None,
    backbone: str | None = None,
) -> Evaluated:
    """Score a model with the options of a command line.

    Raises:
        UsageError, DataError, MissingFrameworkError: see `evaluate`.
    """
    check_data(task, [DataSet(options.data)])
    check_ckpt(ckpt)
    if options.recipe is not None:
        find_recipe(scoring_recipes(), options.recipe)
    with without_collection():
        from simmim_bench.distributed import init_distributed
        from simmim_bench.files import wait_for_file
        from simmim_bench.results.record import read_record
        from simmim_bench.results.scored_runs import read_scored_runs
        from simmim_bench.training.determinism import deterministic_algorithms
        from transfer.evaluate.evaluation import EvaluationRequest
        from transfer.evaluate.launch import evaluation_dir, run_evaluation

    request = EvaluationRequest(
        task=task, ckpt=ckpt, options=options, model=model, backbone=backbone
    )
    folder = evaluation_dir(request)  # before any process writes there
    request = replace(request, options=replace(options, out=folder))
    with deterministic_algorithms(options.deterministic), init_distributed() as dist:
        display = open_display(options.quiet or not dist.is_main)
        evaluation, record = run_evaluation(request, display=display, dist=dist)
        dist.barrier()  # rank 0 writes the record, which every process reads
    if record is None:
        wait_for_file(folder / "record.json")
        record = read_record(folder / "record.json")
    trained = {} if evaluation.run is None else dict(evaluation.run.metrics)
    runs = read_scored_runs([folder]) if dist.is_main else None
    return Evaluated(record, runs, trained, evaluation.published)
