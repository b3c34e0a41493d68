"""Tests of third-party checkpoints: read completely and unchanged, or refused, and never executed."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from click.testing import CliRunner
from safetensors.torch import save_file
from support.third_party import official_simmim, perturb, save
from support.tiny import TINY
from timm.models.beit import Beit
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from pretrain.simmim import SimMIM, load_simmim
from simmim_bench.backbones import load_backbone
from simmim_bench.checkpoints.checkpoint import IMAGENET_MEAN, IMAGENET_STD, Checkpoint
from simmim_bench.checkpoints.load import load_state
from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.checkpoints.third_party.hints import Hints
from simmim_bench.checkpoints.third_party.statistics import PixelStatistics
from simmim_bench.checkpoints.third_party.swin import shift_downsample
from simmim_bench.cli.main import cli
from simmim_bench.errors import DataError, UsageError
from simmim_bench.models.build import build_encoder

VIT: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 192,
    "depth": 3,
    "num_heads": 3,
    "num_classes": 5,
}
SWIN: dict[str, Any] = {
    "img_size": 64,
    "patch_size": 4,
    "embed_dim": 16,
    "depths": (1, 2),
    "num_heads": (1, 2),
    "window_size": 4,
    "num_classes": 5,
    "strict_img_size": False,
}
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
BEIT_MEAN = (0.5, 0.5, 0.5)  # and standard deviation; unilm: beit/datasets.py
LARGE = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))


def close(found: Tensor, wanted: Tensor) -> bool:
    return bool((found - wanted).abs().max() <= 1e-5 * wanted.abs().max())


def official_swin(state: dict[str, Tensor], windows: tuple[int, ...]) -> dict[str, Tensor]:
    """Rename timm's weights to the official names, and add the buffers of official files."""
    renamed = {shift_downsample(k, -1).replace("head.fc.", "head."): v for k, v in state.items()}
    for stage, window in enumerate(windows):
        stem = f"layers.{stage}.blocks.0.attn."
        renamed[f"{stem}relative_position_index"] = torch.zeros(window**2, window**2).long()
        renamed[f"{stem}relative_coords_table"] = torch.zeros(1, 2 * window - 1, 2 * window - 1, 2)
    return renamed


def test_beit_computes_equal_logits(tmp_path: Path) -> None:
    model = perturb(Beit(**VIT, use_abs_pos_emb=False, use_rel_pos_bias=True, init_values=0.1))
    ckpt = save({"model": model.state_dict()}, tmp_path / "beit.pth")
    ours = load_backbone(read_checkpoint(ckpt), num_classes=5).eval()
    assert close(ours(IMAGES), model(IMAGES))
    assert not ours.load_report.missing  # type: ignore[union-attr]


def test_a_pretrained_beit_computes_equal_tokens(tmp_path: Path) -> None:
    theirs = Beit(
        **{**VIT, "num_classes": 0},
        use_abs_pos_emb=False,
        use_shared_rel_pos_bias=True,
        init_values=0.1,
        global_pool="",
    )
    model = perturb(theirs)
    extra = {"lm_head.weight": torch.zeros(7, 192), "mask_token": torch.zeros(1, 1, 192)}
    checkpoint = read_checkpoint(
        save({"model": {**model.state_dict(), **extra}}, tmp_path / "b.pth")
    )
    assert (checkpoint.form, checkpoint.provenance["method"]) == ("pretrain", "BEiT")
    assert checkpoint.mean == (0.5, 0.5, 0.5)
    assert "lm_head.weight" in checkpoint.unread
    ours = build_encoder(checkpoint.spec)
    load_state(ours, checkpoint)
    tokens = ours.eval().encode(ours.embed(IMAGES)).flatten(2).transpose(1, 2)
    assert close(tokens, model.forward_features(IMAGES)[:, 1:])
    with pytest.raises(DataError, match="has no SimMIM head"):
        load_simmim(checkpoint.name)


def fine_tuned(content: dict[str, Any], path: Path) -> Checkpoint:
    """Save a fine-tuned ViT, in the layout that BEiT and SimMIM share, with other entries; read it."""
    model = Beit(**VIT, use_abs_pos_emb=False, use_rel_pos_bias=True, init_values=0.1)
    state = model.state_dict()
    names = {key for key in state if key.startswith("blocks.0.")}
    # SimMIM: models/vision_transformer.py; BEiT: modeling_finetune.py.
    assert names >= {
        f"blocks.0.{name}"
        for name in ("attn.relative_position_bias_table", "attn.q_bias", "attn.v_bias", "gamma_1")
    }
    assert {"cls_token", "fc_norm.weight", "head.weight"} <= state.keys()
    assert not {"pos_embed", "norm.weight"} & state.keys()
    return read_checkpoint(save({"model": state, **content}, path))


