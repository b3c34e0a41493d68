"""`simmim-bench demo`: the whole pipeline on synthetic data."""

from __future__ import annotations

import shutil
import sys
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
    from pretrain.step import PretrainStep
    from simmim_bench.display import Display
    from simmim_bench.jobs.running import StepResult
    from transfer.suite.options import SuiteOptions
    from transfer.suite.step import SuiteStep

ARCH = "vit_pocket"
DURATIONS = "durations.json"  # seconds of each kind of step
RECIPE = "demo"  # of the pretraining; `TASK_demo` of the tasks that fine-tune
SHORTER = ("imagenet", "coco", "ade20k")  # tasks whose recipes for small data take minutes
DATA_TITLES = {
    "imagenet": "synthetic images",
    "coco": "synthetic scenes with boxes",
    "ade20k": "synthetic scenes with label maps",
}
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
    """Run the whole pipeline on synthetic images: about four minutes on two idle CPU cores.

    A small ViT, two rows (random initialisation and SimMIM), all columns but attentive, the same recipes for both.
    """
    with without_collection():
        from pretrain.step import PretrainStep
        from simmim_bench.files import write_json
        from simmim_bench.jobs.remaining import Expected, Tracker
        from simmim_bench.jobs.runner import run_steps
        from transfer.suite.plan import check_obstacles
        from transfer.suite.report import print_result
        from transfer.suite.run import build_result, forecaster, plan_suite
        from transfer.suite.step import SuiteStep

    display, job_options = open_display(False), JobOptions()
    pretraining = plan_pretraining(out, seed)
    options = plan_rows(out, seed, pretraining)
    with display.overall("demo") as overall:
        tracker = Tracker(overall)
        images = Expected(name="images", kind="images", share=demo_share("images"), alone=True)
        with tracker.here(images, display):
            prepare_data(out, overwrite=overwrite, display=display)
        plan = plan_suite(options, job_options)
        check_pretraining(pretraining)
        check_obstacles(plan)
        of_suite = forecaster(plan, job_options)

        def forecast(step: PretrainStep | SuiteStep) -> Forecast:
            return pretraining_forecast() if isinstance(step, PretrainStep) else of_suite(step)

        def waits_for(step: PretrainStep | SuiteStep) -> list[PretrainStep]:
            # The random row needs no pretraining, and takes the other processor meanwhile.
            needs = isinstance(step, SuiteStep) and step.ckpt == str(pretraining.out)
            return [pretraining] if needs else []

        steps: list[PretrainStep | SuiteStep] = [pretraining, *(one.step for one in plan.steps)]
        pretrained, *others = run_steps(
            steps,
            job_options,
            out,
            display,
            what="demo",
            forecast=forecast,
            tracker=tracker,
            waits_for=waits_for,
        )
        transfers = cast("list[StepResult[SuiteStep]]", others)
        result = build_result(plan, transfers, options.out, out / "leaderboard")
    durations = tracker.durations()
    if PRETRAIN_KIND in durations:  # not of a demo that was resumed
        write_json(out / DURATIONS, durations)
    print_result(result)
    if pretrained.state == "failed":
        click.echo(f"error: {pretraining}: {pretrained.error}; see {pretraining.log}", err=True)
        sys.exit(pretrained.code)
    click.echo(f"reconstructions  {pretraining.out / 'reconstructions.png'}")
    sys.exit(result.exit_code)


def plan_pretraining(out: Path, seed: int) -> PretrainStep:
    """Return the step that pretrains in `out/pretrain`."""
    from pretrain.step import make_pretrain_step

    return make_pretrain_step(
        title="pretrain",
        arch=ARCH,
        recipe=RECIPE,
        overrides=(),
        data=out / "data" / "imagenet",
        seed=seed,
        out=out / "pretrain",
        log=out / "pretrain.log",
    )


def plan_rows(out: Path, seed: int, pretraining: PretrainStep) -> SuiteOptions:
    """Return what the suite of both rows is asked to do, before the checkpoint exists."""
    from transfer.suite.options import SuiteOptions

    ckpt = str(pretraining.out)
    return SuiteOptions(
        ckpts=(ckpt,),
        data_sets={layout: out / "data" / layout for layout in LAYOUTS},
        data_titles=DATA_TITLES,
        out=out / "runs",
        tasks=tuple(task for task in TASKS if task not in LEFT_OUT),
        baseline="random",
        seeds=tuple(f"{task}={SEEDS}" for task in tasks_with("features")),
        seed=seed * SEEDS,
        recipes=tuple(f"{task}={task}_{RECIPE}" for task in SHORTER),
        expected={ckpt: pretraining.expected_checkpoint()},
    )


def pretraining_forecast() -> Forecast:
    """Return what is expected of the demo's pretraining."""
    need = Need(demo_peak(PRETRAIN_KIND), "measured in the demo")
    return Forecast(kind=PRETRAIN_KIND, share=demo_share(PRETRAIN_KIND), need=need)


def check_pretraining(step: PretrainStep) -> None:
    """Check that the pretraining's run can start or continue.

    Raises:
        UsageError: another pretraining is in its run directory, such as one with another --seed.
    """
    for state, obstacle in step.statuses():
        if state == "blocked":
            raise UsageError(f"{step}: {obstacle} --overwrite starts the demo anew.")


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
