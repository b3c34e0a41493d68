"""Tests of conversion: the written files compute equal features in their framework."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from support.commands import forget, run_command, run_forked
from support.tiny import TINY
from torch import Tensor, nn

from pretrain.simmim import SimMIM, load_simmim
from simmim_bench.backbones import load_backbone
from simmim_bench.checkpoints.checkpoint import IMAGENET_MEAN, IMAGENET_STD, Checkpoint
from simmim_bench.checkpoints.checkpoint import write_checkpoint as write
from simmim_bench.checkpoints.convert import Conversion, convert
from simmim_bench.checkpoints.formats import WRITERS, ExportResult
from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.cli.main import cli
from simmim_bench.errors import BenchError, UsageError
from simmim_bench.models.build import build_backbone
from simmim_bench.models.spec import BackboneSpec
from simmim_bench.models.swin import pad_before_shift

FAMILIES = sorted(TINY)
# Every stage has a shifted block. The windows divide the maps of the first size only.
SHIFTED_SWIN = replace(TINY["swin"], depths=(2, 2, 2, 2))
SWIN_SIZES = [(128, 128), (58, 70), (60, 52), (56, 72), (100, 68), (130, 134), (6, 10)]


def perturb(model: nn.Module) -> Any:
    """Perturb all parameters, because some are initialised to constants."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def save(path: Path, spec: BackboneSpec, form: str = "pretrain", classes: int = 0) -> str:
    model = SimMIM(spec) if form == "pretrain" else build_backbone(spec, num_classes=classes)
    write(
        path,
        state=perturb(model).state_dict(),
        spec=spec,
        form="pretrain" if form == "pretrain" else "transfer",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        provenance={"label": "test", "method": "simmim"},
    )
    return str(path)


def run_convert(source: str, destination: Path, to: str = "native", **options: Any) -> Conversion:
    if to in WRITERS:
        return convert(source, destination, write=WRITERS[to], to=to, **options)
    from transfer.export import WRITERS as FRAMEWORKS

    return convert(source, destination, write=FRAMEWORKS[to], to=to, **options)


def noise(spec: BackboneSpec) -> Tensor:
    return torch.randn(2, 3, *spec.img_size, generator=torch.Generator().manual_seed(4))


def assert_equal_weights(found: nn.Module, wanted: nn.Module) -> None:
    ours, theirs = found.state_dict(), wanted.state_dict()
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("form", ["pretrain", "transfer"])
def test_native_to_native_is_bit_exact(tmp_path: Path, family: str, form: str) -> None:
    source = save(tmp_path / "a", TINY[family], form, classes=3)
    run_convert(source, tmp_path / "b")
    before, after = read_checkpoint(source), read_checkpoint(str(tmp_path / "b"))
    assert (before.spec, before.form, before.label) == (after.spec, after.form, after.label)
    assert before.state is not None
    assert after.state is not None
    assert before.state.keys() == after.state.keys()
    assert all(torch.equal(value, after.state[name]) for name, value in before.state.items())


@pytest.mark.heavy
@pytest.mark.parametrize("size", [(32, 32), (32, 64)], ids=["square", "wide"])
@pytest.mark.parametrize("form", ["pretrain", "transfer"])
@pytest.mark.parametrize("family", FAMILIES)
def test_native_to_timm_to_native_is_bit_exact(
    tmp_path: Path, family: str, form: str, size: tuple[int, int]
) -> None:
    # timm's convolutional networks have stems of stride 4.
    spec = replace(TINY[family], sincos_position=False, patch_size=4).at(size)
    source = save(tmp_path / "a", spec, form, classes=3)
    assert "differ" not in run_convert(source, tmp_path / "timm", "timm").usage
    run_convert(str(tmp_path / "timm"), tmp_path / "b")
    classes = 3 if form == "transfer" else 0
    wanted = load_backbone(source, num_classes=classes)
    found = load_backbone(str(tmp_path / "b"), num_classes=classes)
    assert found.spec.img_size == size
    assert_equal_weights(found, wanted)
    theirs = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    images = noise(spec)
    assert torch.allclose(theirs(images), wanted.eval()(images), atol=1e-5)
    assert theirs.pretrained_cfg["mean"] == list(IMAGENET_MEAN)


