"""The checks of `simmim-bench doctor` for the sets of `transfer shift`: what a run would refuse, in its words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from simmim_bench.data.named import DataSet
from simmim_bench.diagnostics.data_checks import FindingGroup
from simmim_bench.diagnostics.findings import Finding
from simmim_bench.errors import BenchError
from simmim_bench.runs.options import RunOptions
from simmim_bench.shift_sets import SHIFT_SETS, SHIFT_TASK
from transfer.evaluate.evaluation import EvaluationRequest
from transfer.shift.check import check_names, check_set
from transfer.shift.class_maps import images_folder, list_images
from transfer.shift.classifier import open_classifier
from transfer.shift.corruptions import find_conditions
from transfer.shift.imagenet_classes import imagenet_classes


def check_shift_sets(data_sets: Sequence[DataSet], ckpt: str | None) -> Iterator[Finding]:
    """Check that sets fit a classifier.

    Args:
        data_sets: each with a name; see `check.check_names`.
        ckpt: the classifier, as `transfer shift --ckpt` takes it; None for any of ImageNet-1k.
    """
    group = FindingGroup(SHIFT_TASK)
    try:
        check_names(data_sets)
    except BenchError as error:
        yield group.finding("sets", "problem", str(error))
        return
    classes, name = imagenet_classes(), "a classifier of ImageNet-1k"
    if ckpt is not None:
        options = RunOptions(data=data_sets[0].root)
        try:
            classifier = open_classifier(
                EvaluationRequest(task="imagenet", ckpt=ckpt, options=options)
            )
        except BenchError as error:
            yield group.finding("classifier", "problem", str(error))
            return
        classes, name = classifier.classes, ckpt
        said = f"{ckpt}, trained by {classifier.task}: {len(classes):,} classes"
        yield group.finding("classifier", "ok", said)
    for data_set in data_sets:
        own = str(data_set.name)
        try:
            said = check_set(own, data_set.root, classes, name)
            for folder in _folders(data_set):
                list_images(folder)
        except BenchError as error:
            # The classes of a folder of the user's own are those of a classifier, which ImageNet's only stand for.
            unknown = ckpt is None and own not in SHIFT_SETS
            fix = (
                " For another classifier than one of ImageNet-1k, add --classifier RUN."
                if unknown
                else ""
            )
            yield group.finding(own, "problem", f"{error}{fix}")
        else:
            yield group.finding(own, "warning" if "missing" in said else "ok", said)


def _folders(data_set: DataSet) -> list[Path]:
    """Return the folders of class folders that a run lists."""
    if data_set.name == "real":
        return []
    if data_set.name == "c":
        return [*find_conditions(data_set.root).values()]
    return [images_folder(data_set.root)]
