"""Reconstruction pictures: original, masked, reconstruction pasted into the visible part.

In: a SimMIM model, normalised images and masks. Out: one PNG, three tiles an image, as in the paper's figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.utils import make_grid, save_image

from pretrain.masking.masks import (
    at_pixels,
    box_mask,
    centre_mask,
    check_mask_sizes,
    masking_unit,
    random_masks,
)
from pretrain.recipes import Masking
from pretrain.simmim import SimMIM, load_simmim
from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.data.datasets import covering_size, eval_transform
from simmim_bench.data.sources import ImageSource, any_images
from simmim_bench.errors import DataError, UsageError
from simmim_bench.files import read_json, replacing

Shown = Masking | Literal["centre", "boxes"]

GREY = 0.5
SHOWN_PIXELS = 160
LARGEST_BOX = 0.7  # ours: share of the picture that an object's box may hide
ROWS_BESIDE = 2  # images in one row of the grid, three tiles each


@torch.no_grad()
def reconstruction_grid(
    model: SimMIM, images: Tensor, mask: Tensor, *, mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    """Draw (B, 3, H, W) images as tiles, three an image, pixels in [0, 1]."""
    model.eval()
    output = model(images, mask)
    size = (images.shape[2], images.shape[3])
    hidden = at_pixels(mask, size).unsqueeze(1)
    reconstruction = model.drawn.denormalise(output.reconstruction, images)
    scale, shift = images.new_tensor(std).view(-1, 1, 1), images.new_tensor(mean).view(-1, 1, 1)
    original = images * scale + shift
    pasted = original * (1 - hidden) + (reconstruction * scale + shift) * hidden
    # Small pictures are enlarged, pixel by pixel, so that they can be looked at.
    factor = max(1, SHOWN_PIXELS // max(images.shape[-2:]))
    rows = torch.stack([original, original * (1 - hidden) + GREY * hidden, pasted], dim=1)
    tiles = F.interpolate(rows.flatten(0, 1).clamp(0, 1).cpu(), scale_factor=factor)
    grid: Tensor = make_grid(tiles, nrow=3 * ROWS_BESIDE, padding=4, pad_value=1.0)
    return grid


def evenly(images: ImageSource, count: int) -> ImageSource:
    """Choose evenly spaced images of a source, all where there are fewer."""
    count = min(count, len(images))
    return images.subset([i * len(images) // count for i in range(count)])


def load_whole(
    images: ImageSource, img_size: tuple[int, int], *, mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    """Load images whole, but for their borders: (B, 3, H, W), normalised."""
    transform = eval_transform(img_size, crop_ratio=1.0, mean=mean, std=std)
    return torch.stack([transform(images.read(i), images.name(i)) for i in range(len(images))])


def draw(
    model: SimMIM,
    images: Tensor,
    mask: Tensor,
    out: Path | None,
    *,
    mean: Sequence[float],
    std: Sequence[float],
) -> None:
    """Draw images (B, 3, H, W), each under its mask of (B, h, w), into a PNG, where `out` names one."""
    device = next(model.parameters()).device
    grid = reconstruction_grid(model, images.to(device), mask.to(device), mean=mean, std=std)
    if out is None:
        return
    with replacing(out) as temporary:
        save_image(grid, str(temporary), format="png")


def draw_folder(
    ckpt: str,
    data: Path,
    out: Path,
    *,
    count: int,
    masking: Shown,
    annotations: Path | None,
    mask_patch_size: int | None,
    mask_ratio: float,
    seed: int,
) -> None:
    """Draw images of a folder through a pretraining checkpoint.

    Args:
        masking: a strategy of pretraining, a "centre" square, or the "boxes" of objects: each image's
            largest.
        annotations: COCO's JSON of instances, which names the images with boxes.

    Raises:
        UsageError: a mask_patch_size that does not fit, boxes without annotations, or a checkpoint whose
            prediction cannot be drawn.
        DataError: a checkpoint, an image or annotations that cannot be used.
    """
    if (masking == "boxes") != (annotations is not None):
        raise UsageError("--mask boxes and --annotations go together: the boxes are read there.")
    model = load_simmim(ckpt)
    if not model.drawn.draws:
        raise UsageError(
            f"{ckpt} predicts {model.target.describe()}, which cannot be drawn; pretrain with "
            "-o pixel_weight=... to have pixels predicted as well."
        )
    size, patch = model.spec.img_size, model.spec.patch_size
    unit = masking_unit(masking, mask_patch_size or model.spec.stride)
    check_mask_sizes(size, unit, patch)
    checkpoint = read_checkpoint(ckpt)
    images, boxes = any_images(data), {}
    if annotations is not None:
        boxes = largest_boxes(annotations, size)
        known = [i for i in range(len(images)) if Path(images.name(i)).name in boxes]
        if not known:
            raise DataError(f"{annotations} has no object in any image of {data}.")
        images = images.subset(known)
    images = evenly(images, count)
    pixels = load_whole(images, size, mean=checkpoint.mean, std=checkpoint.std)
    if masking == "boxes":
        names = [Path(images.name(i)).name for i in range(len(images))]
        masks = [box_mask(boxes[n], size, mask_patch_size=unit, patch_size=patch) for n in names]
        mask = torch.stack(masks)
    elif masking == "centre":
        one = centre_mask(size, mask_patch_size=unit, patch_size=patch, mask_ratio=mask_ratio)
        mask = one.expand(len(images), -1, -1)
    else:
        mask = random_masks(
            len(images),
            size,
            masking=masking,
            mask_patch_size=unit,
            patch_size=patch,
            mask_ratio=mask_ratio,
            generator=torch.Generator().manual_seed(seed),
            images=pixels,
        )
    draw(model, pixels, mask, out, mean=checkpoint.mean, std=checkpoint.std)


def largest_boxes(annotations: Path, img_size: tuple[int, int]) -> dict[str, list[float]]:
    """Read each image's largest box from COCO's JSON, moved to where the drawn image shows it.

    Returns:
        By file name: (left, top, right, bottom) in pixels of the image resized and cut to `img_size`.
        Boxes that cover more than 70 % of it leave too little to look at and are passed over, and crowds.
    """
    content = read_json(annotations, "annotations")
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
            if 0 < _area(box) <= LARGEST_BOX * img_size[0] * img_size[1]:
                found[key] = max(found.get(key, box), box, key=_area)
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise DataError(
            f"annotations {annotations} are not COCO's instances ({type(error).__name__}: {error})."
        ) from error
    return found


def _area(box: Sequence[float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])
