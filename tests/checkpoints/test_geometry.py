"""Tests of what the weights do not show: attention heads, Swin V2's window, operations without weights."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from support.third_party import build_vit, difference, perturb, save
from timm.models import save_for_hf
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from torch import Tensor, nn

from simmim_bench.checkpoints.checkpoint import IMAGENET_MEAN
from simmim_bench.checkpoints.load import restore_backbone
from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.checkpoints.third_party.hints import Hints
from simmim_bench.checkpoints.third_party.swin import shift_downsample
from simmim_bench.checkpoints.third_party.timm import import_timm
from simmim_bench.cli.main import cli
from simmim_bench.errors import DataError, UsageError

SWIN: dict[str, Any] = {
    "img_size": 64,
    "patch_size": 4,
    "embed_dim": 16,
    "depths": (1, 2),
    "num_heads": (1, 2),
    "num_classes": 0,
}


def build_folder(model: Any, folder: Path, **arguments: Any) -> str:
    """Write timm's folder of a model."""
    model.pretrained_cfg = {**model.pretrained_cfg, "mean": IMAGENET_MEAN}
    save_for_hf(model, str(folder), model_args=arguments, safe_serialization=True)
    return str(folder)


# ViT: the attention heads


@pytest.mark.heavy
@pytest.mark.parametrize(("width", "heads"), [(192, 12), (384, 12), (768, 16)])
def test_a_folders_heads_are_those_of_its_model(tmp_path: Path, width: int, heads: int) -> None:
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": width, "depth": 1, "num_heads": heads}
    model = perturb(timm.create_model("vit_tiny_patch16_224", num_classes=3, **sizes))
    checkpoint = read_checkpoint(build_folder(model, tmp_path / "vit", **sizes))
    assert checkpoint.spec.num_heads == (heads,)
    assert difference(checkpoint, model) < 1e-5
    assert checkpoint.warning == ""
    assert difference(import_timm(model, "timm:vit", "vit"), model) < 1e-5


def test_a_folder_that_names_only_its_architecture_is_read(tmp_path: Path) -> None:
    """The size and heads of timm's test_vit (64 wide, 2 heads, 160 pixels) are in its function only."""
    model = perturb(timm.create_model("test_vit", num_classes=3))
    folder = build_folder(model, tmp_path / "vit")
    config = json.loads((tmp_path / "vit" / "config.json").read_text())
    config.pop("model_args", None)
    (tmp_path / "vit" / "config.json").write_text(json.dumps(config))
    checkpoint = read_checkpoint(folder)
    assert (checkpoint.spec.num_heads, checkpoint.spec.img_size) == ((2,), (160, 160))
    assert difference(checkpoint, model) < 1e-5


def test_a_folder_with_position_tables_of_another_size_is_read(tmp_path: Path) -> None:
    model = perturb(timm.create_model("test_vit", num_classes=0, img_size=96))
    folder = build_folder(model, tmp_path / "vit")
    config = json.loads((tmp_path / "vit" / "config.json").read_text())
    config.pop("model_args", None)
    (tmp_path / "vit" / "config.json").write_text(json.dumps(config))
    checkpoint = read_checkpoint(folder)
    assert checkpoint.spec.img_size == (96, 96)
    assert difference(checkpoint, model) < 1e-5


@pytest.mark.parametrize(
    "arguments", [{"act_layer": "quick_gelu"}, {"act_layer": "gelu_tanh"}, {"act_layer": "relu"}]
)
def test_a_folder_of_a_variant_is_computed_by_timm(
    tmp_path: Path, arguments: dict[str, Any]
) -> None:
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 4}
    model = perturb(timm.create_model("vit_tiny_patch16_224", **sizes, **arguments))
    folder = build_folder(model, tmp_path / "vit", **sizes, **arguments)
    checkpoint = read_checkpoint(folder)
    assert checkpoint.spec.family == "timm"
    images = torch.randn(2, 3, 32, 32)
    found = restore_backbone(checkpoint).eval().forward_features(images)
    torch.testing.assert_close(found, model.forward_head(model.forward_features(images), True))


