"""`simmim-bench doctor`: check frameworks, machine, data sets, a checkpoint, and the cost of a recipe."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from simmim_bench.api.arguments import missing_folders
from simmim_bench.cli.options import (
    PATH,
    all_recipes,
    complete_among,
    complete_arch,
    complete_ckpt,
    data_set_options,
    open_display,
    override_option,
    pop_data_sets,
    read_data_sets,
)
from simmim_bench.data.named import DataSet, check_unique
from simmim_bench.diagnostics.findings import Finding, describe, exit_code
from simmim_bench.errors import BenchError, DataError, UsageError
from simmim_bench.tasks import tasks_on

if TYPE_CHECKING:
    from simmim_bench.checkpoints.checkpoint import Checkpoint
    from simmim_bench.display import Display
    from simmim_bench.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class DoctorRequest:
    """What to check, after the command line has been validated.

    Attributes:
        data_sets: folders by layout.
        data: images to pretrain on, as `pretrain` takes them, and named data sets, as `transfer` does.
        recipe: the recipe to estimate, with its overrides.
        out: folder that runs will be written to.
        every_file: whether to read every file of large splits, too.
        shift_sets: the sets of `transfer shift`.
        classifier: the classifier that these should fit, as `transfer shift --ckpt`.
    """

    data_sets: Mapping[str, Path]
    data: tuple[DataSet, ...]
    ckpt: str | None
    arch: str | None
    recipe: Recipe | None
    out: Path
    every_file: bool
    shift_sets: tuple[DataSet, ...] = ()
    classifier: str | None = None

    @property
    def images(self) -> Path | None:
        """The images to pretrain on."""
        return next((one.root for one in self.data if one.name is None), None)

    @property
    def is_pretraining(self) -> bool:
        """Whether the recipe is one of pretraining, which names its architecture."""
        return hasattr(self.recipe, "arch")


class DoctorCommand(click.Command):
    """A command with an option for a data set in each layout of the registry."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return the command's parameters with these options."""
        data_sets = data_set_options(lambda layout: f"Check a data set in {layout.title}'s layout.")
        return [*data_sets, *super().get_params(ctx)]


@click.command(cls=DoctorCommand)
@click.option(
    "--data",
    type=click.Path(),
    multiple=True,
    metavar="DATA",
    callback=read_data_sets,
    help="Check images to pretrain on: a folder, tar shards or hfds:NAME, as `pretrain --data`; or with NAME=DIR, "
    "images of classes, as `transfer --data`, which may be repeated.",
)
@click.option(
    "--every-file",
    is_flag=True,
    help="Read every image and label map; by default, 500 files of a split of more than 2000.",
)
@click.option(
    "--shift",
    "shift_sets",
    multiple=True,
    metavar="NAME=DIR",
    callback=read_data_sets,
    help="Check a validation set, as `transfer shift --data`: v2, real, a, r, sketch, c or a name of your own; may be "
    "repeated.",
)
@click.option(
    "--classifier",
    metavar="RUN",
    shell_complete=complete_ckpt,
    help="The classifier that the sets of --shift should fit; by default any of ImageNet-1k.",
)
@click.option(
    "--ckpt",
    metavar="CKPT",
    shell_complete=complete_ckpt,
    help="Check a checkpoint; any that `transfer` takes.",
)
@click.option(
    "--arch",
    metavar="ARCH",
    shell_complete=complete_arch,
    help="Architecture that --ckpt should fit; without --ckpt, the one to estimate --recipe for.",
)
@click.option(
    "--recipe",
    "recipe_name",
    metavar="NAME",
    shell_complete=complete_among(all_recipes),
    help="Estimate memory, time and disk of a recipe, from one or two steps on this machine.",
)
@override_option("Change one setting of --recipe, such as batch_size=256; may be repeated.")
@click.option(
    "--out",
    type=PATH,
    default=Path(),
    help="Folder that runs will be written to, for the free disk space; this folder by default.",
)
@click.option("--json", "as_json", is_flag=True, help="Print all findings and facts as JSON.")
def doctor(
    as_json: bool, recipe_name: str | None, overrides: tuple[str, ...], **given: Any
) -> None:
    """Check what is installed, what works and what is wrong, and print how to fix it.

    \b
    frameworks  each with its version, or the command that installs it
    machine     processors, GPUs, bfloat16, memory, disk
    data sets   layout, counts, classes, annotations, label ranges; unreadable files
    checkpoint  whether it can be read, what it is, whether it fits an architecture
    recipe      estimated memory, time and disk on this machine, and how they were estimated

    \b
      simmim-bench doctor
      simmim-bench doctor --imagenet imagenet --coco coco --ade20k ADEChallengeData2016
      simmim-bench doctor --data photographs --recipe vit_b_800ep
      simmim-bench doctor --data pets=data/pets --data flowers=hfds:nelorth/oxford-flowers
      simmim-bench doctor --ckpt mae_pretrain_vit_base.pth --arch vit_b
      simmim-bench doctor --recipe vit_b_800ep -o batch_size=256 --imagenet imagenet
      simmim-bench doctor --recipe coco_vitdet_b --ckpt runs/vit_b --json
      simmim-bench doctor --shift v2=imagenetv2 --shift a=imagenet-a --classifier runs/vit_b/linear/seed0

    Exit codes: 0 no problem, warnings allowed; 3 a framework is missing or broken, or torch cannot use a
    GPU of the machine; 4 data or a checkpoint that cannot be used, or a recipe for which memory or disk is
    too small; 3 takes precedence over 4. Optional frameworks are required only if --coco, --ade20k or
    --recipe needs them.
    """
    data_sets = pop_data_sets(given)
    request = _check_request(recipe_name, overrides, data_sets=data_sets, **given)
    findings = list(_examine(request, open_display(False)))
    code = exit_code(findings)
    if as_json:
        plain = [dataclasses.asdict(finding) for finding in findings]
        click.echo(json.dumps({"exit_code": code, "findings": plain}, default=str))
    else:
        for line in describe(findings):
            click.echo(line)
    sys.exit(code)


