"""Tests of the conversion of networks of other code: timm's folders, the frameworks' files, other sizes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file

from simmim_bench.backbones import load_backbone
from simmim_bench.checkpoints.checkpoint import Checkpoint, save_weights, write_checkpoint
from simmim_bench.checkpoints.convert import Conversion, convert
from simmim_bench.checkpoints.formats import WRITERS
from simmim_bench.checkpoints.load import restore_backbone
from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.checkpoints.third_party.external import describe_timm
from simmim_bench.errors import DataError, UsageError
from simmim_bench.models.build import build_backbone

NAFLEX: dict[str, Any] = {"embed_dim": 16, "depth": 1, "num_heads": 1}
TRESNET: dict[str, Any] = {"layers": [1, 1, 1, 1], "width_factor": 0.25}
MODULE = """
from torch import nn

class Net(nn.Module):
    feature_levels = [(8, 16)]
    img_size = (32, 32)
    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 16, 16)
    def forward_maps(self, images):
        return [self.patches(images)]
"""


def save(path: Path, checkpoint: Checkpoint, classes: int) -> str:
    """Write a checkpoint directory with random weights."""
    state = build_backbone(checkpoint.spec, num_classes=classes, seed=6).state_dict()
    write_checkpoint(
        path,
        state=dict(state),
        spec=checkpoint.spec,
        form="transfer",
        mean=checkpoint.mean,
        std=checkpoint.std,
        provenance={"label": "external"},
    )
    return str(path)


def to(kind: str, source: str, destination: Path, **options: Any) -> Conversion:
    """Convert a checkpoint, and check what the report says of the features."""
    if kind in WRITERS:
        write = WRITERS[kind]
    else:
        pytest.importorskip({"detectron2": "detectron2", "mmseg": "mmseg"}[kind])
        from transfer.export import WRITERS as FRAMEWORKS

        write = FRAMEWORKS[kind]
    report = convert(source, destination, write=write, to=kind, **options)
    assert report.feature_difference < 1e-5
    return report


@pytest.mark.heavy
@pytest.mark.parametrize(("arch", "classes"), [("test_vit", 0), ("test_efficientnet", 3)])
def test_a_network_converts_to_timm_with_its_head(tmp_path: Path, arch: str, classes: int) -> None:
    source = save(tmp_path / "a", read_checkpoint(f"random:{arch}"), classes)
    to("timm", source, tmp_path / "timm", img_size=(96, 96))
    theirs = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    ours = load_backbone(source, (96, 96), num_classes=classes).eval()
    images = torch.randn(2, 3, 96, 96)
    torch.testing.assert_close(theirs(images), ours(images))
    assert tuple(theirs.pretrained_cfg["input_size"]) == (3, 96, 96)


@pytest.mark.parametrize("kind", ["native", "detectron2", "mmseg"])
def test_a_network_converts_to_other_formats(tmp_path: Path, kind: str) -> None:
    source = save(tmp_path / "a", read_checkpoint("random:test_efficientnet"), 0)
    to(kind, source, tmp_path / f"b.{kind}")


def test_a_users_network_converts_where_its_code_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_net_to_convert.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    source = "py:own_net_to_convert:Net"
    for kind in ("detectron2", "mmseg"):
        to(kind, source, tmp_path / kind)
    usage = to("native", source, tmp_path / "native").usage
    assert f"--ckpt {source}@{tmp_path / 'native'} " in usage
    with pytest.raises(UsageError, match="which timm does not have; use --to native"):
        to("timm", source, tmp_path / "timm")


@pytest.mark.slow
def test_a_head_that_timm_does_not_have_is_refused(tmp_path: Path) -> None:
    source = save(tmp_path / "a", read_checkpoint("random:levit_128s"), 3)
    with pytest.raises(UsageError, match=r"is not one linear layer.* use --to native"):
        to("timm", source, tmp_path / "timm")


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["naflexvit_base_patch16_gap", "tresnet_m"])
@pytest.mark.parametrize("img_size", [None, (64, 96)])
def test_a_first_layer_is_never_initialised_at_random(
    name: str, img_size: tuple[int, int] | None
) -> None:
    """timm adapts neither a linear layer nor kernels of blocks of pixels to 13 channels, and only logs that."""
    small = NAFLEX if name.startswith("naf") else TRESNET
    spec = describe_timm(name, small, img_size=(32, 32))
    state = dict(build_backbone(spec).state_dict())
    checkpoint = replace(read_checkpoint("random:test_vit"), name="net", spec=spec, state=state)
    with pytest.raises(DataError, match="net takes images of 3 channels, and timm has no rule"):
        restore_backbone(checkpoint, img_size, in_chans=13)


def test_timms_folder_has_no_entry_for_values_other_than_bytes(tmp_path: Path) -> None:
    checkpoint = replace(read_checkpoint("random:test_vit"), value_range="uint16")
    with pytest.raises(UsageError, match=r"no entry for the uint16 values .* use --to native"):
        WRITERS["timm"](checkpoint, tmp_path / "timm")
    assert not (tmp_path / "timm").exists()


def test_weights_that_share_memory_are_written_for_each_name(tmp_path: Path) -> None:
    """safetensors itself refuses tensors that share memory, and those that are not contiguous."""
    weight = torch.arange(6.0).view(2, 3)
    save_weights({"a": weight, "b": weight, "c": weight.T}, tmp_path / "tied.safetensors")
    found = load_file(tmp_path / "tied.safetensors")
    assert torch.equal(found["a"], weight)
    assert torch.equal(found["b"], weight)
    assert torch.equal(found["c"], weight.T)
