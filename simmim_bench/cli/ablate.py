"""`simmim-bench ablate`: one recipe pretrained with every choice on an axis, each cell transferred.

In: axes, data, a recipe, a cheap transfer. Out: OUT/CHANGES/seedN with a pretraining and a transfer each, which
axes share, and OUT/AXIS/ablation.json, .md and .png. A cell with a seed is one step, in a process of its own,
that is resumed where it stopped. Nothing here loads torch before the command needs it; what the stages do
comes in as functions.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from simmim_bench.cli.job_options import with_job_options
from simmim_bench.cli.options import (
    SEED,
    complete_among,
    complete_arch,
    open_display,
    override_option,
)
from simmim_bench.errors import BenchError, DataError, InterruptedRun, UsageError, nearest
from simmim_bench.jobs.options import JobOptions
from simmim_bench.tasks import KINDS, Kind

if TYPE_CHECKING:
    from simmim_bench.jobs.runner import StepResult
    from simmim_bench.results.ablation import Ablation, AblationCell, Grid, Measured
    from simmim_bench.runs.status import RunStatus

AXES = ("masking", "ratio", "head", "resolution", "target", "loss", "scope", "encoder-input")
_PATH = click.Path(path_type=Path)


@dataclass(frozen=True, kw_only=True)
class Stages:
    """What an ablation asks of pretraining and of transfer; each function takes keywords.

    Attributes:
        resolve: gives the pretraining recipe of (arch, name, overrides) and the named one.
        make_grid: gives the `Grid` of (recipe, axes).
        look_at_pretraining, look_at_transfer: say how a run directory stands.
        pretrain, transfer: do one run.
        compare: gives the difference between runs and runs, or None where the task has no such thing.
    """

    resolve: Callable[..., tuple[Any, Any]]
    make_grid: Callable[..., Grid]
    look_at_pretraining: Callable[..., tuple[RunStatus, str]]
    transfer_status: Callable[..., tuple[RunStatus, str]]
    transfer_name: Callable[..., str]
    pretrain: Callable[..., Any]
    transfer: Callable[..., Any]
    compare: Callable[..., tuple[float, float, float] | None]


@dataclass(frozen=True, kw_only=True)
class Study:
    """What an ablation is asked, checked.

    Attributes:
        recipe, named: of pretraining, with and without the overrides.
        words: the arguments of `simmim-bench` that ask it again, but for cell and seed.
    """

    stages: Stages
    arch: str
    grid: Grid
    recipe: Any
    named: Any
    data: Path
    task: str
    transfer_data: Path
    transfer_recipe: str | None
    transfer_overrides: tuple[str, ...]
    seeds: tuple[int, ...]
    out: Path
    words: tuple[str, ...]

    @property
    def metric(self) -> str:
        """The score of a cell: the first that the leaderboard has of the task."""
        from simmim_bench.leaderboard.board import COLUMNS

        return next(column.metric for column in COLUMNS if column.task == self.task)

    @property
    def results(self) -> Path:
        """Where table and figure are written."""
        return self.out / "-".join(self.grid.axes)

    @property
    def kind(self) -> Kind:
        """The transfer's task, fraction and data."""
        return KINDS[self.task]

    def transfer_options(self) -> dict[str, Any]:
        """Give what the stages want to know of a transfer."""
        return {
            "task": self.kind.task,
            "fraction": self.kind.fraction,
            "data": self.transfer_data,
            "recipe": self.transfer_recipe,
            "overrides": self.transfer_overrides,
        }


