"""Estimate whether a machine's cores load images as fast as its GPUs train on them."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import simplejpeg
import torch

from simmim_bench.data.datasets import LoadImage

IMAGE = (375, 500)  # (H, W) in pixels, the most frequent size in ImageNet
# Squares of random colours along a side, the noise on them in levels of 255, and the quality with which a JPEG
# becomes as large as ImageNet's are on average, 110 kB (138 GiB / 1,281,167).
SQUARES, NOISE, QUALITY = 24, 10, 85
TRIAL_S = 0.5


def images_per_core(load: LoadImage) -> float:
    """Measure how many JPEGs of ImageNet's usual size one core loads per second.

    Args:
        load: decodes and augments a file's content, as a data-loading worker does.
    """
    content = synthetic_jpeg()
    with one_thread(), torch.random.fork_rng(devices=[]):
        load(content, "trial.jpg")
        count, started = 0, time.perf_counter()
        while (took := time.perf_counter() - started) < TRIAL_S:
            load(content, "trial.jpg")
            count += 1
    return count / took


def synthetic_jpeg() -> bytes:
    """Return a JPEG whose size in pixels and in bytes is typical of ImageNet."""
    generator = np.random.default_rng(0)
    colours = generator.integers(0, 256, (SQUARES, SQUARES, 3))
    rows, columns = (np.arange(side) * SQUARES // side for side in IMAGE)
    pixels = colours[rows][:, columns] + generator.normal(0, NOISE, (*IMAGE, 3))
    return bytes(simplejpeg.encode_jpeg(pixels.clip(0, 255).astype(np.uint8), quality=QUALITY))


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread, as a data-loading worker does."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def workers_needed(trained: float, loaded: float) -> int:
    """Return the number of data-loading workers that keep a GPU busy.

    Args:
        trained: images per second that the GPU trains on.
        loaded: images per second that one worker loads.
    """
    return math.ceil(trained / loaded)
