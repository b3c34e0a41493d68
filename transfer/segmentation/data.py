"""A segmentation data set as MMSegmentation reads it: transforms, data set, loaders.

In: the splits of a data set, the recipe's sizes. Out: loaders of packed images with their label maps.
The transforms are MMSegmentation's, but for reading files, where ours know what to tell a user.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform, TestTimeAug
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

from simmim_bench.data.decode import read_image
from simmim_bench.distributed import DistContext, per_process_batch
from transfer.segmentation.ade20k_layout import SegmentationSplit, read_labels
from transfer.segmentation.recipes import Ade20kRecipe

IGNORED = 255  # MMSegmentation's label of pixels without a class
ADE20K_CLASSES: tuple[str, ...] = tuple(n.strip() for n in ADE20KDataset.METAINFO["classes"])


class LoadImage(BaseTransform):
    """Read the image at `img_path` as (H, W, 3), BGR, as MMSegmentation's transforms expect."""

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Add `img`, `img_shape` and `ori_shape`."""
        rgb = np.asarray(read_image(results["img_path"]))
        results["img"] = np.ascontiguousarray(rgb[..., ::-1])
        results["img_shape"] = results["ori_shape"] = rgb.shape[:2]
        return results


class LoadLabels(BaseTransform):
    """Read the label map at `seg_map_path`, label 1 becoming class 0 and label 0 ignored."""

    def __init__(self, classes: int) -> None:
        self.classes = classes

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Add `gt_seg_map` (H, W)."""
        labels = read_labels(results["seg_map_path"], self.classes, results["ori_shape"])
        results["gt_seg_map"] = labels - np.uint8(1)  # 0 wraps round to 255, which is ignored
        results["seg_fields"].append("gt_seg_map")
        return results


class CoverResize(BaseTransform):
    """Resize by a factor of `scale_range` of what makes the image cover `img_size` (H, W)."""

    def __init__(self, img_size: tuple[int, int], scale_range: tuple[float, float]) -> None:
        self.img_size, self.scale_range = img_size, scale_range
        self.resize = Resize(scale=(1, 1))

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Change `img` and `gt_seg_map`."""
        height, width = results["img_shape"]
        factor = max(self.img_size[0] / height, self.img_size[1] / width)
        factor *= np.random.uniform(*self.scale_range)
        self.resize.scale = (max(1, round(width * factor)), max(1, round(height * factor)))
        resized: dict[str, Any] = self.resize(results)
        return resized


class PairDataset(BaseSegDataset):
    """A split as MMSegmentation's data set."""

    def __init__(
        self, split: SegmentationSplit, names: Sequence[str], pipeline: list[BaseTransform]
    ) -> None:
        self.split = split
        metainfo: dict[str, Any] = {"classes": tuple(names)}
        if tuple(names) == ADE20K_CLASSES:
            metainfo["palette"] = ADE20KDataset.METAINFO["palette"]
        super().__init__(
            metainfo=metainfo, data_prefix={}, pipeline=pipeline, reduce_zero_label=True
        )

    def load_data_list(self) -> list[dict[str, Any]]:
        """Give what the transforms start from, a dict an image."""
        pairs = zip(self.split.images, self.split.masks, strict=True)
        return [
            {"img_path": image, "seg_map_path": mask, "reduce_zero_label": True, "seg_fields": []}
            for image, mask in pairs
        ]


class Draws(Dataset[dict[str, Any]]):
    """The endless shuffled training set: draw number n depends on (seed, n) alone.

    So neither the number of worker processes nor a resumption changes what is drawn. mmengine's own
    loop would fetch all earlier batches again to go on from the same place.
    """

    def __init__(self, dataset: PairDataset, seed: int) -> None:
        self.dataset, self.seed = dataset, seed
        self.metainfo = dataset.metainfo  # the loop asks for it
        self._epoch, self._order = -1, np.zeros(0, np.int64)

    def __getitem__(self, draw: int) -> dict[str, Any]:
        epoch, place = divmod(draw, len(self.dataset))
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = np.random.default_rng([self.seed, 0, epoch]).permutation(
                len(self.dataset)
            )
        # The transforms draw from the global generators of numpy and of Python.
        state = int(np.random.SeedSequence([self.seed, 1, draw]).generate_state(1)[0])
        np.random.seed(state)
        random.seed(state)
        item: dict[str, Any] = self.dataset[int(self._order[place])]
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
) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Give the loaders of the training batches still to come and of the validation images, one by one.

    Args:
        team: the processes that share each batch, and the images to predict: of `size`, process r has image
            r, r + size, ...; None for this one alone.
    """
    dist = dist or DistContext()
    augment: list[BaseTransform] = [
        LoadImage(),
        LoadLabels(len(names)),
        CoverResize(recipe.img_size, recipe.scale_range),
        RandomCrop(recipe.img_size, cat_max_ratio=0.75),
        RandomFlip(prob=0.5),
    ]
    if recipe.photometric:
        augment.append(PhotoMetricDistortion())
    # The truth is loaded after resizing: scores are of the original size.
    ending = [LoadLabels(len(names)), PackSegInputs()]
    scale = recipe.test_scales[0]
    plain = [LoadImage(), CoverResize(recipe.img_size, (scale, scale)), *ending]
    if recipe.views > 1:
        sizes = [CoverResize(recipe.img_size, (scale, scale)) for scale in recipe.test_scales]
        mirrored = [RandomFlip(prob=float(flip)) for flip in range(1 + recipe.test_flip)]
        plain = [LoadImage(), TestTimeAug([sizes, mirrored, *([step] for step in ending)])]
    share = per_process_batch(recipe.batch_size, dist.size)
    draws = [
        iteration * recipe.batch_size + dist.rank * share + i
        for iteration in range(first_iteration, recipe.max_iters)
        for i in range(share)
    ]
    common: dict[str, Any] = {"num_workers": recipe.num_workers, "collate_fn": pseudo_collate}
    train_loader: DataLoader[Any] = DataLoader(
        Draws(PairDataset(training, names, [*augment, PackSegInputs()]), seed),
        batch_size=share,
        sampler=draws,
        **common,
    )
    val_loader: DataLoader[Any] = DataLoader(
        PairDataset(validation, names, plain),
        batch_size=1,
        sampler=range(dist.rank, len(validation), dist.size),
        **common,
    )
    return train_loader, val_loader
