"""Time the loader of pretraining with worker processes, and the time that a training loop waits for it.

    python benchmarks/loader_workers.py --data imagenet

Workers share the cores of the machine, so that more of them than cores are no faster. Waiting is measured beside steps
of a given time, a pause that stands for the GPU's work: by default 128 images of ViT-B at the rate of the GPU check.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from functools import partial
from pathlib import Path
from statistics import median

import torch
from loading_chains import our_loader, packed_images
from timing import compare, report

from simmim_bench.data.loader import EpochLoader
from simmim_bench.data.pretraining_images import any_images
from simmim_bench.processors import usable_cores

SIZE = (224, 224)
IMAGES_PER_S = 1948.0  # ViT-B with SimMIM on an H200: docs/hardware.md, Time by recipe


def main() -> None:
    """Parse the arguments, time the alternatives and report."""
    arguments = parse_arguments()
    torch.set_num_threads(1)
    step_s = arguments.batch_size / arguments.images_per_s
    images = any_images(arguments.data)
    waited = defaultdict[str, list[float]](list)
    loaders = {}
    with packed_images(images, arguments.packed) as packed:
        for workers in arguments.workers:
            for name, source, crops in (("", images, 1), (", packed, two crops", packed, 2)):
                repeated = source.subset([i % len(source) for i in range(arguments.images)])
                loader = our_loader(repeated, SIZE, arguments.batch_size, crops, workers)
                loaders[f"{workers} workers{name}"] = loader

        def read(name: str) -> None:
            for _ in loaders[name].epoch(0):
                pass
            loaders[name].close()

        timings = compare({name: partial(read, name) for name in loaders}, rounds=arguments.rounds)
        for _ in range(arguments.rounds):
            for name in loaders:
                waited[name].append(waiting(loaders[name], step_s))
                loaders[name].close()
    count = len(next(iter(loaders.values()))) * arguments.batch_size
    facts: dict[str, object] = {"cores": usable_cores(), "step_s": round(step_s, 4)}
    for timing in timings:
        name = timing.name.replace(",", "")
        facts[f"images_per_s_{name}"] = round(count / timing.seconds, 1)
        facts[f"share_of_waiting_{name}"] = round(median(waited[timing.name]), 3)
    report(
        f"loading {count} images with worker processes, start included",
        timings,
        arguments.json,
        **facts,
    )


def waiting(loader: EpochLoader, step_s: float) -> float:
    """Return the fraction of an epoch's time, after the first batch, that a loop of steps waits for batches."""
    batches = loader.epoch(1)
    next(batches)  # the workers have started
    started, waited = time.perf_counter(), 0.0
    for _ in range(len(loader) - 1):
        time.sleep(step_s)
        before = time.perf_counter()
        next(batches)
        waited += time.perf_counter() - before
    return waited / (time.perf_counter() - started)


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="images of any layout")
    parser.add_argument("--packed", type=Path, help="folder of `simmim-bench pack`, of --data")
    parser.add_argument("--images", type=int, default=2048, help="images of an epoch")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--images-per-s", type=float, default=IMAGES_PER_S, help="of the GPU")
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 8, 16])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    if arguments.rounds < 3:
        sys.exit(f"--rounds {arguments.rounds} is too few for quartiles; use 3 or more.")
    return arguments


if __name__ == "__main__":
    main()
