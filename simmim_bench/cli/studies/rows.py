"""The rows of a study with their steps: pretrainings, and the transfers that wait for them.

The runs of a row are below OUT/rows/ROW: `seedN/pretrain` of a checkpoint to pretrain, next to it `TASK/seedM` and the
features that its tasks share; of a baseline or a given checkpoint, `TASK/seedM`. A training with labels, whose own
score is not one of the row, is in OUT/trained/ROW/seedN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from pretrain.step import PretrainStep, make_pretrain_step
from simmim_bench.checkpoints.checkpoint import Checkpoint
from simmim_bench.checkpoints.without_weights import read_without_weights
from simmim_bench.cli.studies.definition import Study, StudyCheckpoint, StudyTask
from simmim_bench.data.named import DataSet
from simmim_bench.errors import DataError, UsageError, nearest
from simmim_bench.jobs.step import is_done
from simmim_bench.runs.options import RunOptions
from simmim_bench.tasks import variants
from transfer.launch import TransferPlan, TransferRequest, random_baseline, resolve_transfer
from transfer.suite.listing import baseline_recipe, check_baseline_images, steps_of
from transfer.suite.rows import Row, UnreadRow, read_rows
from transfer.suite.step import SuiteStep

AnyStudyStep: TypeAlias = PretrainStep | SuiteStep


@dataclass(frozen=True)
class Member:
    """One checkpoint of a row.

    Attributes:
        title: what messages name it.
        ckpt: its CKPT.
        checkpoint: what is known of it; without weights.
        seeds: the first seed of its transfers in units of a task's number of seeds, and the number of such units.
        folder: of its runs.
        tasks: the names of the tasks that score it; None for all.
        source: the step that trains it; None for one that exists.
    """

    title: str
    ckpt: str
    checkpoint: Checkpoint
    seeds: tuple[int, int]
    folder: Path
    tasks: tuple[str, ...] | None = None
    source: AnyStudyStep | None = None


@dataclass(frozen=True)
class StudyRow:
    """A row of the table: the checkpoints of one method, or one checkpoint.

    Attributes:
        key: the name in the file, which stands for several rows where a setting varies.
    """

    name: str
    members: tuple[Member, ...]
    key: str


@dataclass(frozen=True)
class StudySteps:
    """The rows and steps of a study.

    Attributes:
        steps: each after those that it waits for.
        waits_for: by the identity of a step, the steps that it needs.
        runs: the name of the row by the directory of each of its runs with a score.
        unread: given checkpoints that a dry run would have to download.
    """

    rows: tuple[StudyRow, ...]
    steps: tuple[AnyStudyStep, ...]
    waits_for: Mapping[int, tuple[AnyStudyStep, ...]]
    runs: Mapping[Path, str]
    unread: tuple[UnreadRow, ...] = ()

    def needed_by(self, step: AnyStudyStep) -> tuple[AnyStudyStep, ...]:
        """Return the steps that have to be done before a step."""
        return self.waits_for.get(id(step), ())

    @property
    def pretrainings(self) -> list[PretrainStep]:
        """The steps that pretrain."""
        return [step for step in self.steps if isinstance(step, PretrainStep)]

    @property
    def transfers(self) -> list[SuiteStep]:
        """The steps that transfer, or train with labels."""
        return [step for step in self.steps if isinstance(step, SuiteStep)]


def list_study(study: Study, *, download: bool, log: Callable[[str], None]) -> StudySteps:
    """List the rows and steps of a study, row by row, baselines first.

    Args:
        download: whether to download missing weights of given checkpoints.

    Raises:
        UsageError: an unknown architecture, recipe or setting, with its place in the file.
        DataError: a given checkpoint cannot be read.
    """
    rows: dict[str, StudyRow] = {}
    waits_for: dict[int, tuple[AnyStudyStep, ...]] = {}
    unread: list[UnreadRow] = []
    for one in study.checkpoints:
        with _at(one.place):
            if one.ckpt is not None:
                found, missing = read_rows([Row(one.ckpt)], download=download, log=log)
                unread += missing
                members = [_given(study, one, one.ckpt, c) for c in found.values()]
                if not members:
                    continue
                rows[one.name] = StudyRow(one.name, tuple(members), one.key)
            else:
                rows[one.name] = _trained(study, one, rows, waits_for)
    baselines = _baselines(study, list(rows.values()))
    checkpoints = {
        m.ckpt: m.checkpoint for row in (*baselines, *rows.values()) for m in row.members
    }
    _check_archs(study, [one.spec.arch for one in checkpoints.values()])
    steps: list[AnyStudyStep] = []
    runs: dict[Path, str] = {}
    for row in (*baselines, *rows.values()):
        for member in row.members:
            of_member = list(_transfers(study, member, row in baselines, checkpoints))
            if member.source is not None:
                steps.append(member.source)
                waits_for |= {id(step): (member.source,) for step in of_member}
            steps += of_member
            runs |= {run_dir: row.name for step in of_member for run_dir in step.run_dirs}
    return StudySteps((*baselines, *rows.values()), tuple(steps), waits_for, runs, tuple(unread))


@contextmanager
def _at(place: str) -> Iterator[None]:
    """Prefix the message of an error with the place in the file."""
    try:
        yield
    except (DataError, UsageError) as error:
        raise type(error)(f"{place}: {error}") from error


def _check_archs(study: Study, archs: Sequence[str]) -> None:
    """Refuse a task's recipe for an architecture that no row has.

    Raises:
        UsageError: with the nearest one.
    """
    for task in study.tasks:
        for arch in task.recipes:
            if arch and arch not in archs:
                raise UsageError(
                    f"{task.place}.recipe: no row has the arch '{arch}'; {nearest(arch, archs)}"
                )


def _given(study: Study, one: StudyCheckpoint, ckpt: str, checkpoint: Checkpoint) -> Member:
    return Member(one.name, ckpt, checkpoint, (0, 1), study.out / "rows" / one.name, one.tasks)


def _trained(
    study: Study,
    one: StudyCheckpoint,
    rows: Mapping[str, StudyRow],
    waits_for: dict[int, tuple[AnyStudyStep, ...]],
) -> StudyRow:
    """Return the row of checkpoints to train, and add what its steps wait for to `waits_for`."""
    others = [
        rows[n].members[0] for n in (one.teacher, one.init_from) if n is not None and n in rows
    ]
    needed = tuple(other.source for other in others if other.source is not None)
    members = []
    for number, seed in enumerate(one.seeds):
        title = f"{one.name}, seed {seed}" if len(one.seeds) > 1 else one.name
        folder = study.out / "rows" / one.name / f"seed{seed}"
        if one.task is None:
            pretraining = _pretraining(one, seed, folder, rows)
            step: AnyStudyStep = pretraining
            ckpt, expected = str(pretraining.out), pretraining.expected_checkpoint()
        else:
            trained = study.out / "trained" / one.name / f"seed{seed}"
            step = _training(one, one.task, seed, trained)
            ckpt, expected = str(trained), replace(step.transfer.checkpoint, name=str(trained))
        checkpoint = read_without_weights(ckpt) if is_done(step) else expected
        waits_for[id(step)] = needed
        members.append(Member(title, ckpt, checkpoint, (number, 1), folder, one.tasks, step))
    return StudyRow(one.name, tuple(members), one.key)


def _pretraining(
    one: StudyCheckpoint, seed: int, folder: Path, rows: Mapping[str, StudyRow]
) -> PretrainStep:
    """Return the step of a pretraining without labels."""
    teacher = [] if one.teacher is None else [f"teacher={_ckpt_of(one.teacher, rows)}"]
    return make_pretrain_step(
        title=f"pretraining of {one.name}, seed {seed}",
        arch=one.arch,
        recipe=one.recipe,
        overrides=[*one.overrides, *teacher],
        data=one.data,
        seed=seed,
        out=folder / "pretrain",
        log=folder / "pretrain.log",
        init_from=None if one.init_from is None else _ckpt_of(one.init_from, rows),
    )


def _training(one: StudyCheckpoint, task: str, seed: int, run_dir: Path) -> SuiteStep:
    """Return the step of a training with labels, from random weights."""
    request = TransferRequest(
        task=task,
        options=RunOptions(data=one.data, recipe=one.recipe, overrides=one.overrides, resume=True),
    )
    ckpt = f"random:{one.arch}"
    return SuiteStep(
        name=request.record_name,
        ckpt=ckpt,
        transfer=resolve_transfer(request, ckpt, read_without_weights(ckpt)),
        seeds=(seed,),
        run_dirs=(run_dir,),
        log=run_dir.with_name(f"{run_dir.name}.log"),
        split_by_seed=False,
        row=f"random weights for {one.name}, seed {seed}",
    )


def _ckpt_of(name: str, rows: Mapping[str, StudyRow]) -> str:
    """Return the CKPT of another row, its first checkpoint, or the CKPT that is given itself."""
    return rows[name].members[0].ckpt if name in rows else name


def _baselines(study: Study, rows: Sequence[StudyRow]) -> list[StudyRow]:
    """Return a row of random weights for every architecture, with as many seeds as its row with most.

    It has the tasks of all rows of its architecture.
    """
    if "random" not in study.baselines or not rows:
        return []
    units: dict[str, int] = {}
    tasks: dict[str, list[str]] = {}
    for member in (member for row in rows for member in row.members):
        ckpt = random_baseline(member.checkpoint)
        check_baseline_images(member.ckpt, member.checkpoint)
        units[ckpt] = max(units.get(ckpt, 1), sum(member.seeds))
        of_member = member.tasks if member.tasks is not None else [t.name for t in study.tasks]
        tasks.setdefault(ckpt, []).extend(of_member)
    found = []
    for ckpt, count in units.items():
        name = "random" if len(units) == 1 else f"random {ckpt.removeprefix('random:')}"
        checkpoint = read_without_weights(ckpt)
        folder = study.out / "rows" / ckpt.replace(":", "-").replace("/", "-")
        member = Member(name, ckpt, checkpoint, (0, count), folder, tuple(tasks[ckpt]))
        found.append(StudyRow(name, (member,), name))
    return found


def _transfers(
    study: Study, member: Member, is_baseline: bool, checkpoints: Mapping[str, Checkpoint]
) -> Iterator[SuiteStep]:
    """Yield the transfers of a checkpoint."""
    arch = member.checkpoint.spec.arch
    for task in study.tasks:
        if member.tasks is not None and task.name not in member.tasks:
            continue
        variant = variants()[task.name]
        recipe = task.recipes.get(arch, task.recipes.get(""))
        if recipe is None and is_baseline:
            recipe = baseline_recipe(variant.task.name, member.checkpoint, checkpoints)
        first = study.seed + member.seeds[0] * task.seeds
        seeds = range(first, first + member.seeds[1] * task.seeds)
        for data_set in _data_sets(study, task):
            request = TransferRequest(
                task=variant.task.name,
                task_options={**task.options, **variant.options},
                options=RunOptions(
                    data=data_set.root,
                    data_name=data_set.name,
                    recipe=recipe,
                    overrides=task.overrides,
                    resume=True,
                ),
            )
            if "features" in variant.task.options:
                request = request.with_option("features", member.folder / "features")
            with _at(f"{task.place}, {member.title}"):
                transfer = resolve_transfer(request, member.ckpt, member.checkpoint)
            folder = member.folder / request.folder
            plan = TransferPlan(
                transfer=transfer,
                ckpt=member.ckpt,
                seeds=seeds,
                run_dirs=[folder / f"seed{seed}" for seed in seeds],
            )
            for step in steps_of(task.name, plan, folder):
                provisional = member.source is not None
                yield replace(step, row=member.title, provisional=provisional)


def _data_sets(study: Study, task: StudyTask) -> Iterator[DataSet]:
    """Yield the data sets of a task; the first one of its layout has no name, so that it has the main columns."""
    takes = variants()[task.name].task
    main = study.with_layout(takes.data)[0]
    for name in task.data:
        unnamed = name == main or not takes.takes_several_data_sets
        yield DataSet(study.data[name][takes.data], None if unnamed else name)
