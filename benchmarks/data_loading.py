"""Time the loading of pretraining images by SimMIM's official transforms and by simmim-bench.

    python benchmarks/data_loading.py --data imagenet

One process with one thread loads images: the result is images per second and core. The official alternative is the
transform of SimMIM's data/data_simmim.py in a DataLoader over torchvision's ImageFolder, without its masks. Ours is
timed up to the uint8 batch that a loader's worker returns, and up to the normalised batch that the model takes.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timing import compare, report
from torch.utils.data import DataLoader
from torchvision import transforms as T
from torchvision.datasets import ImageFolder

from simmim_bench.checkpoints.checkpoint import IMAGENET_MEAN, IMAGENET_STD
from simmim_bench.data.datasets import ImageDataset
from simmim_bench.data.decode import decode_image
from simmim_bench.data.loader import EpochLoader
from simmim_bench.data.normalise import normalise
from simmim_bench.data.random_crop import random_crop_flip
from simmim_bench.data.sources import any_images

CROP_SCALE = (0.67, 1.0)


def main() -> None:
    """Parse the arguments, time the alternatives and report."""
    arguments = parse_arguments()
    torch.set_num_threads(1)
    size = (arguments.img_size, arguments.img_size)
    official = official_loader(arguments.data, size, arguments.batch_size)
    images = any_images(arguments.data)
    load = partial(random_crop_flip, img_size=size, crop_scale=CROP_SCALE)
    ours = EpochLoader(
        ImageDataset(images, load), batch_size=arguments.batch_size, num_workers=0, seed=0
    )
    count = len(ours) * arguments.batch_size

    def read_official() -> None:
        for _ in official:
            pass

    def read_ours() -> None:
        for _ in ours.epoch(0):
            pass

    def read_ours_normalised() -> None:
        for batch in ours.epoch(0):
            normalise(batch[0], IMAGENET_MEAN, IMAGENET_STD, torch.device("cpu"))

    def decode_only() -> None:
        for index in range(count):
            decode_image(images.read(index), images.name(index))

    timings = compare(
        {
            "official transforms": read_official,
            "ours, up to uint8": read_ours,
            "ours, up to the model's input": read_ours_normalised,
            "decoding only, by PIL": decode_only,
        },
        rounds=arguments.rounds,
    )
    report(
        f"loading {count} images, {size[0]}x{size[1]}, one core",
        timings,
        arguments.json,
        images_per_s_of_the_official_transforms=round(count / timings[0].seconds, 1),
        images_per_s_of_ours=round(count / timings[1].seconds, 1),
    )


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with train/CLASS/")
    parser.add_argument("--img-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    if arguments.rounds < 3:
        sys.exit(f"--rounds {arguments.rounds} is too few for quartiles; use 3 or more.")
    return arguments


def official_loader(data: Path, size: tuple[int, int], batch_size: int) -> DataLoader[Any]:
    """Return a loader with the transforms of SimMIM's data/data_simmim.py."""
    transforms = [
        T.RandomResizedCrop(size, scale=CROP_SCALE, ratio=(3 / 4, 4 / 3)),
        T.RandomHorizontalFlip(),
        T.ToTensor(),
        T.Normalize(IMAGENET_MEAN, IMAGENET_STD),
    ]
    return DataLoader(
        ImageFolder(str(data / "train"), T.Compose(transforms)),
        batch_size=batch_size,
        shuffle=True,
        drop_last=True,
    )


if __name__ == "__main__":
    main()
