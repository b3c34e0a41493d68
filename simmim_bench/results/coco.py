"""Compute COCO's average precision and recall from an annotation file and a results file.

hotcoco, written in Rust, computes the twelve metrics of boxes and of masks and the AP of every class, in percent. Its
numbers equal those of pycocotools, the reference: tests and `benchmarks/coco_evaluation.py` compare the two.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import numpy as np

from simmim_bench.errors import DataError
from simmim_bench.results.coco_file import read_instances
from simmim_bench.results.coco_truth import check_content, is_scored, missing_objects
from simmim_bench.results.run_lengths import check_masks
from simmim_bench.untrusted.gzips import SUFFIX, read_maybe_gzipped
from simmim_bench.untrusted.json_text import MAX_BYTES_OF_DATA
from simmim_bench.untrusted.text import shorten, visible

# The twelve metrics in the order of pycocotools.
STATS = (
    *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
    *("ar_1", "ar_10", "ar_100", "ar_small", "ar_medium", "ar_large"),
)
KINDS = {"bbox": "box", "segm": "mask"}
Library = Literal["hotcoco", "pycocotools"]
# Matched on the text: parsing it in Python takes ten times as long as the evaluation. Run lengths have no quotes.
LIST, EMPTY_LIST = re.compile(rb"\s*\["), re.compile(rb"\s*\[\s*\]\s*")
# Run lengths have the characters 0 to o (pycocotools' maskApi.c), so that neither matches within them.
NO_SCORE = re.compile(rb'"score"\s*:\s*[^-0-9\s]')
NO_NUMBER = re.compile(rb"[:\[,]\s*-?(?:NaN|Infinity)\s*[,}]|,\s*-?(?:NaN|Infinity)\s*\]")
HAS_MASK = re.compile(rb'"segmentation"\s*:\s*[\[{]\s*[^\]}\s]')

# From a results file and "bbox" or "segm" to pycocotools' twelve metrics and its precision array.
Evaluator = Callable[[Path, str], tuple[Any, Any]]
Names = dict[int, str]  # of the categories, by id
T = TypeVar("T")


@dataclass(frozen=True)
class CocoScores:
    """The result of an evaluation, in percent, [0, 100].

    Attributes:
        figures: `box_ap`, ... and `mask_ap`, ...; a metric that is undefined (no object of that size) is
            left out.
        by_class: AP by class name, by "box" and "mask"; classes without an object are left out.
    """

    figures: dict[str, float] = field(default_factory=dict)
    by_class: dict[str, dict[str, float]] = field(default_factory=dict)


def check_annotations(annotations: Path, content: dict[str, Any]) -> None:
    """Check that an annotation file can be evaluated against, so that a run does not fail after training.

    Args:
        content: of the file, cleaned (`read_instances`).

    Raises:
        DataError: the evaluator cannot use the file, or it has no object to score.
    """
    _load_truth(annotations, content, _load_hotcoco)


def evaluate_coco(
    annotations: Path, results: Path, library: Library = "hotcoco", *, masks: bool = True
) -> CocoScores:
    """Evaluate boxes and, if annotations and results have them, masks.

    Args:
        masks: whether the detector predicts masks, which an empty list of results does not show.

    Raises:
        DataError: the results are not a list of detections, or refer to images or categories that the
            annotations do not have; or the annotations have no object.
    """
    load = {"hotcoco": _load_hotcoco, "pycocotools": _load_pycocotools}[library]
    found = read_results(annotations, results, load, masks=masks)
    evaluate, names = found.loaded
    scores = CocoScores()
    for kind in found.kinds:
        prefix = KINDS[kind]
        if found.empty:  # pycocotools cannot load an empty list; without detections AP is 0
            scores.figures[f"{prefix}_ap"] = 0.0
            continue
        with results_file(found, kind) as file:
            stats, precision = evaluate(file, kind)
        for name, value in zip(STATS, stats, strict=True):
            if value >= 0:
                scores.figures[f"{prefix}_{name}"] = 100.0 * float(value)
        scores.by_class[prefix] = _ap_by_class(precision, names)
    return scores


@dataclass(frozen=True)
class Results(Generic[T]):
    """A results file whose content was checked where the libraries take it on trust.

    Attributes:
        text: its content.
        truth: cleaned content of the annotation file.
        loaded: the annotations as a library has them.
        kinds: keys of `KINDS` that can be evaluated.
        empty: whether the file is an empty list.
    """

    path: Path
    text: bytes
    truth: Mapping[str, Any]
    loaded: T
    kinds: tuple[str, ...]
    empty: bool


def read_results(
    annotations: Path, results: Path, load: Callable[[dict[str, Any]], T], *, masks: bool = True
) -> Results[T]:
    """Read and check a results file and its annotation file.

    Args:
        load: loads the cleaned content of the annotation file with a library.
        masks: see `evaluate_coco`, as for what is raised.
    """
    text = read_maybe_gzipped(results, "predictions", MAX_BYTES_OF_DATA)
    if not LIST.match(text):
        raise DataError(f"{results} is not a list of detections in COCO's results format.")
    empty = EMPTY_LIST.fullmatch(text) is not None
    truth = read_instances(annotations).content
    loaded = _load_truth(annotations, truth, load)
    annotated = any(a.get("segmentation") for a in truth["annotations"] if is_scored(a))
    has_masks = masks and annotated and (empty or HAS_MASK.search(text))
    # Searching 200 MB for the pattern takes three seconds, and for the words a tenth of one.
    may_be_no_number = b"NaN" in text or b"Infinity" in text
    if NO_SCORE.search(text) or (may_be_no_number and NO_NUMBER.search(text)):  # hotcoco: null too
        raise DataError(f"{results} has a score or box that is not a number; predict again.")
    kinds = tuple(kind for kind in KINDS if kind != "segm" or has_masks)
    return Results(results, text, truth, loaded, kinds, empty)


@contextmanager
def results_file(results: Results[Any], kind: str) -> Iterator[Path]:
    """Yield the file to evaluate; for masks a copy without boxes, and of a compressed file its content.

    From results with boxes, both libraries take the box's area as the area of a mask; official evaluators
    avoid that.

    Raises:
        DataError: a mask does not fit, or the library fails within the context.
    """
    try:
        if kind == "segm":
            check_masks(results.text, results.truth)
        with (
            contextlib.redirect_stdout(io.StringIO()),
            tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
            _panics_as_errors(),
        ):
            file, text = results.path, results.text
            if kind == "segm":
                text = text.replace(b'"bbox"', b'"_box"')
            if kind == "segm" or file.suffix == SUFFIX:
                file = Path(folder, "results.json")
                file.write_bytes(text)
            yield file
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise DataError(f"{results.path} cannot be evaluated: {_reason(error)}") from error


def _ap_by_class(precision: Any, names: Names) -> dict[str, float]:
    """Return the AP of every class with an object.

    Args:
        precision: (IoU thresholds, recalls, classes, areas, maximum detections); -1 for no object.
    """
    # All areas, most detections.
    overall = np.asarray(precision)[:, :, :, 0, -1]
    return {
        names[category]: 100.0 * float(overall[:, :, k].mean())
        for k, category in enumerate(sorted(names))
        if overall[0, 0, k] >= 0
    }


def _load_truth(annotations: Path, content: Any, load: Callable[[dict[str, Any]], T]) -> T:
    """Load the cleaned content of an annotation file.

    Annotations are numbered anew: pycocotools takes a match with annotation 0 for none, and of several annotations
    with one id it scores the last one alone.

    Raises:
        DataError: the library cannot use the content.
    """
    try:
        check_content(content)
        missing = missing_objects(annotations, content)
        if missing is not None:
            raise DataError(missing)
        entries = [{**a, "id": number} for number, a in enumerate(content["annotations"], 1)]
        with _panics_as_errors():
            return load({**content, "annotations": entries})
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise DataError(
            f"{annotations} cannot be evaluated against: {_reason(error)}; correct the file."
        ) from error


def _reason(error: Exception) -> str:
    text = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
    return visible(shorten(text))


@contextmanager
def _panics_as_errors() -> Iterator[None]:
    """Raise ValueError for a panic of Rust code, which Python sees as an exception that nothing catches."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"the evaluation failed: {error}") from error


