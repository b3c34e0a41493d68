"""The registry of transfer tasks: everything about a task that can be known without torch.

The command line, suites, `doctor`, the record's schema and the leaderboard read their tasks from `TASKS`.

To add a task, write the module that runs it, and add

1. here: one entry to `TASKS` (and, only if they are new, to `LAYOUTS` and `OPTIONS`);
2. in `transfer/tasks.py`: its recipes to `TASK_RECIPES`, and for a new type of recipe its runner to `RUNNERS`
   (for a new layout also its check to `DATA_CHECKS`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from simmim_bench.errors import UsageError
from simmim_bench.shift_sets import SHIFT_SETS, SHIFT_TASK, shift_record_name

Predictions = Literal["ranking", "confusion", "coco", "multilabel", "corruptions"]
# Of classifiers with probabilities; see `results/calibration.py`. Lower is better, and none has a column.
CALIBRATION_METRICS = ("ece", "nll", "brier")


@dataclass(frozen=True)
class Column:
    """One metric of one task, as the leaderboard shows it.

    Attributes:
        title: the column's heading: what is done and measured, on whatever data.
        task: the task as records name it, such as `fewshot-1%`.
        metric: key in the record's `metrics`; a percentage in [0, 100].
        extra: name of the extra columns that this one belongs to, which tables show on request (`leaderboard show
            --columns NAME`); None for a column that every table has. The page has all.
    """

    title: str
    task: str
    metric: str
    extra: str | None = None


@dataclass(frozen=True, kw_only=True)
class DataLayout:
    """A data set's folder layout; `transfer/tasks.py` names the function that checks it.

    Attributes:
        summary: the layout in a few words, for `--help`.
    """

    name: str
    title: str
    summary: str


@dataclass(frozen=True, kw_only=True)
class TaskOption:
    """An option of `simmim-bench transfer` that only some tasks take.

    Attributes:
        name: parameter name; the flag is `--name` with hyphens.
        kind: "flag", "switch" (`--name` or `--no-name`, with the values "on" and "off"), "count" (an integer >= 1),
            "path", or the allowed values.
        help: what the option does, without naming the tasks.
        default: the value that is used where none is given, for `--help`.
        in_suite: whether `simmim-bench suite` offers the option as well.
        affects_result: whether the value changes the score, so that a resumed run must have the same.
    """

    name: str
    kind: Literal["flag", "switch", "count", "path"] | tuple[str, ...]
    help: str
    default: str | None = None
    in_suite: bool = False
    affects_result: bool = False

    @property
    def flag(self) -> str:
        """The option as it is typed."""
        return f"--{self.name.replace('_', '-')}"

    def words(self, value: Any) -> list[str]:
        """Return the option with a value, as it is typed."""
        if self.kind == "switch":
            return [self.flag if value == "on" else f"--no-{self.flag[2:]}"]
        return [self.flag] if self.kind == "flag" else [self.flag, str(value)]


@dataclass(frozen=True, kw_only=True)
class Task:
    """One transfer task.

    Attributes:
        name: as `simmim-bench transfer NAME` takes it.
        summary: what is trained and scored, for `--help`; lines of at most 50 characters.
        data: key of `LAYOUTS`.
        columns: the leaderboard's columns, in order; they name every record name of the task.
        metrics: keys of the record's `metrics`.
        predictions: the kind of file that the scores are computed from; see `results/metrics.py`.
        options: keys of `OPTIONS`.
        variants: record name -> option values, for a task with several rows of protocols; by default
            the task's name without options.
        suite_order: suites run tasks in ascending order, cheap ones first.
        inapplicable: metric -> why a record may lack it.
        takes_several_data_sets: whether one command may run the task on several named data sets.
        any_images: whether images of any channels and value range are read; otherwise RGB images of 8 bits.
        varies_with_seed: whether another seed gives one checkpoint another score, beyond the choice of a candidate.
        samples_images: whether the seed samples the training images, which runs of one seed then share.
    """

    name: str
    summary: str
    data: str
    columns: tuple[Column, ...]
    metrics: tuple[str, ...]
    predictions: Predictions
    options: tuple[str, ...] = ()
    variants: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    suite_order: int = 100
    inapplicable: Mapping[str, str] = field(default_factory=dict)
    takes_several_data_sets: bool = False
    any_images: bool = False
    varies_with_seed: bool = True
    samples_images: bool = False


@dataclass(frozen=True)
class TaskVariant:
    """A task with fixed option values: what one record, and one step of a suite, is of.

    Attributes:
        name: as records name it, such as `fewshot-1%`.
        options: the option values that distinguish it, such as `{"fraction": "1%"}`.
    """

    name: str
    task: Task
    options: Mapping[str, str]


SWITCH = {None: None, True: "on", False: "off"}  # values of an option of the kind "switch"

LAYOUTS: dict[str, DataLayout] = {
    layout.name: layout
    for layout in (
        DataLayout(name="imagenet", title="ImageNet", summary="train/CLASS/*, val/CLASS/*"),
        DataLayout(name="coco", title="COCO", summary="train2017/, val2017/, annotations/"),
        DataLayout(
            name="ade20k", title="ADE20K", summary="images/, annotations/ {training,validation}"
        ),
    )
}

OPTIONS: dict[str, TaskOption] = {
    option.name: option
    for option in (
        TaskOption(
            name="fraction",
            kind=("1%", "10%"),
            default="1%",
            help="Fraction of the training images to learn from, equally many of every class; with -o "
            "draw=proportional the same fraction of every class.",
            affects_result=True,
        ),
        TaskOption(
            name="split",
            kind="path",
            help="File that lists the training images, NAME or CLASS/NAME per line, such as SimCLR's "
            "1percent.txt; sampled from the seed by default.",
            affects_result=True,
        ),
        TaskOption(
            name="features",
            kind="path",
            help="Folder that keeps the frozen features, which these tasks share; by default next to --out, "
            "or runs/CKPT/features.",
        ),
        TaskOption(
            name="accumulate",
            kind="count",
            help="Gradient-accumulation steps per process; by default the smallest number that fits in "
            "memory.",
            in_suite=True,
        ),
        TaskOption(
            name="grad_checkpointing",
            kind="flag",
            help="Save memory: recompute activations in the backward pass.",
            in_suite=True,
        ),
        TaskOption(
            name="compile",
            kind="switch",
            help="Use torch.compile; by default on a GPU from 5,000 steps on, which earn the time back.",
            in_suite=True,
        ),
        TaskOption(
            name="label_maps",
            kind="flag",
            help="Keep the predicted label maps as PNGs in predictions/label_maps/.",
            in_suite=True,
        ),
    )
}

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            name="imagenet",
            any_images=True,
            summary="fine-tune all weights; top-1",
            data="imagenet",
            columns=(Column("fine-tuned top-1", "imagenet", "top1"),),
            metrics=("top1", "top5", *CALIBRATION_METRICS),
            predictions="ranking",
            options=("compile",),
            suite_order=5,
        ),
        Task(
            name="linear",
            any_images=True,
            summary="linear classifier on frozen features; top-1",
            data="imagenet",
            columns=(Column("linear", "linear", "top1"),),
            metrics=("top1", "top5", *CALIBRATION_METRICS),
            predictions="ranking",
            options=("features",),
            suite_order=1,
            takes_several_data_sets=True,
        ),
        Task(
            name="attentive",
            any_images=True,
            summary="classifier that pools frozen tokens by\nattention; top-1",
            data="imagenet",
            columns=(Column("attentive", "attentive", "top1"),),
            metrics=("top1", "top5", *CALIBRATION_METRICS),
            predictions="ranking",
            suite_order=4,
            takes_several_data_sets=True,
        ),
        Task(
            name="knn",
            any_images=True,
            summary="nearest neighbours of frozen features; top-1",
            data="imagenet",
            columns=(Column("k-NN", "knn", "top1"),),
            # The votes of neighbours are not probabilities, so that they have no calibration.
            metrics=("top1", "top5"),
            predictions="ranking",
            options=("features",),
            suite_order=2,
            varies_with_seed=False,
            takes_several_data_sets=True,
        ),
        Task(
            name="fewshot",
            any_images=True,
            summary="logistic regression on frozen features with\n1% or 10% of the images; top-1\n"
            "(with --recipe imagenet_...: fine-tuned)",
            data="imagenet",
            columns=(
                Column("1 %", "fewshot-1%", "top1"),
                Column("10 %", "fewshot-10%", "top1"),
            ),
            metrics=("top1", "top5", *CALIBRATION_METRICS),
            predictions="ranking",
            options=("fraction", "split", "features"),
            variants={"fewshot-1%": {"fraction": "1%"}, "fewshot-10%": {"fraction": "10%"}},
            suite_order=3,
            samples_images=True,
            takes_several_data_sets=True,
        ),
        Task(
            name="coco",
            any_images=True,
            summary="Mask R-CNN through Detectron2; box, mask AP",
            data="coco",
            columns=(
                Column("detection box AP", "coco", "box_ap"),
                Column("mask AP", "coco", "mask_ap"),
            ),
            metrics=("box_ap", "mask_ap"),
            predictions="coco",
            options=("accumulate", "grad_checkpointing"),
            suite_order=6,
            inapplicable={"mask_ap": "the data set has boxes but no masks"},
        ),
        Task(
            name="ade20k",
            any_images=True,
            summary="UPerNet through MMSegmentation; mIoU\n"
            "(with --recipe ade20k_knn or ade20k_logistic:\non frozen features, without MMSegmentation)",
            data="ade20k",
            columns=(Column("segmentation mIoU", "ade20k", "miou"),),
            metrics=("miou",),
            predictions="confusion",
            options=("label_maps",),
            suite_order=7,
        ),
    )
}


def format_metric(metric: str, value: float) -> str:
    """Format a value of a record's metric: percentages with two decimals, others with four digits."""
    return f"{value:.4g}" if metric in ("nll", "brier") else f"{value:.2f}"


