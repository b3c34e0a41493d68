"""Score a classifier on further validation sets, one record per set: `simmim-bench transfer shift`.

The recipe of a record is the one by which the classifier was trained, and the record names the task that trained it:
scores of a linear classifier and of a fine-tuned model follow different protocols.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simmim_bench.checkpoints.read import checkpoint_path
from simmim_bench.data.named import DataSet
from simmim_bench.display import Display
from simmim_bench.distributed import DistContext
from simmim_bench.errors import UsageError
from simmim_bench.results.record import Record, read_record, write_record
from simmim_bench.runs.context import RunContext
from simmim_bench.runs.options import RunOptions
from simmim_bench.runs.run_check import check_run_dir, describe_run
from simmim_bench.runs.run_dir import open_run
from simmim_bench.shift_sets import SHIFT_SETS, SHIFT_TASK, shift_record_name
from transfer.evaluate.evaluation import EvaluationRequest
from transfer.launch import slug
from transfer.shift.check import check_names, check_set
from transfer.shift.classifier import ShiftClassifier, open_classifier
from transfer.shift.scores import SCORES

ROOT = Path("runs")


@dataclass(frozen=True, kw_only=True)
class ShiftRequest:
    """What to score on which sets, as the command line asks for it.

    Attributes:
        ckpt: a run of `transfer`, or a file with a classification head.
        data_sets: each with a name.
        model: `timm:NAME` or `torchvision:NAME`, the model of a file that does not show it.
    """

    ckpt: str
    data_sets: Sequence[DataSet]
    options: RunOptions
    model: str | None = None

    def command(self, data_set: DataSet) -> list[str]:
        """Return the command that repeats the score of one set."""
        words = ["simmim-bench", "transfer", SHIFT_TASK, "--ckpt", self.ckpt]
        words += ["--data", str(data_set)]
        for flag, value in (("--model", self.model), ("--recipe", self.options.recipe)):
            words += [] if value is None else [flag, value]
        for assignment in self.options.overrides:
            words += ["-o", assignment]
        return words


def run_shift(
    request: ShiftRequest, *, display: Display, dist: DistContext, root: Path = ROOT
) -> list[Record]:
    """Score a classifier on every set, each in one of `shift_dirs`; with `resume`, finished sets are left as they are.

    Returns:
        The records on rank 0, in the order of the sets.

    Raises:
        UsageError: a set without a name, or an option that does not apply.
        DataError: the CKPT has no classifier, or a set does not fit it.
    """
    check_names(request.data_sets, request.options.overrides)
    options, sets = request.options, request.data_sets
    classifier = open_classifier(
        EvaluationRequest(task="imagenet", ckpt=request.ckpt, options=options, model=request.model)
    )
    for data_set in sets:
        check_set(str(data_set.name), data_set.root, classifier.classes, request.ckpt)
    folders = shift_dirs(request, root)
    if any(
        checkpoint_path(request.ckpt).resolve().is_relative_to(folder.resolve())
        for folder in folders
    ):
        raise UsageError(f"--out would write into {request.ckpt}; choose another --out.")
    arguments = [_arguments(request, classifier, data_set) for data_set in sets]
    if dist.is_main:
        for folder, own in zip(folders, arguments, strict=True):
            check_run_dir(
                folder,
                describe_run(classifier.recipe, classifier.deviates, own),
                resume=options.resume,
                overwrite=options.overwrite,
            )
    records = []
    for data_set, folder, own in zip(sets, folders, arguments, strict=True):
        with open_run(
            folder,
            recipe=classifier.recipe,
            deviates=classifier.deviates,
            arguments=own,
            display=display,
            resume=options.resume,
            overwrite=options.overwrite,
            dist=dist,
            loggers=options.loggers,
        ) as run:
            if options.resume and (folder / "record.json").is_file():
                run.log(f"{folder} is finished")
                records.append(read_record(folder / "record.json"))
                continue
            context = RunContext(run=run, seed=classifier.seed, resume=False, dist=dist)
            record = _score_set(context, request, classifier, data_set)
            records += [] if record is None else [record]
    return records


def shift_dirs(request: ShiftRequest, root: Path = ROOT) -> list[Path]:
    """Return the run directory of every set.

    With --out, one set is scored in it and several below it. Without --out, they are below `root/CKPT/shift`.
    """
    sets, out = request.data_sets, request.options.out
    if out is not None and len(sets) == 1:
        return [out]
    parent = out or root / slug(request.ckpt).removeprefix("runs-") / SHIFT_TASK
    return [parent / str(one.name) for one in sets]


def _arguments(
    request: ShiftRequest, classifier: ShiftClassifier, data_set: DataSet
) -> dict[str, Any]:
    """Return what determines a score besides the recipe; kept in `recipe.json`."""
    return {
        "command": "transfer",
        "task": SHIFT_TASK,
        "ckpt": request.ckpt,
        "data": str(data_set.root),
        "data_name": data_set.name,
        "model": request.model,
        "sha256": classifier.sha256,
    }


def _score_set(
    context: RunContext, request: ShiftRequest, classifier: ShiftClassifier, data_set: DataSet
) -> Record | None:
    """Score one set; write predictions and record on rank 0."""
    name, log = str(data_set.name), context.run.log
    task = shift_record_name(name)
    if classifier.warning:
        log(f"{task}: warning: {classifier.warning}")
    log(
        f"{task}: set={name} classifier={classifier.task} recipe={classifier.named.name} "
        f"classes={len(classifier.classes):,}"
        + "".join(f" {key}={value}" for key, value in classifier.deviates.items())
    )
    kind = SHIFT_SETS[name].predictions if name in SHIFT_SETS else "ranking"
    score = SCORES[kind](context, classifier, data_set)
    if score is None:
        return None
    known = SHIFT_SETS.get(name)
    return write_record(
        context.run,
        task=task,
        checkpoint=classifier.scored,
        recipe=classifier.recipe,
        deviates=classifier.deviates,
        seed=classifier.seed,
        data={
            **({} if known else {"name": name}),
            "root": str(data_set.root),
            "fingerprint": score.fingerprint,
            **score.packed,
            "classifier": classifier.task,
            **classifier.training_data,
        },
        predictions=score.predictions,
        evaluated=score.evaluated,
        expected=score.expected,
        images_seen=score.forwarded,
        dist=context.dist,
        details={
            **score.details,
            "classifier": classifier.ckpt,
            "classifier_sha256": classifier.sha256,
            **({"rule": known.source} if known else {}),
            **({"trained": dict(classifier.metrics)} if classifier.metrics else {}),
        },
        command=request.command(data_set),
    )
