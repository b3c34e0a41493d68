"""Run an evaluation: read the CKPT, resolve the recipe, score in a run directory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from simmim_bench.checkpoints.read import checkpoint_path
from simmim_bench.display import Display
from simmim_bench.distributed import DistContext
from simmim_bench.errors import UsageError
from simmim_bench.results.record import Record, read_record
from simmim_bench.runs.context import RunContext
from simmim_bench.runs.default_folder import choose_folder
from simmim_bench.runs.run_dir import open_run
from transfer.evaluate.ade20k import prepare_ade20k
from transfer.evaluate.coco import prepare_coco
from transfer.evaluate.evaluation import Evaluation, EvaluationRequest, Score
from transfer.evaluate.imagenet import prepare_imagenet
from transfer.launch import slug

ROOT = Path("runs")
PREPARE: dict[str, Callable[[EvaluationRequest], tuple[Evaluation, Score]]] = {
    "imagenet": prepare_imagenet,
    "coco": prepare_coco,
    "ade20k": prepare_ade20k,
}


def evaluation_dir(request: EvaluationRequest, root: Path = ROOT) -> Path:
    """Return the run directory of an evaluation.

    It is --out, or `root/CKPT/evaluate-TASK`, with `-DATA` where that holds an evaluation on other data.

    Raises:
        UsageError: see `choose_folder`.
    """
    if request.options.out is not None:
        return request.options.out
    plain = root / slug(request.ckpt).removeprefix("runs-") / f"evaluate-{request.task}"
    return choose_folder(
        plain,
        lambda name: plain.with_name(f"{plain.name}-{name}"),
        request.options.data,
        resume=request.options.resume,
    )


def run_evaluation(
    request: EvaluationRequest,
    *,
    display: Display,
    dist: DistContext,
    root: Path = ROOT,
) -> tuple[Evaluation, Record | None]:
    """Score a trained model in `evaluation_dir`; with `resume`, a finished evaluation is left as it is.

    Returns:
        The evaluation, and its record on rank 0.

    Raises:
        UsageError: an option that does not apply, or a directory that cannot be used.
        DataError: the model or the data cannot be used.
        MissingFrameworkError: Detectron2 or MMSegmentation is not installed.
    """
    options = request.options
    if request.ckpt.startswith("random:"):
        raise UsageError(
            f"{request.ckpt} has random weights, so that there is nothing to evaluate; use a fine-tuned model."
        )
    evaluation, score = PREPARE[request.task](request)
    out = evaluation_dir(request, root)
    if options.overwrite and checkpoint_path(request.ckpt).resolve().is_relative_to(out.resolve()):
        raise UsageError(f"--overwrite would delete {request.ckpt}; choose another --out.")
    with open_run(
        out,
        recipe=evaluation.recipe,
        deviates=evaluation.deviates,
        arguments={**request.arguments, "sha256": evaluation.scored.sha256},
        display=display,
        resume=options.resume,
        overwrite=options.overwrite,
        dist=dist,
        loggers=options.loggers,
    ) as run:
        if options.resume and (out / "record.json").is_file():
            run.log(f"{out} is finished")
            return evaluation, read_record(out / "record.json")
        record = score(RunContext(run=run, seed=evaluation.seed, resume=False, dist=dist))
    return evaluation, record