def test_a_bare_vit_of_a_published_width_is_read_with_a_warning(tmp_path: Path) -> None:
    model, other = build_vit(192, 3), build_vit(192, 12)
    other.load_state_dict(model.state_dict())
    ckpt = save(model.state_dict(), tmp_path / "vit.pth")
    checkpoint = read_checkpoint(ckpt)
    assert difference(checkpoint, model) < 1e-5
    assert difference(checkpoint, other) > 1e-2
    assert (
        "does not show how many attention heads its ViT of width 192 has; 3 are used, as in the "
        f"published ViT. To set them: simmim-bench convert {ckpt} DST --num-heads 3."
    ) in checkpoint.warning
    assert checkpoint.provenance["assumed"] == {"num_heads": 3}  # records keep it
    checkpoint = read_checkpoint(ckpt, Hints(num_heads=12))
    assert difference(checkpoint, other) < 1e-5
    assert "heads" not in checkpoint.warning
    assert "assumed" not in checkpoint.provenance


def test_a_bare_vit_of_another_width_is_refused(tmp_path: Path) -> None:
    ckpt = save(build_vit(48, 4).state_dict(), tmp_path / "vit.pth")
    with pytest.raises(DataError, match=r"width 48 has; use simmim-bench .* DST --num-heads N\."):
        read_checkpoint(ckpt)
    with pytest.raises(DataError, match="width 48 is not a multiple of 5 attention heads"):
        read_checkpoint(ckpt, Hints(num_heads=5))


@pytest.mark.parametrize(
    ("name", "width", "heads"), [("vit_small", 384, 6), ("deit_tiny", 192, 3), ("vit_tiny", 192, 3)]
)
def test_arguments_of_the_training_name_the_heads(
    tmp_path: Path, name: str, width: int, heads: int
) -> None:
    model = build_vit(width, heads)
    content = {"model": model.state_dict(), "args": argparse.Namespace(arch=name)}
    checkpoint = read_checkpoint(save(content, tmp_path / "vit.pth"))
    assert difference(checkpoint, model) < 1e-5
    assert "heads" not in checkpoint.warning


def test_rotary_positions_are_refused_without_timms_code(tmp_path: Path) -> None:
    """Rotary frequencies are not saved, so that the weights look like those of a ViT without positions."""
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 1, "num_heads": 4}
    model = perturb(timm.create_model("vit_small_patch16_rope_224", num_classes=0, **sizes))
    assert not [k for k in model.state_dict() if "pos_embed" in k or "rope" in k]
    ckpt = save(model.state_dict(), tmp_path / "vit.pth")
    with pytest.raises(DataError, match="ViT without position embedding or position bias"):
        read_checkpoint(ckpt, Hints(num_heads=4))
    # With timm's code they are known.
    checkpoint = import_timm(model, "timm:vit", "vit")
    assert checkpoint.spec.family == "timm"
    images = torch.randn(1, 3, 32, 32)
    found = restore_backbone(checkpoint).eval().forward_features(images)
    assert torch.allclose(found, model.eval()(images), atol=1e-6)


def mae_position(dim: int, side: int) -> Tensor:
    """Compute MAE's fixed embedding (util/pos_embed.py) token by token; w goes first."""
    rows = [torch.zeros(dim)]
    omega = [10000 ** (-i / (dim / 4)) for i in range(dim // 4)]
    for token in range(side * side):
        row, column = divmod(token, side)
        rows.append(
            torch.tensor(
                [f(c * w) for c in (column, row) for f in (math.sin, math.cos) for w in omega]
            )
        )
    return torch.stack(rows)[None]


def test_a_published_mae_encoder_is_known_by_its_position(tmp_path: Path) -> None:
    """MAE's published files hold the encoder only, with a fixed position embedding."""
    model = build_vit(768, 12, depth=1)
    model.pos_embed.data = mae_position(768, 4)
    checkpoint = read_checkpoint(save({"model": model.state_dict()}, tmp_path / "mae.pth"))
    assert difference(checkpoint, model) < 1e-5
    assert (checkpoint.provenance["method"], checkpoint.warning) == ("MAE", "")


def test_timms_training_checkpoints_name_their_model(tmp_path: Path) -> None:
    """timm's train.py saves `arch` and `args` (timm/utils/checkpoint_saver.py)."""
    sizes = {"img_size": 64, "embed_dim": 16, "depths": (1, 2), "num_heads": (1, 2)}
    model = perturb(timm.create_model("swinv2_tiny_window8_256", num_classes=3, **sizes))
    args = argparse.Namespace(model="swinv2_tiny_window8_256", model_kwargs=sizes, img_size=None)
    content = {"arch": args.model, "args": args, "epoch": 3, "state_dict": model.state_dict()}
    checkpoint = read_checkpoint(save(content, tmp_path / "last.pth.tar"))
    assert checkpoint.spec.window_size == 8
    assert difference(checkpoint, model) < 1e-5


def test_a_folder_with_names_of_older_timm_is_read(tmp_path: Path) -> None:
    """Until timm 0.9, a stage ended with its downsampling, and buffers were saved."""
    sizes = {**SWIN, "window_size": 4}
    sizes.pop("num_classes")
    model = perturb(timm.create_model("swin_tiny_patch4_window7_224", num_classes=0, **sizes))
    folder = build_folder(model, tmp_path / "net", **sizes)
    old = {shift_downsample(k, -1): v for k, v in model.state_dict().items()}
    old |= {k: v for k, v in model.named_buffers() if "relative" in k}
    save_file({k: v.contiguous() for k, v in old.items()}, tmp_path / "net" / "model.safetensors")
    assert difference(read_checkpoint(folder), model) < 1e-5


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ([], "is not a JSON object"),
        ({"architecture": "vit_of_a_fork"}, "timm cannot build the model of .*config.json"),
        ({"architecture": "vit_tiny_patch16_224"}, "timm cannot build .* size mismatch"),
        ({"model_args": 3, "pretrained_cfg": 3}, "does not show how many attention heads"),
    ],
    ids=["list", "unknown", "another", "odd"],
)
def test_a_folder_with_a_wrong_configuration_is_refused_in_one_line(
    tmp_path: Path, config: object, message: str
) -> None:
    save_file(build_vit().state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match=message) as refusal:
        read_checkpoint(str(tmp_path))
    assert "\n" not in str(refusal.value)