@dataclass(frozen=True)
class AblationStep:
    """A cell with a seed: its pretraining and its transfer. Without a cell, random weights' transfer."""

    study: Study
    cell: AblationCell | None
    seed: int

    def __str__(self) -> str:
        return f"{self.name}, seed {self.seed}"

    @property
    def name(self) -> str:
        """The cell's name."""
        from simmim_bench.results.ablation import NO_PRETRAINING

        return NO_PRETRAINING if self.cell is None else self.cell.name

    @property
    def folder(self) -> Path:
        """Where its runs lie: cells that change the same are one, whatever axis they are on."""
        changes = "random" if self.cell is None else slug(self.cell.changes) or "own"
        return self.study.out / changes / f"seed{self.seed}"

    @property
    def pretraining(self) -> Path:
        """The run directory of its pretraining."""
        return self.folder / "pretrain"

    @property
    def transfer(self) -> Path:
        """The run directory of its transfer."""
        return self.folder / self.study.task.replace("%", "pct")

    @property
    def ckpt(self) -> str:
        """What is transferred."""
        return f"random:{self.study.arch}" if self.cell is None else str(self.pretraining)

    @property
    def log(self) -> Path:
        """What its process says."""
        return self.folder / "ablate.log"

    @property
    def exclusive_resource(self) -> str | None:
        """Nothing: cells share nothing."""
        return None

    def arguments(self) -> list[str]:
        """Give the arguments of `simmim-bench` that do it alone."""
        return [*self.study.words, "--cell", self.name, "--seed", str(self.seed)]

    def look(self) -> list[tuple[RunStatus, str]]:
        """Say how its pretraining and its transfer stand."""
        stages, found = self.study.stages, list[tuple["RunStatus", str]]()
        if self.cell is not None:
            found.append(
                stages.look_at_pretraining(
                    place=self.pretraining,
                    recipe=self.cell.recipe,
                    named=self.study.named,
                    data=self.study.data,
                    seed=self.seed,
                )
            )
            if found[0][0] != "done":
                return [*found, ("to do", "")]
        options = self.study.transfer_options()
        found.append(
            stages.transfer_status(
                place=self.transfer, ckpt=self.ckpt, seed=self.seed, options=options
            )
        )
        return found

    def run(self, display: Any, dist: Any) -> None:
        """Do what is left of it, in this process."""
        stages, study = self.study.stages, self.study
        if self.cell is not None:
            stages.pretrain(
                recipe=self.cell.recipe,
                named=study.named,
                data=study.data,
                out=self.pretraining,
                seed=self.seed,
                display=display,
                dist=dist,
                resume=True,
            )
        stages.transfer(
            ckpt=self.ckpt,
            out=self.transfer,
            features=self.folder / "features",
            seed=self.seed,
            options=study.transfer_options(),
            display=display,
            dist=dist,
        )
        if dist.is_main:  # nobody else asks for this cell's features
            shutil.rmtree(self.folder / "features", ignore_errors=True)


def slug(changes: dict[str, Any]) -> str:
    texts = (f"{key}={value}" for key, value in changes.items())
    return re.sub(r"[^\w.=+-]+", "-", "+".join(texts))