@pytest.mark.parametrize("family", ["swin", "swinv2"])
def test_the_usage_states_the_difference_of_timms_padded_swins(tmp_path: Path, family: str) -> None:
    spec = replace(TINY[family], patch_size=4).at((56, 72))  # stages of 14x18, 7x9, 4x5, 2x3 tokens
    source = save(tmp_path / "a", spec)
    done = run_convert(source, tmp_path / "timm", "timm")
    stated = re.search(
        r"# its features differ by (\S+) of their size: .*pad_before_shift", done.usage
    )
    assert stated is not None
    assert float(stated[1]) > 1e-4
    assert done.feature_difference < 1e-6
    images, wanted = noise(spec), load_backbone(source).eval()
    theirs = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    assert not torch.allclose(theirs(images), wanted(images), atol=1e-3)
    pad_before_shift(theirs)
    assert torch.allclose(theirs(images), wanted(images), atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"sincos_position": True},
        {"abs_pos_embed": True, "rel_pos_bias": False, "sincos_position": False},
        {
            "abs_pos_embed": True,
            "rel_pos_bias": False,
            "sincos_position": False,
            "init_values": 0.1,
        },
    ],
    ids=["sincos", "mae", "layer scale"],
)
def test_vits_with_every_kind_of_position_convert_to_timm(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    spec = replace(TINY["vit"], **changes)
    source = save(tmp_path / "a", spec)
    run_convert(source, tmp_path / "timm", "timm")
    images, wanted = noise(spec), load_backbone(source).eval()
    theirs = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    assert torch.allclose(theirs(images), wanted(images), atol=1e-5)
    back = load_backbone(str(tmp_path / "timm")).eval()
    assert torch.allclose(back(images), wanted(images), atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_resizing_equals_that_of_fine_tuning(tmp_path: Path, family: str) -> None:
    source = save(tmp_path / "a", TINY[family])
    window = 3 if TINY[family].window_size else None
    done = run_convert(source, tmp_path / "b", img_size=(48, 64), window_size=window)
    wanted = load_backbone(source, (48, 64), window_size=window)
    found = load_backbone(str(tmp_path / "b"))
    assert found.spec == wanted.spec
    if family == "swin":
        assert len(done.resized) == sum(TINY[family].depths)
    assert_equal_weights(found, wanted)
    assert load_simmim(str(tmp_path / "b")).spec.img_size == (48, 64)


def test_detectron2s_swin_computes_equal_maps_of_any_size(tmp_path: Path) -> None:
    swin = pytest.importorskip("detectron2.modeling.backbone.swin")
    from detectron2.checkpoint import DetectionCheckpointer

    spec, file = SHIFTED_SWIN, tmp_path / "swin.pth"
    source = save(tmp_path / "a", spec)
    assert run_convert(source, file, "detectron2").feature_difference < 1e-6

    def load() -> nn.Module:
        net = swin.SwinTransformer(
            patch_size=spec.patch_size,
            embed_dim=spec.embed_dim,
            depths=spec.depths,
            num_heads=spec.num_heads,
            window_size=spec.window_size,
        )
        # The name of the backbone in a project is arbitrary.
        holder = nn.ModuleDict({"backbone": nn.ModuleDict({"net": net})})
        DetectionCheckpointer(holder).load(str(file))
        return net.eval()

    net, ours = load(), load_backbone(source, SWIN_SIZES[0]).eval()
    for size in SWIN_SIZES:
        images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(4))
        wanted = ours.forward_maps(images)
        for found, level in zip(net(images).values(), wanted, strict=True):
            assert torch.allclose(found, level, atol=1e-5), size
    content = torch.load(file, weights_only=True)
    content["model"]["layers.0.blocks.0.mlp.fc1.weight"] += 0.1
    torch.save(content, file)
    assert not torch.allclose(load()(images)["p3"], wanted[3], atol=1e-3)


@pytest.mark.parametrize("family", ["swin", "vit"])
def test_mmsegmentations_backbones_compute_equal_maps(tmp_path: Path, family: str) -> None:
    backbones = pytest.importorskip("mmseg.models.backbones")
    vit = replace(TINY["vit"], sincos_position=False, init_values=0.1)
    spec = SHIFTED_SWIN if family == "swin" else vit
    source, file = save(tmp_path / "a", spec), tmp_path / "net.pth"
    assert run_convert(source, file, "mmseg").feature_difference < 1e-6
    init = {"type": "Pretrained", "checkpoint": str(file)}
    sizes = SWIN_SIZES if family == "swin" else [spec.img_size]
    if family == "swin":
        net = backbones.SwinTransformer(
            embed_dims=spec.embed_dim,
            patch_size=spec.patch_size,
            strides=(spec.patch_size, 2, 2, 2),
            depths=spec.depths,
            num_heads=spec.num_heads,
            window_size=spec.window_size,
            init_cfg=init,
        )
    else:
        net = backbones.BEiT(
            img_size=spec.img_size,
            patch_size=spec.patch_size,
            embed_dims=spec.embed_dim,
            num_layers=spec.depths[0],
            num_heads=spec.num_heads[0],
            norm_cfg={"type": "LN", "eps": 1e-6},
            out_indices=[0, 1, 2, 3],
            init_cfg=init,
        )
    net.init_weights()
    net.eval()
    ours = load_backbone(source, sizes[0]).eval()
    for size in sizes:
        images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(4))
        for found, level in zip(net(images), ours.forward_maps(images), strict=True):
            if family == "vit":  # BEiT's maps are not normalised
                found = F.layer_norm(found.permute(0, 2, 3, 1), found.shape[1:2], eps=1e-6)
                found = found.permute(0, 3, 1, 2)
            assert torch.allclose(found, level, atol=1e-5), size