# Swin V2: window and scale of the position bias


@pytest.mark.parametrize(
    ("window", "trained"), [(8, None), (16, None), (8, (4, 2))], ids=["8", "16", "4 to 8"]
)
def test_timms_swin_v2_has_its_window(
    tmp_path: Path, window: int, trained: tuple[int, ...] | None
) -> None:
    sizes = {**SWIN, "window_size": window}
    sizes |= {"pretrained_window_sizes": trained} if trained else {}
    sizes.pop("num_classes")
    model = perturb(timm.create_model("swinv2_tiny_window8_256", num_classes=3, **sizes))
    # timm's tables are buffers that are not saved, so no weight shows the window.
    assert not [k for k in model.state_dict() if "relative" in k]
    imported = import_timm(model, "timm:swinv2", "swinv2")
    assert imported.spec.window_size == window
    assert difference(imported, model) < 1e-5
    assert imported.warning == ""
    folder = build_folder(model, tmp_path / "net", **sizes)
    assert difference(read_checkpoint(folder), model) < 1e-5


def test_a_bare_swin_v2_is_refused_until_its_window_is_passed(tmp_path: Path) -> None:
    model = perturb(SwinTransformerV2(**SWIN, window_size=8))
    ckpt = save(model.state_dict(), tmp_path / "net.pth")
    with pytest.raises(
        DataError, match=r"does not show the attention window .* convert .* DST --timm-model"
    ):
        read_checkpoint(ckpt)
    command = ["convert", ckpt, str(tmp_path / "out"), "--source-window-size", "8"]
    done = CliRunner().invoke(cli, [*command, "--source-img-size", "64"], catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    assert difference(read_checkpoint(str(tmp_path / "out")), model) < 1e-5


@pytest.mark.heavy
def test_the_name_of_timms_model_settles_the_window(tmp_path: Path) -> None:
    name = "swinv2_tiny_window16_256"
    model = perturb(timm.create_model(name, num_classes=0))
    ckpt = save(model.state_dict(), tmp_path / "net.pth")
    checkpoint = read_checkpoint(ckpt, Hints(timm_model=name))
    assert (checkpoint.spec.window_size, checkpoint.spec.img_size) == (16, (256, 256))
    assert checkpoint.spec.stage_windows[-1] == (8, 8)
    with pytest.raises(DataError, match="the weights are not those of timm's vit_tiny_patch16_224"):
        read_checkpoint(ckpt, Hints(timm_model="vit_tiny_patch16_224"))
    with pytest.raises(
        UsageError, match=r"timm has no model 'vit_tinny_.*'; .*vit_tiny_patch16_224"
    ):
        read_checkpoint(ckpt, Hints(timm_model="vit_tinny_patch16_224"))


def test_a_window_that_the_tables_contradict_is_refused(tmp_path: Path) -> None:
    model = perturb(SwinTransformer(**SWIN, window_size=4))
    ckpt = save(model.state_dict(), tmp_path / "net.pth")
    with pytest.raises(DataError, match="its tables have a window of 4, not 8"):
        read_checkpoint(ckpt, Hints(window_size=8))


def official_swin_v2(model: Any) -> dict[str, Tensor]:
    """Rename timm's weights to the official names, with the buffers of official files."""
    state = {shift_downsample(k, -1): v for k, v in model.state_dict().items()}
    for name, buffer in model.named_buffers():
        if "relative" in name:
            state[name] = buffer
    return state


@pytest.mark.parametrize("trained", [(0, 0), (4, 2)])
def test_an_official_swin_v2_shows_its_window_and_scale(
    tmp_path: Path, trained: tuple[int, ...]
) -> None:
    """The published files of a finer window (12to16) hold no configuration, but the scaled table."""
    model = perturb(SwinTransformerV2(**SWIN, window_size=8, pretrained_window_sizes=trained))
    checkpoint = read_checkpoint(save({"model": official_swin_v2(model)}, tmp_path / "swin.pth"))
    assert checkpoint.spec.window_size == 8
    assert checkpoint.spec.pretrained_windows == (((4, 4), (2, 2)) if any(trained) else ())
    assert difference(checkpoint, model) < 1e-5


def unfold_order(channels: int) -> list[int]:
    """Return the official index of every input of MMPretrain's patch merging, which nn.Unfold orders."""
    # Every value names its channel and its place among the four pixels: official order (0, 0), (1, 0), (0, 1), (1, 1)
    # (Swin-Transformer: models/swin_transformer_v2.py, PatchMerging.forward).
    pixels = torch.zeros(1, channels, 2, 2)
    for place, (row, column) in enumerate([(0, 0), (1, 0), (0, 1), (1, 1)]):
        pixels[0, :, row, column] = torch.arange(channels) + place * channels
    return [int(i) for i in nn.Unfold(2)(pixels)[0, :, 0]]


@pytest.mark.parametrize("version", [SwinTransformer, SwinTransformerV2])
def test_mmpretrains_swins_compute_equal_features(tmp_path: Path, version: Any) -> None:
    """MMPretrain: models/backbones/swin_transformer_v2.py, with `use_post_norm` in models/utils/embed.py."""
    model = perturb(version(**SWIN, window_size=4))
    v2 = version is SwinTransformerV2
    state = {}
    buffers = {k: v for k, v in model.named_buffers() if "relative" in k}
    for key, value in {**model.state_dict(), **buffers}.items():
        if key.endswith("downsample.reduction.weight"):
            value = value[:, unfold_order(16)]
        if key.endswith(("downsample.norm.weight", "downsample.norm.bias")) and not v2:
            value = value[unfold_order(16)]
        key = key if v2 else shift_downsample(key, -1)  # V2 merges at a stage's start
        for ours, theirs in (
            ("patch_embed.proj.", "patch_embed.projection."),
            ("layers.", "stages."),
            ("attn.", "attn.w_msa."),
            ("mlp.fc1.", "ffn.layers.0.0."),
            ("mlp.fc2.", "ffn.layers.1."),
        ):
            key = key.replace(ours, theirs)
        key = f"norm1{key.removeprefix('norm')}" if key.startswith("norm.") else key
        state[f"backbone.{key}"] = value
    head = {"head.fc.weight": torch.zeros(3, 32), "head.fc.bias": torch.zeros(3)}
    content = {"meta": {"epoch": 100}, "state_dict": {**state, **head}}
    checkpoint = read_checkpoint(save(content, tmp_path / "mm.pth"))
    assert checkpoint.spec.window_size == 4
    assert difference(checkpoint, model) < 1e-5


def test_timms_padding_is_warned_of(tmp_path: Path) -> None:
    """Windows of 7 do not divide maps of 16 and 8 tokens; timm shifts a map before padding it."""
    sizes = {**SWIN, "window_size": 7}
    sizes.pop("num_classes")
    model = perturb(timm.create_model("swin_tiny_patch4_window7_224", num_classes=0, **sizes))
    checkpoint = read_checkpoint(build_folder(model, tmp_path / "net", **sizes))
    assert "timm shifts such a map before it pads it" in checkpoint.warning
    assert difference(checkpoint, model) > 1e-4
