"""Load the images of a segmentation data set as windows of one size, with their labels.

An image is resized to cover the window, its ratio kept, and cut into windows as MMSegmentation's sliding prediction
does (mmseg/models/segmentors/encoder_decoder.py, slide_inference). Of a training image, patches are sampled; of an
image to score, the labels of all pixels are kept.

Legend: n windows of (H, W) pixels, P patches of an image, q of them sampled, K classes.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import functional as TF

from simmim_bench.data.datasets import covering_size
from simmim_bench.data.decode import read_image
from simmim_bench.data.pixel_format import RGB, PixelFormat
from simmim_bench.data.pixel_transforms import resize_pixels
from simmim_bench.data.pixels import read_pixels
from transfer.dense.recipes import DenseRecipe, Sampling
from transfer.segmentation.ade20k_layout import SegmentationSplit
from transfer.segmentation.label_maps import IGNORED, LabelScheme, read_classes

Size = tuple[int, int]


@dataclass(frozen=True)
class Patches:
    """Sampled patches of one map of an image.

    Attributes:
        cells: (q,) indices of the patches among all cells of all windows, ascending.
        labels: (q, K) fraction of each class among a patch's labelled pixels; float16.
    """

    cells: Tensor
    labels: Tensor


@dataclass(frozen=True)
class WindowedImage:
    """An image, cut into windows.

    Attributes:
        index: of the image in its split.
        size: (H, W) of the upright image in pixels.
        resized: (H, W) of the resized image, which the windows cover.
        corners: top and left of every window in the resized image.
        windows: (n, C, H, W), uint8 or float32.
        classes: of every pixel, (H, W) uint8; None for a training image.
        patches: one sample per map; empty for an image to score.
    """

    index: int
    size: Size
    resized: Size
    corners: list[tuple[int, int]]
    windows: Tensor
    classes: np.ndarray | None
    patches: list[Patches]


class WindowDataset(Dataset[WindowedImage]):
    """The windows of a split's images.

    Args:
        strides: of every map whose patches are sampled, in pixels; () to keep the labels of all pixels.
        count: patches to sample of every map of an image.
        seed: of the sampling. A sample depends on the seed and on the image's path in the split, so that neither the
            order of the images nor the number of processes changes it.
        pixel_format: of the images, as the checkpoint takes them.
    """

    def __init__(
        self,
        split: SegmentationSplit,
        scheme: LabelScheme,
        recipe: DenseRecipe,
        *,
        strides: Sequence[int] = (),
        count: int = 0,
        seed: int = 0,
        pixel_format: PixelFormat = RGB,
    ) -> None:
        self.split, self.scheme, self.recipe = split, scheme, recipe
        self.pixel_format = pixel_format
        self.strides, self.count, self.seed = strides, count, seed

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> WindowedImage:
        path, recipe = self.split.images[index], self.recipe
        image = (
            read_image(path, upright=True)
            if self.pixel_format.is_rgb
            else read_pixels(path, self.pixel_format, upright=True)
        )
        size = _size_of(image)
        classes = read_classes(self.split.masks[index], self.scheme, path, size)
        pixels, corners, resized = cut_windows(image, recipe, self.pixel_format)
        if not self.strides:
            return WindowedImage(index, size, resized, corners, pixels, classes, [])
        labels = Image.fromarray(classes).resize(resized[::-1], Image.Resampling.NEAREST)
        windows = _cut(np.asarray(labels), corners, recipe.img_size)
        generator = image_generator(self.seed, path.relative_to(self.split.folder))
        patches = [
            sample_patches(
                windows,
                stride,
                self.count,
                classes=self.scheme.classes,
                sampling=recipe.sampling,
                generator=generator,
            )
            for stride in self.strides
        ]
        return WindowedImage(index, size, resized, corners, pixels, None, patches)


def _size_of(image: Image.Image | Tensor) -> Size:
    _, height, width = TF.get_dimensions(image)
    return height, width


def image_generator(seed: int, image: Path) -> np.random.Generator:
    """Return the random generator of an image, which depends on the seed and on the image's path in its split."""
    return np.random.default_rng([seed, zlib.crc32(image.as_posix().encode())])


