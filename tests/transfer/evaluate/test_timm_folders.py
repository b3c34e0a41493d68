"""Tests of timm folders of strangers: timm builds the model, and reads neither the weights nor what they refer to."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf

from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.errors import DataError
from transfer.evaluate.load import load_classifier

NAN = float("nan")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a small model's folder; no test writes into it."""
    path = tmp_path_factory.mktemp("timm") / "model"
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=6, img_size=32)
    save_for_hf(model, str(path), model_args={"img_size": 32}, safe_serialization=True)
    return path


def changed(folder: Path, copy: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """Write a folder with the same weights and a changed configuration."""
    config = json.loads((folder / "config.json").read_text())
    change(config)
    copy.mkdir()
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "model.safetensors").symlink_to(folder / "model.safetensors")
    return copy


def of_model(**values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda config: config["model_args"].update(values)


def of_pretrained(**values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda config: config["pretrained_cfg"].update(values)


REFUSED = {
    "architecture": lambda config: config.update(architecture=["test_vit"]),
    "larger": lambda config: config.update(architecture="vit_base_patch16_224"),
    "arguments": lambda config: config.update(model_args=[1]),
    "checkpoint_path": of_model(checkpoint_path="/etc/passwd"),
    "pretrained_cfg": of_model(pretrained_cfg={"file": "/etc/passwd"}),
    "device": of_model(device="cpu"),
    "width": of_model(embed_dim=10**9),
    "depth": of_model(depth=10**6),
    "depths": of_model(depths=[1024] * 1024),
    "classes": lambda config: config.update(num_classes=10**11, model_args={}),
    "channels": of_model(in_chans=10**4),
    "sizes": of_pretrained(input_size=3),
    "file": of_pretrained(an_entry_of_no_configuration=3),
}
UNSUITABLE = {
    "nan_mean": of_pretrained(mean=[NAN] * 3),
    "zero_std": of_pretrained(std=[0.5, 0, 0.5]),
    "text_mean": of_pretrained(mean="abc"),
    "one_mean": of_pretrained(mean=[0.5]),
    "crop": of_pretrained(crop_pct=-1),
    "small_crop": of_pretrained(crop_pct=1e-9),
    "text_crop": of_pretrained(crop_pct="a"),
    "mode": of_pretrained(crop_mode="\x1b[31m"),
    "interpolation": of_pretrained(interpolation="\x1b[31m"),
    "large_size": of_pretrained(test_input_size=[3, 10**6, 10**6]),
    "negative_size": of_pretrained(test_input_size=[3, -32, 32]),
    "text_size": of_pretrained(test_input_size="abc"),
}


@pytest.mark.heavy
@pytest.mark.parametrize("name", REFUSED | UNSUITABLE)
def test_a_configuration_of_no_model_is_refused_in_one_line(
    folder: Path, tmp_path: Path, name: str
) -> None:
    path = changed(folder, tmp_path / "copy", (REFUSED | UNSUITABLE)[name])
    for read in (load_classifier, read_checkpoint) if name in REFUSED else (load_classifier,):
        with pytest.raises(DataError, match=str(path)) as refusal:
            read(str(path))
        assert str(refusal.value).isprintable()


def test_weights_that_a_configuration_names_elsewhere_are_not_read(
    folder: Path, tmp_path: Path
) -> None:
    other = {key: value + 1 for key, value in load_file(folder / "model.safetensors").items()}
    save_file(other, tmp_path / "other.safetensors")
    elsewhere = {
        "url": "http://127.0.0.1:9/x.pth",
        "file": str(tmp_path / "other.safetensors"),
        "hf_hub_id": "nobody/nothing",
        "hf_hub_filename": "x.bin",
        "source": "hf-hub",
        "custom_load": True,
    }
    path = changed(folder, tmp_path / "copy", of_pretrained(**elsewhere))
    model = load_classifier(str(path)).model
    wanted = load_file(folder / "model.safetensors")
    assert all(torch.equal(value, wanted[key]) for key, value in model.state_dict().items())
    assert "state_dict" not in vars(model)["pretrained_cfg"]
    # Names that timm has to convert, as those of a checkpoint of DataParallel.
    path = changed(folder, tmp_path / "wrapped", of_pretrained(**elsewhere))
    (path / "model.safetensors").unlink()
    save_file({f"module.{k}": v for k, v in wanted.items()}, path / "model.safetensors")
    model = load_classifier(str(path)).model
    assert all(torch.equal(value, wanted[key]) for key, value in model.state_dict().items())


def test_a_pickle_in_place_of_the_weights_is_refused(folder: Path, tmp_path: Path) -> None:
    path = changed(folder, tmp_path / "copy", lambda config: None)
    (path / "model.safetensors").unlink()
    torch.save(load_file(folder / "model.safetensors"), path / "model.safetensors")
    for read in (load_classifier, read_checkpoint):
        with pytest.raises(DataError, match=r"model\.safetensors is damaged"):
            read(str(path))