def simmims_config() -> Any:
    """Return what SimMIM's save_checkpoint (utils.py) stores as `config`."""
    yacs = pytest.importorskip("yacs.config")
    return yacs.CfgNode({"TAG": "simmim_finetune", "MODEL": {"TYPE": "vit"}})


@pytest.mark.parametrize(("uses_imagenets", "mean"), [(False, BEIT_MEAN), (True, IMAGENET_MEAN)])
def test_a_fine_tuned_beit_has_the_mean_of_its_arguments(
    tmp_path: Path, uses_imagenets: bool, mean: tuple[float, ...]
) -> None:
    """BEiT trains with 0.5, BEiT v2 with --imagenet_default_mean_and_std (unilm: beit2/get_started*.md)."""
    arguments = argparse.Namespace(lr=1e-3, imagenet_default_mean_and_std=uses_imagenets)
    checkpoint = fine_tuned({"args": arguments, "epoch": 29}, tmp_path / "beit.pth")
    assert (checkpoint.mean, checkpoint.warning) == (mean, "")
    assert checkpoint.std == (IMAGENET_STD if uses_imagenets else BEIT_MEAN)


def test_simmims_fine_tuned_vit_has_imagenets_mean(tmp_path: Path) -> None:
    content = {"config": simmims_config(), "epoch": 99, "max_accuracy": 83.8}
    checkpoint = fine_tuned(content, tmp_path / "simmim.pth")
    assert (checkpoint.mean, checkpoint.std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert checkpoint.warning == ""


def test_a_fine_tuned_vit_without_configuration_is_read_with_a_warning(tmp_path: Path) -> None:
    checkpoint = fine_tuned({}, tmp_path / "bare.pth")
    assert (checkpoint.mean, checkpoint.std) == (BEIT_MEAN, BEIT_MEAN)
    wanted = (
        f"convert {tmp_path}/bare.pth DST --mean 0.5 0.5 0.5 --std 0.5 0.5 0.5, or --mean 0.485 "
    )
    assert wanted in checkpoint.warning
    with pytest.warns(UserWarning, match="does not show how its input was normalised"):
        load_backbone(checkpoint.name)


@pytest.mark.parametrize("named", [False, True], ids=["not named", "named"])
def test_convert_warns_unless_mean_and_std_are_passed(tmp_path: Path, named: bool) -> None:
    source = fine_tuned({}, tmp_path / "bare.pth").name
    options = ["--mean", *map(str, IMAGENET_MEAN), "--std", *map(str, IMAGENET_STD)]
    command = ["convert", source, str(tmp_path / "out"), "--json", *(options if named else [])]
    result = CliRunner().invoke(cli, command, catch_exceptions=False)
    report = json.loads(result.stdout)
    assert ("warning" in result.stderr, bool(report["warning"])) == (not named, not named)
    converted = read_checkpoint(str(tmp_path / "out"))
    assert converted.mean == (IMAGENET_MEAN if named else BEIT_MEAN)
    assert converted.warning == ""


def test_other_bare_vits_are_read_with_imagenets_mean_and_a_warning(tmp_path: Path) -> None:
    """The ViTs of timm's augreg and of Google have 0.5, those of DINO and DeiT ImageNet's values."""
    state = VisionTransformer(**VIT, init_values=0.1).state_dict()
    ckpt = save(state, tmp_path / "vit.pth")
    checkpoint = read_checkpoint(ckpt)
    assert checkpoint.mean == IMAGENET_MEAN
    assert f"convert {ckpt} DST --mean 0.5 0.5 0.5 --std 0.5 0.5 0.5, or --mean 0.485" in (
        checkpoint.warning
    )
    settled = Hints(num_heads=3, statistics=PixelStatistics(BEIT_MEAN, BEIT_MEAN))
    checkpoint = read_checkpoint(ckpt, settled)
    assert (checkpoint.mean, checkpoint.warning) == (BEIT_MEAN, "")


@pytest.mark.parametrize("layer_scale", [None, 0.1])
def test_timms_vit_computes_equal_block_features(tmp_path: Path, layer_scale: float | None) -> None:
    model = perturb(VisionTransformer(**VIT, init_values=layer_scale))
    ckpt = save(model.state_dict(), tmp_path / "vit.pth")
    ours = load_backbone(read_checkpoint(ckpt)).eval()
    blocks = model.forward_intermediates(IMAGES, intermediates_only=True, return_prefix_tokens=True)
    wanted = [torch.stack([x.mean((2, 3)), tokens[:, 0]], 1) for x, tokens in blocks]
    assert close(ours.forward_pooled(IMAGES), torch.stack(wanted, dim=1))
    # The random key biases are dropped, because the softmax ignores them.
    report: Any = ours.load_report
    assert "blocks.0.attn.k_bias" in report.unused


def test_mae_is_read_without_unpickling_its_arguments(tmp_path: Path) -> None:
    model = perturb(VisionTransformer(**{**VIT, "num_classes": 0}))
    decoder = {
        "mask_token": torch.zeros(1, 1, 24),
        "decoder_embed.weight": torch.zeros(24, 192),
        "decoder_pos_embed": torch.zeros(1, 17, 24),
        "decoder_blocks.0.attn.qkv.weight": torch.zeros(72, 24),
    }
    content = {
        "model": {**model.state_dict(), **decoder},
        "args": argparse.Namespace(lr=1e-3, data="x"),
        "epoch": 799,
    }
    # MAE's code has no ViT of this width; solo-learn's has 12 heads (solo/backbones/vit/vit_mae.py, `vit_tiny`).
    path = save(content, tmp_path / "mae.pth")
    with pytest.raises(DataError, match=r"heads its ViT of width 192 has; use .* --num-heads N\."):
        read_checkpoint(path)
    checkpoint = read_checkpoint(path, Hints(num_heads=3))
    assert (checkpoint.provenance["method"], checkpoint.provenance["epochs"]) == ("MAE", 800)
    assert set(decoder) <= set(checkpoint.unread)
    ours = build_encoder(checkpoint.spec)
    load_state(ours, checkpoint)
    tokens = ours.eval().encode(ours.embed(IMAGES)).flatten(2).transpose(1, 2)
    assert close(tokens, model.forward_features(IMAGES)[:, 1:])


@pytest.mark.parametrize("official", [False, True], ids=["timm", "official"])
@pytest.mark.parametrize("version", [SwinTransformer, SwinTransformerV2])
def test_swins_compute_equal_logits_with_timms_and_official_names(
    tmp_path: Path, version: Callable[..., Any], official: bool
) -> None:
    model = perturb(version(**SWIN))
    state = model.state_dict()
    if version is SwinTransformerV2 and not official:
        state = official_swin(state, (4, 4))  # only the buffers show its window
        state = {shift_downsample(k, 1): v for k, v in state.items()}
    elif official:
        state = official_swin(state, (4, 4))
    ckpt = save({"model": state}, tmp_path / "swin.pth")
    ours = load_backbone(ckpt, (64, 64), num_classes=5).eval()
    assert ours.spec.window_size == 4
    assert close(ours(LARGE), model(LARGE))


def test_openmmlabs_swin_computes_equal_features(tmp_path: Path) -> None:
    backbones = pytest.importorskip("mmseg.models.backbones")
    model = backbones.SwinTransformer(
        pretrain_img_size=64,
        patch_size=4,
        embed_dims=16,
        depths=(1, 2),
        num_heads=(1, 2),
        window_size=4,
        strides=(4, 2),
        out_indices=(0, 1),
    )
    perturb(model)
    state = {f"backbone.{k}": v for k, v in model.state_dict().items()}
    pretraining = {
        "backbone.mask_token": torch.ones(1, 1, 16),
        "neck.decoder.0.weight": torch.ones(8 * 8 * 3, 32, 1, 1),
        "neck.decoder.0.bias": torch.ones(8 * 8 * 3),
    }
    content = {"meta": {"epoch": 100}, "state_dict": {**state, **pretraining}}
    ckpt = save(content, tmp_path / "mm.pth")
    assert close(load_backbone(ckpt, (64, 64)).eval().forward_maps(LARGE)[-1], model(LARGE)[-1])
    simmim = load_simmim(ckpt)
    assert simmim.mask_token is not None
    assert torch.equal(simmim.mask_token, pretraining["backbone.mask_token"])
    bias = simmim.get_parameter("decoder.bias")
    assert torch.equal(bias, pretraining["neck.decoder.0.bias"])


@pytest.mark.parametrize("family", ["swin", "swinv2", "vit"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_official_simmim_files_compute_equal_loss(tmp_path: Path, family: str, suffix: str) -> None:
    spec = replace(TINY[family], sincos_position=False)
    model = perturb(SimMIM(spec))
    state = official_simmim(model)
    if family == "swinv2":
        windows = tuple(window[0] for window in spec.stage_windows)
        state |= {
            f"encoder.{k}": v for k, v in official_swin({}, windows).items() if "coords_table" in k
        }
    path = tmp_path / f"simmim{suffix}"
    if suffix == ".pth":
        yacs = pytest.importorskip("yacs.config")
        config = yacs.CfgNode({"TAG": "simmim_pretrain", "MODEL": {"TYPE": family}})
        save({"model": state, "optimizer": {}, "epoch": 99, "config": config}, path)
        provenance = read_checkpoint(str(path)).provenance
        assert (provenance["epochs"], provenance["tag"]) == (100, "simmim_pretrain")
    else:
        save_file({k: v.contiguous() for k, v in state.items()}, path)
    images = torch.randn(2, 3, *spec.img_size)
    mask = (torch.rand(2, *spec.grid) < 0.6).float()
    wanted, found = model(images, mask), load_simmim(str(path))(images, mask)
    assert torch.equal(found.loss, wanted.loss)
    assert torch.equal(found.reconstruction, wanted.reconstruction)


class MaliciousObject:
    """Object that unpickles as a function call."""

    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("kind", ["zip", "old", "plain"])
@pytest.mark.parametrize("call", ["system", "exec", "touch"])
def test_a_malicious_pickle_is_refused_and_creates_nothing(
    tmp_path: Path, kind: str, call: str
) -> None:
    victim, path = tmp_path / "created", tmp_path / "evil.pth"
    malicious = {
        "system": MaliciousObject(os.system, f"touch {victim}"),
        "exec": MaliciousObject(exec, f"open({str(victim)!r}, 'w')"),
        "touch": MaliciousObject(Path.touch, Path(victim)),
    }[call]
    content = {"model": perturb(Beit(**VIT)).state_dict(), "config": malicious}
    if kind == "plain":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(DataError) as refusal:
        read_checkpoint(str(path))
    assert not victim.exists()
    if kind != "plain":  # a pickle that torch did not write is not a weights file
        assert re.search(
            r"requests execution of [\w.]+, which no weights need; it was not executed",
            str(refusal.value),
        )


def write_empty(path: Path) -> None:
    path.write_bytes(b"")


def write_text(path: Path) -> None:
    path.write_text("not found")


def write_half(path: Path) -> None:
    torch.save(Beit(**VIT).state_dict(), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def write_half_safetensors(path: Path) -> None:
    save_file({"a": torch.zeros(99)}, path)
    path.write_bytes(path.read_bytes()[:200])


def write_list(path: Path) -> None:
    torch.save([torch.zeros(3)], path)


def write_resnet(path: Path) -> None:
    torch.save(torchvision.models.resnet18().state_dict(), path)


def write_changed_vit(path: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    state = VisionTransformer(**VIT).state_dict()
    change(state)
    torch.save(state, path)


def write_incomplete(path: Path) -> None:
    write_changed_vit(path, lambda state: state.pop("blocks.1.mlp.fc2.bias"))


def write_misshapen(path: Path) -> None:
    write_changed_vit(path, lambda state: state.update({"blocks.1.norm1.weight": torch.zeros(191)}))


def write_unknown_weight(path: Path) -> None:
    write_changed_vit(
        path, lambda state: state.update({"blocks.0.attn.q_norm.weight": torch.zeros(16)})
    )


def write_unknown_heads(path: Path) -> None:
    torch.save(VisionTransformer(**{**VIT, "embed_dim": 96}).state_dict(), path)


@pytest.mark.parametrize(
    ("write", "name", "message"),
    [
        (write_empty, "a.pth", "is empty"),
        (write_text, "a.pth", "is damaged, or"),
        (write_half, "a.pth", "is damaged"),
        (write_half_safetensors, "a.safetensors", "is damaged"),
        (write_list, "a.pth", "holds no weights by name"),
        (write_resnet, "a.pth", r"holds no ViT, Swin, .* first names are conv1\.weight"),
        (
            write_incomplete,
            "a.pth",
            r"lacks 1 of the encoder's \d+ weights: blocks\.1\.mlp\.fc2\.bias",
        ),
        (write_misshapen, "a.pth", r"blocks\.1\.norm1\.weight has \(191,\), not \(192,\)"),
        (write_unknown_heads, "a.pth", r"attention heads .* width 96 has; use .* --num-heads N"),
        (write_unknown_weight, "a.pth", r"does not have: blocks\.0\.attn\.q_norm\.weight"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_an_unusable_file_raises_an_error(
    tmp_path: Path, write: Callable[[Path], None], name: str, message: str
) -> None:
    write(tmp_path / name)
    with pytest.raises(DataError, match=message):
        load_backbone(str(tmp_path / name))


def test_an_unknown_timm_model_suggests_the_nearest() -> None:
    with pytest.raises(
        UsageError, match=r"no pretrained model 'vit_base_patch16_225'.*vit_base_patch"
    ):
        read_checkpoint("timm:vit_base_patch16_225")


def test_a_failed_download_raises_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(DataError, match="cannot be downloaded"):
        read_checkpoint("timm:vit_tiny_patch16_224.augreg_in21k")
