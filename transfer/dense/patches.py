"""Compute patch features of a frozen backbone, and sample those of the training images.

Legend: n windows of an image, N sampled patches, D channels, K classes, (h, w) cells of a map.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Subset

from simmim_bench.backbones import load_backbone
from simmim_bench.checkpoints.checkpoint import Checkpoint
from simmim_bench.data.normalise import normalise_like_torchvision
from simmim_bench.data.workers import WorkerLoader
from simmim_bench.errors import DataError
from simmim_bench.models.spec import BackboneSpec, MapOptions
from simmim_bench.runs.context import RunContext
from simmim_bench.training.kernels import fast_kernels, use_channels_last
from simmim_bench.training.precision import autocast
from transfer.dense.recipes import DenseRecipe
from transfer.dense.windows import WindowDataset, WindowedImage
from transfer.frozen.features import block_numbers
from transfer.inference import own_part

MAX_FLOAT16 = torch.finfo(torch.float16).max


@dataclass(frozen=True)
class Level:
    """A map of the backbone.

    Attributes:
        block: the block of a ViT, or the stage of another family, counted from 1.
        index: of the map among those of `forward_maps`.
        stride: side of a cell in pixels.
        channels: D.
    """

    block: int
    index: int
    stride: int
    channels: int


def map_options(recipe: DenseRecipe, spec: BackboneSpec) -> MapOptions:
    """Return how the backbone makes its maps: of the recipe's blocks, with simmim-bench's plain norm."""
    if not spec.is_plain or recipe.blocks is None:
        return MapOptions()
    return MapOptions(blocks=tuple(sorted(block_numbers(recipe.blocks, spec))))


def probed_levels(recipe: DenseRecipe, spec: BackboneSpec) -> list[Level]:
    """Return the maps of a recipe, from the first to the last block.

    Raises:
        UsageError: the backbone does not have a block of the recipe.
    """
    spec = spec.with_maps(map_options(recipe, spec), trained=spec)
    blocks = spec.level_blocks
    wanted = blocks if recipe.blocks is None else block_numbers(recipe.blocks, spec)
    # The quarters of fewer than four blocks name a block twice, which is listed once.
    index_of = {block: index for index, block in enumerate(blocks)}
    return [
        Level(block, index, spec.feature_levels[index].stride, spec.feature_levels[index].channels)
        for block, index in index_of.items()
        if block in wanted
    ]


class PatchReader:
    """Forwards the windows of images through a frozen backbone.

    Args:
        levels: the maps to return.
    """

    def __init__(
        self,
        context: RunContext,
        checkpoint: Checkpoint,
        recipe: DenseRecipe,
        levels: Sequence[Level],
    ) -> None:
        self.context, self.checkpoint, self.recipe = context, checkpoint, recipe
        self.levels = list(levels)
        device = context.dist.device
        self._model = load_backbone(
            checkpoint,
            recipe.img_size,
            window_size=recipe.window_size,
            seed=context.seed,
            maps=map_options(recipe, checkpoint.spec),
        )
        context.run.log(str(self._model.load_report))
        self._model.to(device).eval()
        use_channels_last(self._model, checkpoint.spec, device)

    def read(
        self,
        dataset: WindowDataset,
        indices: Sequence[int],
        description: str,
        levels: Sequence[Level] | None = None,
    ) -> Iterator[tuple[WindowedImage, list[Tensor]]]:
        """Yield images, in order, and their maps (n, h, w, D), float16 on the device, one per level.

        Args:
            indices: of the images.
            description: of the pass, for its progress bar.
            levels: the maps to return; None for all.

        Raises:
            DataError: an image or label map cannot be used, or a feature is not a number.
        """
        levels, size = self.levels if levels is None else levels, self.recipe.forward_batch_size
        loader = WorkerLoader(
            Subset(dataset, indices),
            batch_size=size,
            num_workers=self.recipe.num_workers,
            collate_fn=list,
        )
        with self.context.display.task(description, len(indices)) as task:
            for images in loader:
                windows = torch.cat([image.windows for image in images])
                parts = [self._forward(part, levels) for part in windows.split(size)]
                maps = [torch.cat(of_level) for of_level in zip(*parts, strict=True)]
                counts = [len(image.windows) for image in images]
                by_image = list(zip(*(level.split(counts) for level in maps), strict=True))
                if any(bool(level.isnan().any()) for level in maps):
                    self._refuse_nan(dataset, images, by_image)
                for image, own in zip(images, by_image, strict=True):
                    yield image, list(own)
                    task.advance()

    @torch.no_grad()
    def _forward(self, windows: Tensor, levels: Sequence[Level]) -> list[Tensor]:
        """Map windows (n, C, H, W), uint8 or float32, to maps (n, h, w, D)."""
        recipe, device = self.recipe, self.context.dist.device
        pixels = windows.to(device, non_blocking=True)
        pixels = normalise_like_torchvision(pixels, self.checkpoint.mean, self.checkpoint.std)
        convolutional = self.checkpoint.spec.is_convolutional
        with (
            autocast(device, recipe.precision, allow_fp16=True),
            fast_kernels(device, recipe.precision, benchmark=convolutional),
        ):
            maps = self._model.forward_maps(pixels)
        found = [maps[level.index].permute(0, 2, 3, 1) for level in levels]
        return [x.float().clamp(-MAX_FLOAT16, MAX_FLOAT16).half() for x in found]

    def _refuse_nan(
        self,
        dataset: WindowDataset,
        images: Sequence[WindowedImage],
        by_image: Sequence[tuple[Tensor, ...]],
    ) -> None:
        for image, own in zip(images, by_image, strict=True):
            if any(bool(level.isnan().any()) for level in own):
                raise DataError(
                    f"the features of {dataset.split.images[image.index]} under {self.checkpoint.name} are not "
                    "numbers (NaN); use -o precision=fp32, or a checkpoint without NaN."
                )


@dataclass(frozen=True)
class PatchSample:
    """Sampled training patches of one map.

    Attributes:
        features: (N, D) float16.
        labels: (N, K) fraction of each class among a patch's labelled pixels, float16.
        images: (N,) index of each patch's image in its split.
    """

    features: Tensor
    labels: Tensor
    images: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def without(self, images: Sequence[int]) -> PatchSample:
        """Return the patches of all other images."""
        kept = ~torch.isin(self.images, torch.tensor(list(images)))
        return PatchSample(self.features[kept], self.labels[kept], self.images[kept])


def patches_per_image(recipe: DenseRecipe, images: int) -> int:
    """Return the number of patches to sample of a map of every training image."""
    return max(1, recipe.patches // images)


def sample_training_patches(reader: PatchReader, dataset: WindowDataset) -> list[PatchSample]:
    """Forward the training images, which the processes divide, and return one sample per level on every process.

    Args:
        dataset: samples the patches; its strides are those of the reader's levels.
    """
    dist = reader.context.dist
    parts: list[list[PatchSample]] = [[] for _ in reader.levels]
    for image, maps in reader.read(dataset, own_part(len(dataset), dist), "training patches"):
        for cells, patches, into in zip(maps, image.patches, parts, strict=True):
            features = cells.flatten(0, 2)[patches.cells.to(cells.device)].cpu()
            number = torch.full((len(features),), image.index)
            into.append(PatchSample(features, patches.labels, number))
    samples = []
    for own, described in zip(parts, reader.levels, strict=True):
        classes = dataset.scheme.classes
        empty = PatchSample(
            torch.zeros(0, described.channels).half(),
            torch.zeros(0, classes).half(),
            torch.zeros(0, dtype=torch.int64),
        )
        samples.append(_join(dist.gather_everywhere(_join([empty, *own]))))
    return samples


def _join(samples: Sequence[PatchSample]) -> PatchSample:
    columns = zip(*((s.features, s.labels, s.images) for s in samples), strict=True)
    return PatchSample(*map(torch.cat, map(list, columns)))
