"""Figures of frozen features: principal components of the patch features, and the attention of a probe's queries.

They are those of `simmim-bench visualize --what pca` and `--what attention`.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from simmim_bench.backbones import load_backbone, open_checkpoint
from simmim_bench.checkpoints.checkpoint import Checkpoint
from simmim_bench.checkpoints.load import check_statistics_fit
from simmim_bench.checkpoints.read import checkpoint_path
from simmim_bench.data.figures import (
    Channels,
    denormalise,
    evenly_spaced,
    load_uncropped,
    renderer,
    shown_channels,
    write_grid,
)
from simmim_bench.data.pretraining_images import any_images
from simmim_bench.data.sources import ImageSource
from simmim_bench.errors import UsageError
from simmim_bench.models.spec import MapOptions
from simmim_bench.results.record import read_record
from transfer.attentive.classifier import KIND as ATTENTIVE
from transfer.attentive.classifier import build_classifier
from transfer.fitted import read_backbone, read_fitted

COMPONENTS = 3  # one per colour, as in DINOv2, arXiv 2304.07193, figure 1
QUERIES = 4  # ours: queries of a probe that have a tile each
DARKEST = 0.15  # ours: brightness of what gets no attention
OUTLIERS = (
    0.01  # ours: fraction of the patches at either end of a component that share the end's colour
)


@torch.no_grad()
def visualize_pca(
    ckpt: str,
    data: Path,
    out: Path,
    *,
    count: int,
    img_size: int | None,
    block: int,
    channels: Channels | None = None,
) -> None:
    """Write images of a folder next to the first three principal components of their patch features, as colours.

    The components are those of all patches of all images together: equal colours are similar features.

    Args:
        out: PNG file.
        count: number of images, evenly spaced in the folder.
        img_size: side of the images in pixels; None for the checkpoint's.
        block: the block of a ViT, or the stage of another backbone, counted from 1; -1 for the last.
        channels: those that are shown; see `figures.renderer`.

    Raises:
        UsageError: channels that the images do not have, a block that the backbone does not have, or an image size
            that does not fit.
        DataError: a checkpoint or an image that cannot be used.
    """
    checkpoint = open_checkpoint(ckpt)
    spec = checkpoint.spec
    check_statistics_fit(checkpoint)
    shown_channels(channels, checkpoint.pixel_format)
    number = _block_number(checkpoint, block)
    size = spec.img_size if img_size is None else (img_size, img_size)
    is_plain = spec.is_plain
    maps = MapOptions(blocks=(number,)) if is_plain else None
    model = load_backbone(checkpoint, size, maps=maps).eval()
    level = 0 if is_plain else number - 1
    images = evenly_spaced(any_images(data), count)
    pixels = _load(checkpoint, images, size)
    features = torch.cat([model.forward_maps(image)[level] for image in pixels.split(1)])
    colours = F.interpolate(principal_components(features), size=size)
    write_grid(torch.stack([_render(checkpoint, pixels, channels), colours], 1), out)


@torch.no_grad()
def visualize_attention(
    run: str, data: Path, out: Path, *, count: int, channels: Channels | None = None
) -> None:
    """Write images of a folder next to the attention of a fitted attentive probe.

    The first tile after an image is the mean attention of all queries, the others are those of the first queries. The
    brightness of a pixel is the attention to its token, relative to the highest attention of the tile.

    Args:
        run: a run directory of `transfer attentive`.
        out: PNG file.
        count: number of images, evenly spaced in the folder.
        channels: those that are shown; see `figures.renderer`.

    Raises:
        UsageError: the run is of another task, or the images do not have the channels.
        DataError: the run keeps no classifier, its backbone has changed, or an image cannot be used.
    """
    folder = checkpoint_path(run)
    fitted = read_fitted(folder)
    if fitted.kind != ATTENTIVE:
        raise UsageError(
            f"{run} keeps a {fitted.kind} classifier, which pools without attention; use a run of "
            "`simmim-bench transfer attentive`."
        )
    checkpoint = read_backbone(folder, read_record(folder / "record.json"))
    shown_channels(channels, checkpoint.pixel_format)
    classifier = build_classifier(fitted, checkpoint)
    images = evenly_spaced(any_images(data), count)
    size = tuple(fitted.settings["img_size"])
    pixels = _load(checkpoint, images, size)
    weights = torch.cat([classifier.attention(image) for image in pixels.split(1)])
    shown = torch.cat([weights.mean(1, keepdim=True), weights[:, :QUERIES]], 1)
    brightness = F.interpolate(shown / shown.amax((2, 3), keepdim=True), size=size, mode="bilinear")
    original = _render(checkpoint, pixels, channels)
    dimmed = original[:, None] * (DARKEST + (1 - DARKEST) * brightness[:, :, None])
    write_grid(torch.cat([original[:, None], dimmed], 1), out)


def _load(checkpoint: Checkpoint, images: ImageSource, size: tuple[int, int]) -> Tensor:
    """Load images as a checkpoint takes them, uncropped."""
    return load_uncropped(
        images,
        size,
        mean=checkpoint.mean,
        std=checkpoint.std,
        pixel_format=checkpoint.pixel_format,
    )


def _render(checkpoint: Checkpoint, pixels: Tensor, channels: Channels | None) -> Tensor:
    """Render normalised images as RGB."""
    original = denormalise(pixels, mean=checkpoint.mean, std=checkpoint.std)
    return renderer(original, checkpoint.pixel_format, channels)(original)


def _block_number(checkpoint: Checkpoint, block: int) -> int:
    """Return the number of a block from 1; -1 is the last."""
    count = checkpoint.spec.probed_blocks
    if not 1 <= abs(block) <= count:
        raise UsageError(
            f"{checkpoint.spec.arch} has no block {block}; choose from 1 to {count}, or -1 for the last."
        )
    return block % (count + 1)


def principal_components(features: Tensor) -> Tensor:
    """Project patch features (B, D, h, w) on their first principal components, (B, 3, h, w) in [0, 1].

    All images share one basis and one scale for each component; the sign is such that the component's largest weight
    is positive.
    """
    vectors = features.permute(0, 2, 3, 1).flatten(0, 2).double()
    centred = vectors - vectors.mean(0)
    _, basis = torch.linalg.eigh(centred.T @ centred)  # in ascending order
    basis = basis[:, -COMPONENTS:].flip(1)
    largest = basis.gather(0, basis.abs().argmax(0, keepdim=True))
    projected = centred @ (basis * largest.sign())
    ends = torch.tensor([OUTLIERS, 1 - OUTLIERS], dtype=projected.dtype)
    low, high = projected.quantile(ends, dim=0)
    scaled = ((projected - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)
    batch, _, height, width = features.shape
    return scaled.float().view(batch, height, width, -1).permute(0, 3, 1, 2)
