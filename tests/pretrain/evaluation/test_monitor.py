"""Check the training monitor, and the limit on unreadable images."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny import TINY
from torch.utils.data import TensorDataset

from pretrain.design import Design
from pretrain.evaluation.monitor import WINDOW, CollapseMonitor, sample_images, trivial_loss
from pretrain.recipes import POCKET
from pretrain.targets.pixels import PixelTarget
from pretrain.train import TrainOptions, pretrain
from simmim_bench.data.datasets import ImageDataset
from simmim_bench.data.pretraining_images import any_images
from simmim_bench.data.random_crop import random_crop_flip
from simmim_bench.data.sources import ImageList
from simmim_bench.display import Display
from simmim_bench.errors import DataError
from simmim_bench.runs.context import RunContext
from simmim_bench.runs.run_dir import open_run


def test_trivial_loss_is_the_loss_of_the_best_constant() -> None:
    images = torch.randint(256, (40, 2, 8, 8), generator=torch.Generator().manual_seed(0))
    # A channel of zeros and ones, mostly zeros: the best constant is 0.
    images[:, 1] = (images[:, 1] < 77) * 255
    dataset: Any = TensorDataset(images.byte(), torch.zeros(40))
    constants = torch.linspace(0, 1, 1001)
    best = [
        min(float((images[:, channel] / 255 - constant).abs().mean()) for constant in constants)
        for channel in range(2)
    ]
    spec = replace(TINY["vit"], in_chans=2, img_size=(8, 8))
    cpu = torch.device("cpu")
    sampled = sample_images(dataset, 0, (0.5, 0.1), (1.0, 0.5), cpu)
    found = trivial_loss(PixelTarget(Design(), spec), sampled)
    assert found == pytest.approx((best[0] + 2 * best[1]) / 2, abs=1e-3)


def warnings_of(figures: list[tuple[float, float]]) -> list[str]:
    monitor = CollapseMonitor(trivial=1.0)
    return [
        warning for loss, norm in figures if (warning := monitor.update(loss, norm)) is not None
    ]


LEARNING = [(0.7, 1.0)] * (2 * WINDOW)


def test_collapse_is_reported_once() -> None:
    warnings = warnings_of(LEARNING + [(1.0, 0.01)] * (3 * WINDOW))
    assert len(warnings) == 1
    assert "training collapsed: the loss is back at" in warnings[0]
    assert "-o base_lr=" in warnings[0]


@pytest.mark.parametrize(
    "figures",
    [
        [(1.0, 0.01)] * (3 * WINDOW),  # before the model has learnt
        LEARNING + [(1.0, 1.0)] * (3 * WINDOW),  # a temporarily high loss with gradients
        LEARNING + [(0.8, 0.01)] * (3 * WINDOW),  # slow, but below the trivial loss
    ],
    ids=["beginning", "bad stretch", "slow"],
)
def test_no_warning_without_collapse(figures: list[tuple[float, float]]) -> None:
    assert not warnings_of(figures)


@pytest.mark.heavy
def test_every_epoch_logs_held_out_and_trivial_loss(tmp_path: Path, pocket: Path) -> None:
    recipe = replace(POCKET, epochs=2, batch_size=20)
    with open_run(
        tmp_path / "run", recipe=recipe, deviates={}, arguments={}, display=Display(quiet=True)
    ) as run:
        pretrain(RunContext(run=run, seed=0), recipe=recipe, deviates={}, data=pocket / "imagenet")
    lines = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    held_out = [line for line in lines if "held_out_loss" in line]
    assert [line["step"] for line in held_out] == [2, 5]
    assert all(line["trivial_loss"] == held_out[0]["trivial_loss"] > 0 for line in held_out)
    assert (tmp_path / "run" / "reconstructions.png").is_file()
    assert "constant-prediction baseline loss=" in (tmp_path / "run" / "log.txt").read_text()


def with_unreadable(tmp_path: Path, pocket: Path, bad: int) -> ImageDataset:
    """Return a data set of copied images, the first `bad` of them unreadable, that skips at most two."""
    load = partial(random_crop_flip, img_size=(32, 32), crop_scale=(0.5, 1.0))
    images = any_images(pocket / "imagenet")
    assert isinstance(images, ImageList)
    for number, path in enumerate(images.paths[:8]):
        content = b"not an image" if number < bad else path.read_bytes()
        (tmp_path / f"{number}{path.suffix}").write_bytes(content)
    return ImageDataset(any_images(tmp_path), load, skip_unreadable=2)


def test_unreadable_images_are_skipped_up_to_a_limit(tmp_path: Path, pocket: Path) -> None:
    dataset = with_unreadable(tmp_path, pocket, bad=2)
    torch.manual_seed(0)
    assert dataset[0][0].shape == (3, 32, 32)
    assert [dataset[i][1] for i in range(8)] == [0] * 8
    assert dataset.skipped == 2  # regardless of how often they are requested


def test_too_many_unreadable_images_are_a_data_error(tmp_path: Path, pocket: Path) -> None:
    dataset = with_unreadable(tmp_path, pocket, bad=3)
    with pytest.raises(
        DataError, match=r"2\.\w+ cannot be read.* number 3; --skip-unreadable allows 2"
    ):
        dataset[0]


@pytest.mark.heavy
def test_unreadable_held_out_images_are_skipped_up_to_a_limit(tmp_path: Path, pocket: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(pocket / "imagenet", data)
    first = sorted((data / "val").rglob("*.JPEG"))[0]  # the first of the evenly spaced ones
    first.write_bytes(b"not an image")
    recipe = replace(POCKET, epochs=1, warmup_epochs=0, batch_size=20)
    for limit, message in ((0, f"{first.name} cannot be read"), (1, None)):
        with (
            pytest.raises(DataError, match=message) if message else nullcontext(),
            open_run(
                tmp_path / "runs" / "deep",
                recipe=recipe,
                deviates={},
                arguments={},
                display=Display(quiet=True),
                overwrite=limit > 0,
            ) as run,
        ):
            pretrain(
                RunContext(run=run, seed=0),
                recipe=recipe,
                deviates={},
                data=data,
                options=TrainOptions(skip_unreadable=limit),
            )
    metrics = (tmp_path / "runs" / "deep" / "metrics.jsonl").read_text()
    assert '"held_out_unreadable": 1' in metrics


def test_a_refused_run_leaves_no_folders(tmp_path: Path) -> None:
    with (
        pytest.raises(DataError, match="reader") as caught,
        open_run(
            tmp_path / "a" / "b" / "run",
            recipe=POCKET,
            deviates={},
            arguments={},
            display=Display(quiet=True),
        ),
    ):
        raise DataError("reader <_io.BytesIO object at 0x7f0a> here")
    assert str(caught.value) == "reader _io.BytesIO here"
    assert not (tmp_path / "a").exists()
