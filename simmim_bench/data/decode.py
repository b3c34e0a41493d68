"""From an image file's bytes to pixels: whole, or a random crop of it, fast.

In: the content of a file and its name. Out: a PIL image, or a (3, H, W) tensor of bytes.
The crop is that of SimMIM's data/data_simmim.py (torchvision's RandomResizedCrop and flip, which draw the
same from the same seed); its pixels differ from PIL's by at most one level of 255, and where a large JPEG
is decoded at a half, a quarter or an eighth of its size by about one on average (tests/test_images.py).
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path, PurePath

import numpy as np
import simplejpeg
import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms import RandomResizedCrop

from simmim_bench.errors import DataError
from simmim_bench.data.sources import FORMATS

# The one file of ImageNet-1K whose name lies: a PNG among the JPEGs.
MISNAMED_IN_IMAGENET = "n02105855_2933.JPEG"
BOMB = Image.DecompressionBombError  # more pixels than any photograph has
CROP_RATIO = (3 / 4, 4 / 3)  # SimMIM: data/data_simmim.py
SCALES = (8, 4, 2)  # parts of its size that a JPEG is decoded at: libjpeg-turbo is fast at these
GAP = 2.0  # the part is still so many times the result's size: Pillow's reducing_gap for thumbnails


def read_image(path: Path) -> Image.Image:
    """Read an image file whole, as RGB.

    Raises:
        DataError: it cannot be decoded, or its content is not what its name says.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _unreadable(str(path), error) from error
    return decode_image(content, str(path))


def decode_image(content: bytes, name: str) -> Image.Image:
    """Decode an image whole, as RGB.

    Args:
        name: of the file, for messages; its suffix, where it has one, must tell the format.

    Raises:
        DataError: it cannot be decoded, or its content is not what its name says.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            wanted = FORMATS.get(PurePath(name).suffix.lower(), image.format)
            if image.format not in (wanted, "MPO") and not name.endswith(MISNAMED_IN_IMAGENET):
                raise DataError(
                    f"image {name} is a {image.format} file by its content, not {wanted}; rename it or convert it."
                )
            return image.convert("RGB")
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, BOMB) as error:
        raise _unreadable(name, error) from error


def _unreadable(name: str, error: Exception) -> DataError:
    return DataError(f"image {name} cannot be read: {error}; replace it or remove it.")


def random_crop_flip(
    content: bytes, name: str, img_size: tuple[int, int], crop_scale: tuple[float, float]
) -> Tensor:
    """Cut a random part out of an image, resize it, and mirror it half of the time.

    Draws from torch's global generator.

    Args:
        img_size: (H, W) of the result.
        crop_scale: share of the image's area that the crop covers.

    Returns:
        (3, H, W) uint8.

    Raises:
        DataError: it cannot be decoded, or its content is not what its name says.
    """
    height, width = _jpeg_size(content, name)
    pixels = None if height else np.array(decode_image(content, name))
    if pixels is not None:
        height, width = pixels.shape[:2]
    bounds = torch.empty((1, height, width), device="meta")
    top, left, rows, columns = RandomResizedCrop.get_params(
        bounds, list(crop_scale), list(CROP_RATIO)
    )
    mirrored = bool(torch.rand(1) < 0.5)
    if pixels is None:
        pixels = _decode_jpeg(content, name, (height, width), (rows, columns), img_size)
    resized = _resize(pixels, (top, left, rows, columns), (height, width), img_size)
    return resized.flip(2) if mirrored else resized


def _resize(
    pixels: np.ndarray, crop: tuple[int, ...], size: tuple[int, int], wanted: tuple[int, int]
) -> Tensor:
    """Resize a crop, given in pixels of the image at its own size, of the image at this or a smaller one."""
    top, left, rows, columns = crop
    if pixels.shape[:2] == size:
        part = torch.from_numpy(pixels[top : top + rows, left : left + columns])
        # Several times as fast as PIL's, which it equals to one level.
        return F.interpolate(
            part.permute(2, 0, 1).unsqueeze(0), wanted, mode="bilinear", antialias=True
        )[0]
    y, x = pixels.shape[0] / size[0], pixels.shape[1] / size[1]
    box = (left * x, top * y, (left + columns) * x, (top + rows) * y)
    resized = Image.fromarray(pixels).resize(wanted[::-1], Image.Resampling.BILINEAR, box=box)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous()


def _jpeg_size(content: bytes, name: str) -> tuple[int, int]:
    """Give (H, W) of a JPEG that the fast decoder takes, (0, 0) of anything else."""
    if not content.startswith(b"\xff\xd8\xff") or FORMATS.get(
        PurePath(name).suffix.lower()
    ) not in (
        "JPEG",
        None,
    ):
        return 0, 0
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(content)
    except ValueError:
        return 0, 0
    return (height, width) if colorspace in ("YCbCr", "Gray", "RGB") else (0, 0)


def _decode_jpeg(
    content: bytes,
    name: str,
    size: tuple[int, int],
    crop: tuple[int, int],
    wanted: tuple[int, int],
) -> np.ndarray:
    """Decode a JPEG at the smallest part of its size that still gives the crop its pixels."""
    at_least = (0, 0)
    for part in SCALES:
        if all(side >= GAP * part * goal for side, goal in zip(crop, wanted, strict=True)):
            at_least = (-(-size[0] // part), -(-size[1] // part))
            break
    try:
        pixels: np.ndarray = simplejpeg.decode_jpeg(
            content, "RGB", min_height=at_least[0], min_width=at_least[1], min_factor=1
        )
    except ValueError:  # it minds what PIL may not
        return np.array(decode_image(content, name))
    return pixels


def normalise(
    images: Tensor, mean: Sequence[float], std: Sequence[float], device: torch.device
) -> Tensor:
    """Take a batch (B, 3, H, W) of bytes to a device, and normalise it there.

    Args:
        mean, std: of pixels in [0, 1].
    """
    scale = 1 / (255 * torch.tensor(std, device=device)).view(-1, 1, 1)
    shift = -torch.tensor(mean, device=device).view(-1, 1, 1) * scale * 255
    return images.to(device, non_blocking=True).float().mul_(scale).add_(shift)
