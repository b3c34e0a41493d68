"""`simmim-bench visualize`: plot what a pretraining checkpoint reconstructs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from simmim_bench.cli.options import PATH, SEED, complete_ckpt


@click.command()
@click.option(
    "--ckpt",
    required=True,
    metavar="CKPT",
    shell_complete=complete_ckpt,
    help="A pretraining checkpoint.",
)
@click.option("--images", required=True, type=PATH, help="Folder of images.")
@click.option("--out", required=True, type=PATH, help="PNG to write.")
@click.option(
    "--count", default=8, show_default=True, type=click.IntRange(1), help="Number of images."
)
@click.option(
    "--mask",
    "masking",
    type=click.Choice(
        ["random", "square", "block", "pixels", "regions", "multimodal", "centre", "boxes"]
    ),
    default="random",
    show_default=True,
    help="Mask: a strategy of pretraining, a centre square, or the box of each image's largest object.",
)
@click.option(
    "--annotations",
    type=PATH,
    help="COCO instances JSON for --mask boxes; images are matched by file name.",
)
@click.option(
    "--mask-patch-size",
    type=click.IntRange(1),
    help="Side of the masking unit in pixels; the backbone's stride by default.",
)
@click.option(
    "--mask-ratio",
    default=0.6,
    show_default=True,
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Fraction of the image to hide; not used by --mask boxes.",
)
@click.option("--seed", default=0, show_default=True, type=SEED, help="Seed of the masks.")
def visualize(ckpt: str, images: Path, out: Path, **masking: Any) -> None:
    """Plot the original image, the masked image, and the reconstruction with the visible part pasted in.

    \b
      simmim-bench visualize --ckpt runs/pocket --images data/pocket/imagenet/val --out seen.png
      simmim-bench visualize --ckpt runs/vit_b --images coco/val2017 --out objects.png \\
          --mask boxes --annotations coco/annotations/instances_val2017.json
    """
    from pretrain.evaluation.visualize import visualize_folder

    visualize_folder(ckpt, images, out, **masking)
    click.echo(str(out))
