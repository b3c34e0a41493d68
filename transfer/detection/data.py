"""Load training and validation images of a `CocoSplit` through Detectron2's mappers and loaders.

Images are decoded as in all tasks (`simmim_bench.data.decode`) and turned upright by their EXIF orientation. Crowd
regions are not trained on.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from simmim_bench.data.pixel_format import RGB, PixelFormat
from simmim_bench.data.pixels import read_pixels
from simmim_bench.data.workers import start_workers
from simmim_bench.distributed import DistContext, per_process_batch
from simmim_bench.errors import DataError
from transfer.detection.coco_images import check_decoded_size
from transfer.detection.coco_layout import CocoSplit
from transfer.detection.recipes import CocoRecipe, MaskFormat

if TYPE_CHECKING:
    from detectron2.data import DatasetMapper
    from detectron2.data.transforms import Augmentation, AugmentationList


class TrainingStream(Dataset[dict[str, Any]]):
    """The endless, shuffled, augmented stream of training images, indexed by position.

    The image at a position depends on the seed alone, so that a resumed run, with any number of workers,
    gets the same images. Detectron2's `TrainingSampler` can only start at the beginning.
    """

    def __init__(self, dicts: list[dict[str, Any]], mapper: Any, seed: int) -> None:
        from detectron2.data import DatasetFromList

        self.dicts = DatasetFromList(dicts)
        self.mapper, self.seed = mapper, seed

    def __getitem__(self, position: int) -> dict[str, Any]:
        """Return the mapped image at a position, counted from 0 over all epochs."""
        epoch, offset = divmod(position, len(self.dicts))
        # Detectron2's augmentations sample from numpy's global generator.
        before = np.random.get_state()
        np.random.seed(np.random.SeedSequence((self.seed, position)).generate_state(1))
        try:
            mapped: dict[str, Any] = self.mapper(
                self.dicts[int(epoch_order(len(self.dicts), self.seed, epoch)[offset])]
            )
        finally:
            np.random.set_state(before)
        return mapped


@lru_cache(maxsize=2)
def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """Return the order of an epoch's images, a permutation (count,)."""
    return np.random.default_rng((seed, epoch)).permutation(count)


class PositionSampler(Sampler[int]):
    """Yields the stream positions of one process, from an iteration to the recipe's last."""

    def __init__(self, first_iter: int, recipe: CocoRecipe, dist: DistContext) -> None:
        images = per_process_batch(recipe.batch_size, dist.size)
        self.positions = [
            range(start := i * recipe.batch_size + dist.rank * images, start + images)
            for i in range(first_iter, recipe.max_iters)
        ]

    def __iter__(self) -> Iterator[int]:
        return chain.from_iterable(self.positions)

    def __len__(self) -> int:
        return sum(map(len, self.positions))


class CheckedMapper:
    """A Detectron2 mapper that reads images as all tasks do, and whose errors name the image file.

    Args:
        pixel_format: of the images, as the checkpoint takes them.
    """

    def __init__(self, mapper: DatasetMapper, pixel_format: PixelFormat = RGB) -> None:
        self.mapper, self.pixel_format = mapper, pixel_format

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Map one dataset dict.

        Raises:
            DataError: the image cannot be decoded, or its size differs from the annotations'.
        """
        path = Path(dataset_dict["file_name"])
        pixels = read_pixels(path, self.pixel_format, upright=True).numpy()
        image = np.ascontiguousarray(pixels.transpose(1, 2, 0))
        check_decoded_size(dataset_dict, Path(), (image.shape[0], image.shape[1]))
        try:
            return self._map(copy.deepcopy(dataset_dict), image)
        except ValueError as error:
            raise DataError(
                f"image {path}, or an annotation of it, cannot be read: {error}; replace it or remove its entry."
            ) from error

    def _map(self, mapped: dict[str, Any], image: np.ndarray) -> dict[str, Any]:
        """Do what Detectron2's `DatasetMapper` does after reading the image (H, W, C)."""
        from detectron2.data.transforms import AugInput

        from transfer.detection.channels import ChannelInput

        rgb = self.pixel_format.is_rgb
        augmented = AugInput(image) if rgb else ChannelInput(image, self.pixel_format)
        transforms = self.mapper.augmentations(augmented)
        channels_first = np.ascontiguousarray(augmented.image.transpose(2, 0, 1))
        mapped["image"] = torch.as_tensor(channels_first)
        if self.mapper.is_train:
            self.mapper._transform_annotations(mapped, transforms, augmented.image.shape[:2])
        else:
            mapped.pop("annotations", None)
        return mapped


