"""Tests of checkpoints for images of one or four channels: refused in one line before anything is written."""

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
from simmim_bench.diagnostics.checkpoint import check_checkpoint
from simmim_bench.models.build import build_backbone
from simmim_bench.tasks import TASKS


def write(path: Path, channels: int, *, pretraining: bool = False) -> Path:
    spec = replace(TINY["vit"], in_chans=channels)
    simmim = SimMIM(spec, Design(), seed=0)
    model = simmim if pretraining else build_backbone(spec, num_classes=10, seed=0)
    write_checkpoint(
        path,
        state=model.state_dict(),
        spec=spec,
        form="pretrain" if pretraining else "transfer",
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        provenance={"label": "tiny", "design": asdict(simmim.design)},
    )
    return path


@pytest.mark.parametrize("channels", [1, 4])
def test_commands_refuse_another_number_of_channels_and_doctor_says_the_same(
    channels: int, pocket: Path, tmp_path: Path
) -> None:
    ckpt = write(tmp_path / "ckpt", channels)
    _, findings = check_checkpoint(str(ckpt))
    said = f"{ckpt} takes images of {channels} channels, but RGB images are read"
    out = ("--out", tmp_path / "run")
    for name, task in TASKS.items():
        data = ("--data", pocket / task.data)
        extra = ("--fraction", "10%") if "fraction" in task.options else ()
        assert said in fails(4, "transfer", name, "--ckpt", ckpt, *data, *extra, *out), name
    images = pocket / "imagenet"
    assert said in fails(4, "evaluate", "imagenet", "--ckpt", ckpt, "--data", images, *out)
    assert said in fails(4, "suite", "--ckpt", ckpt, "--imagenet", images, *out)
    assert said in "\n".join(f.said for f in findings if f.state == "problem")
    pretrained = write(tmp_path / "pretrained", channels, pretraining=True)
    said = said.replace(str(ckpt), str(pretrained))
    image = ("--images", images / "val", "--out", tmp_path / "grid.png")
    assert said in fails(4, "visualize", "--ckpt", pretrained, *image)
    start = ("--arch", "vit_pocket", "--data", images, "--init-from", pretrained)
    assert said in fails(4, "pretrain", *start, *out)
    assert not (tmp_path / "grid.png").exists()


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
