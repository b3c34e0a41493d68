"""The checks of `simmim-bench doctor`, group by group: frameworks, machine, data sets, checkpoint, recipe."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from simmim_bench.api.arguments import check_images, missing_folders
from simmim_bench.cli.doctor_estimate import estimate_recipe
from simmim_bench.cli.doctor_request import DoctorRequest
from simmim_bench.diagnostics.findings import Finding
from simmim_bench.errors import DataError
from simmim_bench.tasks import tasks_on

if TYPE_CHECKING:
    from simmim_bench.checkpoints.checkpoint import Checkpoint
    from simmim_bench.display import Display


def examine(request: DoctorRequest, display: Display) -> Iterator[Finding]:
    """Yield all findings, group by group."""
    from simmim_bench.diagnostics.frameworks import FRAMEWORKS, check_frameworks

    for line in missing_data(request):  # before the frameworks, which take a while
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
    of_data = list(examine_data(request, checkpoint, display))
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
    yield from estimate_recipe(request, checkpoint, of_data, display)


def missing_data(request: DoctorRequest) -> Iterator[str]:
    """Yield what is missing of all data sets without reading them, one line each."""
    for one in (*request.data, *request.shift_sets):
        try:
            check_images(one.root)
        except DataError as error:
            yield str(error)
    yield from missing_folders(request.data_sets, request.val_fraction)


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


def examine_data(
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
        val_fraction=request.val_fraction,
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
