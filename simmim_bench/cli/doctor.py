"""`simmim-bench doctor`: check frameworks, machine, data sets, a checkpoint, and the cost of a recipe."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

from simmim_bench.cli.doctor_checks import examine
from simmim_bench.cli.doctor_request import check_request
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
from simmim_bench.diagnostics.findings import Finding, describe, exit_code


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
    "--val-fraction",
    type=click.FloatRange(1e-4, 0.5),
    metavar="F",
    help="Check images of classes as runs with --val-fraction use them, which hold out a part of the training images.",
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
    request = check_request(recipe_name, overrides, data_sets=data_sets, **given)
    findings = list(examine(request, open_display(False)))
    print_findings(findings, as_json)


def print_findings(findings: Sequence[Finding], as_json: bool) -> NoReturn:
    """Print findings and exit with the code that they determine."""
    code = exit_code(findings)
    if as_json:
        plain = [dataclasses.asdict(finding) for finding in findings]
        click.echo(json.dumps({"exit_code": code, "findings": plain}, default=str))
    else:
        for line in describe(findings):
            click.echo(line)
    sys.exit(code)
