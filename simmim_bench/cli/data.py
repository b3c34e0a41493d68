"""`simmim-bench data`: check, prepare and convert data sets."""

from __future__ import annotations

import json
from pathlib import Path

import click

from simmim_bench.cli.data_check import check
from simmim_bench.cli.data_parts import sample, split
from simmim_bench.cli.data_preview import preview
from simmim_bench.cli.data_statistics import statistics
from simmim_bench.cli.options import PATH, SEED, open_display
from simmim_bench.display import plural
from simmim_bench.errors import UsageError


@click.group()
def data() -> None:
    """Check and prepare a data set.

    \b
      simmim-bench data check pets
      simmim-bench data split pets pets_split
      simmim-bench data sample imagenet imagenet_10k --count 10000
      simmim-bench data preview pretrain --arch vit_b --data pets --out pets.png
      simmim-bench data convert exports/helmets helmets
      simmim-bench transfer coco --ckpt runs/vit_b --data helmets
    """


@data.command()
@click.argument("src", metavar="SRC", type=PATH)
@click.argument("dst", metavar="DST", type=PATH)
@click.option(
    "--from",
    "source",
    type=click.Choice(["roboflow", "cvat", "voc", "coco", "masks"]),
    help="Layout of SRC, if it is not recognised or of several.",
)
@click.option(
    "--to",
    "target",
    type=click.Choice(["coco", "ade20k"]),
    help="Layout of DST, if SRC has both boxes and masks.",
)
@click.option(
    "--colours",
    "--classes",
    "classes",
    type=PATH,
    metavar="FILE",
    help="Table of the classes, one per line: `name r g b`, `name,r,g,b` with a header, `label,name` or `name`; "
    "voc for Pascal VOC's.",
)
@click.option("--keep-zero", is_flag=True, help="Label 0, or the background, is a class.")
@click.option(
    "--ignore-label",
    "ignore",
    multiple=True,
    metavar="LABEL",
    help="Label, or name of a class, whose pixels are ignored, such as 255; may be repeated.",
)
@click.option(
    "--boxes",
    type=click.Choice(["voc", "roboflow", "cvat"]),
    help="What the corners in XML files are: voc: first and last pixel, counted from 1; roboflow: edges plus 1; cvat: "
    "edges. By default as the recognised tool writes them.",
)
@click.option(
    "--difficult",
    type=click.Choice(["crowd", "object", "drop"]),
    default="crowd",
    show_default=True,
    help="What objects become that Pascal VOC marks difficult; a crowd is neither right nor wrong when detected.",
)
@click.option(
    "--crowds",
    type=click.Choice(["objects", "keep"]),
    help="What crowds of a COCO file are, if they are many: CVAT exports objects painted with its brush as crowds.",
)
@click.option("--train", metavar="SPLIT", help="Split of SRC to train on, if none is called train.")
@click.option("--val", metavar="SPLIT", help="Split of SRC to validate on, such as test.")
@click.option("--test", is_flag=True, help="Convert the test split, too.")
@click.option(
    "--val-fraction",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    metavar="F",
    help="Fraction of the training images to validate on, if SRC has no validation split; 0.1 by default.",
)
@click.option("--seed", default=0, show_default=True, type=SEED, help="Seed of that choice.")
@click.option("--copy", is_flag=True, help="Copy images instead of linking them.")
@click.option("--dry-run", is_flag=True, help="Read and check everything, write nothing.")
@click.option("--overwrite", is_flag=True, help="Replace an earlier conversion in DST.")
@click.option("--json", "as_json", is_flag=True, help="Print the result on stdout as JSON.")
@click.option("--quiet", is_flag=True, help="No log and no progress on stderr.")
def convert(
    src: Path,
    dst: Path,
    source: str | None,
    target: str | None,
    classes: Path | None,
    keep_zero: bool,
    ignore: tuple[str, ...],
    boxes: str | None,
    difficult: str,
    crowds: str | None,
    train: str | None,
    val: str | None,
    test: bool,
    val_fraction: float | None,
    seed: int,
    copy: bool,
    dry_run: bool,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Convert the data set in SRC to COCO's layout (boxes, masks of objects) or ADE20K's (label maps) in DST.

    The layout of SRC is recognised:

    \b
      roboflow  COCO and Pascal VOC exports, semantic segmentation masks
      cvat      COCO 1.0, PASCAL VOC 1.1, Segmentation mask 1.1
      voc       Pascal VOC's Annotations/ (to coco) and SegmentationClass/ (to ade20k)
      coco      any COCO instances file with its images
      masks     images/ and masks/ of labels, palette indices or colours

    Images are linked, not decoded: they take no space, and are those of SRC. Where SRC has no validation split, a
    tenth of the training images becomes one. Annotations and labels are checked as a run would.

    \b
      simmim-bench data convert exports/helmets helmets --dry-run
      simmim-bench data convert VOCdevkit/VOC2012 voc_boxes --to coco
      simmim-bench data convert camvid camvid_ade --colours label_colors.txt
      simmim-bench data convert polyps polyps_ade --keep-zero --ignore-label 255
    """
    from transfer.layouts.class_table import LabelRequest
    from transfer.layouts.convert import ConversionRequest
    from transfer.layouts.convert import convert as run_conversion
    from transfer.layouts.splits import SplitRequest
    from transfer.layouts.voc_boxes import BoxRequest

    if keep_zero and "0" in ignore:
        raise UsageError("--keep-zero and --ignore-label 0 contradict each other; use one.")
    done = run_conversion(
        src,
        dst,
        ConversionRequest(
            source=source,
            target=target,
            classes=classes,
            labels=LabelRequest(keep_zero=keep_zero, ignore=ignore),
            splits=SplitRequest(
                train=train, val=val, test=test, val_fraction=val_fraction, seed=seed
            ),
            boxes=BoxRequest(boxes=boxes, difficult=difficult),
            crowds=crowds,
            copy=copy,
            dry_run=dry_run,
            overwrite=overwrite,
        ),
        open_display(quiet),
    )
    if as_json:
        click.echo(json.dumps({**done.report, "dry_run": dry_run, "destination": str(dst)}))
        return
    images = sum(count["images"] for count in done.counts.values())
    found = ", ".join(f"{name} {count:,}" for name, count in done.sources.items())
    click.echo(
        f"recognised  {done.layout.name}: images {found}; {plural(len(done.classes), 'class', 'classes')}"
    )
    for note in done.notes:
        click.echo(f"note        {note}")
    for name, count in done.counts.items():
        shown = ", ".join(f"{number:,} {what}" for what, number in count.items())
        click.echo(f"{name:<11} {shown}")
    if dry_run:
        click.echo(f"dry run     nothing was written; {images:,} images would be, to {dst}")
        return
    click.echo(f"wrote       {dst}: {done.linked:,} images linked, {images - done.linked:,} copied")
    click.echo(f"use         simmim-bench transfer {done.layout.target} --ckpt CKPT --data {dst}")


for command in (check, split, sample, preview, statistics):
    data.add_command(command)
