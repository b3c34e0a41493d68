"""`simmim-bench demo`: the whole pipeline on synthetic data."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from simmim_bench.cli.options import PATH, open_display
from simmim_bench.errors import UsageError
from simmim_bench.imports import without_collection
from simmim_bench.jobs.capacity import Need
from simmim_bench.jobs.forecast import PRETRAIN_KIND, Forecast, demo_peak, demo_share
from simmim_bench.jobs.options import JobOptions
from simmim_bench.tasks import LAYOUTS, TASKS, tasks_with

if TYPE_CHECKING:
    from simmim_bench.display import Display
    from simmim_bench.jobs.step import Step
    from simmim_bench.runs.status import RunStatus
    from transfer.suite.step import SuiteStep

ARCH = "vit_pocket"
DURATIONS = "durations.json"  # seconds of each kind of step
RECIPE = "demo"  # of the pretraining; `TASK_demo` of the tasks that fine-tune
SHORTER = ("imagenet", "coco", "ade20k")  # tasks whose recipes for small data take minutes
SEEDS = 3  # of the tasks on frozen features, which cost seconds; their spread shows the noise
LEFT_OUT = (
    "attentive",
)  # a pass of the backbone an epoch: more than half a minute per row and core


@click.command()
@click.option(
    "--out",
    type=PATH,
    default=Path("demo"),
    show_default=True,
    help="Folder to write; completed steps in it are skipped.",
)
@click.option("--overwrite", is_flag=True, help="Start anew.")
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Seed of the pretraining. The tasks have others, which no other --seed shares.",
)
def demo(out: Path, overwrite: bool, seed: int) -> None:
    """Run the whole pipeline on synthetic images: about six minutes on two idle CPU cores.

    A small ViT, two rows (random initialisation and SimMIM), all columns but attentive, the same recipes for both.
    """
    with without_collection():
        from simmim_bench.files import write_json
        from simmim_bench.jobs.remaining import Expected, Tracker
        from simmim_bench.jobs.runner import run_steps
        from transfer.suite.options import SuiteOptions
        from transfer.suite.plan import check_obstacles
        from transfer.suite.report import print_result
        from transfer.suite.run import expected_steps, forecaster, plan_suite, run_suite

    display, job_options = open_display(False), JobOptions()
    data, checkpoint = out / "data", out / "pretrain"
    options = SuiteOptions(
        ckpts=(str(checkpoint),),
        data_sets={layout: data / layout for layout in LAYOUTS},
        out=out / "runs",
        tasks=tuple(task for task in TASKS if task not in LEFT_OUT),
        baseline="random",
        seeds=tuple(f"{task}={SEEDS}" for task in tasks_with("features")),
        seed=seed * SEEDS,
        recipes=tuple(f"{task}={task}_{RECIPE}" for task in SHORTER),
    )
    pretraining = PretrainStep(out=checkpoint, data=data / "imagenet", seed=seed)
    with display.overall("demo") as overall:
        tracker = Tracker(overall)
        images = Expected(name="images", kind="images", share=demo_share("images"), alone=True)
        with tracker.here(images, display):
            prepare_data(out, overwrite=overwrite, display=display)
        # The random row needs no pretraining, and takes the other processor meanwhile.
        random_row = plan_suite(
            replace(options, ckpts=(f"random:{ARCH}",), baseline=None), job_options
        )
        pretraining.check()
        check_obstacles(random_row)
        tracker.later = expected_steps(random_row)  # the other row has the same steps
        of_row = forecaster(random_row, job_options)

        def forecast(step: Step) -> Forecast:
            return pretraining.forecast if step is pretraining else of_row(cast("SuiteStep", step))

        steps: list[Step] = [pretraining, *(one.step for one in random_row.steps)]
        pretrained = run_steps(
            steps, job_options, out, display, what="demo", forecast=forecast, tracker=tracker
        )[0]
        if pretrained.state == "failed":
            click.echo(f"error: {pretraining}: {pretrained.error}; see {pretraining.log}", err=True)
            sys.exit(pretrained.code)
        tracker.later = []
        plan = plan_suite(options, job_options)
        board = out / "leaderboard"
        result = run_suite(plan, job_options, options.out, board, display, tracker)
    durations = tracker.durations()
    if PRETRAIN_KIND in durations:  # not of a demo that was resumed
        write_json(out / DURATIONS, durations)
    print_result(result)
    click.echo(f"reconstructions  {checkpoint / 'reconstructions.png'}")
    sys.exit(result.exit_code)


@dataclass(frozen=True, kw_only=True)
class PretrainStep:
    """The demo's pretraining, in a process of its own."""

    out: Path
    data: Path
    seed: int

    def __str__(self) -> str:
        return "pretrain"

    @property
    def log(self) -> Path:
        """The file that the process writes to."""
        return self.out.with_name("pretrain.log")

    @property
    def exclusive_resource(self) -> str | None:
        """None: it shares nothing."""
        return None

    @property
    def forecast(self) -> Forecast:
        """What is expected of it."""
        need = Need(demo_peak(PRETRAIN_KIND), "measured in the demo")
        return Forecast(kind=PRETRAIN_KIND, share=demo_share(PRETRAIN_KIND), need=need)

    def statuses(self) -> list[tuple[RunStatus, str]]:
        """Return the status of its run, and the reason where it is blocked."""
        from pretrain.launch import pretraining_status
        from pretrain.recipes import resolve_recipe

        recipe, named = resolve_recipe(arch=ARCH, recipe=RECIPE, overrides=())
        return [
            pretraining_status(
                run_dir=self.out, recipe=recipe, named=named, data=self.data, seed=self.seed
            )
        ]

    def check(self) -> None:
        """Check that its run can start or continue.

        Raises:
            UsageError: another pretraining is in its run directory, such as one with another --seed.
        """
        for state, obstacle in self.statuses():
            if state == "blocked":
                raise UsageError(f"{self}: {obstacle} --overwrite starts the demo anew.")

    def arguments(self) -> list[str]:
        """Return the arguments of `simmim-bench` that do the remaining work."""
        words = ["pretrain", "--arch", ARCH, "--recipe", RECIPE, "--seed", str(self.seed)]
        return [*words, "--data", str(self.data), "--out", str(self.out), "--resume"]


def prepare_data(out: Path, *, overwrite: bool, display: Display) -> None:
    """Write the demo's data sets below `out/data`, unless they exist.

    Raises:
        UsageError: the folder holds something else than a demo.
    """
    from simmim_bench.files import write_json
    from simmim_bench.pocket.write import PocketCounts, write_pocket

    mark, counts = out / "demo.json", PocketCounts()
    if out.is_file():
        raise UsageError(f"--out {out} is a file; choose a directory.")
    if out.exists() and any(out.iterdir()) and not mark.is_file():
        raise UsageError(f"{out} is not empty and not a demo's folder; choose another --out.")
    if overwrite and mark.is_file():
        shutil.rmtree(out)
    write_json(mark, {"arch": ARCH})
    data = out / "data"
    if not (data / "pocket.json").is_file():
        with display.task("images", sum(vars(counts).values())) as task:
            write_pocket(data, counts=counts, progress=lambda done, _: task.advance(1))
