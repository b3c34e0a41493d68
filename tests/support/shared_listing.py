"""List images as one of two processes, of which rank 0 alone has the data folder."""

from __future__ import annotations

import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import simmim_bench.distributed
from simmim_bench.cli.main import main
from simmim_bench.data.class_splits import class_folders
from simmim_bench.data.pretraining_images import any_images, held_out_images
from simmim_bench.data.sharing import open_once
from simmim_bench.data.sources import ImageList
from simmim_bench.distributed import DistContext, init_distributed
from simmim_bench.errors import BenchError


def enter_own_folder(above: Path) -> None:
    """Make this process's folder, `rank0` or `rank1`, the working directory."""
    os.chdir(above / f"rank{os.environ['RANK']}")


def describe(images: ImageList) -> dict[str, Any]:
    """Return everything that is known of images, read in memory alone."""
    return {
        "names": [images.name(i) for i in range(len(images))],
        "labels": images.labels.tolist(),
        "classes": images.classes,
        "left_out": images.left_out.describe(),
        "fingerprints": [images.fingerprint(), images.subset([2, 0]).fingerprint()],
    }


def list_on_both(above: Path) -> None:
    """Print, on rank 0, what both processes know of `data`, and how a missing split fails."""
    enter_own_folder(above)
    data = Path("data")
    with init_distributed() as dist:
        found: dict[str, Any] = {
            "train": describe(open_once(partial(class_folders, data, "train"), dist))
        }
        images = open_once(partial(any_images, data), dist)
        assert isinstance(images, ImageList)
        found["any"] = describe(images)
        found["held out"] = open_once(partial(held_out_images, data), dist, measure=False)
        found["error"] = failure_of(data, dist)
        both = dist.gather(found)
    if dist.is_main:
        print(json.dumps(both))


def failure_of(data: Path, dist: DistContext) -> list[Any]:
    """Return the type and the message of the error of a missing split, and who prints it."""
    try:
        open_once(partial(class_folders, data, "val"), dist)
    except BenchError as error:
        return [type(error).__name__, str(error), error.printed_by_main]
    return []


def run_command_below(above: Path, arguments: tuple[str, ...]) -> None:
    """Run the command line in this process's folder; rank 1 waits for a launcher for a moment only."""
    enter_own_folder(above)
    simmim_bench.distributed.LAUNCHER_S = 0.1
    sys.argv = ["simmim-bench", *arguments]
    main()
