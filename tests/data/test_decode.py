"""Tests of decoding and cropping, compared with PIL and torchvision's transforms."""

from __future__ import annotations

import functools
import io
import struct
import warnings
import zlib
from typing import Any

import cv2
import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image
from torchvision import transforms as T

from simmim_bench.checkpoints.checkpoint import IMAGENET_MEAN, IMAGENET_STD
from simmim_bench.data.datasets import covering_size, eval_transform, train_transform
from simmim_bench.data.decode import decode_image, exif_orientation
from simmim_bench.data.jpeg import jpeg_size
from simmim_bench.data.loader import seed_everything
from simmim_bench.data.normalise import normalise
from simmim_bench.data.random_crop import random_crop_flip
from simmim_bench.errors import DataError
from simmim_bench.recipe import Resizing

# SimMIM: data/data_simmim.py, SimMIMTransform, without and with its last two steps.
OFFICIAL_CROP = [
    T.RandomResizedCrop(48, scale=(0.67, 1.0), ratio=(3.0 / 4.0, 4.0 / 3.0)),
    T.RandomHorizontalFlip(),
]
OFFICIAL = [*OFFICIAL_CROP, T.ToTensor(), T.Normalize(IMAGENET_MEAN, IMAGENET_STD)]


def smooth_image(height: int, width: int, mode: str = "RGB") -> Image.Image:
    """Render a smooth image with some edges, similar to a photograph."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / (9 + c) + c) + np.cos(y / (7 + 2 * c)) for c in range(3)]
    shades = np.stack(waves, -1) * 50 + 128
    shades[height // 3 : height // 2, width // 4 : width // 2] = (220, 40, 90)
    return Image.fromarray(shades.astype(np.uint8)).convert(mode)


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def both_crops(content: bytes, name: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    torch.manual_seed(seed)
    ours = random_crop_flip(content, name, (48, 48), (0.67, 1.0)).permute(1, 2, 0).numpy()
    torch.manual_seed(seed)
    theirs = np.asarray(T.Compose(OFFICIAL_CROP)(Image.open(io.BytesIO(content)).convert("RGB")))
    return ours.astype(int), theirs.astype(int)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_crops_equal_the_official_ones_within_one_level(kind: str, mode: str) -> None:
    content = encode(smooth_image(80, 70, mode), kind)
    for seed in range(8):
        ours, theirs = both_crops(content, f"a.{kind.lower()}", seed)
        assert np.abs(ours - theirs).max() <= 1
    # Another seed yields another crop, so equal pixels imply an equal crop and flip.
    assert np.abs(both_crops(content, "", 1)[0] - both_crops(content, "", 2)[0]).max() > 20


@pytest.mark.parametrize("factor", [2, 4, 8])
@pytest.mark.parametrize("quality", [75, 95])
def test_a_large_jpeg_decoded_at_reduced_size_differs_little(factor: int, quality: int) -> None:
    size = (150 * factor + 3, 160 * factor + 5)
    image = smooth_image(75, 80).resize(size[::-1], Image.Resampling.BICUBIC)
    content = encode(image, "JPEG", quality=quality)
    decoded = simplejpeg.decode_jpeg(content, "RGB", min_height=size[0] // factor)
    assert decoded.shape[0] == -(-size[0] // factor)  # the size that the crop is taken from
    for seed in range(8):
        ours, theirs = both_crops(content, "a.jpg", seed)
        assert np.abs(ours - theirs).mean() < 1.5


def pil_rgb(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content)).convert("RGB")


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"quality": 95}], ids=str)
@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_decoded_jpegs_have_pils_bits(mode: str, options: dict[str, Any], subsampling: int) -> None:
    for size in ((80, 70), (81, 33)):
        content = encode(smooth_image(*size, mode), "JPEG", subsampling=subsampling, **options)
        assert equal(decode_image(content, "a.jpg"), pil_rgb(content))
        assert any(jpeg_size(content)) == (mode != "CMYK")


def test_decoded_jpegs_of_rgb_have_pils_bits() -> None:
    content = encode(smooth_image(80, 70), "JPEG", keep_rgb=True)
    assert jpeg_size(content) == (80, 70)
    assert equal(decode_image(content, "a.jpg"), pil_rgb(content))


def test_a_jpeg_of_too_many_pixels_is_left_to_pil(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encode(smooth_image(40, 40), "JPEG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 799)
    with pytest.raises(DataError, match=r"image huge.jpg cannot be read: .*decompression bomb"):
        decode_image(content, "huge.jpg")
    with pytest.raises(DataError, match=r"image huge.jpg cannot be read: .*decompression bomb"):
        random_crop_flip(content, "huge.jpg", (32, 32), (0.5, 1.0))


def test_cmyk_jpegs_equal_pils() -> None:
    content = encode(smooth_image(80, 70, "CMYK"), "JPEG")
    ours, theirs = both_crops(content, "a.jpg", 0)
    assert np.abs(ours - theirs).max() <= 1


def test_a_normalised_batch_equals_the_official_transforms() -> None:
    content = encode(smooth_image(80, 70), "PNG")
    torch.manual_seed(3)
    crop = random_crop_flip(content, "a.png", (48, 48), (0.67, 1.0))
    torch.manual_seed(3)
    wanted = T.Compose(OFFICIAL)(Image.open(io.BytesIO(content)))
    found = normalise(crop[None], IMAGENET_MEAN, IMAGENET_STD, torch.device("cpu"))
    assert found.shape == (1, 3, 48, 48)
    one_level = 1 / 255 / min(IMAGENET_STD)
    assert (found[0] - wanted).abs().max() <= one_level * 1.001


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (encode(smooth_image(40, 40), "JPEG")[:300], "cut.jpg"),
        (encode(smooth_image(40, 40), "JPEG")[:12], "stub.jpeg"),
        (b"", "empty.png"),
        (b"not an image", "text.webp"),
    ],
)
def test_the_error_names_an_image_that_cannot_be_decoded(content: bytes, name: str) -> None:
    with pytest.raises(DataError, match=name):
        random_crop_flip(content, name, (32, 32), (0.5, 1.0))
    with pytest.raises(DataError, match=name):
        decode_image(content, name)


def test_the_error_names_an_image_with_too_many_pixels() -> None:
    content = bytearray(encode(smooth_image(40, 40), "PNG"))
    content[16:24] = struct.pack(">II", 60000, 60000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))

    def crop(content: bytes, name: str) -> object:
        return random_crop_flip(content, name, (32, 32), (0.5, 1.0))

    for read in (decode_image, crop):
        with pytest.raises(DataError, match=r"image huge.png cannot be read: .*decompression bomb"):
            read(bytes(content), "huge.png")


def test_a_name_without_suffix_allows_any_format() -> None:
    for kind in ("JPEG", "PNG"):
        assert decode_image(encode(smooth_image(40, 30), kind), "row 7").size == (30, 40)


# (H, W) of images whose resized longer side is not a whole number, most of them odd.
ODD_SIZES = [
    *[(201, 299), (299, 201), (333, 500), (500, 333), (375, 499), (499, 375), (101, 103)],
    *[(103, 101), (481, 321), (321, 481), (57, 63), (63, 57), (427, 641), (641, 427)],
    *[(257, 1025), (1025, 257), (49, 97), (97, 49), (768, 1027), (1027, 769)],
]


@functools.cache
def odd_image(size: tuple[int, int]) -> tuple[Image.Image, bytes]:
    """Render an image of a size once, and encode it."""
    image = smooth_image(*size)
    return image, encode(image, "PNG")


@pytest.mark.parametrize("size", ODD_SIZES, ids=str)
@pytest.mark.parametrize("side", [32, 192, 224, 256])
def test_evaluation_pixels_equal_torchvisions(size: tuple[int, int], side: int) -> None:
    """The reference is SimMIM's data/data_finetune.py, lines 97 to 114."""
    image, content = odd_image(size)
    official = T.Compose(
        [
            T.Resize(int((256 / 224) * side), interpolation=T.InterpolationMode.BICUBIC),
            T.CenterCrop(side),
            T.ToTensor(),
            T.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    ours = eval_transform((side, side), crop_ratio=224 / 256, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    assert torch.equal(ours(content, "a.png"), official(image))


@pytest.mark.parametrize("size", ODD_SIZES[::3], ids=str)
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_fast_resizing_differs_by_a_level(size: tuple[int, int], kind: str) -> None:
    content = encode(smooth_image(*size), kind)
    common: Any = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD, "as_bytes": True}
    crop: Any = {"crop_scale": (0.2, 1.0), "hflip": 0.5, "auto_augment": "rand-m1-n1"}

    def load(resizing: Resizing, seed: int | None) -> torch.Tensor:
        if seed is None:
            return eval_transform((48, 64), crop_ratio=0.9, resizing=resizing, **common)(
                content, ""
            )
        transform = train_transform((64, 48), **crop, **common, resizing=resizing)
        seed_everything(seed)
        return torch.as_tensor(transform(content, ""))

    for seed in (None, 0, 1):
        fast, slow = load("fast", seed), load("pil", seed)
        assert fast.shape == slow.shape
        assert fast.dtype == slow.dtype == torch.uint8
        differences = (fast.int() - slow.int()).abs()
        assert differences.float().mean() < 0.3
        assert seed is not None or differences.max() <= 1  # a policy may amplify them


@pytest.mark.parametrize("size", ODD_SIZES, ids=str)
@pytest.mark.parametrize("img_size", [(48, 96), (96, 48), (64, 64)])
def test_a_resized_image_covers_the_crop_with_its_proportions(
    size: tuple[int, int], img_size: tuple[int, int]
) -> None:
    resized = covering_size(size, img_size, 1.0)
    factor = max(side / length for side, length in zip(img_size, size, strict=True))
    for found, length, side in zip(resized, size, img_size, strict=True):
        assert side <= found <= length * factor + 1e-9 < found + 1


def opencv(content: bytes) -> np.ndarray:
    """Decode with OpenCV, which keeps the upper 8 of 16 bits and applies the orientation."""
    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    return np.asarray(image)[..., ::-1]


def equal(image: Image.Image, wanted: Image.Image | np.ndarray) -> bool:
    """Return whether an image has the wanted pixels."""
    return np.array_equal(np.asarray(image), np.asarray(wanted))


@pytest.mark.parametrize("kind", ["png", "tif", "pgm", "jp2", "white is zero"])
def test_16_bit_grey_keeps_its_upper_8_bits(kind: str) -> None:
    grey = np.random.default_rng(0).integers(0, 65536, (70, 90)).astype(np.uint16)
    if kind == "white is zero":
        content, wanted = encode(Image.fromarray(grey), "TIFF", tiffinfo={262: 0}), 65535 - grey
    else:
        content, wanted = cv2.imencode(f".{kind}", grey)[1].tobytes(), grey
    found = np.asarray(decode_image(content, "a"))
    assert np.array_equal(found, opencv(content))
    if kind != "jp2":  # OpenCV writes it with losses
        assert np.array_equal(found, np.repeat(wanted[..., None] // 256, 3, axis=2))
    crop = random_crop_flip(content, "a", (48, 48), (0.67, 1.0))
    assert 100 < crop.float().mean() < 155  # clipped at 255, it would be white


def test_grey_of_32_bits_is_refused() -> None:
    for mode in ("I", "F"):
        content = encode(Image.new(mode, (4, 4), 70000), "TIFF")
        with pytest.raises(DataError, match=f"a.tif has pixels of 32 bits .*mode {mode}.* convert"):
            decode_image(content, "a.tif")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_orientation_is_applied_where_requested(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    content = encode(smooth_image(40, 56), kind, exif=exif)
    stored = decode_image(content, "a")
    assert equal(stored, Image.open(io.BytesIO(content)).convert("RGB"))
    assert equal(decode_image(content, "a", upright=True), opencv(content))
    assert exif_orientation(content) == orientation


def test_the_content_decides_the_format() -> None:
    image = smooth_image(40, 40)
    assert equal(decode_image(encode(image, "PNG"), "a.jpg"), image)
    assert random_crop_flip(encode(image, "JPEG"), "a.png", (32, 32), (0.5, 1.0)).shape[0] == 3


def test_transparent_palettes_keep_their_colours() -> None:
    image = smooth_image(40, 40).quantize(8)
    content = encode(image, "PNG", transparency=bytes(range(8)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert equal(decode_image(content, "a.png"), image.convert("RGB"))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        (b"<html>", "none of the formats"),
        (encode(smooth_image(40, 40), "PNG")[:100], "truncated"),
    ],
)
def test_messages_give_a_reason_without_addresses(content: bytes, reason: str) -> None:
    with pytest.raises(DataError, match=f"image a.jpg cannot be read: .*{reason}") as caught:
        decode_image(content, "a.jpg")
    assert " at 0x" not in str(caught.value)