def cut_windows(
    image: Image.Image | Tensor, recipe: DenseRecipe, pixel_format: PixelFormat = RGB
) -> tuple[Tensor, list[tuple[int, int]], Size]:
    """Resize an image to cover the recipe's window, and cut it.

    Args:
        image: RGB of 8 bits, or the pixels (C, H, W) of an image of another format.

    Returns:
        The windows (n, C, H, W), uint8 or float32, their corners, and (H, W) of the resized image.
    """
    size = covering_size(_size_of(image), recipe.img_size, 1.0)
    if isinstance(image, Tensor):
        resized = resize_pixels(image, size, pixel_format).permute(1, 2, 0).numpy()
    else:
        resized = np.asarray(TF.resize(image, list(size), TF.InterpolationMode.BICUBIC))
    rows, columns = (
        window_starts(side, window, stride)
        for side, window, stride in zip(size, recipe.img_size, recipe.stride, strict=True)
    )
    corners = [(top, left) for top in rows for left in columns]
    windows = _cut(resized, corners, recipe.img_size)
    return torch.from_numpy(windows).permute(0, 3, 1, 2), corners, size


def window_starts(side: int, window: int, stride: int) -> list[int]:
    """Return where windows start along a side that they cover; the last one ends at the side's end."""
    count = -(-(side - window) // stride) + 1
    return [min(number * stride, side - window) for number in range(count)]


def _cut(array: np.ndarray, corners: Sequence[tuple[int, int]], size: Size) -> np.ndarray:
    """Return the windows (n, H, W, ...) of an array."""
    height, width = size
    return np.stack([array[top : top + height, left : left + width] for top, left in corners])


def sample_patches(
    labels: np.ndarray,
    stride: int,
    count: int,
    *,
    classes: int,
    sampling: Sampling,
    generator: np.random.Generator,
) -> Patches:
    """Sample patches that have a labelled pixel.

    Balanced sampling is that of open-hummingbird-eval (hbird/hbird_eval.py, sample_features): of each of its classes, a
    patch has the number of the image's patches with that class; the patches with the smallest products of the sum of
    these numbers and a uniform random number are taken.

    Args:
        labels: (n, H, W) classes of the windows, `IGNORED` for none.
        stride: side of a patch in pixels; patches at the end of a side may be smaller.
        count: patches to sample, of fewer all.
        classes: number of classes.
    """
    windows, height, width = labels.shape
    padding = ((0, 0), (0, -height % stride), (0, -width % stride))
    padded = np.pad(labels, padding, constant_values=IGNORED)
    rows, columns = padded.shape[1] // stride, padded.shape[2] // stride
    pixels = padded.reshape(windows, rows, stride, columns, stride)
    pixels = pixels.transpose(0, 1, 3, 2, 4).reshape(-1, stride**2)
    scores = generator.random(len(pixels))
    if sampling == "balanced":
        present = np.zeros((len(pixels), IGNORED + 1), bool)
        present[np.arange(len(pixels))[:, None], pixels] = True
        scores *= present[:, :classes] @ present[:, :classes].sum(0)
    labelled = (pixels != IGNORED).any(1)
    scores[~labelled] = np.inf
    cells = np.sort(np.argsort(scores, kind="stable")[: min(count, int(labelled.sum()))])
    offsets = np.arange(len(cells))[:, None] * (IGNORED + 1)
    counts = np.bincount((offsets + pixels[cells]).ravel(), minlength=len(cells) * (IGNORED + 1))
    fractions = counts.reshape(len(cells), IGNORED + 1)[:, :classes].astype(np.float32)
    fractions /= fractions.sum(1, keepdims=True)
    return Patches(torch.from_numpy(cells), torch.from_numpy(fractions).half())