class ErrorUnwrappingLoader:
    """A loader that raises the DataError of a worker with its original one-line message.

    A DataLoader puts the worker's traceback into the message of the exception that it raises.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        try:
            yield from start_workers(self.loader)
        except DataError as error:
            message = str(error).strip().splitlines()[-1]
            raise DataError(message.removeprefix(f"{DataError.__module__}.DataError: ")) from error


def training_stream(
    split: CocoSplit, recipe: CocoRecipe, seed: int, pixel_format: PixelFormat = RGB
) -> TrainingStream:
    """Build the stream of training images, augmented as the recipe says.

    Images without objects, or with crowds only, are left out, as in Detectron2.
    """
    from detectron2.data.build import filter_images_with_only_crowd_annotations

    dicts = filter_images_with_only_crowd_annotations(split.dataset_dicts())
    mapper = CheckedMapper(training_mapper(split, recipe), pixel_format)
    return TrainingStream(dicts, mapper, seed)


def training_mapper(split: CocoSplit, recipe: CocoRecipe) -> DatasetMapper:
    """Build the mapper from a dataset dict to an augmented training image with its objects."""
    from detectron2.data import DatasetMapper

    return DatasetMapper(
        is_train=True,
        augmentations=training_augmentations(recipe).augs,
        image_format="RGB",
        use_instance_mask=split.has_masks,
        instance_mask_format=mask_format(split, recipe),
        # After a crop, the boxes of cut objects are too large.
        recompute_boxes=recipe.recompute_boxes and split.has_masks,
    )


def mask_format(split: CocoSplit, recipe: CocoRecipe) -> MaskFormat:
    """Return the form of the training masks: the recipe's, or bit masks if an object has no outline."""
    return "bitmask" if split.has_run_lengths else recipe.mask_format


def training_augmentations(recipe: CocoRecipe) -> AugmentationList:
    """Build the augmentations of training images, which sample from numpy's global generator."""
    from detectron2.data import transforms as T

    augmentations: list[Augmentation] = [T.RandomFlip(horizontal=True)]
    if not recipe.short_sides:
        augmentations.append(T.ResizeScale(*recipe.scale_range, *recipe.img_size))
        augmentations.append(T.FixedSizeCrop(recipe.img_size, pad=False))
        return T.AugmentationList(augmentations)
    if recipe.crop_short_sides:
        smaller = T.ResizeShortestEdge(recipe.crop_short_sides, recipe.max_side, "choice")
        crop = T.RandomCrop("absolute_range", recipe.crop_sides)
        augmentations.append(T.RandomApply(T.AugmentationList([smaller, crop]), 0.5))
    augmentations.append(T.ResizeShortestEdge(recipe.short_sides, recipe.max_side, "choice"))
    return T.AugmentationList(augmentations)


def train_loader(
    stream: TrainingStream, recipe: CocoRecipe, first_iter: int = 0, dist: DistContext | None = None
) -> ErrorUnwrappingLoader:
    """Build the loader of one process's batches, from an iteration to the recipe's last."""
    from detectron2.data import build_batch_data_loader

    loader = build_batch_data_loader(
        stream,
        PositionSampler(first_iter, recipe, dist or DistContext()),
        recipe.batch_size,  # of all processes; Detectron2 divides it
        num_workers=recipe.num_workers,
        seed=stream.seed,  # otherwise the loader advances the generator that the model samples with
    )
    return ErrorUnwrappingLoader(loader)


def val_loader(
    split: CocoSplit, recipe: CocoRecipe, pixel_format: PixelFormat = RGB
) -> ErrorUnwrappingLoader:
    """Build the loader of one process's validation images; all images are read once, in the order of their ids."""
    from detectron2.data import build_detection_test_loader

    # Batches that are padded to the same square do not change the result, which other batches do. Protocols with
    # a test size predict one image at a time.
    alone = recipe.test_size is not None or not recipe.square_pad
    loader = build_detection_test_loader(
        split.dataset_dicts(),
        mapper=CheckedMapper(val_mapper(recipe), pixel_format),
        batch_size=1 if alone else min(recipe.batch_size, 8),
        num_workers=recipe.num_workers,
    )
    return ErrorUnwrappingLoader(loader)


def val_mapper(recipe: CocoRecipe) -> DatasetMapper:
    """Build the mapper from a dataset dict to a resized test image."""
    from detectron2.data import DatasetMapper
    from detectron2.data import transforms as T

    resize = (
        T.ResizeScale(1.0, 1.0, *recipe.img_size)
        if recipe.test_size is None
        else T.ResizeShortestEdge(*recipe.test_size)
    )
    return DatasetMapper(is_train=False, augmentations=[resize], image_format="RGB")
