"""Test the values of images of any channels, of 8 and 16 bits and of real numbers, from the file to the model."""

from __future__ import annotations

import importlib.util
import io
import struct
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from simmim_bench.data.datasets import check_photometric, eval_transform, train_transform
from simmim_bench.data.decode import decode_image
from simmim_bench.data.figures import renderer
from simmim_bench.data.normalise import normalise, normalise_like_torchvision
from simmim_bench.data.pixel_format import RGB, PixelFormat, ValueRange
from simmim_bench.data.pixels import decode_pixels
from simmim_bench.data.random_crop import random_crop_flip
from simmim_bench.data.statistics import stored_format
from simmim_bench.errors import DataError, MissingFrameworkError, UsageError

TYPES: dict[ValueRange, str] = {"uint8": "u1", "uint16": "u2", "float": "f4"}
LAYOUTS: dict[str, dict[str, Any]] = {
    "planes": {"photometric": "minisblack", "planarconfig": "separate"},
    "interleaved": {"photometric": "minisblack", "planarconfig": "contig"},
    "pages": {"photometric": "minisblack"},
    "deflated": {"photometric": "minisblack", "planarconfig": "separate", "compression": "zlib"},
    "lzw tiles": {
        "photometric": "minisblack",
        **{"planarconfig": "contig", "compression": "lzw", "predictor": True, "tile": (16, 16)},
    },
}


def tiff(values: np.ndarray, layout: str = "planes", **more: Any) -> bytes:
    """Write values (C, H, W) as a TIFF."""
    file, options = io.BytesIO(), {**LAYOUTS[layout], **more}
    if len(values) == 1:
        values = values[0]
        options.pop("planarconfig", None)
    elif options.get("planarconfig") == "contig":
        values = values.transpose(1, 2, 0)
    tifffile.imwrite(file, values, **options)
    return file.getvalue()


def noise(channels: int, value_range: ValueRange, size: tuple[int, int] = (20, 27)) -> np.ndarray:
    generator = np.random.default_rng(0)
    if value_range == "float":
        return generator.normal(300, 1000, (channels, *size)).astype(np.float32)
    bits = 8 if value_range == "uint8" else 16
    return generator.integers(0, 2**bits, (channels, *size)).astype(TYPES[value_range])


def plain_tiff(values: np.ndarray) -> bytes:
    """Write 16-bit values (C, H, W) by the letter of TIFF 6.0: big-endian, interleaved, one strip."""
    channels, height, width = values.shape
    data = values.transpose(1, 2, 0).astype(">u2").tobytes()
    bits = struct.pack(f">{channels}H", *[16] * channels)
    tags = [
        *[(256, 4, 1, width), (257, 4, 1, height), (258, 3, channels, 8 + len(data))],
        *[(259, 3, 1, 1 << 16), (262, 3, 1, 1 << 16), (273, 4, 1, 8)],
        *[(277, 3, 1, channels << 16), (278, 4, 1, height), (279, 4, 1, len(data))],
    ]
    directory = struct.pack(">H", len(tags)) + b"".join(struct.pack(">HHII", *t) for t in tags)
    return (
        b"MM\0*"
        + struct.pack(">I", 8 + len(data) + len(bits))
        + data
        + bits
        + directory
        + b"\0" * 4
    )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("value_range", TYPES)
@pytest.mark.parametrize("channels", [1, 4, 13])
def test_values_of_tiffs_are_those_that_were_written(
    channels: int, value_range: ValueRange, layout: str
) -> None:
    values = noise(channels, value_range)
    content = tiff(values, layout)
    found = decode_pixels(content, "a.tif", PixelFormat(channels, value_range))
    divisor = 65535 if value_range == "uint16" else 1
    assert torch.equal(found.double(), torch.from_numpy(np.float32(values / divisor)).double())
    assert found.dtype == (torch.uint8 if value_range == "uint8" else torch.float32)
    assert stored_format(content, "a.tif") == PixelFormat(channels, value_range)


