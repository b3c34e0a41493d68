"""Images of any channels and value range in ADE20K's and COCO's layout, checkpoints for them, and a second reader."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import tifffile
import torch
from PIL import Image
from support.tiny import TINY
from torch import Tensor

from simmim_bench.checkpoints.checkpoint import write_checkpoint
from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.data.pixel_format import PixelFormat
from simmim_bench.models.build import build_backbone

SIDE = 32  # pixels, of all images
FORMATS = [
    PixelFormat(1, "uint8"),
    PixelFormat(4, "uint8"),
    PixelFormat(13, "uint8"),
    PixelFormat(1, "uint16"),
    PixelFormat(3, "uint16"),
    PixelFormat(13, "uint16"),
    PixelFormat(4, "float"),
    PixelFormat(13, "float"),
]
SENTINEL = PixelFormat(13, "uint16")  # of Sentinel-2
LARGEST = {"uint8": 255, "uint16": 65535, "float": 1}  # that is 1 in mean and standard deviation


def write_model(path: Path, pixel_format: PixelFormat) -> str:
    """Write a checkpoint for images of a format, with another mean and standard deviation for every channel."""
    channels = pixel_format.in_chans
    spec = replace(TINY["vit"], in_chans=channels)
    write_checkpoint(
        path,
        state=build_backbone(spec, seed=0).state_dict(),
        spec=spec,
        form="transfer",
        mean=tuple(0.1 + 0.5 * k / channels for k in range(channels)),
        std=tuple(0.3 - 0.2 * k / channels for k in range(channels)),
        provenance={"label": "many channels"},
        value_range=pixel_format.value_range,
    )
    return str(path)


def write_image(path: Path, pixel_format: PixelFormat, generator: np.random.Generator) -> None:
    """Write a random TIFF."""
    shape = (SIDE, SIDE, pixel_format.in_chans)
    if pixel_format.value_range == "float":
        pixels = generator.normal(0.3, 0.2, shape).astype(np.float32)
    else:
        high = LARGEST[pixel_format.value_range] + 1
        pixels = generator.integers(0, high, shape, np.dtype(pixel_format.value_range))
    planes = None if pixel_format.in_chans == 1 else "contig"
    tifffile.imwrite(path, pixels, photometric="minisblack", planarconfig=planes)


def read_normalised(path: Path, ckpt: str) -> Tensor:
    """Read an image by tifffile alone, and normalise it in float64, (C, H, W)."""
    checkpoint = read_checkpoint(ckpt)
    stored = tifffile.imread(path).reshape(SIDE, SIDE, -1).astype(np.float64)
    unit = LARGEST[checkpoint.value_range]
    normalised = (stored / unit - np.array(checkpoint.mean)) / np.array(checkpoint.std)
    return torch.from_numpy(normalised.transpose(2, 0, 1)).float()


def write_scenes(root: Path, pixel_format: PixelFormat, *, train: int = 2, val: int = 2) -> Path:
    """Write images and label maps of three classes in ADE20K's layout."""
    generator = np.random.default_rng(0)
    labels = np.ones((SIDE, SIDE), np.uint8)
    labels[:, SIDE // 2 :] = 2
    labels[SIDE // 2 :] = 3
    for split, count in (("training", train), ("validation", val)):
        images, maps = root / "images" / split, root / "annotations" / split
        for folder in (images, maps):
            folder.mkdir(parents=True)
        for number in range(count):
            write_image(images / f"{number}.TIF", pixel_format, generator)
            Image.fromarray(labels).save(maps / f"{number}.png")
    (root / "classes.txt").write_text("left\nright\nbelow\n")
    return root


def write_objects(root: Path, pixel_format: PixelFormat, *, count: int = 2) -> Path:
    """Write images with one box each in COCO's layout."""
    generator = np.random.default_rng(0)
    (root / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        folder = root / f"{split}2017"
        folder.mkdir()
        names = [f"{split}{number}.tiff" for number in range(count)]
        for name in names:
            write_image(folder / name, pixel_format, generator)
        size = {"height": SIDE, "width": SIDE}
        box = {"bbox": [4, 6, 20, 16], "area": 320, "category_id": 1, "iscrowd": 0}
        mask = {"segmentation": [[4, 6, 24, 6, 24, 22, 4, 22]]}
        content = {
            "images": [{"id": n, "file_name": name, **size} for n, name in enumerate(names)],
            "annotations": [{"id": n, "image_id": n, **box, **mask} for n in range(count)],
            "categories": [{"id": 1, "name": "field"}],
        }
        path = root / "annotations" / f"instances_{split}2017.json"
        path.write_text(json.dumps(content))
    return root


def is_close(found: Tensor, expected: Tensor) -> bool:
    """Return whether normalised images are equal up to the rounding of float32."""
    return torch.allclose(found, expected, rtol=1e-5, atol=2e-5)


def equal_or_flipped(found: Tensor, expected: Tensor) -> bool:
    """Return whether two images (C, H, W) are equal up to rounding and a horizontal flip."""
    return is_close(found, expected) or is_close(found, expected.flip(2))
