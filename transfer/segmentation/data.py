"""Load a segmentation data set through MMSegmentation: transforms, data set, loaders.

The transforms are MMSegmentation's, except those that read files, whose errors name the file and the remedy. Imports
MMSegmentation at the top: import this module after `run.require_mmseg` has passed.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform, RandomResize, TestTimeAug
from mmengine.dataset import pseudo_collate
from mmseg.datasets import ADE20KDataset, BaseSegDataset
from mmseg.datasets.transforms import (
    PackSegInputs,
    PhotoMetricDistortion,
    RandomCrop,
    RandomFlip,
    Resize,
)
from torch.utils.data import DataLoader, Dataset

from simmim_bench.data.pixel_format import RGB, PixelFormat
from simmim_bench.data.pixels import read_pixels
from simmim_bench.data.workers import WorkerLoader
from simmim_bench.distributed import DistContext, per_process_batch
from transfer.segmentation.ade20k_classes import ADE20K_CLASSES
from transfer.segmentation.ade20k_layout import SegmentationSplit
from transfer.segmentation.label_maps import LabelScheme, read_classes
from transfer.segmentation.recipes import Ade20kRecipe

UNLIMITED = 10**9  # pixels of a side that is not limited
RESIZED_AT_ONCE = 64  # channels; OpenCV has 128 at most (CV_CN_MAX of version 5)


class LoadImage(BaseTransform):
    """Read the image at `img_path` as (H, W, C), uint8 or float32.

    RGB images are read as BGR, as MMSegmentation's transforms expect; others keep the order of their channels.
    """

    def __init__(self, pixel_format: PixelFormat = RGB) -> None:
        self.pixel_format = pixel_format

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Add `img`, `img_shape` and `ori_shape`."""
        # Upright, as mmcv's `imfrombytes` reads images in colour.
        pixels = read_pixels(results["img_path"], self.pixel_format, upright=True).numpy()
        if self.pixel_format.is_rgb:
            pixels = pixels[::-1]
        results["img"] = np.ascontiguousarray(pixels.transpose(1, 2, 0))
        results["img_shape"] = results["ori_shape"] = pixels.shape[1:]
        return results


class LoadLabels(BaseTransform):
    """Read the label map at `seg_map_path` as classes."""

    def __init__(self, scheme: LabelScheme) -> None:
        self.scheme = scheme

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Add `gt_seg_map` (H, W)."""
        results["gt_seg_map"] = read_classes(
            results["seg_map_path"], self.scheme, results["img_path"], results["ori_shape"]
        )
        results["seg_fields"].append("gt_seg_map")
        return results


class ChannelResize(Resize):
    """MMSegmentation's resizing, of images with any number of channels."""

    def _resize_img(self, results: dict[str, Any]) -> None:
        """Resize `img`, in parts that OpenCV takes."""
        image = results["img"]
        parts = []
        for first in range(0, image.shape[2], RESIZED_AT_ONCE):
            part = image[..., first : first + RESIZED_AT_ONCE]
            results["img"] = np.ascontiguousarray(part)
            super()._resize_img(results)
            # OpenCV drops the axis of a single channel.
            parts.append(results["img"].reshape(*results["img_shape"], part.shape[2]))
        results["img"] = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2)


class CoverResize(BaseTransform):
    """Resize so that the image covers `img_size` (H, W), times a random factor of `scale_range`."""

    def __init__(self, img_size: tuple[int, int], scale_range: tuple[float, float]) -> None:
        self.img_size, self.scale_range = img_size, scale_range
        self.resize = ChannelResize(scale=(1, 1))

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Resize `img` and, if loaded, `gt_seg_map`."""
        height, width = results["img_shape"]
        factor = max(self.img_size[0] / height, self.img_size[1] / width)
        factor *= np.random.uniform(*self.scale_range)
        self.resize.scale = (max(1, round(width * factor)), max(1, round(height * factor)))
        resized: dict[str, Any] = self.resize(results)
        return resized


class PairDataset(BaseSegDataset):
    """A split as an MMSegmentation data set."""

    def __init__(
        self,
        split: SegmentationSplit,
        names: Sequence[str],
        pipeline: list[BaseTransform],
        *,
        reduce_zero_label: bool,
    ) -> None:
        self.split = split
        metainfo: dict[str, Any] = {"classes": tuple(names), "reduce_zero_label": reduce_zero_label}
        if tuple(names) == ADE20K_CLASSES:
            metainfo["palette"] = ADE20KDataset.METAINFO["palette"]
        super().__init__(
            metainfo=metainfo,
            data_prefix={},
            pipeline=pipeline,
            reduce_zero_label=reduce_zero_label,
        )

    def load_data_list(self) -> list[dict[str, Any]]:
        """Return the input of the transforms, one dict per image."""
        pairs = zip(self.split.images, self.split.masks, strict=True)
        return [
            {
                "img_path": image,
                "seg_map_path": mask,
                "reduce_zero_label": self.reduce_zero_label,
                "seg_fields": [],
            }
            for image, mask in pairs
        ]


class TrainingSamples(Dataset[dict[str, Any]]):
    """The endless shuffled training set: sample number n depends on (seed, n) alone.

    Neither the number of worker processes nor resuming changes the samples. mmengine's own loop would load
    all earlier batches again to resume at an iteration.
    """

    def __init__(self, dataset: PairDataset, seed: int) -> None:
        self.dataset, self.seed = dataset, seed
        self.metainfo = dataset.metainfo  # read by mmengine's loop
        self._epoch, self._order = -1, np.zeros(0, np.int64)

    def __getitem__(self, number: int) -> dict[str, Any]:
        epoch, offset = divmod(number, len(self.dataset))
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = np.random.default_rng([self.seed, 0, epoch]).permutation(
                len(self.dataset)
            )
        # The transforms sample from the global generators of numpy and of Python.
        state = int(np.random.SeedSequence([self.seed, 1, number]).generate_state(1)[0])
        np.random.seed(state)
        random.seed(state)
        item: dict[str, Any] = self.dataset[int(self._order[offset])]
        return item


def build_loaders(
    recipe: Ade20kRecipe,
    training: SegmentationSplit,
    validation: SegmentationSplit,
    names: Sequence[str],
    *,
    seed: int,
    first_iteration: int,
    dist: DistContext | None = None,
    pixel_format: PixelFormat = RGB,
) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Build the loaders of one process.

    Args:
        names: class names, the first class first.
        first_iteration: iterations that are already done.
        dist: the processes of the run, a single one by default. Each loads its slice of every training
            batch; process r of n loads validation images r, r + n, ...
        pixel_format: of the images, as the checkpoint takes them.

    Returns:
        The loader of the training batches from `first_iteration` to the recipe's last, and the loader of the
        validation images, one by one.
    """
    dist = dist or DistContext()
    images = per_process_batch(recipe.batch_size, dist.size)
    numbers = [
        iteration * recipe.batch_size + dist.rank * images + i
        for iteration in range(first_iteration, recipe.max_iters)
        for i in range(images)
    ]
    dataset = PairDataset(
        training,
        names,
        train_pipeline(recipe, len(names), pixel_format),
        reduce_zero_label=recipe.reduce_zero_label,
    )
    train_loader = WorkerLoader(
        TrainingSamples(dataset, seed),
        batch_size=images,
        sampler=numbers,
        num_workers=recipe.num_workers,
        collate_fn=pseudo_collate,
    )
    return train_loader, build_val_loader(recipe, validation, names, dist, pixel_format)