def _check_request(
    name: str | None, overrides: tuple[str, ...], *, arch: str | None, **given: Any
) -> DoctorRequest:
    """Validate the command line before anything slow starts.

    Raises:
        UsageError: an unknown recipe, architecture or override, or an option without the one it needs.
    """
    from simmim_bench.models.archs import find_spec
    from simmim_bench.overrides import override
    from simmim_bench.recipe import find_recipe

    if arch is not None:
        find_spec(arch)
        if given["ckpt"] is None and name is None:
            raise UsageError(f"--arch {arch} needs --ckpt or --recipe; add one of them.")
    if given["classifier"] is not None and not given["shift_sets"]:
        raise UsageError(f"--classifier {given['classifier']} needs --shift NAME=DIR; add it.")
    if sum(one.name is None for one in given["data"]) > 1:
        raise UsageError(
            "--data DATA is given more than once; write NAME=DIR for data sets of classes."
        )
    check_unique([one.name for one in given["data"]])
    if overrides and name is None:
        raise UsageError(f"-o {overrides[0]} needs --recipe; add it.")
    recipe = None if name is None else override(find_recipe(all_recipes(), name), overrides)
    request = DoctorRequest(recipe=recipe, arch=arch, **given)
    if recipe is not None and not request.is_pretraining and arch is None and request.ckpt is None:
        raise UsageError(
            f"--recipe {name} fits any backbone; choose one with --arch or with --ckpt."
        )
    return request


def _examine(request: DoctorRequest, display: Display) -> Iterator[Finding]:
    """Yield all findings, group by group."""
    from simmim_bench.diagnostics.frameworks import FRAMEWORKS, check_frameworks

    for line in missing_folders(request.data_sets):  # before the frameworks, which take a while
        display.log(f"warning: {line}")
    for_recipe = _frameworks_of(request)
    display.log(f"importing {len(FRAMEWORKS)} frameworks")
    frameworks = check_frameworks(FRAMEWORKS, _frameworks_for_data(request) | for_recipe)
    yield from frameworks
    optional = {framework.name for framework in FRAMEWORKS if framework.optional}
    lacking = [f.name for f in frameworks if f.state == "problem" and f.name not in optional]
    if lacking:
        yield Finding(
            group="machine",
            name="skipped",
            state="warning",
            said=f"machine, data and checkpoints need {', '.join(lacking)}",
        )
        return
    from simmim_bench.diagnostics.checkpoint import check_checkpoint
    from simmim_bench.diagnostics.machine import check_machine

    display.log("checking the machine")
    yield from check_machine(request.out)
    checkpoint: Checkpoint | None = None
    of_checkpoint: list[Finding] = []
    if request.ckpt is not None:
        checkpoint, of_checkpoint = check_checkpoint(request.ckpt, request.arch)
    of_data = list(_examine_data(request, checkpoint, display))
    yield from of_data
    yield from of_checkpoint
    if request.recipe is None:
        return
    reason = None
    if any(f.state == "problem" and f.name in for_recipe for f in frameworks):
        reason = "the framework that the recipe needs is missing"
    elif request.ckpt is not None and checkpoint is None:
        reason = "the checkpoint cannot be read"
    if reason is not None:
        yield Finding(
            group="estimate", name="skipped", state="warning", said=f"no estimate: {reason}"
        )
        return
    yield from _estimate(request, checkpoint, of_data, display)


