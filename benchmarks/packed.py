"""Time the loading of packed images against their originals, and compare their sizes.

    python benchmarks/packed.py --data imagenet

Packs the training images, or the first --images of them, by the command `simmim-bench pack` into a temporary folder.
One process with one thread then loads every image by SimMIM's crop, by the transform that evaluations and probes use,
and by decoding alone: originals, and packed to each short side.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from timing import compare, report

from simmim_bench.checkpoints.checkpoint import IMAGENET_MEAN, IMAGENET_STD
from simmim_bench.data.datasets import LoadImage, eval_transform
from simmim_bench.data.decode import decode_array
from simmim_bench.data.pretraining_images import any_images
from simmim_bench.data.random_crop import random_crop_flip
from simmim_bench.data.sources import ImageSource

CROP_SCALE = (0.67, 1.0)
SHORT_SIDES = (320, 256)


def main() -> None:
    """Parse the arguments, pack, time the alternatives and report."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with train/CLASS/")
    parser.add_argument("--images", type=int, default=300, help="most images to load")
    parser.add_argument("--quality", type=int, default=90)
    parser.add_argument("--img-size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    if arguments.rounds < 3:
        sys.exit(f"--rounds {arguments.rounds} is too few for quartiles; use 3 or more.")
    torch.set_num_threads(1)
    size = (arguments.img_size, arguments.img_size)
    loads: dict[str, LoadImage] = {
        "SimMIM's crop": partial(random_crop_flip, img_size=size, crop_scale=CROP_SCALE),
        "evaluation": eval_transform(
            size, crop_ratio=224 / 256, mean=IMAGENET_MEAN, std=IMAGENET_STD, as_bytes=True
        ),
        "decoding alone": lambda content, name: torch.from_numpy(decode_array(content, name)),
    }
    with tempfile.TemporaryDirectory() as folder:
        originals = chosen(any_images(arguments.data), arguments.images)
        sources = {"originals": originals}
        for short_side in SHORT_SIDES:
            dst = Path(folder, str(short_side))
            sources[f"short side {short_side}"] = chosen(
                pack(arguments.data, dst, short_side, arguments.quality), arguments.images
            )
        sizes = {name: sum(map(len, contents(images))) for name, images in sources.items()}
        facts = {
            f"bytes_of_{name.replace(' ', '_')}_to_originals": round(n / sizes["originals"], 3)
            for name, n in sizes.items()
            if name != "originals"
        }
        for kind, load in loads.items():
            alternatives: dict[str, Callable[[], object]] = {
                name: partial(load_all, images, load) for name, images in sources.items()
            }
            out = arguments.json
            if out is not None and kind != "SimMIM's crop":
                suffix = "evaluation" if kind == "evaluation" else "decoding"
                out = out.with_name(f"{out.stem}_{suffix}.json")
            report(
                f"packed images, {kind}: {len(originals)} images, {size[0]}x{size[1]}, quality "
                f"{arguments.quality}, one core",
                compare(alternatives, rounds=arguments.rounds),
                out,
                bytes_of_originals=sizes["originals"],
                **facts,
            )


def pack(data: Path, dst: Path, short_side: int, quality: int) -> ImageSource:
    """Pack a data set and open its training images."""
    options = ["--short-side", str(short_side), "--quality", str(quality), "--quiet"]
    command = [sys.executable, "-m", "simmim_bench", "pack", str(data), str(dst), *options]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return any_images(dst)


def chosen(images: ImageSource, most: int) -> ImageSource:
    """Return the first images; packed ones have the order of their originals."""
    return images.subset(range(min(most, len(images))))


def contents(images: ImageSource) -> Iterator[bytes]:
    """Yield the content of every image file."""
    return (images.read(index) for index in range(len(images)))


def load_all(images: ImageSource, load: LoadImage) -> None:
    """Load every image once, with the same random crops every time."""
    torch.manual_seed(0)
    for index in range(len(images)):
        load(images.read(index), images.name(index))


if __name__ == "__main__":
    main()
