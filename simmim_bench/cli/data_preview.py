"""`simmim-bench data preview`: a figure of what the loader feeds, with augmentation and masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from simmim_bench.api.arguments import check_ckpt, check_images
from simmim_bench.cli.options import (
    PATH,
    SEED,
    all_recipes,
    complete_among,
    complete_arch,
    complete_ckpt,
    override_option,
)
from simmim_bench.cli.recipe_options import CONFIG_OPTION, apply_key_options, pop_overrides
from simmim_bench.errors import UsageError
from simmim_bench.runs.options import RunOptions
from simmim_bench.tasks import tasks_on

PRETRAIN = "pretrain"
FLAGS = ("--img-size", "--limit", "--val-fraction")


@click.command()
@click.argument("use", type=click.Choice([PRETRAIN, *(task.name for task in tasks_on("imagenet"))]))
@click.option(
    "--data", required=True, type=PATH, help="The data set, as `pretrain` and `transfer` take it."
)
@click.option("--out", required=True, type=PATH, help="PNG to write.")
@click.option(
    "--arch",
    default="vit_b",
    show_default=True,
    metavar="ARCH",
    shell_complete=complete_arch,
    help="Architecture, which determines the default recipe.",
)
@click.option(
    "--ckpt",
    metavar="CKPT",
    shell_complete=complete_ckpt,
    help="Checkpoint of a task, in place of --arch.",
)
@click.option(
    "--recipe", metavar="NAME", shell_complete=complete_among(all_recipes), help="Named recipe."
)
@override_option("Change one setting of the recipe, such as mask_ratio=0.75; may be repeated.")
@apply_key_options(FLAGS, "")
@CONFIG_OPTION
@click.option(
    "--count", default=6, show_default=True, type=click.IntRange(1, 100), help="Number of images."
)
@click.option(
    "--epochs",
    default=2,
    show_default=True,
    type=click.IntRange(1, 10),
    help="Epochs whose augmentations are shown.",
)
@click.option("--seed", default=0, show_default=True, type=SEED, help="Seed of the run.")
def preview(
    use: str,
    data: Path,
    out: Path,
    arch: str,
    ckpt: str | None,
    count: int,
    epochs: int,
    seed: int,
    **given: Any,
) -> None:
    """Plot images of DATA as a run loads them, without running it.

    \b
    pretrain  the whole image; for each epoch the random crop, and the crop with its mask
    a task    the whole image; the crop as validation images are scored; for each epoch the augmented image,
              without Mixup and CutMix

    \b
      simmim-bench data preview pretrain --arch vit_b --data pets --out crops.png
      simmim-bench data preview pretrain --arch swin_b --data pets --out blocks.png -o masking=block
      simmim-bench data preview imagenet --arch vit_b --data pets --val-fraction 0.1 --out augmented.png
    """
    check_images(data)
    recipe_name = given.pop("recipe")
    overrides, config = pop_overrides(given)
    recipe_name = recipe_name or config.recipe
    if use == PRETRAIN:
        if ckpt is not None:
            raise UsageError(f"--ckpt {ckpt} does not apply to {PRETRAIN}; use --arch.")
        from pretrain.preview import preview_pretraining
        from pretrain.recipes import resolve_recipe

        recipe, _ = resolve_recipe(arch=arch, recipe=recipe_name, overrides=overrides)
        names = preview_pretraining(recipe, data, out, count=count, epochs=epochs, seed=seed)
        columns = "whole image; of each epoch the crop, and the crop with its mask"
    else:
        if ckpt is not None:
            check_ckpt(ckpt)
        from transfer.preview import preview_classification

        options = RunOptions(data=data, recipe=recipe_name, overrides=overrides, seed=seed)
        names = preview_classification(
            use, ckpt or f"random:{arch}", options, out, count=count, epochs=epochs
        )
        columns = "whole image; crop as scored; of each epoch the augmented image"
    for number, name in enumerate(names, 1):
        click.echo(f"{number:>3} {name}")
    click.echo(f"{out}  ({columns})")
