"""Tests of finding the encoder in files of other training code: its entry and its prefix."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from click.testing import CliRunner
from support.third_party import build_vit, difference, official_simmim, perturb, save, wrap
from support.tiny import TINY

from pretrain.simmim import SimMIM, load_simmim
from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.checkpoints.third_party.hints import Hints
from simmim_bench.cli.main import cli
from simmim_bench.diagnostics.checkpoint import check_checkpoint
from simmim_bench.errors import DataError, UsageError

FOUR_HEADS = Hints(num_heads=4)
PREFIXES = [
    "module.",
    "_orig_mod.",
    "_orig_mod.module.",
    "module._orig_mod.",
    "model.",
    "backbone.",
    "model.backbone.",
    "net.",
    "visual.",
    "visual.trunk.",
    "encoder.",
    "module.encoder.",
]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_prefix_of_other_training_code_is_removed(tmp_path: Path, prefix: str) -> None:
    model = build_vit()
    heads = {"loss.center": torch.zeros(3), "classifier.weight": torch.zeros(2, 48)}
    content = {"state_dict": {**wrap(model.state_dict(), prefix), **heads}, "epoch": 4}
    checkpoint = read_checkpoint(save(content, tmp_path / "net.ckpt"), FOUR_HEADS)
    assert difference(checkpoint, model) < 1e-5
    assert checkpoint.provenance["read"]["prefix"] == prefix
    assert checkpoint.provenance["epochs"] == 5
    assert set(heads) <= set(checkpoint.unread)


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "convnext_atto", "resnet26d"])
def test_every_family_is_found_behind_a_prefix(tmp_path: Path, name: str) -> None:
    sizes: dict[str, Any] = {
        "swin_tiny_patch4_window7_224": {
            "img_size": 64,
            "embed_dim": 16,
            "depths": (1, 2),
            "num_heads": (1, 2),
            "window_size": 4,
        },
        "convnext_atto": {"depths": (1, 1, 1, 1), "dims": (16, 32, 64, 128), "conv_mlp": False},
        "resnet26d": {"stem_type": "", "stem_width": 64, "avg_down": False},
    }[name]
    if name == "convnext_atto":
        sizes["use_grn"] = False
    model = perturb(timm.create_model(name, num_classes=0, **sizes))
    state = wrap(model.state_dict(), "_orig_mod.module.backbone.")
    checkpoint = read_checkpoint(save({"model": state}, tmp_path / "net.pth"))
    plain = read_checkpoint(save(model.state_dict(), tmp_path / "plain.pth"))
    assert checkpoint.spec == plain.spec
    assert checkpoint.state is not None
    assert plain.state is not None
    assert all(torch.equal(v, plain.state[k]) for k, v in checkpoint.state.items())


def dino(teacher: Any, student: Any, **entries: Any) -> dict[str, Any]:
    """Return the content of DINO's checkpoints (main_dino.py, lines 278-288)."""
    head = {"head.last_layer.weight_v": torch.zeros(5, 3)}
    return {
        "student": wrap({**wrap(student.state_dict(), "backbone."), **head}, "module."),
        "teacher": {**wrap(teacher.state_dict(), "backbone."), **head},
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}},
        "epoch": 100,
        "args": argparse.Namespace(arch="vit_small"),
        "dino_loss": {"center": torch.zeros(1, 5)},
        **entries,
    }


def test_dinos_teacher_is_read_with_its_heads(tmp_path: Path) -> None:
    """DINO evaluates the teacher (eval_linear.py, line 264), whose `vit_small` has 6 heads."""
    teacher = build_vit(384, 6)
    student = perturb(build_vit(384, 6))
    ckpt = save(dino(teacher, student), tmp_path / "dino.pth")
    checkpoint = read_checkpoint(ckpt)
    assert difference(checkpoint, teacher) < 1e-5
    assert (checkpoint.warning, checkpoint.provenance["method"]) == ("", "DINO")
    assert checkpoint.provenance["epochs"] == 100  # its files count from 1
    assert checkpoint.provenance["read"] == {
        "entry": "teacher",
        "prefix": "backbone.",
        "others": ["entry student, prefix module.backbone."],
    }
    other = read_checkpoint(ckpt, Hints(checkpoint_key="student", num_heads=6))
    assert difference(other, student) < 1e-5
    _, findings = check_checkpoint(ckpt)
    assert "read from entry teacher, prefix backbone., not entry student" in findings[0].said


