"""`simmim-bench data check`: what `doctor` reports of one data set, without the rest of it."""

from __future__ import annotations

from pathlib import Path

import click

from simmim_bench.api.arguments import check_images
from simmim_bench.cli.doctor import print_findings
from simmim_bench.cli.options import JSON_OPTION, open_display
from simmim_bench.data.named import HUB_PREFIX
from simmim_bench.data.split_folders import has_split, is_label_file, split_folder
from simmim_bench.tasks import LAYOUTS

PRETRAIN = "pretrain"


@click.command()
@click.argument("data", metavar="DATA", type=click.Path(path_type=Path))
@click.option(
    "--for",
    "layout",
    type=click.Choice([PRETRAIN, *LAYOUTS]),
    help="Use of DATA: pretraining, classification (imagenet), detection (coco) or segmentation (ade20k); recognised "
    "by default.",
)
@click.option(
    "--val-fraction",
    type=click.FloatRange(1e-4, 0.5),
    metavar="F",
    help="Check DATA as runs with --val-fraction use it, which hold out a part of the training images.",
)
@click.option(
    "--every-file",
    is_flag=True,
    help="Read every image and label map; by default, 500 files of a split of more than 2000.",
)
@click.option("--quiet", is_flag=True, help="No progress on stderr.")
@JSON_OPTION
def check(
    data: Path,
    layout: str | None,
    val_fraction: float | None,
    every_file: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Check one data set: layout, counts, classes, annotations, unreadable files.

    DATA is a folder, tar shards, a label file (.csv, .tsv, .jsonl) or hfds:NAME. These are the checks of `doctor`,
    which also examines frameworks and the machine.

    \b
      simmim-bench data check pets
      simmim-bench data check pets --val-fraction 0.1
      simmim-bench data check helmets --for coco

    Exit codes: 0 a run accepts DATA, warnings allowed; 4 it does not.
    """
    check_images(data, "DATA")
    chosen = layout or recognise(data)
    display = open_display(quiet)
    if layout is None:
        display.log(f"data: checked for {chosen}; --for checks for another use")
    from pretrain.doctor_checks import check_pretraining_data
    from simmim_bench.diagnostics.data_checks import Reading
    from transfer.tasks import DATA_CHECKS, load_function

    reading = Reading(display=display, every_file=every_file, val_fraction=val_fraction)
    examine = check_pretraining_data if chosen == PRETRAIN else load_function(DATA_CHECKS[chosen])
    print_findings(examine(data, reading), as_json)


def recognise(data: Path) -> str:
    """Return the use of a data set by the names of its files: a key of `LAYOUTS`, or "pretrain"."""
    if str(data).startswith(HUB_PREFIX):
        return "imagenet"
    if is_label_file(data):
        from simmim_bench.data.label_file import read_label_file

        return PRETRAIN if read_label_file(data).labels is None else "imagenet"
    if all((data / name / "training").is_dir() for name in ("images", "annotations")):
        return "ade20k"
    if [*data.glob("annotations/*.json"), *data.glob("*/_annotations.coco.json")]:
        return "coco"
    train = split_folder(data, "train") if has_split(data, "train") else data
    if has_split(data, "val") and [*train.glob("*.tar")]:
        return "imagenet"
    folders = [path for path in train.glob("*") if path.is_dir()] if train.is_dir() else []
    return "imagenet" if len(folders) > 1 else PRETRAIN