@pytest.mark.parametrize("channels", [5, 13])
def test_a_tiff_by_the_letter_of_the_standard_is_read(channels: int) -> None:
    values = noise(channels, "uint16")
    found = decode_pixels(plain_tiff(values), "a.tif", PixelFormat(channels, "uint16"))
    assert torch.equal(found, torch.from_numpy(np.float32(values / 65535)))


@pytest.mark.parametrize("kind", ["png", "tif"])
@pytest.mark.parametrize(
    ("channels", "value_range"), [(1, "uint16"), (3, "uint16"), (4, "uint16"), (4, "uint8")]
)
def test_values_equal_opencvs(channels: int, value_range: ValueRange, kind: str) -> None:
    values = noise(channels, value_range).transpose(1, 2, 0)
    content = cv2.imencode(f".{kind}", values)[1].tobytes()
    decoded = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    assert decoded is not None
    read = np.atleast_3d(decoded)
    order = {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[channels]  # OpenCV's is BGR
    wanted = read[..., order].transpose(2, 0, 1) / (65535 if value_range == "uint16" else 1)
    found = decode_pixels(content, "a", PixelFormat(channels, value_range))
    np.testing.assert_array_equal(found.numpy(), np.float32(wanted))
    assert stored_format(content, "a") == PixelFormat(channels, value_range)


@pytest.mark.parametrize("value_range", TYPES)
def test_values_that_reach_the_model_equal_a_naive_loops(value_range: ValueRange) -> None:
    values = noise(5, value_range, (6, 7))
    scale = {"uint8": 255, "uint16": 65535, "float": 1}[value_range]
    mean, std = (0.1, 0.2, 0.3, 0.4, 0.5), (0.5, 0.6, 0.7, 0.8, 0.9)
    wanted = np.empty(values.shape)
    for c in range(5):
        for y in range(6):
            for x in range(7):
                wanted[c, y, x] = (float(values[c, y, x]) / scale - mean[c]) / std[c]
    pixel_format = PixelFormat(5, value_range)
    arguments: dict[str, Any] = {"crop_ratio": 1.0, "mean": mean, "std": std}
    load = eval_transform((6, 7), **arguments, pixel_format=pixel_format)
    np.testing.assert_allclose(load(tiff(values), "a"), wanted, rtol=1e-5, atol=1e-5)
    raw = eval_transform((6, 7), **arguments, as_bytes=True, pixel_format=pixel_format)
    batch = raw(tiff(values), "a").unsqueeze(0)
    for found in (
        normalise(batch, mean, std, torch.device("cpu")),  # pretraining
        normalise_like_torchvision(batch, mean, std),  # transfers
    ):
        np.testing.assert_allclose(found[0], wanted, rtol=1e-5, atol=1e-5)


def smooth(channels: int) -> np.ndarray:
    """Return an image (H, W, C) whose resizing does not depend on the filter's last digits."""
    small = np.random.default_rng(1).integers(0, 256, (5, 6, channels)).astype(np.float32)
    large = cv2.resize(small, (90, 70), interpolation=cv2.INTER_CUBIC).reshape(70, 90, channels)
    return np.clip(large, 0, 255).astype(np.uint8)


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_crops_are_those_of_rgb_images() -> None:
    pixels = smooth(4)
    rgb, rgba = png(pixels[..., :3]), png(pixels)
    sixteen = tiff(pixels.transpose(2, 0, 1).astype(np.uint16) * 257)
    mean, std = (0.5,) * 4, (0.25,) * 4
    for seed in range(6):
        crops = []
        for content, own in (
            (rgb, RGB),
            (rgba, PixelFormat(4)),
            (sixteen, PixelFormat(4, "uint16")),
        ):
            torch.manual_seed(seed)
            crops.append(random_crop_flip(content, "a", (32, 24), (0.3, 1.0), own)[:3].float())
        assert torch.equal(crops[1], crops[0])
        assert (crops[2] * 255 - crops[0]).abs().max() <= 1  # level: uint8 is rounded twice
    wanted = eval_transform((32, 32), crop_ratio=0.875, mean=mean[:3], std=std[:3])(rgb, "a")
    for content, own in ((rgba, PixelFormat(4)), (sixteen, PixelFormat(4, "uint16"))):
        load = eval_transform((32, 32), crop_ratio=0.875, mean=mean, std=std, pixel_format=own)
        assert (load(content, "a")[:3] - wanted).abs().max() < 2 / 255 / 0.25


def test_training_augmentations_are_geometric() -> None:
    own, mean, std = PixelFormat(13, "uint16"), (0.5,) * 13, (0.25,) * 13
    arguments: dict[str, Any] = {"mean": mean, "std": std, "crop_scale": (0.5, 1.0), "hflip": 1.0}
    load = train_transform((16, 16), **arguments, random_erasing=1.0, pixel_format=own)
    assert load(tiff(noise(13, "uint16")), "a").shape == (13, 16, 16)
    whole = {**arguments, "crop_scale": (1.0, 1.0)}
    flip = train_transform((20, 20), **whole, as_bytes=True, pixel_format=own)
    values = noise(13, "uint16", (20, 20))
    assert torch.equal(
        flip(tiff(values), "a"), torch.from_numpy(np.float32(values / 65535)).flip(2)
    )
    with pytest.raises(UsageError, match="use -o auto_augment=none -o color_jitter=0"):
        train_transform(
            (16, 16), **arguments, auto_augment="rand-m9", color_jitter=0.4, pixel_format=own
        )
    check_photometric("rand-m9", 0.4, RGB)


def with_values(*values: float) -> np.ndarray:
    image = noise(2, "float", (4, 5))
    image[1, 2, : len(values)] = values
    return image


@pytest.mark.parametrize(
    ("content", "pixel_format", "message"),
    [
        (tiff(noise(13, "uint16")), RGB, "has 13 channels, but the model takes RGB images"),
        (tiff(noise(13, "uint16"), "interleaved"), RGB, "has 13 channels.*in_chans=13"),
        (tiff(noise(13, "uint16")), PixelFormat(12, "uint16"), "has 13 channels.*--in-chans 13"),
        (tiff(noise(3, "uint16"), "pages"), PixelFormat(4, "uint16"), "has 1 channel,"),
        (tiff(noise(4, "uint16")), PixelFormat(4), "has 16 bits.*value_range=uint16"),
        (tiff(noise(4, "uint8")), PixelFormat(4, "uint16"), "has 8 bits.*value_range=uint8"),
        (tiff(noise(4, "float")), PixelFormat(4, "uint16"), "type float32.*value_range=float"),
        (png(smooth(3)), PixelFormat(4), "has 3 channels, but the model takes images of 4"),
        (png(smooth(3)), PixelFormat(3, "uint16"), "has 8 bits"),
        (png(smooth(3)), PixelFormat(3, "float"), "is no TIFF"),
        (png(smooth(3)[..., 0].astype(np.uint16)), PixelFormat(1), "has 16 bits"),
        (tiff(with_values(np.nan)), PixelFormat(2, "float"), "not finite"),
        (tiff(with_values(-np.inf)), PixelFormat(2, "float"), "not finite"),
        (
            tiff(with_values(-9999), extratags=[(42113, "s", 6, "-9999", True)]),
            PixelFormat(2, "float"),
            "pixels without data .*-9999",
        ),
        (tiff(noise(4, "uint8"))[:-300], PixelFormat(4), "cannot be read"),
    ],
)
def test_other_images_are_refused_by_name(
    content: bytes, pixel_format: PixelFormat, message: str
) -> None:
    with pytest.raises(DataError, match=f"image a.tif .*{message}") as refused:
        decode_pixels(content, "a.tif", pixel_format)
    assert "\n" not in str(refused.value)


def test_colours_become_grey_for_a_model_of_one_channel_of_8_bits() -> None:
    pixels = smooth(3)
    found = decode_pixels(png(pixels), "a.png", PixelFormat(1))
    red, green, blue = pixels.astype(int).transpose(2, 0, 1)
    luma = (
        19595 * red + 38470 * green + 7471 * blue + 0x8000
    ) >> 16  # ITU-R 601-2, as Pillow documents
    np.testing.assert_array_equal(found[0].numpy(), luma)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_tiff_is_turned_upright_as_pillow_turns_it(orientation: int) -> None:
    content = tiff(noise(1, "uint16"), extratags=[(274, "H", 1, orientation, True)])
    with Image.open(io.BytesIO(content)) as image:
        wanted = np.asarray(image) / 65535
    found = decode_pixels(content, "a", PixelFormat(1, "uint16"))
    np.testing.assert_array_equal(found[0].numpy(), np.float32(wanted))


def test_grey_where_0_is_white_is_inverted() -> None:
    values = noise(1, "uint16")
    content = tiff(values, photometric="miniswhite")
    found = decode_pixels(content, "a", PixelFormat(1, "uint16"))
    assert torch.equal(found, torch.from_numpy(np.float32((65535 - values) / 65535)))


def test_without_imagecodecs_compressed_tiffs_name_the_extra_and_cannot_expand(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "imagecodecs" else found(name)
    )
    wanted = PixelFormat(13, "uint16")
    values = noise(13, "uint16")
    with pytest.raises(MissingFrameworkError, match=r"LZW: pip install 'simmim-bench\[tiff\]'"):
        decode_pixels(tiff(values, "lzw tiles"), "a.tif", wanted)
    content = tiff(values, "deflated")
    assert decode_pixels(content, "a.tif", wanted).shape == values.shape
    rows = struct.pack("<HHII", 257, 4, 1, values.shape[1])
    shorter = content.replace(rows, struct.pack("<HHII", 257, 4, 1, 4))
    assert shorter != content
    with pytest.raises(DataError, match=r"a.tif cannot be read"):
        decode_pixels(shorter, "a.tif", wanted)


def test_damaged_tiffs_are_refused_in_one_line_and_huge_ones_before_they_are_read() -> None:
    generator = np.random.default_rng(0)
    content = tiff(noise(4, "uint16"), "deflated")
    directory, messages = int.from_bytes(content[4:8], "little"), []
    for _ in range(300):
        damaged = bytearray(content)
        for place in generator.integers(directory, min(directory + 250, len(content)), 2):
            damaged[place] = generator.integers(256)
        for wanted in (PixelFormat(4, "uint16"), RGB):
            try:
                decode_pixels(bytes(damaged), "a.tif", wanted)
            except (DataError, MissingFrameworkError) as error:
                messages.append(str(error))
    assert messages
    assert not any("\n" in message for message in messages)
    width = struct.pack("<HHII", 256, 4, 1, 27)
    huge = content.replace(width, struct.pack("<HHII", 256, 4, 1, 2**31 - 1))
    with pytest.raises(DataError, match="more than 500,000,000 values"):
        decode_pixels(huge, "a.tif", PixelFormat(4, "uint16"))


def test_shown_channels_are_stretched_by_their_percentiles() -> None:
    values = noise(5, "float").astype(np.float64)
    images = torch.from_numpy(values).unsqueeze(0)
    own = PixelFormat(5, "float")
    shown = renderer(images, own, (4, 1, 2))(images)[0].numpy()
    for place, channel in enumerate((3, 0, 1)):
        low, high = np.percentile(values[channel], [2, 98])
        np.testing.assert_allclose(shown[place], (values[channel] - low) / (high - low))
    grey = renderer(images, own, (5,))(images)[0]
    assert torch.equal(grey[0], grey[2])
    np.testing.assert_allclose(renderer(images, own)(images)[0, 1], shown[2])  # the first three
    with pytest.raises(UsageError, match=r"--channels 6: .*numbers from 1 to 5"):
        renderer(images, own, (6,))
    with pytest.raises(UsageError, match="names 2 channels; use three"):
        renderer(images, own, (1, 2))


def test_a_damaged_image_is_not_taken_for_one_of_other_channels(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 4), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.tif", compression="tiff_lzw")
    content = (tmp_path / "a.tif").read_bytes()
    assert decode_image(content, "a.tif").size == (8, 8)
    damaged = content[:8] + bytes(60) + content[68:]
    with pytest.raises(DataError, match=r"a.tif cannot be read"):
        decode_image(damaged, "a.tif")
