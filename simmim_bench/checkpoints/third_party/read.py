"""Read a third-party weights file, or a folder with timm's `config.json` and `model.safetensors`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from simmim_bench.checkpoints.checkpoint import Checkpoint
from simmim_bench.checkpoints.third_party.importer import import_state
from simmim_bench.checkpoints.third_party.statistics import PixelStatistics, configured_statistics
from simmim_bench.checkpoints.third_party.timm import build_timm, check_same_features
from simmim_bench.checkpoints.third_party.weights import as_pair
from simmim_bench.checkpoints.torch_file import read_weights_file
from simmim_bench.errors import DataError
from simmim_bench.files import read_json, sha256_file


def read_third_party(path: Path) -> Checkpoint:
    """Read a weights file, or a folder with timm's `config.json` and `model.safetensors`.

    Raises:
        DataError: The file is damaged, of no known kind, or does not hold a complete backbone.
    """
    config: dict[str, Any] = {}
    label, file = path.stem, path
    if path.is_dir():
        config = read_json(path / "config.json", "timm's config")
        label, file = path.name, path / "model.safetensors"
        if not file.is_file():
            raise DataError(
                f"{path} has timm's config.json but no model.safetensors; use a complete folder."
            )
    state, rest = read_weights_file(file)
    arguments = config.get("model_args") or {}
    size, heads = arguments.get("img_size"), arguments.get("num_heads")
    cfg = config.get("pretrained_cfg") or {}
    statistics = configured_statistics(rest)
    if "mean" in cfg and "std" in cfg:
        statistics = PixelStatistics(tuple(cfg["mean"]), tuple(cfg["std"]))
    checkpoint = import_state(
        state,
        name=str(path),
        label=label,
        sha256=sha256_file(file),
        img_size=None if size is None else as_pair(size),
        window_size=arguments.get("window_size"),
        num_heads=heads if isinstance(heads, int) else None,
        pretrained_windows=_pretrained_windows(arguments, rest),
        statistics=statistics,
        provenance=_provenance(rest),
    )
    if checkpoint.spec.is_convolutional and "architecture" in config:
        check_same_features(checkpoint, build_timm(path))
    if (
        "input_size" in cfg and checkpoint.spec.is_convolutional
    ):  # no weight depends on the image size
        checkpoint = replace(checkpoint, spec=checkpoint.spec.at(tuple(cfg["input_size"][1:])))
    return checkpoint


def _pretrained_windows(
    arguments: Mapping[str, Any], rest: Mapping[str, Any]
) -> tuple[tuple[int, int], ...]:
    """Return the pretraining windows of a Swin V2 from timm's arguments or the official config."""
    config = rest.get("config")
    model = config.get("MODEL", {}) if isinstance(config, Mapping) else {}
    swin = model.get("SWINV2", {}) if model.get("TYPE") == "swinv2" else {}
    sizes = arguments.get("pretrained_window_sizes") or swin.get("PRETRAINED_WINDOW_SIZES") or ()
    return tuple(as_pair(s) for s in sizes) if any(sizes) else ()


def _provenance(rest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the completed epochs, and the tag and target of the configuration, as far as a file has them."""
    found: dict[str, Any] = {}
    if isinstance(rest.get("epoch"), int):
        found["epochs"] = rest["epoch"] + 1  # the files count epochs from 0
    config = rest.get("config")
    if isinstance(config, Mapping):
        if isinstance(config.get("TAG"), str):
            found["tag"] = config["TAG"]
        model = config.get("MODEL")
        target = (
            model.get("SIMMIM", {}).get("NORM_TARGET", {}) if isinstance(model, Mapping) else {}
        )
        if target.get("ENABLE"):
            found["norm_target"] = int(target["PATCH_SIZE"])
    return found
