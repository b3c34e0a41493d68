"""The estimate of `simmim-bench doctor`: a recipe's memory, time and disk, from a step or two on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from simmim_bench.cli.doctor_request import DoctorRequest
from simmim_bench.diagnostics.findings import Finding
from simmim_bench.errors import BenchError, DataError, UsageError

if TYPE_CHECKING:
    from simmim_bench.checkpoints.checkpoint import Checkpoint
    from simmim_bench.display import Display


def estimate_recipe(
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
