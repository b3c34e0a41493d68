"""Reconstruction grids: original, masked image, and the reconstruction of the hidden part, as in the paper's figures.

`visualize_folder` does the work of `simmim-bench visualize`; pretraining uses `save_reconstruction_grid`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from pretrain.masking.masks import (
    box_mask,
    centre_mask,
    check_mask_sizes,
    masking_unit,
    sample_masks,
    upsample_mask,
)
from pretrain.recipes import Masking
from pretrain.simmim import SimMIM, load_simmim
from simmim_bench.backbones import open_checkpoint
from simmim_bench.checkpoints.load import check_statistics_fit
from simmim_bench.data.datasets import covering_size
from simmim_bench.data.figures import (
    Channels,
    denormalise,
    evenly_spaced,
    load_uncropped,
    renderer,
    shown_channels,
    write_grid,
)
from simmim_bench.data.pixel_format import RGB, PixelFormat
from simmim_bench.data.pretraining_images import any_images
from simmim_bench.data.sources import ImageSource
from simmim_bench.errors import DataError, UsageError
from simmim_bench.untrusted.json_text import MAX_BYTES_OF_DATA, read_json

VisualizedMasking = Masking | Literal["centre", "boxes"]

GREY = 0.5
MAX_BOX_AREA = 0.7  # ours: largest fraction of the image that an object's box may hide


@torch.no_grad()
def reconstruction_tiles(
    model: SimMIM,
    images: Tensor,
    mask: Tensor,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    pixel_format: PixelFormat = RGB,
    channels: Channels | None = None,
) -> Tensor:
    """Render normalised images (B, C, H, W) as three tiles each, (B, 3, 3, H, W), pixels in about [0, 1]."""
    model.eval()
    output = model(images, mask)
    size = (images.shape[2], images.shape[3])
    hidden = upsample_mask(mask, size).unsqueeze(1)
    reconstruction = model.reconstruction_target.denormalise(output.reconstruction, images)
    original = denormalise(images, mean=mean, std=std)
    render = renderer(original, pixel_format, channels)
    predicted = render(denormalise(reconstruction, mean=mean, std=std))
    original = render(original)
    pasted = original * (1 - hidden) + predicted * hidden
    return torch.stack([original, original * (1 - hidden) + GREY * hidden, pasted], dim=1)


def save_reconstruction_grid(
    model: SimMIM,
    images: Tensor,
    mask: Tensor,
    out: Path | None,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    pixel_format: PixelFormat = RGB,
    channels: Channels | None = None,
) -> None:
    """Write normalised images (B, C, H, W) under masks (B, h, w) as a reconstruction grid.

    Args:
        out: PNG file; None runs the model only.
        pixel_format, channels: see `figures.renderer`.
    """
    device = next(model.parameters()).device
    tiles = reconstruction_tiles(
        model,
        images.to(device),
        mask.to(device),
        mean=mean,
        std=std,
        pixel_format=pixel_format,
        channels=channels,
    )
    if out is not None:
        write_grid(tiles, out)


def visualize_folder(
    ckpt: str,
    data: Path,
    out: Path,
    *,
    count: int,
    masking: VisualizedMasking,
    annotations: Path | None,
    mask_patch_size: int | None,
    mask_ratio: float,
    seed: int,
    channels: Channels | None = None,
) -> None:
    """Write the reconstruction grid of images of a folder by a pretraining checkpoint.

    Args:
        out: PNG file.
        count: number of images, evenly spaced in the folder.
        masking: a masking strategy of pretraining, a "centre" square, or "boxes", each image's largest object.
        annotations: JSON file of COCO instances with the images' boxes; for "boxes" only.
        mask_patch_size: masking unit in pixels; None for the model's stride.
        channels: those that are shown; see `figures.renderer`.

    Raises:
        UsageError: channels that the images do not have, a mask_patch_size that does not fit, boxes without
            annotations, or a checkpoint whose target cannot be visualised.
        DataError: a checkpoint, an image or annotations that cannot be used.
    """
    if (masking == "boxes") != (annotations is not None):
        raise UsageError(
            "--mask boxes and --annotations go together: the annotations contain the boxes."
        )
    checkpoint = open_checkpoint(ckpt)
    model = load_simmim(checkpoint)
    if not model.reconstruction_target.can_visualize:
        raise UsageError(
            f"{ckpt} predicts {model.target.describe()}, which cannot be visualised; pretrain with "
            "-o pixel_weight=... to predict pixels as well."
        )
    size, patch = model.spec.img_size, model.spec.patch_size
    unit = masking_unit(masking, mask_patch_size or model.spec.stride)
    check_mask_sizes(size, unit, patch)
    check_statistics_fit(checkpoint)
    shown_channels(channels, checkpoint.pixel_format)
    load = partial(
        load_uncropped,
        img_size=size,
        mean=checkpoint.mean,
        std=checkpoint.std,
        pixel_format=checkpoint.pixel_format,
    )
    images = any_images(data)
    if annotations is not None:
        boxes = largest_boxes(annotations, size)
        images = evenly_spaced(_annotated(images, boxes, data, annotations), count)
        pixels = load(images)
        names = [Path(images.name(i)).name for i in range(len(images))]
        mask = torch.stack(
            [box_mask(boxes[n], size, mask_patch_size=unit, patch_size=patch) for n in names]
        )
    else:
        images = evenly_spaced(images, count)
        pixels = load(images)
        sizes = {"mask_patch_size": unit, "patch_size": patch}
        mask = _masks(pixels, masking, sizes, mask_ratio, seed)
    save_reconstruction_grid(
        model,
        pixels,
        mask,
        out,
        mean=checkpoint.mean,
        std=checkpoint.std,
        pixel_format=checkpoint.pixel_format,
        channels=channels,
    )


def _annotated(
    images: ImageSource, boxes: dict[str, list[float]], data: Path, annotations: Path
) -> ImageSource:
    """Return the images that have a box."""
    known = [i for i in range(len(images)) if Path(images.name(i)).name in boxes]
    if not known:
        raise DataError(
            f"{annotations} has no object in any image of {data}; use the annotations of these images."
        )
    return images.subset(known)


def _masks(
    images: Tensor, masking: str, sizes: dict[str, int], mask_ratio: float, seed: int
) -> Tensor:
    """Return one mask for each of the images (B, C, H, W), by a pretraining strategy or of the centre."""
    img_size = (images.shape[2], images.shape[3])
    if masking == "centre":
        mask = centre_mask(img_size, mask_ratio=mask_ratio, **sizes)
        return mask.expand(len(images), -1, -1)
    return sample_masks(
        len(images),
        img_size,
        masking=masking,
        mask_ratio=mask_ratio,
        generator=torch.Generator().manual_seed(seed),
        images=images,
        **sizes,
    )


def largest_boxes(annotations: Path, img_size: tuple[int, int]) -> dict[str, list[float]]:
    """Read each image's largest box from COCO annotations, in the coordinates of the resized and cropped image.

    Returns:
        By file name: (left, top, right, bottom) in pixels of the image resized and cropped to `img_size`.
        Crowds are skipped, and so are boxes over more than 70 % of the image, which leave too little visible.
    """
    content = read_json(annotations, "annotations", max_bytes=MAX_BYTES_OF_DATA)
    try:
        images = {i["id"]: (i["file_name"], i["height"], i["width"]) for i in content["images"]}
        objects = [
            (a["image_id"], a["bbox"]) for a in content["annotations"] if not a.get("iscrowd")
        ]
        found: dict[str, list[float]] = {}
        for image, (x, y, width, height) in objects:
            name, rows, columns = images[image]
            resized = covering_size((rows, columns), img_size, 1.0)
            by_row, by_column = resized[0] / rows, resized[1] / columns
            top, left = ((r - s) / 2 for r, s in zip(resized, img_size, strict=True))
            box = [x * by_column - left, y * by_row - top]
            box += [(x + width) * by_column - left, (y + height) * by_row - top]
            box = [min(max(b, 0.0), float(img_size[1 - i % 2])) for i, b in enumerate(box)]
            key = Path(name).name
            if 0 < _area(box) <= MAX_BOX_AREA * img_size[0] * img_size[1]:
                found[key] = max(found.get(key, box), box, key=_area)
    except (KeyError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        raise DataError(
            f"annotations {annotations} are not COCO instances ({type(error).__name__}: {error}); use a file such as "
            "instances_val2017.json."
        ) from error
    return found


def _area(box: Sequence[float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])
