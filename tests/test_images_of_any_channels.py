"""Test images of 13 channels and 16 bits from the command line: statistics, pretraining, a transfer, figures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image
from support.cli import fails, run

from pretrain.doctor_checks import check_pretraining_data
from pretrain.recipes import POCKET
from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.data.pixel_format import PixelFormat
from simmim_bench.data.pretraining_images import any_images
from simmim_bench.data.statistics import compute_statistics
from simmim_bench.diagnostics.data_checks import Reading
from simmim_bench.display import Display
from simmim_bench.errors import UsageError
from simmim_bench.overrides import override
from transfer.finetune.simmim_recipes import IMAGENET_VIT_B_800EP
from transfer.images import check_images, default_overrides

CHANNELS, SIZE = 13, (32, 36)
FORMAT = PixelFormat(CHANNELS, "uint16")
PLANES: dict[str, Any] = {"photometric": "minisblack", "planarconfig": "separate"}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of two classes that differ in channel 9, in ImageNet's layout, with suffixes in upper case."""
    root = tmp_path_factory.mktemp("scenes")
    generator = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4)):
        for label in range(2):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for number in range(count):
                image = generator.integers(0, 8000, (CHANNELS, *SIZE)).astype(np.uint16)
                image[8] += 30000 * label
                tifffile.imwrite(folder / f"{number}.TIF", image, **PLANES)
    return root


@pytest.mark.heavy
def test_a_run_reads_every_channel_in_full_and_transfers_know_its_images(
    scenes: Path, tmp_path: Path
) -> None:
    found = compute_statistics(
        any_images(scenes), channels=None, value_range=None, count=99, display=Display(quiet=True)
    )
    files = sorted((scenes / "train").rglob("*.TIF"))
    pixels = np.stack([tifffile.imread(file) for file in files]) / 65535
    assert found.pixel_format == FORMAT
    np.testing.assert_allclose(found.mean, pixels.mean((0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(found.std, pixels.std((0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(found.high, pixels.max((0, 2, 3)), rtol=1e-5)

    overrides = [
        *found.options.split(),
        *["-o", "epochs=1", "-o", "warmup_epochs=0", "-o", "batch_size=8"],
    ]
    common = ("--arch", "vit_pocket", "--data", scenes)
    assert "need their mean and std" in fails(2, "pretrain", *common, "-o", "in_chans=13")
    said = ".TIF has 13 channels, but the model takes RGB images"
    assert said in fails(4, "pretrain", *common, "--out", tmp_path / "rgb")
    ckpt = tmp_path / "run"
    assert run("pretrain", *common, "--out", ckpt, *overrides)[0] == 0
    checkpoint = read_checkpoint(str(ckpt))
    assert checkpoint.pixel_format == FORMAT
    np.testing.assert_allclose(checkpoint.mean, found.mean, rtol=1e-5)
    width = checkpoint.spec.stride**2 * CHANNELS
    assert checkpoint.state is not None
    assert any(len(value) == width for key, value in checkpoint.state.items() if "decoder" in key)
    assert Image.open(ckpt / "reconstructions.png").mode == "RGB"

    out = tmp_path / "linear"
    data = ("--data", scenes, "--out", out, "-o", "epochs=2")
    assert run("transfer", "linear", "--ckpt", ckpt, *data)[0] == 0
    record = json.loads((out / "record.json").read_text())
    assert record["data"]["images"] == {"in_chans": CHANNELS, "value_range": "uint16"}

    # A fine-tuned run keeps what its images are like: its evaluation gets the recorded score again.
    tuned, again = tmp_path / "tuned", tmp_path / "again"
    short = ("-o", "epochs=1", "-o", "warmup_epochs=0")
    fixed = ("imagenet", "--data", scenes, "--ckpt")
    assert run("transfer", *fixed, ckpt, "--out", tuned, *short)[0] == 0
    assert run("evaluate", *fixed, tuned, "--out", again)[0] == 0
    scores = [json.loads((out / "record.json").read_text())["metrics"] for out in (tuned, again)]
    assert scores[0] == scores[1]

    grid, images = tmp_path / "grid.png", ("--images", scenes / "val", "--count", 2)
    for what in ("reconstruction", "pca"):
        figure = ("visualize", "--ckpt", ckpt, *images, "--out", grid, "--what", what)
        assert "use numbers from 1 to 13" in fails(2, *figure, "--channels", "14")
        assert run(*figure, "--channels", "9")[0] == 0  # which alone differs between the images
        shown = np.asarray(Image.open(grid).convert("RGB")).astype(int)
        original = shown[4:164, 4:164]
        assert (original == original[..., :1]).all()
        assert original.mean() < 100


def test_doctor_names_channels_that_are_stored_as_pages(tmp_path: Path) -> None:
    for number in range(2):
        image = np.full((CHANNELS, *SIZE), 20000 + number, np.uint16)
        tifffile.imwrite(tmp_path / f"{number}.tif", image, photometric="minisblack")
    for pixel_format, warnings in ((PixelFormat(), 1), (FORMAT, 0)):
        reading = Reading(display=Display(quiet=True), pixel_format=pixel_format)
        findings = check_pretraining_data(tmp_path, reading)
        assert all(finding.state != "problem" for finding in findings)
        # One image each of those to train on and those held out.
        pages = [finding for finding in findings if finding.name.endswith(" pages")]
        assert [len(finding.items) for finding in pages] == [1, 1] * warnings


def test_recipes_of_colours_are_refused_where_they_are_named_and_changed_where_they_are_defaults() -> (
    None
):
    rgb = read_checkpoint("random:vit_pocket")
    spec = replace(rgb.spec, in_chans=CHANNELS)
    numbers = (0.5,) * CHANNELS
    checkpoint = replace(rgb, spec=spec, mean=numbers, std=numbers, value_range="uint16")
    assert rgb.for_images_of(checkpoint).pixel_format == FORMAT
    overrides = default_overrides(IMAGENET_VIT_B_800EP, FORMAT)
    assert overrides == ("auto_augment=none", "color_jitter=0")
    assert default_overrides(IMAGENET_VIT_B_800EP, PixelFormat()) == ()
    with pytest.raises(UsageError, match=f"use -o {' -o '.join(overrides)}"):
        check_images("imagenet", IMAGENET_VIT_B_800EP, checkpoint)
    check_images("imagenet", override(IMAGENET_VIT_B_800EP, overrides), checkpoint)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["mean=0.5,0.5,0.5"], "belong together"),
        (["in_chans=1", "mean=0.5,0.5", "std=1,1"], "2 values, but in_chans=1"),
        (["mean=0,0,0", "std=1,0,1"], "larger than 0"),
        (["value_range=float", "mean=9,9,9", "std=1,1,1", "target=bins"], "target bins needs"),
        (["value_range=uint16", "mean=0,0,0", "std=1,1,1", "target=tokens"], "target tokens"),
        (["in_chans=4", "mean=0,0,0,0", "std=1,1,1,1", "target=tokens", "tokenizer=x"], "RGB"),
    ],
)
def test_recipes_that_do_not_suit_the_images_are_refused(
    overrides: list[str], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        override(POCKET, overrides)
