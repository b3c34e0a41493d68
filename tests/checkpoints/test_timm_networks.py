"""Tests of files of timm's other families, which timm's own code computes: folders, and files whose model is named."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from support.third_party import perturb, save, wrap
from timm.models import save_for_hf
from torch import Tensor

from simmim_bench.checkpoints.load import restore_backbone
from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.checkpoints.third_party.hints import Hints
from simmim_bench.errors import DataError, UsageError
from simmim_bench.files import sha256_file

# Small members of the families; of the others, sizes that their models take.
TINY = {"embed_dim": 48, "depth": 2, "num_heads": 4}
HIERA = {"embed_dim": 16, "num_heads": 1, "stages": (1, 1, 1, 1)}
FAST: dict[str, dict[str, Any]] = {
    "regnetx_002": {},
    "eva02_tiny_patch14_224": {**TINY, "img_size": 56},
    "vit_small_patch16_dinov3": {**TINY, "img_size": 64},
}
SLOW: dict[str, dict[str, Any]] = {
    "efficientnet_lite0": {},
    "hiera_tiny_224": {**HIERA, "img_size": 64},
    "vit_small_patch14_reg4_dinov2": {**TINY, "img_size": 56},
    "convnextv2_atto": {},
    "mobilenetv3_small_050": {},
    "resnet18": {},
    "levit_128s": {},
    "vit_base_patch16_siglip_224": {**TINY, "img_size": 64},
}


def build(name: str, arguments: dict[str, Any]) -> Any:
    return perturb(timm.create_model(name, num_classes=3, **arguments))


@torch.no_grad()
def features_of(model: Any, images: Tensor) -> Tensor:
    """Return timm's own pooled features."""
    features: Tensor = model.forward_head(model.forward_features(images), pre_logits=True)
    return features.flatten(1)


def check_features(ckpt: str, model: Any, hints: Hints | None = None) -> None:
    checkpoint = read_checkpoint(ckpt, hints)
    images = torch.randn(1, 3, *checkpoint.spec.img_size)
    with torch.no_grad():
        found = restore_backbone(checkpoint).eval().forward_features(images)
    wanted = features_of(model, images)
    assert float((found - wanted).norm() / wanted.norm()) < 1e-6
    assert {name.partition(".")[0] for name in checkpoint.unread} <= {
        "head",
        "head_dist",
        "fc",
        "classifier",
    }


@pytest.mark.heavy
@pytest.mark.parametrize(
    "name", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
def test_a_folder_of_any_family_computes_timms_features(name: str, tmp_path: Path) -> None:
    arguments = {**FAST, **SLOW}[name]
    model = build(name, arguments)
    save_for_hf(model, str(tmp_path), model_args=arguments, safe_serialization=True)
    check_features(str(tmp_path), model)
    checkpoint = read_checkpoint(str(tmp_path))
    assert checkpoint.mean == tuple(model.pretrained_cfg["mean"])
    assert checkpoint.provenance.get("tag", "") == model.pretrained_cfg["tag"]
    assert checkpoint.sha256 == sha256_file(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) for n in ("regnetx_002", *SLOW)]
)
def test_a_file_whose_model_is_named_computes_timms_features(name: str, tmp_path: Path) -> None:
    size = {k: v for k, v in {**FAST, **SLOW}[name].items() if k == "img_size"}
    model = build(name, size)
    ckpt = save({"state_dict": wrap(model.state_dict(), "module.")}, tmp_path / "net.pth")
    sides = (size["img_size"],) * 2 if size else None
    check_features(ckpt, model, Hints(timm_model=name, img_size=sides))


@pytest.mark.heavy
def test_what_a_named_model_does_not_have_stays_an_error(tmp_path: Path) -> None:
    state = build("regnetx_002", {}).state_dict()
    hints = Hints(timm_model="regnetx_002")
    more = save({**state, "s1.b1.gate.weight": torch.ones(3)}, tmp_path / "more.pth")
    with pytest.raises(
        DataError, match=r"1 weights that timm's regnetx_002 does not have: s1\.b1\.g"
    ):
        read_checkpoint(more, hints)
    fewer = save({k: v for k, v in state.items() if "s2.b1" not in k}, tmp_path / "fewer.pth")
    with pytest.raises(DataError, match=r"not those of timm's regnetx_002, which also has s2\.b1"):
        read_checkpoint(fewer, hints)
    with pytest.raises(DataError, match="are not those of timm's regnetx_004"):
        read_checkpoint(save(state, tmp_path / "net.pth"), Hints(timm_model="regnetx_004"))
    with pytest.raises(DataError, match="holds no ViT, Swin, ConvNeXt or ResNet"):
        read_checkpoint(str(tmp_path / "net.pth"))
    with pytest.raises(UsageError, match="--num-heads applies to a ViT"):
        read_checkpoint(str(tmp_path / "net.pth"), Hints(timm_model="regnetx_002", num_heads=3))


