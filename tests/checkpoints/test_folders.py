"""Tests of folders as model hubs distribute them: transformers' ViT, shards, pickles, and what is not weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support.third_party import build_vit, difference, perturb, save, transformers_names, wrap
from torch import Tensor

from simmim_bench.checkpoints.checkpoint import IMAGENET_MEAN
from simmim_bench.checkpoints.load import restore_backbone
from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.checkpoints.third_party.folder import read_weights
from simmim_bench.checkpoints.third_party.hints import Hints
from simmim_bench.errors import DataError
from simmim_bench.leaderboard.check import _checkpoint_hash

CONFIG: dict[str, Any] = {
    "model_type": "vit",
    "hidden_act": "gelu",
    "image_size": 32,
    "num_attention_heads": 4,
    "layer_norm_eps": 1e-6,
}
PREPROCESSING = {"do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value))


def write_folder(folder: Path, state: dict[str, Tensor], config: object = CONFIG) -> str:
    folder.mkdir()
    write_json(folder / "config.json", config)
    save_file(state, folder / "model.safetensors")
    return str(folder)


@pytest.mark.parametrize("prefix", ["", "vit.", "deit."])
@pytest.mark.parametrize("version", [4, 5])
def test_transformers_vit_computes_equal_features(
    tmp_path: Path, prefix: str, version: int
) -> None:
    model = build_vit()
    state = {
        **wrap(transformers_names(model, version), prefix),
        "classifier.weight": torch.zeros(2, 48),
    }
    folder = write_folder(tmp_path / "hub", state)
    write_json(tmp_path / "hub" / "preprocessor_config.json", PREPROCESSING)
    checkpoint = read_checkpoint(folder)
    assert difference(checkpoint, model) < 1e-5
    assert (checkpoint.mean, checkpoint.std, checkpoint.warning) == ((0.5,) * 3, (0.5,) * 3, "")
    assert checkpoint.label == "hub"


@pytest.mark.heavy
def test_transformers_own_models_compute_equal_features(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sizes: dict[str, Any] = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"intermediate_size": 96, "image_size": 32, "patch_size": 8}
    model = perturb(transformers.ViTModel(transformers.ViTConfig(**sizes, layer_norm_eps=1e-6)))
    model.save_pretrained(tmp_path / "hub")
    checkpoint = read_checkpoint(str(tmp_path / "hub"))
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        wanted = model(images, output_hidden_states=True).hidden_states[-1]
        found = restore_backbone(checkpoint).eval().forward_pooled(images)[:, -1]
    assert torch.allclose(found[:, 0], wanted[:, 1:].mean(1), atol=1e-5)
    assert torch.allclose(found[:, 1], wanted[:, 0], atol=1e-5)


def test_a_folder_without_normalisation_is_read_with_a_warning(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "hub", transformers_names(build_vit()))
    checkpoint = read_checkpoint(folder)
    assert checkpoint.mean == IMAGENET_MEAN
    assert "has no preprocessor_config.json with image_mean" in checkpoint.warning


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"hidden_act": "quick_gelu"},
            "has hidden_act quick_gelu, but simmim-bench's ViT has gelu",
        ),
        (
            {"layer_norm_eps": 0.5},
            "has layer_norm_eps 0.5, but simmim-bench's ViT has at most 0.01",
        ),
        ({"model_type": "deit"}, "of type deit, of which simmim-bench reads vit, vit_mae"),
        ({"num_attention_heads": 5}, "width 48 is not a multiple of 5 attention heads"),
    ],
)
def test_another_model_of_transformers_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    folder = write_folder(tmp_path / "hub", transformers_names(build_vit()), {**CONFIG, **change})
    with pytest.raises(DataError, match=message):
        read_checkpoint(folder)


def write_shards(folder: Path, state: dict[str, Tensor], suffix: str) -> None:
    """Split a state dict in two shards with an index, as transformers' `save_pretrained` does."""
    halves = [dict(list(state.items())[i::2]) for i in range(2)]
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    table: dict[str, str] = {}
    for i, half in enumerate(halves, 1):
        name = f"{stem}-0000{i}-of-00002.{suffix}"
        table |= dict.fromkeys(half, name)
        if suffix == "safetensors":
            save_file(half, folder / name)
        else:
            torch.save(half, folder / name)
    write_json(folder / f"{stem}.{suffix}.index.json", {"metadata": {}, "weight_map": table})


@pytest.mark.parametrize("name", ["\x1b[1m", "\udc80", "a\nb", "x" * 5000, ".."])
@pytest.mark.parametrize("weight_named", [True, False])
def test_odd_names_in_an_index_are_refused_in_one_line(
    tmp_path: Path, name: str, weight_named: bool
) -> None:
    """Found by fuzzing: control characters in the message, and a system error of a name that is too long."""
    write_json(tmp_path / "config.json", CONFIG)
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    table = {name: "a.safetensors"} if weight_named else {"a": name}
    write_json(tmp_path / "model.safetensors.index.json", {"weight_map": table})
    with pytest.raises(DataError) as raised:
        read_checkpoint(str(tmp_path))
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 600