def _frameworks_of(request: DoctorRequest) -> set[str]:
    """Return the frameworks that the recipe needs beyond the core installation."""
    if request.recipe is None or request.is_pretraining:
        return set()
    from transfer.tasks import frameworks_for, task_of

    return frameworks_for(task_of(request.recipe), request.recipe)


def _frameworks_for_data(request: DoctorRequest) -> set[str]:
    """Return the frameworks that the tasks on the data sets need, with the recipe where it is theirs."""
    from transfer.tasks import frameworks_for

    tasks = [task for layout in request.data_sets for task in tasks_on(layout)]
    return {name for task in tasks for name in frameworks_for(task, request.recipe)}


def _examine_data(
    request: DoctorRequest, checkpoint: Checkpoint | None, display: Display
) -> Iterator[Finding]:
    """Yield the findings of all data sets."""
    from pretrain.doctor_checks import check_pretraining_data
    from simmim_bench.data.pixel_format import RGB
    from simmim_bench.diagnostics.data_checks import Reading
    from transfer.finetune.doctor_checks import check_named
    from transfer.tasks import DATA_CHECKS, load_function

    described: Any = request.recipe if request.is_pretraining else checkpoint
    reading = Reading(
        display=display,
        every_file=request.every_file,
        recipe=request.recipe,
        pixel_format=RGB if described is None else described.pixel_format,
    )
    if request.images is not None:
        yield from check_pretraining_data(request.images, reading)
    for one in request.data:
        if one.name is not None:
            yield from check_named(one, reading)
    for layout, folder in request.data_sets.items():
        yield from load_function(DATA_CHECKS[layout])(folder, reading)
    if request.shift_sets:
        from transfer.shift.doctor_checks import check_shift_sets

        yield from check_shift_sets(request.shift_sets, request.classifier)


def _estimate(
    request: DoctorRequest,
    checkpoint: Checkpoint | None,
    of_data: list[Finding],
    display: Display,
) -> Iterator[Finding]:
    """Build the recipe's model, take a step or two, and yield the estimates."""
    from pretrain.doctor_checks import GROUP
    from pretrain.estimate import plan_pretraining
    from pretrain.recipes import PretrainRecipe, for_arch
    from simmim_bench.checkpoints.read import read_checkpoint
    from simmim_bench.diagnostics.estimate import data_size, estimate, too_large
    from simmim_bench.distributed import best_device
    from simmim_bench.models.archs import find_spec
    from simmim_bench.training.memory import retain_freed_memory
    from transfer.images import check_images
    from transfer.tasks import load_function, runner_of, task_of

    device, recipe = best_device(), request.recipe
    assert recipe is not None
    if isinstance(recipe, PretrainRecipe):
        recipe = recipe if request.arch is None else for_arch(recipe, request.arch)
        layout = "imagenet" if request.images is None else GROUP
        spec = find_spec(recipe.arch)
    else:
        checkpoint = checkpoint or read_checkpoint(f"random:{request.arch}")
        layout, spec = task_of(recipe).data, checkpoint.spec
        try:
            check_images(task_of(recipe).name, recipe, checkpoint)
        except DataError as error:
            yield Finding(group="estimate", name="images", state="problem", said=str(error))
            return
    refused = too_large(spec, device)
    if refused is not None:
        yield refused
        return
    data = data_size(layout, of_data).limited(getattr(recipe, "limit", None))
    display.log(f"measuring {recipe.name} on {spec.arch}")
    if device.type == "cpu":
        retain_freed_memory()  # as training does
    try:
        if isinstance(recipe, PretrainRecipe):
            work = plan_pretraining(recipe, data, device)
        else:
            plan = load_function(runner_of(recipe).estimate)
            work = plan(recipe, checkpoint, data, device)
    except UsageError:
        raise
    except BenchError as error:
        yield Finding(group="estimate", name="failed", state="problem", said=str(error))
        return
    yield from estimate(work, device=device, folder=request.out)