def test_a_hint_that_contradicts_a_folder_is_refused(tmp_path: Path) -> None:
    """The configuration of a folder shows the sizes of its model, whose weights fit several numbers of heads."""
    options = {"embed_dim": 48, "depth": 1, "num_heads": 2, "img_size": 64}
    model = build("vit_tiny_patch16_224", options)
    save_for_hf(model, str(tmp_path), model_args=options, safe_serialization=True)
    refused = {
        Hints(num_heads=4): r"--num-heads 4 contradicts the configuration of .*, which has 2; rem",
        Hints(img_size=(32, 32)): r"--source-img-size \(32, 32\) contradicts .* has \(64, 64\)",
    }
    for hints, said in refused.items():
        with pytest.raises(UsageError, match=said):
            read_checkpoint(str(tmp_path), hints)
    assert read_checkpoint(str(tmp_path), Hints(num_heads=2)).spec.family == "vit"


def test_two_encoders_of_a_named_model_stay_ambiguous(tmp_path: Path) -> None:
    state = build("regnetx_002", {}).state_dict()
    content = {"a": state, "b": {**state}}
    with pytest.raises(DataError, match=r"holds 2 encoders; choose one .*--checkpoint-key a"):
        read_checkpoint(save(content, tmp_path / "net.pth"), Hints(timm_model="regnetx_002"))
    hints = Hints(timm_model="regnetx_002", checkpoint_key="b")
    provenance = read_checkpoint(str(tmp_path / "net.pth"), hints).provenance
    assert provenance["read"]["entry"] == "b"
    # timm's configuration of the architecture has the tag of other weights.
    assert ("tag" in provenance, provenance["method"]) == (False, "weights")


@pytest.mark.heavy
def test_a_recorded_name_counts_only_if_timm_recorded_it(tmp_path: Path) -> None:
    """timm's train.py saves `arch` and `args`; other code may mean another model by the same name."""
    model = build("regnetx_002", {})
    args = argparse.Namespace(model="regnetx_002")
    content = {"arch": args.model, "args": args, "state_dict": model.state_dict()}
    check_features(save(content, tmp_path / "last.pth.tar"), model)
    del content["arch"]
    with pytest.raises(DataError, match="holds no ViT, Swin, ConvNeXt or ResNet"):
        read_checkpoint(save(content, tmp_path / "other.pth"))


def test_the_arguments_that_timm_recorded_are_those_of_the_model(tmp_path: Path) -> None:
    """timm's train.py saves the size as a list, of which a ViT's position table depends on the last two numbers."""
    kwargs = {"embed_dim": 48, "depth": 1, "num_heads": 2, "act_layer": "relu"}
    model = build("vit_tiny_patch16_224", {**kwargs, "img_size": (32, 64)})
    args = argparse.Namespace(
        model="vit_tiny_patch16_224", input_size=[3, 32, 64], model_kwargs=kwargs
    )
    content = {"arch": args.model, "args": args, "state_dict": model.state_dict()}
    ckpt = save(content, tmp_path / "last.pth.tar")
    check_features(ckpt, model)
    assert read_checkpoint(ckpt).spec.img_size == (32, 64)
    kwargs["depth"] = 2
    with pytest.raises(
        DataError, match=r"not those of timm's vit_tiny.*, which also has blocks\.1"
    ):
        read_checkpoint(save(content, tmp_path / "other.pth.tar"))


def test_a_folder_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    """timm itself would leave them random where the classes of the configuration differ from the model's."""
    model = build("regnetx_002", {})
    del model.s2.b1.conv1.bn
    model.pretrained_cfg["num_classes"] = 5
    save_for_hf(model, str(tmp_path), safe_serialization=True)
    with pytest.raises(DataError, match=r"timm cannot build the model of .*s2\.b1\.conv1\.bn"):
        read_checkpoint(str(tmp_path))


def test_a_repository_in_the_hubs_cache_is_read_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
    model, revision = build("test_vit", {}), "a" * 40
    folder = tmp_path / "models--org--net" / "snapshots" / revision
    save_for_hf(model, str(folder), safe_serialization=True)
    refs = tmp_path / "models--org--net" / "refs"
    refs.mkdir()
    (refs / "main").write_text(revision)
    for name in ("hub:org/net", f"hub:org/net@{revision}"):
        checkpoint = read_checkpoint(name)
        assert (checkpoint.name, checkpoint.label) == (name, "net")
        assert checkpoint.provenance["revision"] == revision
        assert checkpoint.sha256 == sha256_file(folder / "model.safetensors")
    with pytest.raises(DataError, match="hub:org/other cannot be downloaded"):
        read_checkpoint("hub:org/other")
    with pytest.raises(UsageError, match="hub:org names no repository of the Hub"):
        read_checkpoint("hub:org")