@pytest.mark.parametrize("key", ["model_type", "hidden_act", "architecture"])
def test_odd_values_of_a_configuration_are_refused_in_one_line(tmp_path: Path, key: str) -> None:
    config = {key: "\x1b[1m\udc80"} if key == "architecture" else CONFIG | {key: "\x1b[1m\udc80"}
    folder = write_folder(tmp_path / "hub", transformers_names(build_vit()), config)
    with pytest.raises(DataError) as raised:
        read_checkpoint(folder)
    assert str(raised.value).isprintable()


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards_are_read_together(tmp_path: Path, suffix: str) -> None:
    model = build_vit()
    write_json(tmp_path / "config.json", CONFIG)
    write_shards(tmp_path, wrap(transformers_names(model), "vit."), suffix)
    checkpoint = read_checkpoint(str(tmp_path))
    assert difference(checkpoint, model) < 1e-5
    index = next(tmp_path.glob("*.index.json"))
    assert read_checkpoint(str(index)).sha256 == checkpoint.sha256
    shard = next(tmp_path.glob(f"*1-of-00002.{suffix}"))
    shard.unlink()
    with pytest.raises(
        DataError, match=rf"{shard.name}, which .*index\.json names, does not exist"
    ):
        read_checkpoint(str(tmp_path))


def test_a_shard_outside_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "hub").mkdir()
    save_file({"a": torch.zeros(2)}, tmp_path / "a.safetensors")
    write_json(tmp_path / "hub" / "config.json", CONFIG)
    index = tmp_path / "hub" / "model.safetensors.index.json"
    write_json(index, {"weight_map": {"a": "../a.safetensors"}})
    with pytest.raises(DataError, match=r"names \.\./a\.safetensors, which is not in its folder"):
        read_checkpoint(str(tmp_path / "hub"))


def test_a_shard_is_no_name_that_is_too_long_and_may_be_a_link(tmp_path: Path) -> None:
    """The cache of a model hub consists of links to files elsewhere."""
    index = tmp_path / "hub" / "model.safetensors.index.json"
    index.parent.mkdir()
    write_json(index, {"weight_map": {"a": "n" * 5000}})
    with pytest.raises(DataError, match="does not exist"):
        read_weights(index)
    save_file({"a": torch.ones(2)}, tmp_path / "blob")
    (index.parent / "a.safetensors").symlink_to(tmp_path / "blob")
    write_json(index, {"weight_map": {"a": "a.safetensors"}})
    content, _, sha256 = read_weights(index)
    assert torch.equal(content["a"], torch.ones(2))
    assert _checkpoint_hash(str(index)) == sha256


def test_a_folder_with_a_pickle_is_read(tmp_path: Path) -> None:
    model = build_vit()
    write_json(tmp_path / "config.json", CONFIG)
    save(wrap(transformers_names(model), "vit."), tmp_path / "pytorch_model.bin")
    assert difference(read_checkpoint(str(tmp_path)), model) < 1e-5


def test_a_folder_without_weights_names_the_files_that_it_may_have(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", CONFIG)
    with pytest.raises(DataError, match=r"none of model\.safetensors, .*pytorch_model\.bin"):
        read_checkpoint(str(tmp_path))


def test_a_folder_without_configuration_names_the_file_to_pass(tmp_path: Path) -> None:
    save(build_vit().state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(DataError, match=r"pass the file, such as .*pytorch_model\.bin"):
        read_checkpoint(str(tmp_path))


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 343258\n"
PAGE = "<!DOCTYPE html><html><body>Sign in</body></html>"


def folder_file(folder: Path) -> Path:
    write_json(folder / "config.json", CONFIG)
    return folder / "model.safetensors"


def native_file(folder: Path) -> Path:
    write_json(folder / "meta.json", {"sha256": "0"})
    return folder / "model.safetensors"


@pytest.mark.parametrize(
    "place",
    [
        lambda folder: folder / "net.pth",
        lambda folder: folder / "net.safetensors",
        folder_file,
        native_file,
    ],
    ids=["pth", "safetensors", "folder", "native"],
)
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (POINTER, "is a Git LFS pointer, not the weights; run git lfs pull in its repository"),
        (PAGE, "is a web page, not the weights; download the file again"),
        ("", "is empty; use another copy"),
    ],
    ids=["pointer", "page", "empty"],
)
def test_what_is_not_weights_is_named(
    tmp_path: Path, place: Callable[[Path], Path], content: str, message: str
) -> None:
    file = place(tmp_path)
    file.write_text(content)
    ckpt = file if file.stem == "net" else tmp_path
    with pytest.raises(DataError, match=message):
        read_checkpoint(str(ckpt))


def test_half_precision_is_read(tmp_path: Path) -> None:
    model = build_vit()
    half = {k: v.bfloat16() for k, v in model.state_dict().items()}
    model.load_state_dict({k: v.float() for k, v in half.items()})
    checkpoint = read_checkpoint(save(half, tmp_path / "half.pth"), Hints(num_heads=4))
    assert difference(checkpoint, model) < 1e-5