def build_val_loader(
    recipe: Ade20kRecipe,
    validation: SegmentationSplit,
    names: Sequence[str],
    dist: DistContext,
    pixel_format: PixelFormat = RGB,
) -> DataLoader[Any]:
    """Build the loader of one process's validation images, one by one; see `build_loaders`."""
    dataset = PairDataset(
        validation,
        names,
        eval_pipeline(recipe, len(names), pixel_format),
        reduce_zero_label=recipe.reduce_zero_label,
    )
    return WorkerLoader(
        dataset,
        batch_size=1,
        sampler=range(dist.rank, len(validation), dist.size),
        num_workers=recipe.num_workers,
        collate_fn=pseudo_collate,
    )


def train_pipeline(
    recipe: Ade20kRecipe, classes: int, pixel_format: PixelFormat = RGB
) -> list[BaseTransform]:
    """Return the training transforms: random scale, crop, flip and, if the recipe has it, colour."""
    colour = [PhotoMetricDistortion()] if recipe.photometric else []
    return [
        LoadImage(pixel_format),
        LoadLabels(LabelScheme(classes=classes, reduce_zero_label=recipe.reduce_zero_label)),
        _train_resize(recipe),
        RandomCrop(recipe.img_size, cat_max_ratio=0.75),
        RandomFlip(prob=0.5),
        *colour,
        PackSegInputs(),
    ]


def eval_pipeline(
    recipe: Ade20kRecipe, classes: int, pixel_format: PixelFormat = RGB
) -> list[BaseTransform]:
    """Return the test transforms, one view of the image or all views of test-time augmentation.

    The label map is loaded after resizing, because scores are computed at the original size.
    """
    ending = [
        LoadLabels(LabelScheme(classes=classes, reduce_zero_label=recipe.reduce_zero_label)),
        PackSegInputs(),
    ]
    sizes = [_test_resize(recipe, scale) for scale in recipe.test_scales]
    if recipe.views == 1:
        return [LoadImage(pixel_format), *sizes, *ending]
    flips = [RandomFlip(prob=float(flip)) for flip in range(1 + recipe.test_flip)]
    return [LoadImage(pixel_format), TestTimeAug([sizes, flips, *([step] for step in ending)])]


def _train_resize(recipe: Ade20kRecipe) -> BaseTransform:
    if not recipe.resize_within:
        return CoverResize(recipe.img_size, recipe.scale_range)
    return RandomResize(
        scale=recipe.resize_within,
        ratio_range=recipe.scale_range,
        resize_type=ChannelResize,
        keep_ratio=True,
    )


def _test_resize(recipe: Ade20kRecipe, scale: float) -> BaseTransform:
    """Return the resizing of a test image to a multiple of the test size.

    Of several views, MMSegmentation 0.x and BEiT's code multiply the limits of the sides (MultiScaleFlipAug), and
    MMSegmentation 1.x the original size (`tta_pipeline`). With a minimum of the short side, the long one is not
    limited (microsoft/unilm: beit/semantic_segmentation/mmcv_custom/resize_transform.py:174-185).
    """
    if recipe.views_of == "original":
        return ChannelResize(scale_factor=scale, keep_ratio=True)
    if not recipe.resize_within:
        return CoverResize(recipe.img_size, (scale, scale))
    long, short = (int(side * scale) for side in recipe.resize_within)
    if recipe.min_test_side:
        long, short = UNLIMITED, max(short, recipe.min_test_side)
    return ChannelResize(scale=(long, short), keep_ratio=True)
