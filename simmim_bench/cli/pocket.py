"""`simmim-bench pocket`: write synthetic data sets in the layouts of the real ones."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from simmim_bench.cli.options import PATH, SEED, open_display, read_size
from simmim_bench.errors import UsageError


@click.command()
@click.argument("folder", metavar="DIR", type=PATH)
@click.option(
    "--seed",
    default=0,
    show_default=True,
    type=SEED,
    help="Seed of the images; the same seed gives the same bytes.",
)
@click.option(
    "--img-size", default="64", show_default=True, metavar="H[,W]", help="Pixels, at least 32."
)
@click.option(
    "--imagenet", nargs=2, type=int, metavar="TRAIN VAL", help="Images of the ImageNet-like set."
)
@click.option("--coco", nargs=2, type=int, metavar="TRAIN VAL", help="Images of the COCO-like set.")
@click.option(
    "--ade20k", nargs=2, type=int, metavar="TRAIN VAL", help="Images of the ADE20K-like set."
)
@click.option("--overwrite", is_flag=True, help="Replace the synthetic data in DIR.")
def pocket(
    folder: Path,
    seed: int,
    img_size: str,
    imagenet: tuple[int, int] | None,
    coco: tuple[int, int] | None,
    ade20k: tuple[int, int] | None,
    overwrite: bool,
) -> None:
    """Write synthetic data in the layouts of ImageNet, COCO 2017 and ADE20K.

    The images show objects of ten classes, distinguished by shape, texture and parts, on backgrounds of
    several classes.

    \b
      simmim-bench pocket data/pocket
      simmim-bench pocket data/wide --img-size 96,128 --coco 1000 200
    """
    from simmim_bench.pocket.write import PocketCounts, write_pocket

    size = read_size(img_size)
    splits = {"imagenet": imagenet, "coco": coco, "ade20k": ade20k}
    changes = {
        f"{name}_{split}": count
        for name, pair in splits.items()
        if pair
        for split, count in zip(("train", "val"), pair, strict=True)
    }
    if any(count < 1 for count in changes.values()):
        raise UsageError("every number of images must be at least 1.")
    counts = dataclasses.replace(PocketCounts(), **changes)
    with open_display(False).task("images", sum(vars(counts).values())) as task:
        written = write_pocket(
            folder,
            seed=seed,
            img_size=size,
            counts=counts,
            overwrite=overwrite,
            progress=lambda done, total: task.advance(),
        )
    for split, count in written.items():
        click.echo(f"{split} {count}")