def make_ablate(
    recipes: Callable[[], dict[str, Any]],
    transfer_recipes: Callable[[], dict[str, Any]],
    stages: Callable[[], Stages],
) -> click.Command:
    """Give the command.

    Args:
        recipes, transfer_recipes: give the recipes by name.
        stages: gives the functions of both stages; called when the command needs them.
    """

    @click.command()
    @click.argument("axes", metavar="AXIS...", nargs=-1, required=True, type=click.Choice(AXES))
    @click.option(
        "--arch", required=True, metavar="ARCH", shell_complete=complete_arch, help="Architecture."
    )
    @click.option("--data", required=True, type=_PATH, help="Images to pretrain on.")
    @click.option(
        "--transfer",
        "task",
        type=click.Choice(list(KINDS)),
        default="linear",
        show_default=True,
        help="What says how good a cell is.",
    )
    @click.option(
        "--transfer-data", type=_PATH, help="Its data; --data where that has classes, too."
    )
    @click.option(
        "--recipe",
        metavar="NAME",
        shell_complete=complete_among(recipes),
        help="Of pretraining; the arch's own by default.",
    )
    @override_option("Change one number of it in every cell, such as epochs=10; may be repeated.")
    @click.option(
        "--transfer-recipe",
        metavar="NAME",
        shell_complete=complete_among(transfer_recipes),
        help="Of the transfer; the arch's own by default.",
    )
    @override_option("Change one number of it; may be repeated.", of="transfer")
    @click.option(
        "--cells",
        multiple=True,
        metavar="NAME",
        help="Run only these cells, the recipe's own and random weights; may be repeated. --dry-run names them.",
    )
    @click.option(
        "--seeds",
        default=3,
        show_default=True,
        type=click.IntRange(1, 100),
        metavar="N",
        help="Seeds of every cell, of pretraining and transfer together.",
    )
    @click.option("--seed", default=0, show_default=True, type=SEED, help="The first seed.")
    @click.option(
        "--out",
        type=_PATH,
        help="Folder of all runs and of AXIS/ablation.md; runs/ablate/ARCH by default.",
    )
    @click.option("--dry-run", is_flag=True, help="Print the grid as it stands, and write nothing.")
    @click.option(
        "--only-table", is_flag=True, help="Run nothing; write table and figure of what is done."
    )
    @click.option(
        "--cell",
        metavar="NAME",
        help="Do this one with --seed, in this process, and leave the table: what each step runs.",
    )
    @with_job_options
    @click.option("--json", "as_json", is_flag=True, help="Print grid or results as JSON.")
    @click.option("--quiet", is_flag=True, help="No log and no progress on stderr.")
    def ablate(
        cell: str | None,
        cells: tuple[str, ...],
        dry_run: bool,
        only_table: bool,
        as_json: bool,
        quiet: bool,
        job_options: JobOptions,
        **given: Any,
    ) -> None:
        """Repeat SimMIM's study on your data: every choice on an axis, from one recipe.

        \b
        masking        random units of five sizes, square, block, regions, multimodal, pixels
        ratio          0.1 to 0.9 hidden
        head           linear, mlp, conv, inverse_swin_t, inverse_swin_b
        resolution     of the target, from all pixels to a point a cell
        target         pixels, patch_norm, bins, clusters, tokens; and a teacher's, of a
                       recipe that has one (-o target=teacher_features -o teacher=CKPT)
        loss           l1, smooth_l1, l2
        scope          the loss of masked or of all pixels
        encoder-input  mask tokens, zeros, visible patches alone

        Several axes give every combination. Each cell is pretrained and transferred with every seed, beside
        random weights. OUT/AXIS/ablation.md has scores with their deviation over seeds and difference to the recipe's
        own cell, AvgDist, measures of reconstruction, and what was published; ablation.png is the figure.
        Started again, what is done is not done again; axes share the cells that they have in common.

        \b
          simmim-bench ablate masking --arch vit_pocket --data pocket/imagenet --dry-run
          simmim-bench ablate masking --arch vit_pocket --data pocket/imagenet --workers 2
          simmim-bench ablate target scope --arch vit_b --data imagenet -o epochs=100 \\
              --transfer imagenet --seeds 1 --gpus-per-task 8 --slurm --slurm-partition gpu
        """
        study = _ask(stages(), **given)
        if cell is not None:
            _run_alone(study, cell, quiet)
            return
        steps = _choose(list(_steps(study)), cells)
        states = [step.look() for step in steps]
        if dry_run or not as_json:
            plan = [_plain(step, state) for step, state in zip(steps, states, strict=True)]
            left_out = study.grid.left_out
            told = {"steps": plan, "left_out": left_out}
            click.echo(json.dumps(told) if as_json else _plan_text(plan, left_out))
        obstacles = [
            f"{step}: {why}"
            for step, state in zip(steps, states, strict=True)
            for _, why in state
            if why
        ]
        if obstacles and not only_table:
            raise UsageError(
                f"{len(obstacles)} steps cannot start, so none did. {' '.join(obstacles)}"
            )
        if dry_run:
            return
        from simmim_bench.jobs.runner import run_steps
        from simmim_bench.results.ablation import to_json, to_markdown, write_ablation

        results: list[StepResult[AblationStep]] = []
        if not only_table:
            _make_folder(study.out)
            try:
                results = run_steps(
                    steps, job_options, study.out, open_display(quiet), what="ablate"
                )
            except InterruptedRun:  # what is done can be looked at
                with suppress(BenchError):
                    ablation = _measure(study)
                    if ablation.rows:
                        write_ablation(ablation, study.results)
                raise
        ablation = _measure(study)
        if ablation.rows:
            write_ablation(ablation, study.results)
        elif only_table:
            raise UsageError("--only-table: no cell has a score yet; run them first.")
        if as_json:
            click.echo(json.dumps(to_json(ablation)))
        elif ablation.rows:
            click.echo(f"\n{to_markdown(ablation)}\nresults  {study.results}")
        failed = [result for result in results if result.state == "failed"]
        for result in failed:
            click.echo(
                f"failed  {result.step}: {result.error}\nlog     {result.step.log}", err=True
            )
        if failed:
            click.echo("Mend it and give the same command again.", err=True)
            sys.exit(failed[0].code)

    return ablate


