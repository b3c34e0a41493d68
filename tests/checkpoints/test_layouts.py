"""Tests of layouts of other training code's files: which of several encoders is read, and what is reported of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from support.third_party import build_vit, difference, perturb, save, wrap
from torch import Tensor

from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.checkpoints.third_party.hints import Hints
from simmim_bench.errors import DataError

FOUR_HEADS = Hints(num_heads=4)
State = dict[str, Tensor]


def inside(state: State, wrapper: str) -> State:
    """Wrap every block: `blocks.0.` becomes `blocks.0.WRAPPER.`."""
    return {re.sub(r"^(blocks\.\d+\.)", rf"\1{wrapper}.", key): v for key, v in state.items()}


def chunked(state: State, chunks: int = 1) -> State:
    """Number blocks as DINOv2 does (dinov2/models/vision_transformer.py, `block_chunks`), and add its mask token."""
    size = 2 // chunks
    named = {
        re.sub(r"^blocks\.(\d+)\.", lambda m: f"blocks.{int(m[1]) // size}.{m[1]}.", key): value
        for key, value in state.items()
    }
    return {**named, "mask_token": torch.zeros(1, 48)}


def dinov2(read: State, other: State) -> Any:
    """Return the content of DINOv2's evaluated file (dinov2/train/train.py, `do_test`)."""
    return {
        "teacher": {
            **wrap(chunked(read, 2), "backbone."),
            "dino_head.mlp.0.weight": torch.zeros(3, 3),
        }
    }


def dinov2_fsdp(read: State, other: State) -> Any:
    """Return what a full state dict of its training has, whose modules FSDP wraps (dinov2/fsdp/__init__.py)."""
    return {
        "model": {
            f"{who}.backbone._fsdp_wrapped_module.{key}": value
            for who, state in (("student", other), ("teacher", read))
            for key, value in inside(chunked(state), "_fsdp_wrapped_module").items()
        }
    }


def lightly(read: State, other: State) -> Any:
    """lightly: benchmarks/imagenet/vitb16/dinov2.py; its ViT is `vit` of a masked one."""
    state = {**wrap(other, "student_backbone.vit."), **wrap(read, "teacher_backbone.vit.")}
    state["teacher_backbone.mask_token"] = torch.zeros(1, 1, 48)
    return {"state_dict": {**state, "student_head.dino_head.layers.0.weight": torch.zeros(3, 3)}}


def lightly_dino(read: State, other: State) -> Any:
    """lightly: benchmarks/imagenet/vitb16/dino.py, whose `backbone` is the teacher."""
    return {"state_dict": {**wrap(read, "backbone.vit."), **wrap(other, "student_backbone.vit.")}}


def lightly_byol(read: State, other: State) -> Any:
    """lightly: examples/pytorch_lightning/moco.py."""
    return {"state_dict": {**wrap(read, "backbone."), **wrap(other, "backbone_momentum.")}}


def solo_learn(read: State, other: State) -> Any:
    """solo-learn: solo/methods/base.py; main_linear.py, lines 74-84, reads `backbone`."""
    heads = {"projector.0.weight": torch.zeros(3, 3), "classifier.weight": torch.zeros(5, 48)}
    return {
        "epoch": 3,
        "pytorch-lightning_version": "2.0",
        "state_dict": {**wrap(other, "momentum_backbone."), **wrap(read, "backbone."), **heads},
    }


def mmpretrain_moco(read: State, other: State) -> Any:
    """MMPretrain: models/selfsup/mocov3.py, whose momentum encoder averages backbone and neck."""
    return {"state_dict": {**wrap(read, "backbone."), **wrap(other, "momentum_encoder.module.0.")}}


