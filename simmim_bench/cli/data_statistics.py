"""`simmim-bench data statistics`: format, mean and standard deviation of images, as options of `pretrain`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import click

from simmim_bench.api.arguments import check_images
from simmim_bench.cli.options import JSON_OPTION, open_display
from simmim_bench.data.pixel_format import VALUE_RANGES, ValueRange


@click.command()
@click.argument("data", metavar="DATA", type=click.Path(path_type=Path))
@click.option(
    "--channels",
    type=click.IntRange(1, 1024),
    metavar="N",
    help="Channels of the images; by default those that they are stored with.",
)
@click.option(
    "--value-range",
    type=click.Choice(VALUE_RANGES),
    help="8 bits, 16 bits, or values as stored; by default what the images are stored with.",
)
@click.option(
    "--count",
    default=2000,
    show_default=True,
    type=click.IntRange(1),
    metavar="N",
    help="Read at most N images, evenly spaced.",
)
@click.option("--quiet", is_flag=True, help="No progress on stderr.")
@JSON_OPTION
def statistics(
    data: Path,
    channels: int | None,
    value_range: ValueRange | None,
    count: int,
    quiet: bool,
    as_json: bool,
) -> None:
    """Compute the mean and standard deviation of each channel of the images of DATA, as `pretrain` takes them.

    Prints the overrides with which a model is pretrained on them. If DATA has train/ and val/, train/ is read. Images
    of other formats than the first one are refused by name.

    \b
      simmim-bench data statistics sentinel2
      simmim-bench pretrain --arch vit_b --data sentinel2 -o in_chans=13 -o value_range=uint16 \\
          -o mean=0.0206,... -o std=0.0083,...
    """
    check_images(data, "DATA")
    from simmim_bench.data.pretraining_images import any_images
    from simmim_bench.data.statistics import compute_statistics

    found = compute_statistics(
        any_images(data),
        channels=channels,
        value_range=value_range,
        count=count,
        display=open_display(quiet),
    )
    if as_json:
        click.echo(json.dumps({**dataclasses.asdict(found), "options": found.options}))
        return
    click.echo(f"images  {found.images:,} {str(found.pixel_format).removeprefix('images ')}")
    rows = zip(found.mean, found.std, found.low, found.high, strict=True)
    for number, (mean, std, low, high) in enumerate(rows, 1):
        click.echo(
            f"channel {number}  mean {mean:.6g}  std {std:.6g}  from {low:.6g} to {high:.6g}"
        )
    click.echo(f"use     {found.options}")
