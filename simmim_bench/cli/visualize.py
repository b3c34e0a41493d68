"""`simmim-bench visualize`: plot reconstructions, principal components of features, or a probe's attention."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from simmim_bench.api.arguments import check_ckpt, check_images
from simmim_bench.cli.options import PATH, SEED, complete_ckpt
from simmim_bench.errors import UsageError

# The options that only some of the figures take, by the figure.
OPTIONS_OF = {
    "reconstruction": ("masking", "annotations", "mask_patch_size", "mask_ratio", "seed"),
    "pca": ("img_size", "block"),
    "attention": (),
}


def read_channels(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> tuple[int, ...] | None:
    """Parse numbers of channels, such as 3,2,1."""
    if value is None:
        return None
    parts = value.split(",")
    if not all(part.strip().isascii() and part.strip().isdigit() for part in parts):
        raise UsageError(f"--channels {value} is not a list of numbers; use one such as 3,2,1.")
    return tuple(map(int, parts))


@click.command()
@click.option(
    "--ckpt",
    required=True,
    metavar="CKPT",
    shell_complete=complete_ckpt,
    help="A pretraining checkpoint; for pca any backbone, for attention a run of `transfer attentive`.",
)
@click.option(
    "--what",
    type=click.Choice([*OPTIONS_OF]),
    default="reconstruction",
    show_default=True,
    help="Reconstructions under masks, principal components of the patch features as colours, or the attention of "
    "a fitted probe's queries.",
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
@click.option(
    "--img-size",
    type=click.IntRange(1),
    help="For pca: side of the images in pixels, such as 448 for a finer map; the checkpoint's by default.",
)
@click.option(
    "--block",
    default=-1,
    show_default=True,
    help="For pca: the block of a ViT, or the stage of another backbone, from 1; -1 for the last.",
)
@click.option(
    "--channels",
    metavar="N,N,N",
    callback=read_channels,
    help="Channels, counted from 1, that are shown as red, green and blue, or one as grey; by default the first three.",
)
def visualize(
    ckpt: str,
    what: str,
    images: Path,
    out: Path,
    count: int,
    channels: tuple[int, ...] | None,
    **options: Any,
) -> None:
    """Plot what a model computes from images, next to the images.

    By default: the masked image, and the reconstruction with the visible part pasted in.

    \b
      simmim-bench visualize --ckpt runs/pocket --images data/pocket/imagenet/val --out seen.png
      simmim-bench visualize --ckpt runs/pocket --images data/pocket/imagenet/val --out colours.png --what pca
      simmim-bench visualize --ckpt runs/pocket/attentive/seed0 --images data/pocket/imagenet/val \\
          --out attention.png --what attention
      simmim-bench visualize --ckpt runs/vit_b --images coco/val2017 --out objects.png \\
          --mask boxes --annotations coco/annotations/instances_val2017.json
      simmim-bench visualize --ckpt runs/sentinel2 --images scenes/val --out infrared.png --channels 8,4,3

    Images of 16 bits and values as stored are stretched from the 2nd to the 98th percentile of each shown channel.
    """
    check_ckpt(ckpt)
    check_images(images, "--images")
    own, ctx = OPTIONS_OF[what], click.get_current_context()
    for name in options:
        given = ctx.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT
        if given and name not in own:
            flag = "--mask" if name == "masking" else f"--{name.replace('_', '-')}"
            raise UsageError(f"{flag} does not apply to --what {what}; remove it.")
    own_options = {name: options[name] for name in own}
    if what == "reconstruction":
        from pretrain.evaluation.visualize import visualize_folder

        visualize_folder(ckpt, images, out, count=count, channels=channels, **own_options)
    elif what == "pca":
        from transfer.visualize import visualize_pca

        visualize_pca(ckpt, images, out, count=count, channels=channels, **own_options)
    else:
        from transfer.visualize import visualize_attention

        visualize_attention(ckpt, images, out, count=count, channels=channels)
    click.echo(str(out))
