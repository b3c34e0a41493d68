"""`simmim-bench pack`: re-encode a data set of images into tar shards that load faster."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import click

from simmim_bench.api.arguments import check_images
from simmim_bench.cli.options import JSON_OPTION, PATH, open_display
from simmim_bench.display import first_names, plural
from simmim_bench.processors import usable_cores


@click.command()
@click.argument("src", metavar="SRC", type=PATH)
@click.argument("dst", metavar="DST", type=PATH)
@click.option(
    "--short-side",
    default=320,
    show_default=True,
    type=click.IntRange(16, 16384),
    metavar="N",
    help="Reduce images whose shorter side is longer to N pixels; the others are copied byte for byte.",
)
@click.option(
    "--quality",
    default=90,
    show_default=True,
    type=click.IntRange(1, 100),
    metavar="Q",
    help="JPEG quality of the images that are reduced.",
)
@click.option(
    "--shard-size",
    default=1000,
    show_default=True,
    type=click.IntRange(1, 1_000_000),
    metavar="N",
    help="Images per tar file.",
)
@click.option(
    "--num-workers",
    type=click.IntRange(1, 512),
    metavar="N",
    help="Processes; by default one for each processor that this process may use.",
)
@click.option(
    "--skip-unreadable",
    default=0,
    show_default=True,
    type=click.IntRange(0),
    metavar="N",
    help="Leave out up to N images that cannot be read.",
)
@click.option(
    "--overwrite", is_flag=True, help="Replace a packed data set in DST, or an interrupted one."
)
@click.option("--quiet", is_flag=True, help="No log and no progress on stderr.")
@JSON_OPTION
def pack(
    src: Path,
    dst: Path,
    short_side: int,
    quality: int,
    shard_size: int,
    num_workers: int | None,
    skip_unreadable: int,
    overwrite: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Pack the images of SRC into tar shards in DST that are decoded twice as fast at less than half of the bytes.

    SRC is what --data takes: class folders, a folder of images, tar shards, or hfds:NAME. DST is
    another --data for pretraining and classification, with the same images, classes and file names, so that lists of
    --split apply. Other readers of WebDataset find KEY.jpg and KEY.cls.

    Packed images are other data than the originals: records name short side and quality, and their scores are never
    ranked beside those on the originals. Compare checkpoints on the same data. Boxes and masks of COCO and ADE20K are
    not packed.

    A run that was interrupted continues where it was when the same command is run again; DST appears when it is
    complete. The same images and options give the same bytes.

    \b
      simmim-bench pack imagenet imagenet_320
      simmim-bench pack imagenet imagenet_256 --short-side 256 --quality 85
      simmim-bench pretrain --arch vit_b --data imagenet_320
      simmim-bench transfer linear --ckpt runs/vit_b --data imagenet_320
    """
    check_images(src, "SRC")
    from simmim_bench.data.pack_processes import PackOptions
    from simmim_bench.data.pack_source import open_sources
    from simmim_bench.data.packed import Packing
    from simmim_bench.data.packing import (
        check_destination,
        describe_request,
        is_complete,
        is_packed,
        partial_folder,
        prepare,
        publish,
        read_packed,
    )
    from simmim_bench.data.packing import pack as pack_images
    from simmim_bench.errors import DataError
    from simmim_bench.runs.lock import exclusive_lock

    check_destination(src, dst, overwrite=overwrite)
    sources = open_sources(src)
    options = PackOptions(
        Packing(short_side, quality),
        shard_size,
        num_workers or max(1, round(usable_cores())),
        skip_unreadable,
    )
    request, partial = describe_request(sources, options), partial_folder(dst)
    wrote = not is_packed(dst, request, overwrite=overwrite)
    if wrote:
        try:
            partial.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(
                f"cannot write {partial}: {error.strerror}; use another DST."
            ) from error
        with exclusive_lock(partial):
            if not is_complete(partial, request):
                prepare(partial, request, overwrite=overwrite)
                pack_images(partial, sources, options, request, open_display(quiet))
        publish(partial, dst)
    done = read_packed(dst)
    if as_json:
        splits = {split or "images": dataclasses.asdict(one) for split, one in done.items()}
        click.echo(json.dumps({"destination": str(dst), "wrote": wrote, "splits": splits}))
        return
    for split, one in done.items():
        classes = f", {plural(one.classes, 'class', 'classes')}" if one.classes else ""
        ratio = one.bytes_after / one.bytes_before
        click.echo(
            f"{split or 'images':<7} {plural(one.images, 'image')}{classes} in {plural(one.shards, 'shard')}: "
            f"{one.resized:,} reduced, {one.images - one.resized:,} copied; {one.bytes_after / 1e6:,.1f} MB of "
            f"{one.bytes_before / 1e6:,.1f} MB ({ratio:.0%})"
        )
        if one.skipped:
            click.echo(
                f"skipped {plural(len(one.skipped), 'image')} that cannot be read: {first_names(one.skipped)}"
            )
    click.echo(f"{'wrote' if wrote else 'exists':<7} {dst}")
    click.echo(f"use     simmim-bench pretrain --arch vit_b --data {dst}")