def columns() -> tuple[Column, ...]:
    """Return the leaderboard's columns, in the order of the tasks; those of shift sets are the last."""
    of_shift = (
        Column(shift.title, shift_record_name(shift.name), "top1", extra=SHIFT_TASK)
        for shift in SHIFT_SETS.values()
    )
    return (*(column for task in TASKS.values() for column in task.columns), *of_shift)


def predictions_of(name: str) -> Predictions:
    """Return the kind of predictions of a record.

    Args:
        name: the task as records name it, such as `fewshot-1%` or `shift-c`.
    """
    variant = find_variant(name)
    if variant is not None:
        return variant.task.predictions
    # A few-shot fraction without a column, and a folder of a user's own: their predictions are a ranking.
    kinds = {shift_record_name(shift.name): shift.predictions for shift in SHIFT_SETS.values()}
    return kinds.get(name, "ranking")


def variants() -> dict[str, TaskVariant]:
    """Return every task variant by record name, in the order in which suites run them."""
    ordered = sorted(TASKS.values(), key=lambda task: task.suite_order)
    return {variant.name: variant for task in ordered for variant in variants_of(task)}


def variants_of(task: Task) -> Iterator[TaskVariant]:
    """Yield the variants of a task; the task itself where it has none."""
    for name, options in (task.variants or {task.name: {}}).items():
        yield TaskVariant(name, task, options)


