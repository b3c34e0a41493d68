"""`simmim-bench pretrain`: pretrain a backbone with SimMIM."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

import click

from simmim_bench.api.pretraining import run_pretrain
from simmim_bench.cli.options import (
    PATH,
    complete_arch,
    pretrain_recipes,
)
from simmim_bench.cli.recipe_help import RecipeCommand, pretraining_recipe
from simmim_bench.cli.run_options import run_options
from simmim_bench.recipe import Recipe
from simmim_bench.runs.options import RunOptions


class PretrainCommand(RecipeCommand):
    """`pretrain`, whose recipe --arch and --recipe choose."""

    def choose_recipe(self, given: Mapping[str, Any]) -> Recipe:
        """Return the recipe that the arguments choose."""
        return pretraining_recipe(given)


@click.command(cls=PretrainCommand)
@click.option(
    "--arch",
    required=True,
    metavar="ARCH",
    shell_complete=complete_arch,
    help="Architecture: vit_ti vit_s vit_b vit_l, swin_t swin_s swin_b swin_l, swinv2_t ..., convnext_t "
    "convnext_s convnext_b, resnet50 resnet101; for images of 32 pixels vit_pocket swin_pocket "
    "convnext_pocket resnet_pocket, of 64 pixels vit_64px swin_64px resnet_64px.",
)
@run_options(pretrain_recipes)
@click.option("--init-from", metavar="CKPT", help="Start from the weights of a SimMIM checkpoint.")
@click.option(
    "--accumulate",
    type=click.IntRange(1),
    metavar="N",
    help="Gradient-accumulation steps per process; by default the smallest number that fits in memory.",
)
@click.option(
    "--grad-checkpointing",
    is_flag=True,
    help="Save memory: recompute activations in the backward pass.",
)
@click.option(
    "--shard",
    is_flag=True,
    help="Shard a model that does not fit in memory over the processes (FSDP2).",
)
@click.option(
    "--compile/--no-compile",
    "compiled",
    default=None,
    help="Use torch.compile; by default on a GPU from 5,000 steps on, which earn the time back.",
)
@click.option(
    "--keep-every",
    default=0,
    type=click.IntRange(0),
    metavar="N",
    help="Keep a checkpoint every N epochs, besides the last and the best.",
)
@click.option(
    "--visualize-every",
    default=1,
    show_default=True,
    type=click.IntRange(1),
    metavar="N",
    help="Plot reconstructions every N epochs.",
)
@click.option(
    "--pictures-every", type=click.IntRange(1), hidden=True, help="Deprecated: --visualize-every."
)
@click.option(
    "--probe-data",
    type=PATH,
    metavar="DIR",
    help="Score the features every epoch by k-NN and logistic regression: labelled images in ImageNet's layout, "
    "learnt from train/ and scored on val/. A monitor, not a score of the leaderboard.",
)
@click.option(
    "--probe-every",
    type=click.IntRange(1),
    metavar="N",
    help="With --probe-data: probe every N epochs. [default: 1]",
)
@click.option(
    "--skip-unreadable",
    default=0,
    show_default=True,
    type=click.IntRange(0),
    metavar="N",
    help="Skip and count up to N unreadable images; one more ends the run.",
)
def pretrain(
    arch: str,
    init_from: str | None,
    options: RunOptions,
    visualize_every: int,
    pictures_every: int | None,
    **train_options: Any,
) -> None:
    """Pretrain a backbone with SimMIM.

    DATA is a folder of images at any depth, or of tar shards such as WebDataset's, or a label file. If it has
    train/ and val/, train/ is trained on and val/ gives the held-out loss; without val/, a part is held out.
    hfds:NAME is a Hugging Face dataset. The last checkpoint is RUN/checkpoints/last, the one with the lowest
    held-out loss is checkpoints/best, and RUN/reconstructions.png shows reconstructed images.

    \b
      simmim-bench pretrain --arch vit_pocket --data pocket/imagenet --out runs/pocket
      simmim-bench pretrain --arch vit_b --data imagenet --epochs 100 --batch-size 512
      torchrun --nproc-per-node 8 -m simmim_bench pretrain --arch vit_b --data imagenet --out runs/b
      srun simmim-bench pretrain --arch vit_b --data imagenet --out runs/b --resume

    --probe-data scores a few thousand images of DIR, at most, after each epoch, and the log reports the probes' part
    of the run's time. The blocks are those in the middle, at three quarters and at the end. Labels reach the probes
    alone. `doctor --imagenet DIR` checks the folder.

    batch_size is the total over all processes. SIGTERM, SIGINT and SIGUSR1 finish the step and save it;
    --resume continues to the same end as an uninterrupted run. SIGUSR1 also requeues a SLURM job
    (#SBATCH --signal=USR1@120).
    """
    checkpoint, is_main = run_pretrain(
        arch,
        options,
        init_from=init_from,
        visualize_every=pictures_every or visualize_every,
        **train_options,
    )
    if not is_main:
        return
    shown = json.dumps({"checkpoint": str(checkpoint)}) if options.as_json else str(checkpoint)
    click.echo(shown)
    if not (options.quiet or options.as_json):
        run_dir = shlex.quote(str(checkpoint.parent.parent))
        click.echo(
            f"next: simmim-bench transfer knn --ckpt {run_dir} --data DIR --baseline random",
            err=True,
        )
