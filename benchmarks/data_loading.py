"""Time the loading of images by SimMIM's official transforms and by simmim-bench, for pretraining or evaluation.

    python benchmarks/data_loading.py --data imagenet
    python benchmarks/data_loading.py --data imagenet --evaluation

One process with one thread loads images: the result is images per second and core. The official alternative is the
transform of SimMIM's data/data_simmim.py in a DataLoader over torchvision's ImageFolder, without its masks. Ours is
timed up to the uint8 batch that a loader's worker returns, with one and two crops of a decoding, of the images as they
are and of smaller ones as `simmim-bench pack` writes them, and up to the normalised batch that the model takes. The
evaluation is that of SimMIM's data/data_finetune.py.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from loading_chains import official_evaluation, official_loader, our_loader, packed_images
from timing import Timing, compare, report

from simmim_bench.checkpoints.checkpoint import IMAGENET_MEAN, IMAGENET_STD
from simmim_bench.data.datasets import ImageDataset, eval_transform
from simmim_bench.data.decode import decode_array, decode_image
from simmim_bench.data.loader import EpochLoader, eval_loader
from simmim_bench.data.normalise import normalise, normalise_like_torchvision
from simmim_bench.data.pretraining_images import any_images
from simmim_bench.data.sources import ImageSource

CPU = torch.device("cpu")


def main() -> None:
    """Parse the arguments, time the alternatives and report."""
    arguments = parse_arguments()
    torch.set_num_threads(1)
    size = (arguments.img_size, arguments.img_size)
    images = any_images(arguments.data)
    with ExitStack() as stack:
        if arguments.evaluation:
            what, count = "evaluation images", len(images)
            alternatives = evaluation(arguments.data, images, size, arguments.batch_size)
        else:
            packed = stack.enter_context(packed_images(images, arguments.packed))
            what = "images"
            count = len(images) // arguments.batch_size * arguments.batch_size
            alternatives = pretraining(
                arguments.data, images, packed, size, arguments.batch_size, count
            )
        timings = compare(alternatives, rounds=arguments.rounds)
    report(
        f"loading {count} {what}, {size[0]}x{size[1]}, one core",
        timings,
        arguments.json,
        **images_per_s(timings, count),
    )


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with train/CLASS/")
    parser.add_argument("--packed", type=Path, help="folder of `simmim-bench pack`, of --data")
    parser.add_argument("--evaluation", action="store_true", help="time evaluation, not training")
    parser.add_argument("--img-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    if arguments.rounds < 3:
        sys.exit(f"--rounds {arguments.rounds} is too few for quartiles; use 3 or more.")
    return arguments


def images_per_s(timings: list[Timing], count: int) -> dict[str, float]:
    """Return images per second of every alternative."""
    return {f"images_per_s_{t.name.replace(',', '')}": round(count / t.seconds, 1) for t in timings}


def pretraining(
    data: Path,
    images: ImageSource,
    packed: ImageSource,
    size: tuple[int, int],
    batch_size: int,
    count: int,
) -> dict[str, Callable[[], object]]:
    """Return the chains of pretraining, by name."""

    def epoch(loader: EpochLoader) -> None:
        read_all(loader.epoch(0))

    def normalised(loader: EpochLoader) -> None:
        for batch in loader.epoch(0):
            normalise(batch[0], IMAGENET_MEAN, IMAGENET_STD, CPU)

    def decode(function: Callable[[bytes, str], object]) -> None:
        for index in range(count):
            function(images.read(index), images.name(index))

    loader = partial(our_loader, size=size, batch_size=batch_size)
    return {
        "official transforms": partial(read_all, official_loader(data, size, batch_size)),
        "ours, up to uint8": partial(epoch, loader(images)),
        "ours, up to the model's input": partial(normalised, loader(images)),
        "ours, two crops per decoding": partial(epoch, loader(images, crops=2)),
        "ours, packed": partial(epoch, loader(packed)),
        "ours, packed, two crops per decoding": partial(epoch, loader(packed, crops=2)),
        "decoding only, by PIL": partial(decode, decode_image_by_pil),
        "decoding only, ours": partial(decode, decode_array),
    }


def evaluation(
    data: Path, images: ImageSource, size: tuple[int, int], batch_size: int
) -> dict[str, Callable[[], object]]:
    """Return the chains of the evaluation, by name."""

    def ours(**options: Any) -> None:
        transform = eval_transform(
            size, crop_ratio=224 / 256, mean=IMAGENET_MEAN, std=IMAGENET_STD, **options
        )
        dataset = ImageDataset(images, transform)
        for batch in eval_loader(dataset, batch_size=batch_size, num_workers=0):
            if options.get("as_bytes"):  # as a CPU does
                normalise_like_torchvision(batch[0], IMAGENET_MEAN, IMAGENET_STD)

    return {
        "official transforms": partial(read_all, official_evaluation(data, size, batch_size)),
        "ours": partial(ours, as_bytes=True),
        "ours, resizing=fast": partial(ours, as_bytes=True, resizing="fast"),
    }


def read_all(batches: Iterable[object]) -> None:
    """Read all batches."""
    for _ in batches:
        pass


def decode_image_by_pil(content: bytes, name: str) -> None:
    """Decode an image by PIL; an upright one takes no other path."""
    decode_image(content, name, upright=True)


if __name__ == "__main__":
    main()