def load_objects(content: dict[str, Any]) -> Any:
    """Load annotations with hotcoco, which creates no Python object per detection."""
    import hotcoco

    return hotcoco.COCO(content)


def _load_hotcoco(content: dict[str, Any]) -> tuple[Evaluator, Names]:
    import hotcoco

    truth = load_objects(content)

    def evaluate(file: Path, kind: str) -> tuple[Any, Any]:
        evaluation: Any = hotcoco.COCOeval(truth, load_detections(truth, file), kind)
        evaluation.run()
        return evaluation.stats, evaluation.eval["precision"]

    return evaluate, _names(truth)


def load_detections(truth: Any, file: Path) -> Any:
    """Load a results file with hotcoco.

    Args:
        truth: the annotations as hotcoco has them.

    Raises:
        ValueError: detections are of unknown images or categories.
    """
    detections = truth.load_res(str(file))
    if detections.load_warnings:  # of detections that can match nothing
        raise ValueError(detections.load_warnings[0].removeprefix("load_res() warning — "))
    return detections


def _load_pycocotools(content: dict[str, Any]) -> tuple[Evaluator, Names]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {"info": {}, **content}  # `loadRes` needs `info`
        truth.createIndex()

    def evaluate(file: Path, kind: str) -> tuple[Any, Any]:
        detections = json.loads(file.read_bytes())
        for key, known in (("image_id", truth.imgs), ("category_id", truth.cats)):
            unknown = next((d for d in detections if d[key] not in known), None)
            if unknown is not None:
                raise ValueError(
                    f"found annotation with {key} {unknown[key]} not in the GT dataset"
                )
        evaluation = COCOeval(truth, truth.loadRes(detections), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        return evaluation.stats, evaluation.eval["precision"]

    return evaluate, _names(truth)


def _names(truth: Any) -> Names:
    return {number: category["name"] for number, category in truth.cats.items()}
