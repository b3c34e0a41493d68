"""`simmim-bench demo`: the whole pipeline on synthetic data."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from simmim_bench.cli.options import PATH, open_display
from simmim_bench.errors import UsageError
from simmim_bench.imports import without_collection
from simmim_bench.jobs.options import JobOptions
from simmim_bench.tasks import LAYOUTS, TASKS, tasks_with

if TYPE_CHECKING:
    from simmim_bench.display import Display
    from simmim_bench.jobs.progress import Expected

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
    """Run the whole pipeline on synthetic images, in minutes on two idle CPU cores.

    A small ViT, two rows (random initialisation and SimMIM), all columns but attentive, the same recipes for both.
    """
    with without_collection():
        from pretrain.launch import resolve_recipe, run_pretraining
        from simmim_bench.files import write_json
        from simmim_bench.jobs.forecast import PRETRAIN_KIND
        from simmim_bench.jobs.progress import Tracker
        from simmim_bench.jobs.workers import Machine
        from transfer.suite.options import SuiteOptions
        from transfer.suite.report import print_result
        from transfer.suite.run import expected_steps, plan_suite, run_suite

    display = open_display(False)
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
    with display.overall("demo") as overall:
        tracker = Tracker(overall)
        images, pretraining = in_process("images"), in_process(PRETRAIN_KIND)
        tracker.expect([images, pretraining])
        with tracker.here(images, display):
            prepare_data(out, overwrite=overwrite, display=display)
        # Both rows have the steps of the first, whose checkpoint exists before the pretraining.
        row = replace(options, ckpts=(f"random:{ARCH}",), baseline=None)
        tracker.seats = Machine(JobOptions()).slots
        tracker.expect([pretraining, *expected_steps(plan_suite(row, JobOptions()), rows=2)])
        recipe, named = resolve_recipe(arch=ARCH, recipe=RECIPE, overrides=())
        with tracker.here(pretraining, display):
            run_pretraining(
                recipe=recipe,
                named=named,
                data=data / "imagenet",
                out=checkpoint,
                seed=seed,
                display=display,
                resume=True,
            )
        plan = plan_suite(options, JobOptions())
        board = out / "leaderboard"
        result = run_suite(plan, JobOptions(), options.out, board, display, tracker)
    durations = tracker.durations()
    if PRETRAIN_KIND in durations:  # not of a demo that was resumed
        write_json(out / DURATIONS, durations)
    print_result(result)
    click.echo(f"reconstructions  {checkpoint / 'reconstructions.png'}")
    sys.exit(result.exit_code)


def in_process(kind: str) -> Expected:
    """Return what is expected of a step that runs in this process."""
    from simmim_bench.jobs.forecast import demo_share
    from simmim_bench.jobs.progress import Expected

    return Expected(name=kind, kind=kind, share=demo_share(kind), alone=True)


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
