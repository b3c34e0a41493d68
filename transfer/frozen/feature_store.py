"""Features of a frozen backbone, computed once and stored on disk for every task that needs them.

A feature array holds the pooled tokens of every image after every block, for one combination of weights, images
and preprocessing; its directory's name is a hash of that combination. The array is memory-mapped, not
read into memory: the features of ImageNet under a ViT-B are 48 GB.

Legend: N images, D channels.
"""

from __future__ import annotations

import functools
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from simmim_bench.backbones import load_backbone
from simmim_bench.checkpoints.checkpoint import Checkpoint
from simmim_bench.data.datasets import ImageDataset
from simmim_bench.data.loader import SeededDataset
from simmim_bench.data.sources import ImageSource
from simmim_bench.distributed import DistContext
from simmim_bench.errors import DataError
from simmim_bench.files import sha256_json
from simmim_bench.models.external import ExternalBackbone
from simmim_bench.models.vit import ViT
from simmim_bench.runs.run_dir import RunDir
from simmim_bench.training.kernels import fast_kernels, use_channels_last
from simmim_bench.training.precision import default_precision
from transfer.frozen import feature_file
from transfer.frozen.crops import centre_crop, random_crop_flip
from transfer.frozen.features import FeatureSet, RandomCrop, block_width, token_norm
from transfer.frozen.recipes import FrozenRecipe
from transfer.inference import forward_batches

MAX_FLOAT16 = torch.finfo(torch.float16).max
LAYOUT = 2  # version of the files; a new version changes the directory's name


class StoredFeatures:
    """A float16 array of N images' pooled tokens, (blocks, poolings, N, D), read by feature set.

    Args:
        array: the array, usually memory-mapped.
        identity: what the features were computed from; see `FeatureStore`.
        width: channels of a block's pooling; the array is padded with zeros after them.
    """

    def __init__(
        self, array: np.ndarray, identity: dict[str, Any], width: Callable[[int, str], int]
    ) -> None:
        self._array, self._width = array, width
        self._blocks, self._poolings = identity["blocks"], identity["poolings"]
        self.sha256 = sha256_json(identity)

    def __len__(self) -> int:
        return self._array.shape[2]

    def read(self, feature_set: FeatureSet, rows: Sequence[int] | None = None) -> Tensor:
        """Return a feature set's vectors (N, D), with several D of concatenated parts; float16.

        Args:
            rows: the images to read; None for all.
        """
        columns = []
        for block, pooling in feature_set.parts:
            plane = self._array[self._blocks.index(block), self._poolings.index(pooling)]
            columns.append(plane[:, : self._width(block, pooling)])
        return torch.from_numpy(
            np.concatenate([c if rows is None else c[list(rows)] for c in columns], axis=1)
        )