@pytest.mark.parametrize(("to", "module"), [("detectron2", "detectron2"), ("mmseg", "mmseg")])
@pytest.mark.parametrize("family", ["vit", "swinv2", "convnext", "resnet"])
def test_architectures_without_a_framework_backbone_use_the_adapter(
    tmp_path: Path, family: str, to: str, module: str
) -> None:
    pytest.importorskip(module)
    source = save(tmp_path / "a", TINY[family])
    done = run_convert(source, tmp_path / "net.pth", to)
    assert "SimMIMBackbone" in done.usage
    assert done.feature_difference < 1e-6


@pytest.mark.heavy
@pytest.mark.parametrize("umask", [0o022, 0o027], ids=["022", "027"])
@pytest.mark.parametrize("to", ["native", "timm", "detectron2", "mmseg"])
def test_files_have_the_permissions_of_the_umask(tmp_path: Path, to: str, umask: int) -> None:
    """safetensors writes its files with mode 0600."""
    if to not in WRITERS:
        pytest.importorskip(to)
    previous = os.umask(umask)
    try:
        source = save(tmp_path / "a", TINY["swin"])
        run_convert(source, tmp_path / "b" / "net.pth", to)
    finally:
        os.umask(previous)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) >= 3
    assert {oct(path.stat().st_mode & 0o777) for path in written} == {oct(0o666 & ~umask)}
    folders = [path for path in tmp_path.rglob("*") if path.is_dir()]
    assert {oct(path.stat().st_mode & 0o777) for path in folders} == {oct(0o777 & ~umask)}


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_mean_without_a_standard_deviation_is_refused(tmp_path: Path) -> None:
    arguments = ["convert", "model.pth", str(tmp_path / "out"), "--mean", "0.5", "0.5", "0.5"]
    found = CliRunner().invoke(cli, arguments)
    assert isinstance(found.exception, UsageError)
    assert "--mean and --std belong together" in str(found.exception)


def test_an_existing_destination_is_not_changed(tmp_path: Path) -> None:
    source = save(tmp_path / "a", TINY["vit"])
    (tmp_path / "b").write_text("mine")
    with pytest.raises(UsageError, match="exists; choose another DST or add --overwrite"):
        run_convert(source, tmp_path / "b")
    assert (tmp_path / "b").read_text() == "mine"
    run_convert(source, tmp_path / "b", overwrite=True)
    assert files(tmp_path / "b") == ["meta.json", "model.safetensors"]


def write_other_features(checkpoint: Checkpoint, path: Path) -> ExportResult:
    path.write_text("half")
    return ExportResult(0.5, "")


def write_nan(checkpoint: Checkpoint, path: Path) -> ExportResult:
    return ExportResult(float("nan"), "")


def raise_defect(checkpoint: Checkpoint, path: Path) -> ExportResult:
    path.write_text("half")
    raise RuntimeError("a defect")


@pytest.mark.parametrize("writer", [write_other_features, write_nan, raise_defect])
def test_a_failed_conversion_leaves_no_files(
    tmp_path: Path, writer: Callable[[Checkpoint, Path], ExportResult]
) -> None:
    source = save(tmp_path / "a", TINY["vit"])
    with pytest.raises((BenchError, RuntimeError)):
        convert(source, tmp_path / "b", write=writer, to="native")
    assert files(tmp_path) == ["a"]


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("random:vit_pocket", {}, "has no weights to convert"),
        (None, {"window_size": 4, "to": "timm"}, "timm has no ViT with attention windows"),
        (None, {"img_size": (30, 32)}, r"is not a multiple of .* patch_size 4"),
    ],
)
def test_a_source_that_cannot_be_converted_raises_an_error(
    tmp_path: Path, source: str | None, options: dict[str, Any], message: str
) -> None:
    source = source or save(tmp_path / "a", replace(TINY["vit"], depths=(8,)))
    with pytest.raises(UsageError, match=message):
        run_convert(source, tmp_path / "b", **options)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("to", ["native", "timm"])
def test_stdout_holds_only_the_json_report(tmp_path: Path, to: str) -> None:
    source = save(tmp_path / "a", TINY["swin"])
    arguments = ["convert", source, str(tmp_path / "b"), "--to", to, "--json"]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 0, done.stderr
    check_report(json.loads(done.stdout))


@pytest.mark.heavy
def test_stdout_holds_only_the_report_when_a_framework_prints(tmp_path: Path) -> None:
    pytest.importorskip("mmseg")
    source = save(tmp_path / "a", TINY["swin"])
    arguments = ["convert", source, str(tmp_path / "b"), "--to", "mmseg", "--json"]
    done = run_forked(partial(convert_to_mmseg, arguments))
    assert done.code == 0, done.stderr
    check_report(json.loads(done.stdout))


def convert_to_mmseg(arguments: Sequence[str]) -> None:
    """Run the command line in a process that has not imported what MMSegmentation prints from."""
    forget("mmseg", "mmengine", "mmcv")
    run_command(tuple(arguments))


def check_report(report: dict[str, Any]) -> None:
    assert len(report["matched"]) > 50
    assert (report["missing"], report["resized"]) == ([], [])
    assert report["feature_difference"] < 1e-5
