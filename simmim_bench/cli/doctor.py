"""`simmim-bench doctor`: engines and machine, and what it is asked about beside them.

In: folders of data, a CKPT, a recipe. Out: findings on stdout, progress on stderr, an exit code.
Nothing here loads torch before the command needs it; what the stages know comes in as functions, as no
module of theirs may be imported here.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from simmim_bench.cli.options import (
    complete_among,
    complete_arch,
    complete_ckpt,
    open_display,
    override_option,
)
from simmim_bench.diagnostics.findings import Finding, describe, exit_code
from simmim_bench.errors import BenchError, UsageError

if TYPE_CHECKING:
    from simmim_bench.checkpoints.checkpoint import Checkpoint
    from simmim_bench.display import Display

_FOLDER = click.Path(path_type=Path)


@dataclass(frozen=True, kw_only=True)
class Stages:
    """What the doctor asks of pretraining and of transfer.

    Attributes:
        examiners: look at a data set, by its kind: "imagenet", "coco", "ade20k".
        reading: says how many of its files they read.
        is_pretraining: tells the recipes of the two apart.
        for_arch: gives a pretraining recipe for another arch.
        data_of: names the kind of data of a transfer's recipe.
        plan_pretraining, plan_transfer: give an `estimate.Work`.
    """

    examiners: Mapping[str, Callable[..., list[Finding]]]
    reading: Callable[..., Any]
    is_pretraining: Callable[[Any], bool]
    for_arch: Callable[..., Any]
    data_of: Callable[..., str]
    plan_pretraining: Callable[..., Any]
    plan_transfer: Callable[..., Any]


@dataclass(frozen=True, kw_only=True)
class Question:
    """What the doctor is asked, checked."""

    data: Mapping[str, Path]
    ckpt: str | None
    arch: str | None
    recipe: Any
    out: Path
    every_file: bool


def make_doctor(
    recipes: Callable[[], dict[str, Any]], stages: Callable[[], Stages]
) -> click.Command:
    """Give the command.

    Args:
        recipes: gives the recipes of both stages by name.
        stages: gives the functions of both stages; called when the command needs them.
    """

    @click.command()
    @click.option("--imagenet", type=_FOLDER, help="Look at a folder in ImageNet's layout.")
    @click.option("--coco", type=_FOLDER, help="Look at a folder in COCO's layout.")
    @click.option("--ade20k", type=_FOLDER, help="Look at a folder in ADE20K's layout.")
    @click.option(
        "--every-file",
        is_flag=True,
        help="Read every image and label map, also of splits of more than 2000, of which 500 are read.",
    )
    @click.option(
        "--ckpt",
        metavar="CKPT",
        shell_complete=complete_ckpt,
        help="Look at a checkpoint; any that `transfer` takes.",
    )
    @click.option(
        "--arch",
        metavar="ARCH",
        shell_complete=complete_arch,
        help="What --ckpt should fit; without it, what --recipe is estimated for.",
    )
    @click.option(
        "--recipe",
        metavar="NAME",
        shell_complete=complete_among(recipes),
        help="Estimate memory, time and disk of a recipe, from a step or two taken on this machine.",
    )
    @override_option("Change one number of --recipe, such as batch_size=256; may be repeated.")
    @click.option(
        "--out",
        type=_FOLDER,
        default=Path(),
        help="Folder that runs will be written to, for the free disk; this one by default.",
    )
    @click.option("--json", "as_json", is_flag=True, help="Print all findings and facts as JSON.")
    def doctor(
        as_json: bool, recipe: str | None, overrides: tuple[str, ...], **request: Any
    ) -> None:
        """Say what is installed, what works, what is wrong, and what to run to mend it.

        \b
        engines     each with its version, or the command that installs it
        machine     processors, GPUs, bfloat16, memory, disk
        data sets   layout, counts, classes, annotations, label ranges; files that cannot be read
        checkpoint  whether it can be read, what it is, whether it fits an architecture
        recipe      memory, time and disk that it takes here: estimates, and how they were got

        \b
          simmim-bench doctor
          simmim-bench doctor --imagenet imagenet --coco coco --ade20k ADEChallengeData2016
          simmim-bench doctor --ckpt mae_pretrain_vit_base.pth --arch vit_b
          simmim-bench doctor --recipe vit_b_800ep -o batch_size=256 --imagenet imagenet
          simmim-bench doctor --recipe coco_vit_100ep --ckpt runs/vit_b --json

        Exit codes: 0 all fine, warnings allowed; 3 an engine is missing or broken, or torch cannot use a GPU
        that is there; 4 data or a checkpoint that cannot be used, or a recipe for which memory or disk is too
        small; 3 comes before 4. Optional engines are needed where --coco, --ade20k or --recipe asks for them.
        """
        question = _ask(recipes, recipe, overrides, **request)
        findings = list(_answer(question, stages, open_display(False)))
        code = exit_code(findings)
        if as_json:
            plain = [dataclasses.asdict(finding) for finding in findings]
            click.echo(json.dumps({"exit_code": code, "findings": plain}, default=str))
        else:
            for line in describe(findings):
                click.echo(line)
        sys.exit(code)

    return doctor


def _ask(
    recipes: Callable[[], dict[str, Any]],
    name: str | None,
    overrides: tuple[str, ...],
    *,
    imagenet: Path | None,
    coco: Path | None,
    ade20k: Path | None,
    **others: Any,
) -> Question:
    """Check what is asked before anything slow begins.

    Raises:
        UsageError: an unknown recipe, arch or override, or an option without the one it belongs to.
    """
    from simmim_bench.models.archs import find_spec
    from simmim_bench.recipe import find_recipe, override

    if others["arch"] is not None:
        find_spec(others["arch"])
        if others["ckpt"] is None and name is None:
            raise UsageError(f"--arch {others['arch']} belongs to --ckpt or to --recipe; add one.")
    if overrides and name is None:
        raise UsageError(f"-o {overrides[0]} belongs to --recipe; add it.")
    recipe = None if name is None else override(find_recipe(recipes(), name), overrides)
    # A pretraining's recipe names its arch; a transfer's takes any.
    transfers = recipe is not None and not hasattr(recipe, "arch")
    if transfers and others["arch"] is None and others["ckpt"] is None:
        raise UsageError(f"--recipe {name} is for any backbone; say which by --arch or --ckpt.")
    given = {"imagenet": imagenet, "coco": coco, "ade20k": ade20k}
    data = {kind: folder for kind, folder in given.items() if folder is not None}
    return Question(data=data, recipe=recipe, **others)


def _answer(
    question: Question, stages: Callable[[], Stages], display: Display
) -> Iterator[Finding]:
    """Give all findings, group by group."""
    from simmim_bench.diagnostics.frameworks import FRAMEWORKS, NEEDED, examine_frameworks

    # A recipe's name begins with what it is for, where that needs an engine of its own.
    for_recipe = NEEDED.get(getattr(question.recipe, "name", "").split("_")[0], ())
    needed = {engine for kind in question.data for engine in NEEDED.get(kind, ())}
    display.log(f"importing {len(FRAMEWORKS)} engines")
    engines = examine_frameworks(FRAMEWORKS, needed | set(for_recipe))
    yield from engines
    optional = {engine.name for engine in FRAMEWORKS if engine.optional}
    lacking = [f.name for f in engines if f.state == "problem" and f.name not in optional]
    if lacking:
        yield Finding(
            group="machine",
            name="not looked at",
            state="warning",
            said=f"nor anything else: this needs {', '.join(lacking)}",
        )
        return
    from simmim_bench.diagnostics.checkpoint import examine_checkpoint
    from simmim_bench.diagnostics.machine import examine_machine

    display.log("looking at the machine")
    yield from examine_machine(question.out)
    found: list[Finding] = []
    known = stages() if question.data or question.recipe is not None else None
    for kind, folder in question.data.items():
        assert known is not None
        reading = known.reading(display=display, every_file=question.every_file)
        found += known.examiners[kind](folder, reading)
    yield from found
    checkpoint = None
    if question.ckpt is not None:
        checkpoint, of_checkpoint = examine_checkpoint(question.ckpt, question.arch)
        yield from of_checkpoint
    if question.recipe is not None and known is not None:
        missing = any(f.state == "problem" and f.name in for_recipe for f in engines)
        unread = question.ckpt is not None and checkpoint is None
        if missing or unread:
            why = "the engine that it needs is missing" if missing else "the checkpoint is not read"
            yield Finding(
                group="estimate", name="not made", state="warning", said=f"no estimate: {why}"
            )
            return
        yield from _estimate(question, known, checkpoint, found, display)


def _estimate(
    question: Question,
    stages: Stages,
    checkpoint: Checkpoint | None,
    found: list[Finding],
    display: Display,
) -> Iterator[Finding]:
    """Plan the recipe's run and take a step of it."""
    from simmim_bench.checkpoints.read import read_checkpoint
    from simmim_bench.diagnostics.estimate import data_size, estimate, too_large
    from simmim_bench.distributed import best_device
    from simmim_bench.models.archs import find_spec
    from simmim_bench.training.memory import retain_freed_memory

    device, recipe = best_device(), question.recipe
    pretraining = stages.is_pretraining(recipe)
    if pretraining and question.arch is not None:
        recipe = stages.for_arch(recipe, question.arch)
    if not pretraining and checkpoint is None:
        checkpoint = read_checkpoint(f"random:{question.arch}")
    spec = checkpoint.spec if checkpoint and not pretraining else find_spec(recipe.arch)
    refused = too_large(spec, device)
    if refused is not None:
        yield refused
        return
    data = data_size("imagenet" if pretraining else stages.data_of(recipe), found)
    display.log(f"trying {recipe.name} on {spec.arch}")
    if device.type == "cpu":
        retain_freed_memory()  # as the training does
    try:
        if pretraining:
            work = stages.plan_pretraining(recipe, data, device)
        else:
            assert checkpoint is not None
            work = stages.plan_transfer(recipe, checkpoint, data, device)
    except UsageError:
        raise
    except BenchError as error:
        yield Finding(group="estimate", name="not made", state="problem", said=str(error))
        return
    yield from estimate(work, device=device, folder=question.out)
