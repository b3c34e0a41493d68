"""`simmim-bench data split` and `sample`: write a part of a data set, as links or as a label file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from simmim_bench.api.arguments import check_images
from simmim_bench.cli.options import JSON_OPTION, PATH, SEED, apply_options, open_display
from simmim_bench.display import plural
from simmim_bench.errors import UsageError

if TYPE_CHECKING:
    from simmim_bench.data.sources import ImageList

Command = Callable[..., None]


def _writing_options(command: Command) -> Command:
    """Add the arguments and options of commands that write a part of a data set."""
    return apply_options(
        (
            click.argument("src", metavar="SRC", type=PATH),
            click.argument("dst", metavar="DST", type=PATH),
            click.option(
                "--seed", default=0, show_default=True, type=SEED, help="Seed of the choice."
            ),
            click.option("--copy", is_flag=True, help="Copy images instead of linking them."),
            click.option("--dry-run", is_flag=True, help="Read and choose, write nothing."),
            click.option("--overwrite", is_flag=True, help="Replace an earlier result in DST."),
            JSON_OPTION,
            click.option("--quiet", is_flag=True, help="No progress on stderr."),
        ),
        command,
    )


@click.command()
@click.option(
    "--val-fraction",
    default=0.1,
    show_default=True,
    type=click.FloatRange(1e-4, 0.5),
    metavar="F",
    help="Fraction of the images of every class to validate on; at least one image.",
)
@_writing_options
def split(src: Path, dst: Path, seed: int, val_fraction: float, **options: Any) -> None:
    """Split SRC, which has no validation images, in train and val.

    SRC is a folder with CLASS/ or train/CLASS/, a folder of images, or a label file. DST is a folder, which gets
    train/CLASS/ and val/CLASS/ with links to the images, or a label file (.csv, .tsv, .jsonl) above the images.

    With seed 0, these are the images that --val-fraction of `pretrain` and `transfer` holds out. Images of one scene
    or patient belong in one split; then write the splits yourself, as a label file.

    \b
      simmim-bench data split pets pets_split --val-fraction 0.2
      simmim-bench data split pets pets.csv --seed 1
      simmim-bench transfer knn --ckpt runs/vit_b --data pets.csv
    """
    check_images(src, "SRC")
    from simmim_bench.data.parts import check_out, split_data

    check_out(src, dst, options["overwrite"])
    parts = split_data(src, val_fraction, seed)
    _write(src, dst, parts, {"val_fraction": val_fraction, "seed": seed}, options)


@click.command()
@click.option(
    "--count",
    type=click.IntRange(1),
    metavar="N",
    help="Number of training images, of every class in proportion; at least one.",
)
@click.option(
    "--per-class",
    type=click.IntRange(1),
    metavar="N",
    help="Number of training images of every class; all of a class with fewer.",
)
@_writing_options
def sample(
    src: Path, dst: Path, seed: int, count: int | None, per_class: int | None, **options: Any
) -> None:
    """Sample training images of SRC; its validation images are all taken.

    SRC and DST are as of `data split`; SRC may have validation images. To try something out on a part of a data set,
    --limit of a run needs no other folder.

    \b
      simmim-bench data sample imagenet imagenet_10k --count 10000
      simmim-bench data sample pets pets_5.csv --per-class 5 --seed 1
    """
    if (count is None) == (per_class is None):
        raise UsageError("use one of --count N and --per-class N.")
    check_images(src, "SRC")
    from simmim_bench.data.parts import SampleSize, check_out, sample_data

    check_out(src, dst, options["overwrite"])
    parts = sample_data(src, SampleSize(count=count, per_class=per_class), seed)
    described = {"count": count} if per_class is None else {"per_class": per_class}
    _write(src, dst, parts, {**described, "seed": seed}, options)


def _write(
    src: Path,
    dst: Path,
    parts: Mapping[str, ImageList],
    described: Mapping[str, Any],
    options: Mapping[str, Any],
) -> None:
    """Write the parts unless it is a dry run, and print their sizes."""
    from simmim_bench.data.class_checks import class_sizes
    from simmim_bench.data.parts import write_parts

    dry_run: bool = options["dry_run"]
    if not dry_run:
        write_parts(
            src,
            dst,
            parts,
            described,
            copy=options["copy"],
            overwrite=options["overwrite"],
            display=open_display(options["quiet"]),
        )
    sizes = {name: [n for n in class_sizes(images) if n] for name, images in parts.items()}
    if options["as_json"]:
        counts = {name: sum(numbers) for name, numbers in sizes.items()}
        result = {**described, "images": counts, "dry_run": dry_run, "destination": str(dst)}
        click.echo(json.dumps(result))
        return
    for name, numbers in sizes.items():
        shown = plural(sum(numbers), "image")
        if len(numbers) > 1:
            shown += f" of {len(numbers):,} classes, {min(numbers):,} to {max(numbers):,} per class"
        click.echo(f"{name:<9} {shown}")
    click.echo(f"dry run   nothing was written to {dst}" if dry_run else f"wrote     {dst}")