@dataclass
class FeatureStore:
    """A directory of stored features, and what is needed to compute missing ones.

    Attributes:
        folder: shared by all processes of the run.
        feature_sets: the feature sets that a forward pass must provide.
        seed: initialises weights that the checkpoint does not hold, and samples random crops.
        images_forwarded: images that went through the backbone; reused features do not count.
    """

    folder: Path
    checkpoint: Checkpoint
    recipe: FrozenRecipe
    feature_sets: tuple[FeatureSet, ...]
    seed: int
    run: RunDir
    dist: DistContext
    images_forwarded: int = 0

    def has(self, images: ImageSource) -> bool:
        """Return whether the features of the images' centre crops are stored."""
        return feature_file.is_complete(self._directory(self.identify(images, None)))

    def load_or_compute(
        self, images: ImageSource, crop: RandomCrop | None = None
    ) -> StoredFeatures:
        """Return the features of a list of images; compute and store missing ones.

        Every process of the run must call this method.

        Args:
            crop: the random crop to take; None for the centre crop.

        Raises:
            DataError: the stored features are damaged or of another run, or cannot be written.
        """
        identity = self.identify(images, crop)
        directory = self._directory(identity)
        if self.dist.all_max(not feature_file.is_complete(directory)):
            self._compute(directory, identity, images, crop)
            self.images_forwarded += len(images)
        else:
            self.run.log(f"features: reused images={len(images):,} directory={directory}")
            self._check_content(directory)
        width = functools.partial(block_width, self.checkpoint.spec)
        return StoredFeatures(feature_file.read_array(directory, identity), identity, width)

    def _check_content(self, directory: Path) -> None:
        """Compare stored features with their hashes, in all processes together.

        Raises:
            DataError: they differ.
        """
        intact = feature_file.is_intact(directory, self.dist.rank, self.dist.size)
        if self.dist.all_max(not intact):
            raise DataError(
                f"the features in {directory} are damaged (their content differs from its SHA-256); remove the "
                "directory to compute them again."
            )

    def discard(self, images: ImageSource, crop: RandomCrop) -> None:
        """Remove the features of a random crop that no later epoch uses."""
        self.dist.barrier()
        if self.dist.is_main:
            feature_file.remove(self._directory(self.identify(images, crop)))

    def identify(self, images: ImageSource, crop: RandomCrop | None) -> dict[str, Any]:
        """Return everything that determines the features of some images."""
        recipe = self.recipe
        poolings = {name for feature_set in self.feature_sets for name in feature_set.poolings}
        # "rounding" separates these features from those of versions that rounded the resized sides.
        cropping: dict[str, Any] = {"test_crop_ratio": recipe.test_crop_ratio, "rounding": "floor"}
        if crop is not None:
            cropping = {"number": crop.number, "scale": list(crop.scale), "hflip": crop.hflip}
            cropping["seed"] = self.seed
            if crop.rule != "torchvision":
                cropping["rule"] = crop.rule
        if recipe.resizing != "pil":
            cropping["resizing"] = recipe.resizing
        return {
            "layout": LAYOUT,
            "checkpoint": self.checkpoint.sha256,
            "seed": self.seed if self.checkpoint.is_random else None,
            "images": images.fingerprint(),
            "count": len(images),
            "img_size": list(recipe.img_size),
            "window_size": recipe.window_size,
            "crop": cropping,
            "mean": list(self.checkpoint.mean),
            "std": list(self.checkpoint.std),
            **self._identify_pixels(),
            "precision": default_precision(recipe.precision, self.dist.device, allow_fp16=True),
            "blocks": sorted(
                set().union(*(feature_set.blocks for feature_set in self.feature_sets))
            ),
            "poolings": [p for p in self.checkpoint.spec.poolings if p in poolings],
            **self._identify_padding(),
            **({} if recipe.token_norm == "none" else {"token_norm": recipe.token_norm}),
        }

    def _identify_pixels(self) -> dict[str, Any]:
        """Distinguish the features of images of 8 bits from those of other value ranges."""
        value_range = self.checkpoint.value_range
        return {} if value_range == "uint8" else {"value_range": value_range}

    def _identify_padding(self) -> dict[str, Any]:
        """Distinguish a padded Swin's features from those of versions that shifted a map before padding it."""
        recipe, spec = self.recipe, self.checkpoint.spec
        if spec.family not in ("swin", "swinv2"):
            return {}
        spec = spec.at(recipe.img_size, recipe.window_size)
        return {"padding": "before the shift"} if spec.pads_windows else {}

    def _directory(self, identity: dict[str, Any]) -> Path:
        return self.folder / sha256_json(identity)[:24]

    def _compute(
        self,
        directory: Path,
        identity: dict[str, Any],
        images: ImageSource,
        crop: RandomCrop | None,
    ) -> None:
        """Run the backbone over the images and store the features; rank 0 publishes the directory."""
        dist = self.dist
        # Another run may be writing the same features, so that the name is random; rank 0 samples it.
        suffix = dist.all_max(secrets.randbits(62) if dist.is_main else 0)
        temporary = directory.with_name(f".{directory.name}.{suffix:x}.tmp")
        try:
            if dist.is_main:
                self._warn_of_unfinished(directory)
                temporary.mkdir(parents=True)
            dist.barrier()
            self._forward_images(temporary, identity, images, crop)
            dist.barrier()
            if dist.is_main:
                feature_file.publish(temporary, directory, identity)
            dist.barrier()
        except OSError as error:
            raise DataError(
                f"cannot write features to {directory}: {error.strerror or error}; free disk space or choose "
                "another --features directory."
            ) from error
        finally:
            if dist.is_main:
                shutil.rmtree(temporary, ignore_errors=True)

    def _warn_of_unfinished(self, directory: Path) -> None:
        """Log temporary directories of the same features."""
        for other in directory.parent.glob(f".{directory.name}.*.tmp"):
            self.run.log(
                f"features: unfinished directory={other}; another run is writing it, or a killed run left it "
                "(remove it in that case)"
            )

    def _forward_images(
        self,
        temporary: Path,
        identity: dict[str, Any],
        images: ImageSource,
        crop: RandomCrop | None,
    ) -> None:
        """Make one pass over the images; each process writes the rows of its images."""
        shape = (
            len(identity["blocks"]),
            len(identity["poolings"]),
            len(images),
            self.checkpoint.spec.probed_width,
        )
        feature_file.check_free_space(temporary, shape)
        batches = self.forward(images, crop)
        self.dist.barrier()  # every process has measured the free space before rank 0 reserves it
        if self.dist.is_main:
            feature_file.create_array(temporary, shape)
        self.dist.barrier()
        feature_file.write_rows(temporary, batches)

    def forward(
        self, images: ImageSource, crop: RandomCrop | None
    ) -> Iterator[tuple[range, Tensor]]:
        """Make one pass over this process's part of the images; store nothing.

        Yields:
            A batch's row numbers and its features (B, blocks, poolings, D), float16, on the CPU. Blocks and poolings
            are those of `identify`.

        Raises:
            DataError: a feature is not a number.
        """
        recipe, identity = self.recipe, self.identify(images, crop)
        batches = forward_batches(
            self._load_forward(identity["blocks"], identity["poolings"], log_report=crop is None),
            self._dataset(images, crop),
            batch_size=recipe.forward_batch_size,
            num_workers=recipe.num_workers,
            precision=recipe.precision,
            run=self.run,
            dist=self.dist,
            description="features" if crop is None else f"features of crop {crop.number + 1}",
            dtype=torch.float16,
            statistics=(self.checkpoint.mean, self.checkpoint.std),
        )
        for numbers, rows in batches:
            if rows.isnan().any():
                row, block, *_ = rows.isnan().nonzero()[0].tolist()
                raise DataError(
                    f"the features of {images.name(numbers[row])} under {self.checkpoint.name} are not numbers (NaN) "
                    f"from block {identity['blocks'][block]} on at precision={identity['precision']}; use "
                    "-o precision=fp32, or a checkpoint without NaN."
                )
            yield numbers, rows

    def _load_forward(
        self, blocks: Sequence[int], poolings: Sequence[str], *, log_report: bool
    ) -> Callable[[Tensor], Tensor]:
        """Load the backbone; return a function from images to (B, blocks, poolings, D)."""
        recipe, spec = self.recipe, self.checkpoint.spec
        model = load_backbone(
            self.checkpoint, recipe.img_size, window_size=recipe.window_size, seed=self.seed
        )
        if log_report:
            self.run.log(str(model.load_report))
        model.to(self.dist.device).eval()
        use_channels_last(model, spec, self.dist.device)
        # On the device: to index by lists, the host would copy them for every batch.
        device = self.dist.device
        rows = torch.tensor([block - 1 for block in blocks], device=device)
        columns = torch.tensor([spec.poolings.index(name) for name in poolings], device=device)
        norm = token_norm(recipe, self.checkpoint)
        pool = model.forward_pooled
        if norm is not None:
            assert isinstance(model, ViT | ExternalBackbone)
            pool = functools.partial(model.forward_pooled, token_norm=norm.to(device))

        def forward(pixels: Tensor) -> Tensor:
            # For this pass alone: heads may be trained on one batch of features before the next one is computed.
            with fast_kernels(device, recipe.precision, benchmark=spec.is_convolutional):
                features = pool(pixels)[:, rows][:, :, columns]
            return features.float().clamp(-MAX_FLOAT16, MAX_FLOAT16)

        return forward

    def _dataset(self, images: ImageSource, crop: RandomCrop | None) -> Dataset[Any]:
        """Return the images, cropped, as decoded."""
        recipe, checkpoint = self.recipe, self.checkpoint
        if crop is None:
            return ImageDataset(images, centre_crop(recipe, checkpoint))
        random = random_crop_flip(
            recipe.img_size,
            checkpoint,
            rule=crop.rule,
            scale=crop.scale,
            hflip=crop.hflip,
            resizing=recipe.resizing,
        )
        return SeededDataset(ImageDataset(images, random), self.seed, crop.number)