def _ask(
    stages: Stages,
    *,
    axes: tuple[str, ...],
    arch: str,
    data: Path,
    task: str,
    transfer_data: Path | None,
    recipe: str | None,
    overrides: tuple[str, ...],
    transfer_recipe: str | None,
    transfer_overrides: tuple[str, ...],
    seeds: int,
    seed: int,
    out: Path | None,
) -> Study:
    """Check what is asked, before any work."""
    for axis in axes:
        if axes.count(axis) > 1:
            raise UsageError(f"axis {axis} is given twice; give it once.")
    is_hub = str(data).startswith("hfds:")
    if not is_hub and not data.exists():
        raise DataError(
            f"--data {data} is not there; give a folder of images, or what `pretrain` takes."
        )
    if transfer_data is None:
        if KINDS[task].data != "imagenet" or is_hub or not data.is_dir():
            raise UsageError(
                f"--transfer {task} needs data of its own, as --data {data} is none that it can learn from; give "
                "--transfer-data DIR."
            )
        transfer_data = data
    if not transfer_data.is_dir():
        raise DataError(
            f"--transfer-data {transfer_data} is not there; give a folder of the task's layout."
        )
    if out is not None and out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file; choose a directory.")
    resolved, named = stages.resolve(arch=arch, recipe=recipe, overrides=overrides)
    out = out or Path("runs", "ablate", arch)
    words = ["ablate", *axes, "--arch", arch, "--data", str(data), "--transfer", task]
    words += ["--transfer-data", str(transfer_data), "--out", str(out)]
    for option, value in (("--recipe", recipe), ("--transfer-recipe", transfer_recipe)):
        words += [option, value] if value else []
    words += [word for text in overrides for word in ("-o", text)]
    words += [word for text in transfer_overrides for word in ("-t", text)]
    return Study(
        stages=stages,
        arch=arch,
        grid=stages.make_grid(resolved, axes),
        recipe=resolved,
        named=named,
        data=data,
        task=task,
        transfer_data=transfer_data,
        transfer_recipe=transfer_recipe,
        transfer_overrides=transfer_overrides,
        seeds=tuple(range(seed, seed + seeds)),
        out=out,
        words=tuple(words),
    )


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot write {out}: {error.strerror}; choose another --out.") from error


def _steps(study: Study) -> Iterator[AblationStep]:
    """Give all steps, seed by seed, so that a whole grid of one seed is there first."""
    for seed in study.seeds:
        for cell in (*study.grid.cells, None):
            yield AblationStep(study, cell, seed)


def _choose(steps: Sequence[AblationStep], names: Sequence[str]) -> list[AblationStep]:
    """Give the steps of the named cells, of the recipe's own and of random weights; all without names."""
    known = list(dict.fromkeys(step.name for step in steps))
    for name in names:
        if name not in known:
            raise UsageError(f"--cells: unknown cell '{name}'; {nearest(name, known)}")
    wanted = {*names, known[0], known[-1]} if names else set(known)
    return [step for step in steps if step.name in wanted]


def _run_alone(study: Study, name: str, quiet: bool) -> None:
    from simmim_bench.distributed import init_distributed

    found = [step for step in _steps(study) if step.name == name]
    if not found:
        known = dict.fromkeys(step.name for step in _steps(study))
        raise UsageError(f"--cell: unknown cell '{name}'; {nearest(name, known)}")
    with init_distributed() as dist:
        found[0].run(open_display(quiet or not dist.is_main), dist)


def _state(states: Sequence[tuple[RunStatus, str]]) -> str:
    """Say in words how a step stands."""
    found = [state for state, _ in states]
    for state in ("in the way", "running elsewhere"):
        if state in found:
            return state
    if all(state == "done" for state in found):
        return "done"
    return "to do" if all(state == "to do" for state in found) else "resumable"


def _plain(step: AblationStep, states: Sequence[tuple[RunStatus, str]]) -> dict[str, Any]:
    return {
        "cell": step.name,
        "changes": {} if step.cell is None else step.cell.changes,
        "seed": step.seed,
        "run": str(step.folder),
        "state": _state(states),
    }


def _plan_text(plan: Sequence[dict[str, Any]], left_out: dict[str, str]) -> str:
    """Give the grid as plain text: a line a cell, with the states of its seeds."""
    from simmim_bench.results.ablation import NO_PRETRAINING, differing, left_out_texts

    names = list(dict.fromkeys(one["cell"] for one in plan))
    width = max(map(len, names))
    lines = []
    for name in names:
        mine = [one for one in plan if one["cell"] == name]
        seeds = ", ".join(f"seed {one['seed']} {one['state']}" for one in mine)
        changes = "" if name == NO_PRETRAINING else differing(mine[0]["changes"])
        lines.append(f"{name:<{width}}  {seeds}  {changes}".rstrip())
    lines += left_out_texts(left_out)
    left = sum(one["state"] != "done" for one in plan)
    return "\n".join([*lines, "", f"{left} of {len(plan)} steps to do"])


