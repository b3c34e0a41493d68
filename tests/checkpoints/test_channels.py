"""Test checkpoints for images of other channels than three: what is read, adapted and refused."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from support.cli import fails, run
from support.tiny import TINY

from pretrain.design import Design
from pretrain.simmim import SimMIM
from simmim_bench.backbones import load_backbone
from simmim_bench.checkpoints.checkpoint import write_checkpoint
from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.data.pixel_format import PixelFormat, count_channels
from simmim_bench.diagnostics.checkpoint import check_checkpoint
from simmim_bench.diagnostics.data_checks import Reading
from simmim_bench.display import Display
from simmim_bench.models.build import build_backbone
from simmim_bench.tasks import TASKS
from transfer.finetune.doctor_checks import check_imagenet


def write(
    path: Path, channels: int, *, pretraining: bool = False, statistics: int | None = None
) -> Path:
    """Write a checkpoint for images of some channels, with as many values of mean and std, or `statistics`."""
    spec = replace(TINY["vit"], in_chans=channels)
    simmim = SimMIM(spec, Design(), seed=0)
    model = simmim if pretraining else build_backbone(spec, num_classes=10, seed=0)
    write_checkpoint(
        path,
        state=model.state_dict(),
        spec=spec,
        form="pretrain" if pretraining else "transfer",
        mean=(0.5,) * (statistics or channels),
        std=(0.5,) * (statistics or channels),
        provenance={"label": "tiny", "design": asdict(simmim.design)},
    )
    return path


@pytest.mark.heavy
@pytest.mark.parametrize("channels", [1, 4])
def test_commands_refuse_images_of_other_channels_and_doctor_says_the_same(
    channels: int, pocket: Path, tmp_path: Path
) -> None:
    ckpt = write(tmp_path / "ckpt", channels)
    out = ("--out", tmp_path / "run")
    images = pocket / "imagenet"
    start = ("--arch", "vit_pocket", "--data", images, "--init-from")
    pretrained = write(tmp_path / "pretrained", channels, pretraining=True)
    assert f"{pretrained} takes images of {count_channels(channels)}" in fails(
        2, "pretrain", *start, pretrained, *out
    )
    assert not (tmp_path / "run").exists()
    if channels == 1:
        return  # RGB images become grey
    said = "has 3 channels, but the model takes images of 4 channels"
    for name in ("knn", "coco", "ade20k"):
        data = ("--data", pocket / TASKS[name].data)
        assert said in fails(4, "transfer", name, "--ckpt", ckpt, *data, *out, "--overwrite")
    reading = Reading(display=Display(quiet=True), pixel_format=PixelFormat(channels))
    found = check_imagenet(images, reading)
    assert any(said in item for f in found if f.state == "problem" for item in f.items)


def test_statistics_of_another_number_of_channels_are_refused(pocket: Path, tmp_path: Path) -> None:
    ckpt = write(tmp_path / "ckpt", 4, statistics=3)
    said = f"{ckpt} takes images of 4 channels, but has 3 values of mean and std"
    _, findings = check_checkpoint(str(ckpt))
    assert said in "\n".join(f.said for f in findings if f.state == "problem")
    out, images = ("--out", tmp_path / "run"), pocket / "imagenet"
    for name, task in TASKS.items():
        data = ("--data", pocket / task.data)
        extra = ("--fraction", "10%") if "fraction" in task.options else ()
        assert said in fails(4, "transfer", name, "--ckpt", ckpt, *data, *extra, *out), name
    assert said in fails(4, "evaluate", "imagenet", "--ckpt", ckpt, "--data", images, *out)
    assert said in fails(4, "suite", "--ckpt", ckpt, "--imagenet", images, *out)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("channels", [1, 13])
def test_convert_adapts_the_first_convolution_as_timm_does(channels: int, tmp_path: Path) -> None:
    ckpt = write(tmp_path / "ckpt", 3, pretraining=True)
    numbers = ["0.25"] * channels
    options = ("--mean", *numbers, "--std", *numbers, "--value-range", "uint16")
    adapted = tmp_path / "adapted"
    common = ("convert", ckpt, adapted, "--in-chans", channels)
    assert "need the --mean and --std" in fails(2, *common)
    assert "has 2 values" in fails(2, *common, "--mean", "0,1", "--std", "1,1")
    assert run(*common, *options)[0] == 0
    checkpoint = read_checkpoint(str(adapted))
    assert checkpoint.pixel_format == PixelFormat(channels, "uint16")
    assert checkpoint.mean == checkpoint.std == (0.25,) * channels
    name = "patch_embed.proj.weight"
    before, after = (load_backbone(str(path)).state_dict()[name] for path in (ckpt, adapted))
    # timm/models/_manipulate.py, adapt_input_conv: summed for one channel, else repeated and scaled.
    for channel in range(channels):
        wanted = before.sum(1) if channels == 1 else before[:, channel % 3] * 3 / channels
        torch.testing.assert_close(after[:, channel], wanted)
    again = ("convert", adapted, tmp_path / "again", "--in-chans", 5)
    said = fails(2, *again, "--mean", "0,0,0,0,0", "--std", "1,1,1,1,1")
    assert f"takes {count_channels(channels)}; use a checkpoint of RGB images" in said


def test_the_python_interface_and_convert_take_any_number_of_channels(tmp_path: Path) -> None:
    ckpt = write(tmp_path / "ckpt", 4)
    assert run("convert", ckpt, tmp_path / "converted")[0] == 0
    images = torch.randn(2, 4, *TINY["vit"].img_size)
    with torch.no_grad():
        before, after = (
            load_backbone(str(path)).eval().forward_features(images)
            for path in (ckpt, tmp_path / "converted")
        )
    assert torch.equal(before, after)


def test_a_random_baseline_of_a_suite_reads_the_images_of_its_checkpoint(
    pocket: Path, tmp_path: Path
) -> None:
    ckpt = write(tmp_path / "ckpt", 1)
    command = ("suite", "--ckpt", ckpt, "--imagenet", pocket / "imagenet", "--tasks", "knn")
    more = ("--baseline", "random", "--dry-run", "--out", tmp_path / "runs")
    assert f"but {ckpt} takes images of 1 channel and 8 bits" in fails(2, *command, *more)


def test_pretraining_continues_with_the_normalisation_of_its_weights(
    pocket: Path, tmp_path: Path
) -> None:
    ckpt = write(tmp_path / "ckpt", 3, pretraining=True)
    command = ("pretrain", "--arch", "vit_pocket", "--data", pocket / "imagenet")
    more = ("--init-from", ckpt, "--out", tmp_path / "run")
    assert "use -o mean=0.5,0.5,0.5 -o std=0.5,0.5,0.5" in fails(2, *command, *more)