def moco_position(model: Any) -> torch.Tensor:
    """Compute MoCo v3's fixed embedding (vits.py, `build_2d_sincos_position_embedding`) token by token."""
    side, dim = 4, model.embed_dim
    rows = []
    for token in range(side * side):
        waves = [torch.arange(dim // 4) / (dim // 4)] * 2
        angles = [c / 10000**w for c, w in zip(divmod(token, side), waves, strict=True)]
        rows.append(torch.cat([f(a) for a in angles for f in (torch.sin, torch.cos)]))
    return torch.stack([torch.zeros(dim), *rows])[None]


@pytest.mark.parametrize("nested", [True, False], ids=["training", "bare"])
def test_moco_v3s_encoder_has_twelve_heads(tmp_path: Path, nested: bool) -> None:
    """MoCo v3's `vit_small` has 12 heads (vits.py); linear evaluation reads base_encoder (main_lincls.py, 181)."""
    model, momentum = build_vit(384, 12), build_vit(384, 12)
    for encoder in (model, momentum):
        encoder.pos_embed.data = moco_position(encoder)
    momentum.blocks[0].mlp.fc1.weight.data += 1
    projector = {"head.0.weight": torch.zeros(4, 384), "head.1.running_mean": torch.zeros(4)}
    state = {
        **wrap({**model.state_dict(), **projector}, "module.base_encoder."),
        **wrap(momentum.state_dict(), "module.momentum_encoder."),
        "module.predictor.0.weight": torch.zeros(4, 4),
    }
    content: Any = {"epoch": 300, "arch": "vit_small", "state_dict": state}
    content = content if nested else model.state_dict()
    checkpoint = read_checkpoint(save(content, tmp_path / "moco.pth.tar"))
    assert difference(checkpoint, model) < 1e-5
    assert (checkpoint.provenance["method"], checkpoint.warning) == ("MoCo v3", "")
    assert checkpoint.provenance.get("epochs") == (300 if nested else None)


@pytest.mark.parametrize(
    ("first", "second", "options"),
    [
        ("state_dict", "state_dict_ema", "--checkpoint-key state_dict_ema"),
        ("model", "model_ema", "--checkpoint-key model_ema"),
        ("model", "ema.module", "--checkpoint-key ema.module"),
    ],
)
def test_the_average_beside_the_weights_is_named(
    tmp_path: Path, first: str, second: str, options: str
) -> None:
    model, average = build_vit(), build_vit()
    average.blocks[0].mlp.fc1.weight.data += 1
    outer, _, inner = second.partition(".")
    state = average.state_dict()
    content = {first: model.state_dict(), outer: {inner: state} if inner else state}
    ckpt = save(content, tmp_path / "net.pth")
    checkpoint = read_checkpoint(ckpt, FOUR_HEADS)
    assert difference(checkpoint, model) < 1e-5
    assert f"{ckpt} holds weights (entry {first}), which are read" in checkpoint.warning
    assert f"simmim-bench convert {ckpt} DST {options}." in checkpoint.warning
    chosen = read_checkpoint(ckpt, Hints(num_heads=4, checkpoint_key=second))
    assert difference(chosen, average) < 1e-5
    assert "moving average" not in chosen.warning


def test_equal_encoders_are_refused_until_one_is_chosen(tmp_path: Path) -> None:
    left, right = build_vit(), build_vit()
    right.blocks[0].mlp.fc1.weight.data += 1
    state = {**wrap(left.state_dict(), "online."), **wrap(right.state_dict(), "target.")}
    ckpt = save({"state_dict": state}, tmp_path / "byol.pth")
    with pytest.raises(
        DataError,
        match=r"holds 2 encoders; choose one .* --checkpoint-key state_dict --strip-prefix online, or",
    ):
        read_checkpoint(ckpt)
    chosen = read_checkpoint(ckpt, Hints(num_heads=4, strip_prefix="target"))
    assert difference(chosen, right) < 1e-5
    with pytest.raises(
        DataError, match=r"no encoder with --strip-prefix teacher; it holds .*online"
    ):
        read_checkpoint(ckpt, Hints(strip_prefix="teacher"))


def test_convert_takes_key_prefix_and_heads(tmp_path: Path) -> None:
    teacher, student = build_vit(), build_vit()
    student.blocks[0].mlp.fc1.weight.data += 1
    ckpt = save(dino(teacher, student, args=None), tmp_path / "dino.pth")
    command = ["convert", ckpt, str(tmp_path / "out"), "--checkpoint-key", "student"]
    command += ["--strip-prefix", "module.backbone.", "--num-heads", "4"]
    done = CliRunner().invoke(cli, [*command, "--json"], catch_exceptions=False)
    assert json.loads(done.stdout)["read"]["entry"] == "student"
    assert difference(read_checkpoint(str(tmp_path / "out")), student) < 1e-5
    again = CliRunner().invoke(cli, [*command, "--overwrite"], catch_exceptions=False)
    assert "encoder    entry student, prefix module.backbone.; not entry teacher" in again.stdout


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.module.", "model."])
@pytest.mark.parametrize("family", ["vit", "swin"])
def test_a_wrapped_simmim_model_keeps_its_mask_token_and_head(
    tmp_path: Path, family: str, prefix: str
) -> None:
    model = perturb(SimMIM(replace(TINY[family], sincos_position=False)))
    plain, wrapped = (
        load_simmim(save({"model": wrap(official_simmim(model), p)}, tmp_path / f"{len(p)}.pth"))
        for p in ("", prefix)
    )
    state = wrapped.state_dict()
    assert {"mask_token", "decoder.weight"} <= state.keys()
    assert all(torch.equal(value, state[name]) for name, value in plain.state_dict().items())


def test_a_hint_for_another_family_is_refused(tmp_path: Path) -> None:
    model = timm.create_model("resnet26", num_classes=0)
    ckpt = save(model.state_dict(), tmp_path / "net.pth")
    with pytest.raises(UsageError, match=r"--num-heads applies to a ViT, but .* holds a resnet"):
        read_checkpoint(ckpt, FOUR_HEADS)
    ckpt = save(build_vit().state_dict(), tmp_path / "vit.pth")
    with pytest.raises(UsageError, match=r"--source-window-size applies to a Swin, but .* a vit"):
        read_checkpoint(ckpt, Hints(num_heads=4, window_size=8))


def test_hints_for_other_checkpoints_are_refused() -> None:
    with pytest.raises(UsageError, match="--num-heads applies to a third-party weights file"):
        read_checkpoint("random:vit_pocket", FOUR_HEADS)


def test_ibots_mask_token_is_not_needed(tmp_path: Path) -> None:
    teacher = build_vit()
    content = dino(teacher, teacher, args=None)
    content["teacher"]["backbone.masked_embed"] = torch.zeros(1, 48)
    checkpoint = read_checkpoint(save(content, tmp_path / "ibot.pth"), FOUR_HEADS)
    assert checkpoint.provenance["method"] == "iBOT"
    assert "masked_embed" in checkpoint.unread