def _measure(study: Study) -> Ablation:
    """Gather what the finished steps of the whole grid have come to, of any seed that is there."""
    from simmim_bench.results.ablation import Ablation

    folders = study.out.glob("*/seed*") if study.out.is_dir() else ()
    found = {int(name) for f in folders if (name := f.name.removeprefix("seed")).isdecimal()}
    steps = list(_steps(dataclasses.replace(study, seeds=tuple(sorted(found)))))
    done = [step for step in steps if all(state == "done" for state, _ in step.look())]
    names = [cell.name for cell in study.grid.cells]
    own = [step for step in done if step.name == names[0]]
    of_cell = [[step for step in done if step.name == name] for name in names]
    of_cell.append([step for step in done if step.cell is None])
    return Ablation(
        axes=study.grid.axes,
        protocol={
            "arch": study.arch,
            "pretraining": _named(study.named.name, _overridden(study.recipe, study.named)),
            "images": study.data.name,
            "task": study.task,
            "metric": study.metric,
            "transfer": _named(
                study.stages.transfer_name(arch=study.arch, options=study.transfer_options()),
                study.transfer_overrides,
            ),
            "scored": _scored_on(study, done),
        },
        own=names[0],
        rows=tuple(_measured(study, mine, own) for mine in of_cell if mine),
        missing=tuple(name for name, mine in zip(names, of_cell, strict=False) if not mine),
        left_out=study.grid.left_out,
        img_side=min(study.recipe.img_size),
    )


def _scored_on(study: Study, done: Sequence[AblationStep]) -> str:
    """Say what the scores are of."""
    from simmim_bench.results.record import read_record

    name = study.transfer_data.name
    if not done:
        return name
    record = read_record(done[0].transfer / "record.json")
    return f"{name}, {record.expected} images"


def _overridden(recipe: Any, named: Any) -> list[str]:
    from simmim_bench.leaderboard.archive import without_machine
    from simmim_bench.recipe import deviations

    changed = without_machine(deviations(recipe, named))
    return [f"{key}={value}" for key, value in changed.items()]


def _named(name: str, changes: Sequence[str]) -> str:
    return name + (f" with {', '.join(changes)}" if changes else "")


def _measured(study: Study, steps: Sequence[AblationStep], own: Sequence[AblationStep]) -> Measured:
    """Gather a cell's scores, its checkpoints' facts, and the difference to the recipe's own cell."""
    from simmim_bench.leaderboard.archive import without_machine
    from simmim_bench.results.ablation import FACTS, Measured, Score
    from simmim_bench.results.record import read_record

    metric = study.metric
    scores = []
    for step in steps:
        path = step.transfer / "record.json"
        record = read_record(path)
        place = path.relative_to(study.out).as_posix()
        value, predictions = record.metrics[metric], record.predictions["sha256"]
        scores.append(Score(step.seed, value, place, predictions))
    facts: dict[str, list[float]] = {}
    for step in steps:
        if step.cell is not None:
            for name, value in _facts(step.pretraining).items():
                if name in FACTS and value is not None:
                    facts.setdefault(name, []).append(value)
    cell = steps[0].cell
    above = None
    both = [(a, b) for a in steps for b in own if a.seed == b.seed and a.name != b.name]
    if both:
        above = study.stages.compare(
            task=study.kind.task,
            ours=[a.transfer for a, _ in both],
            theirs=[b.transfer for _, b in both],
        )
    return Measured(
        name=steps[0].name,
        changes={} if cell is None else without_machine(cell.changes),
        scores=tuple(scores),
        facts=facts,
        above=above,
        published=None if cell is None else cell.published,
    )


def _facts(run: Path) -> dict[str, Any]:
    """Read what a checkpoint says of its pretraining."""
    from simmim_bench.files import read_json

    meta = read_json(run / "checkpoints" / "last" / "meta.json", "checkpoint file")
    provenance: dict[str, Any] = meta["provenance"]
    count = provenance.get("parameters")
    return {**provenance, "params_m": None if count is None else count / 1e6}