LAYOUTS: dict[str, tuple[Callable[[State, State], Any], dict[str, Any]]] = {
    "dinov2": (dinov2, {"entry": "teacher", "prefix": "backbone.", "others": []}),
    "dinov2_fsdp": (
        dinov2_fsdp,
        {
            "entry": "model",
            "prefix": "teacher.backbone.",
            "others": ["entry model, prefix student.backbone."],
        },
    ),
    "lightly": (
        lightly,
        {
            "entry": "state_dict",
            "prefix": "teacher_backbone.vit.",
            "others": ["entry state_dict, prefix student_backbone.vit."],
        },
    ),
    "lightly_dino": (
        lightly_dino,
        {
            "entry": "state_dict",
            "prefix": "backbone.vit.",
            "others": ["entry state_dict, prefix student_backbone.vit."],
        },
    ),
    "lightly_byol": (
        lightly_byol,
        {
            "entry": "state_dict",
            "prefix": "backbone.",
            "others": ["entry state_dict, prefix backbone_momentum."],
        },
    ),
    "solo_learn": (
        solo_learn,
        {
            "entry": "state_dict",
            "prefix": "backbone.",
            "others": ["entry state_dict, prefix momentum_backbone."],
        },
    ),
    "mmpretrain_moco": (
        mmpretrain_moco,
        {
            "entry": "state_dict",
            "prefix": "backbone.",
            "others": ["entry state_dict, prefix momentum_encoder.module.0."],
        },
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_encoder_that_its_project_evaluates_is_read_and_named(
    tmp_path: Path, layout: str
) -> None:
    write, wanted = LAYOUTS[layout]
    model, other = build_vit(init_values=0.1), build_vit(init_values=0.1)
    other.blocks[0].mlp.fc1.weight.data += 1
    ckpt = save(write(model.state_dict(), other.state_dict()), tmp_path / "net.ckpt")
    checkpoint = read_checkpoint(ckpt, FOUR_HEADS)
    assert difference(checkpoint, model) < 1e-5
    assert checkpoint.provenance["read"] == wanted
    assert "moving average" not in checkpoint.warning
    assert (checkpoint.provenance["method"] == "DINOv2") == layout.startswith("dinov2")
    for name in wanted["others"]:  # the other one is read by the options that its name shows
        entry, prefix = re.findall(r"(?:entry|prefix) ([\w.]+)", name)
        chosen = read_checkpoint(
            ckpt, Hints(num_heads=4, checkpoint_key=entry, strip_prefix=prefix)
        )
        assert difference(chosen, other) < 1e-5


@pytest.mark.parametrize("wrapper", ["_orig_mod", "_checkpoint_wrapped_module"])
def test_wrapped_blocks_are_read(tmp_path: Path, wrapper: str) -> None:
    """torch.compile and activation checkpointing of single blocks."""
    model = build_vit()
    state = inside(model.state_dict(), wrapper)
    checkpoint = read_checkpoint(save(wrap(state, "module."), tmp_path / "net.pth"), FOUR_HEADS)
    assert difference(checkpoint, model) < 1e-5


AVERAGES: dict[str, Callable[[State, State], Any]] = {
    # Lightning: callbacks/weight_averaging.py, `on_save_checkpoint`.
    "current_model_state": lambda average, last: {
        "state_dict": wrap(average, "model."),
        "current_model_state": wrap(last, "model."),
        "averaging_state": {"n_averaged": torch.tensor(3)},
    },
    # MMEngine: hooks/ema_hook.py, `_swap_ema_state_dict`.
    "ema_state_dict": lambda average, last: {
        "meta": {"mmengine_version": "0.10.7", "epoch": 3},
        "state_dict": average,
        "ema_state_dict": {**wrap(last, "module."), "steps": torch.tensor(3)},
    },
}


@pytest.mark.parametrize("entry", AVERAGES)
def test_a_moving_average_in_the_place_of_the_weights_is_named(tmp_path: Path, entry: str) -> None:
    average, last = build_vit(), build_vit()
    last.blocks[0].mlp.fc1.weight.data += 1
    content = AVERAGES[entry](average.state_dict(), last.state_dict())
    ckpt = save(content, tmp_path / "net.ckpt")
    checkpoint = read_checkpoint(ckpt, FOUR_HEADS)
    assert difference(checkpoint, average) < 1e-5
    assert f"{ckpt} holds a moving average (entry state_dict" in checkpoint.warning
    assert re.search(
        rf"the weights of the last step\. .* convert {ckpt} DST --checkpoint-key {entry} ",
        checkpoint.warning,
    )
    chosen = read_checkpoint(ckpt, Hints(num_heads=4, checkpoint_key=entry))
    assert difference(chosen, last) < 1e-5
    assert "moving average" not in chosen.warning


def test_an_ema_entry_of_other_code_is_not_the_last_step(tmp_path: Path) -> None:
    model, average = build_vit(), build_vit()
    average.blocks[0].mlp.fc1.weight.data += 1
    content = {"state_dict": model.state_dict(), "ema_state_dict": average.state_dict()}
    checkpoint = read_checkpoint(save(content, tmp_path / "net.ckpt"), FOUR_HEADS)
    assert difference(checkpoint, model) < 1e-5
    assert "and their moving average" in checkpoint.warning


def test_a_resnet_that_is_a_sequence_of_its_children_is_read(tmp_path: Path) -> None:
    """lightly: examples/pytorch_lightning/byol.py, `nn.Sequential(*list(resnet.children())[:-1])`."""
    sizes: dict[str, Any] = {"layers": (1, 1, 1, 1), "channels": (8, 16, 32, 64)}
    model = perturb(timm.create_model("resnet50", num_classes=0, **sizes))
    children = ["conv1", "bn1", "act1", "maxpool", "layer1", "layer2", "layer3", "layer4"]
    state = {
        f"{children.index(key.partition('.')[0])}.{key.partition('.')[2]}": value
        for key, value in model.state_dict().items()
    }
    plain = read_checkpoint(save(model.state_dict(), tmp_path / "plain.pth"))
    content = {"state_dict": {**wrap(state, "backbone."), **wrap(state, "backbone_momentum.")}}
    checkpoint = read_checkpoint(save(content, tmp_path / "byol.ckpt"))
    assert checkpoint.spec == plain.spec
    assert checkpoint.state is not None
    assert plain.state is not None
    assert all(torch.equal(v, plain.state[k]) for k, v in checkpoint.state.items())
    assert checkpoint.provenance["read"]["prefix"] == "backbone."


def test_dinov2s_published_file_needs_no_option(tmp_path: Path) -> None:
    """Its `vit_small` has 6 heads (dinov2/models/vision_transformer.py); timm's files have no mask token."""
    model = build_vit(384, 6, depth=1, init_values=0.1, num_classes=0)
    state = {**model.state_dict(), "mask_token": torch.zeros(1, 384)}
    ckpt = save(state, tmp_path / "dinov2_vits14_pretrain.pth")
    checkpoint = read_checkpoint(ckpt)
    assert difference(checkpoint, model) < 1e-5
    assert (checkpoint.provenance["method"], checkpoint.warning) == ("DINOv2", "")


def test_registers_are_refused(tmp_path: Path) -> None:
    """simmim-bench's ViT has one class token."""
    state = {**build_vit(init_values=0.1).state_dict(), "register_tokens": torch.zeros(1, 4, 48)}
    ckpt = save(state, tmp_path / "dinov2_vits14_reg4_pretrain.pth")
    with pytest.raises(DataError, match="does not have: register_tokens"):
        read_checkpoint(ckpt, FOUR_HEADS)