def find_variant(record_name: str) -> TaskVariant | None:
    """Find the variant that a record names; None for a task that this version does not know."""
    return variants().get(record_name)


def tasks_on(layout: str) -> list[Task]:
    """Return the tasks that learn from data in a layout."""
    return [task for task in TASKS.values() if task.data == layout]


def tasks_with(option: str) -> list[str]:
    """Return the names of the tasks that take an option."""
    return [task.name for task in TASKS.values() if option in task.options]


def given_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Drop the options that were not given: None, or a flag that is off."""
    return {name: value for name, value in options.items() if value not in (None, False)}


def check_options(task: str, given: Iterable[str]) -> None:
    """Check that a task takes some options.

    Args:
        given: parameter names.

    Raises:
        UsageError: it does not take one of them.
    """
    for name in given:
        if name not in TASKS[task].options:
            raise UsageError(
                f"{OPTIONS[name].flag} is only for {', '.join(tasks_with(name))}, not for {task}; remove it."
            )


def record_name(task: str, options: Mapping[str, Any]) -> str:
    """Return the name under which records keep a task with some options, such as `fewshot-1%`."""
    for variant in variants_of(TASKS[task]):
        if variant.options and all(options.get(k) == v for k, v in variant.options.items()):
            return variant.name
    # A fraction without a column of its own is still another task.
    fraction = options.get("fraction")
    return task if fraction is None else f"{task}-{fraction}"
