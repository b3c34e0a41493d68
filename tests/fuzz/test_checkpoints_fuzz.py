"""Fuzzing of the readers of checkpoints: a mutated file is read or refused in one line."""

from __future__ import annotations

import collections
import copy
import dataclasses
import functools
import io
import json
from argparse import Namespace
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save
from support.attacks import EXTERNAL
from support.fuzz import check, fuzz
from support.fuzz_mutators import (
    change_value,
    mutate_bytes,
    mutate_json,
    mutate_pickle,
    mutate_zip,
    write_files,
)
from support.third_party import (
    build_vit,
    mmpretrain_names,
    transformers_names,
    transformers_swin_names,
)
from support.tiny import TINY

import simmim_bench.checkpoints.read as read_module
from simmim_bench.checkpoints.checkpoint import write_checkpoint
from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.checkpoints.third_party import (
    convnet,
    encoders,
    folder,
    importer,
    openmmlab,
    statistics,
    swin,
    transformers,
    vit,
    weights,
)
from simmim_bench.checkpoints.third_party import read as read_file
from simmim_bench.checkpoints.third_party import timm as timm_file
from simmim_bench.checkpoints.third_party import transformers_names as their_names
from simmim_bench.checkpoints.third_party.hints import Hints
from simmim_bench.models.build import build_backbone
from simmim_bench.models.external_spec import ExternalSpec, spec_from_json
from simmim_bench.models.spec import BackboneSpec
from simmim_bench.untrusted import pickles, tensors, zips
from simmim_bench.untrusted.tensors import read_safetensors, read_torch

HEADS = Hints(num_heads=4)
READING: list[Any] = [
    *(tensors.read_torch, tensors._find_storage, tensors._check_counts, tensors._tensor),
    *(tensors._typed_tensor, tensors._region, tensors._subclass, tensors._array_tensor),
    *(tensors._with_tensors, tensors._view),
]
THIRD_PARTY = (
    *(read_file, encoders, importer, statistics, weights, vit, swin, convnet),
    *(openmmlab, their_names),
)


def saved(content: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


class Device:
    """Saved as torch_xla saves a tensor of a TPU."""

    def __reduce__(self) -> tuple[Any, ...]:
        array = np.zeros((2, 3), np.float32)
        return torch._utils._rebuild_device_tensor_from_numpy, (array, torch.float32, "cpu", False)


class Special(torch.Tensor):
    """A tensor of a class that no reader knows."""


def small() -> dict[str, Any]:
    """Return a state dict with further entries, of every kind of opcode."""
    weight = torch.arange(12.0).view(3, 4)
    return {
        "model": collections.OrderedDict(a=weight, b=weight.t(), c=weight[1:].half()),
        "args": Namespace(mean=[0.5, 0.5, 0.5], std=(1.0, 1.0, 1.0), lr=1e-3),
        "more": [np.float64(1.5), np.arange(3), {1, 2}, b"ab", 2**70, True, None, torch.Size([1])],
        "parameter": torch.nn.Parameter(torch.zeros(2)),
        "typed": torch.zeros(3, dtype=torch.uint16),
        "counts": collections.Counter("aab"),
        "sparse": torch.eye(2).to_sparse(),
        "device": Device(),
        "special": torch.zeros(2).as_subclass(Special),
        "odd": [torch.zeros(2, dtype=torch.complex64).conj(), torch.zeros(2, device="meta")],
    }


def test_files_of_torch(tmp_path: Path, seconds: float | None) -> None:
    seeds = [saved(small()), saved(small(), pickle_protocol=4)]
    mutate = partial(mutate_zip, likely="data.pkl", mutate=mutate_pickle)
    covers: list[Any] = [pickles, zips, *READING, tensors._read_zip, tensors._record]
    check(
        fuzz(read_torch, seeds, tmp_path / "a.pth", seconds=seconds, covers=covers, mutate=mutate)
    )


def test_files_of_torch_that_are_no_zip_files(tmp_path: Path, seconds: float | None) -> None:
    old = {"_use_new_zipfile_serialization": False}
    seeds = [saved(small(), **old), saved(small(), pickle_protocol=0, **old)]
    covers: list[Any] = [pickles, *READING, tensors._read_legacy, tensors._Storages.__call__]
    check(
        fuzz(
            read_torch,
            seeds,
            tmp_path / "a.pth",
            seconds=seconds,
            covers=covers,
            mutate=mutate_pickle,
        )
    )


def test_safetensors(tmp_path: Path, seconds: float | None) -> None:
    state = {"a": torch.zeros(3, 4), "b.c": torch.zeros(2).half(), "n": torch.tensor(1)}
    seeds = [save(state), save(state, {"epoch": "3"})]
    covers: list[Any] = [read_safetensors]
    path = tmp_path / "a.safetensors"
    check(fuzz(read_safetensors, seeds, path, seconds=seconds, covers=covers, mutate=mutate_header))


def mutate_header(random: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Mutate the JSON header of a safetensors file, whose length stays right."""
    size = int.from_bytes(content[:8], "little")
    header = mutate_json(random, content[8 : 8 + size], [other[8:] for other in others])
    if random.random() < 0.1:
        size += random.choice((1, -1, 2**40, 2**63))
    else:
        size = len(header)
    return (size % 2**64).to_bytes(8, "little") + header + content[8 + size :]


def states() -> list[dict[str, Any]]:
    """Return the content of files of every family, and entries that training code saves beside the weights."""
    swinv2 = {"TYPE": "swinv2", "SWINV2": {"PRETRAINED_WINDOW_SIZES": [0, 0, 0, 0]}}
    target = {"NORM_TARGET": {"ENABLE": True, "PATCH_SIZE": 47}}
    config = {"TAG": "t", "MODEL": {**swinv2, "SIMMIM": target}}
    args = {"mean": [0.5] * 3, "std": [0.5] * 3, "model_kwargs": {"img_size": 32}}
    vit = build_vit(depth=1)
    found: list[dict[str, Any]] = [
        {
            "model": vit.state_dict(),
            "args": {**args, "arch": "vit_tiny", "imagenet_default_mean_and_std": 1},
        },
        {"model": transformers_names(vit)},
        {
            "model": mmpretrain_names(vit.state_dict()),
            "meta": {"cfg": "arch='b', with_cls_token=True"},
        },
    ]
    for family in ("swin", "swinv2", "convnext", "resnet"):
        spec = TINY[family]
        if family.startswith("swin"):
            spec = dataclasses.replace(spec, depths=(1, 1), num_heads=(1, 2))
        model = build_backbone(spec).state_dict()
        found.append({"model": dict(model), "config": config, "epoch": 3})
        if family.startswith("swin"):
            found.append({"model": transformers_swin_names(model)})
    return found


@functools.lru_cache(64)
def loaded(content: bytes) -> dict[str, Any]:
    """Return the content of a file, which is not changed."""
    found: dict[str, Any] = torch.load(io.BytesIO(content), weights_only=True)
    return found


def mutate_state(random: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Change some weights of a state dict, or the entries beside it."""
    try:
        return _change_state(random, loaded(content))
    except Exception:  # what torch neither saves nor loads, such as a list that is nested deeply
        return mutate_bytes(random, content, others)


def _change_state(random: Random, stored: dict[str, Any]) -> bytes:
    state = dict(stored["model"])
    stored = copy.deepcopy({key: value for key, value in stored.items() if key != "model"})
    if random.random() < 0.3:
        for _ in range(random.randint(1, 3)):
            stored = change_value(random, stored)
        stored = stored if isinstance(stored, dict) else {}
    else:
        _change_weights(random, state)
    return saved({**stored, "model": state})


def _change_weights(random: Random, state: dict[str, torch.Tensor]) -> None:
    """Rename, drop or reshape some weights, or give one another type."""
    changes: list[Callable[[str], object]] = [
        lambda name: state.pop(name),
        lambda name: state.update({renamed(random, name): state.pop(name)}),
        lambda name: state.update({name: reshaped(random, state[name])}),
        lambda name: state.update({name: state[random.choice(list(state))]}),
        lambda name: state.update({name: state[name].to(random.choice(TYPES))}),
    ]
    for _ in range(random.randint(1, 3)):
        if state:
            # Weights of the first block are what the sizes are inferred from.
            name = min(random.choices(list(state), k=3), key=len)
            random.choice(changes)(name)
    if random.random() < 0.1:  # as of a wrapper
        prefix = random.choice(("module.", "encoder.", "student.backbone."))
        for name in list(state):
            state[prefix + name] = state.pop(name)


TYPES = [torch.float16, torch.int64, torch.bool, torch.complex64, torch.float64]


def renamed(random: Random, name: str) -> str:
    parts = name.split(".")
    at = random.randrange(len(parts))
    parts[at] = random.choice(["0", "7", "99999999999", "encoder", "head", "\n", parts[0], ""])
    return ".".join(parts)


def reshaped(random: Random, value: torch.Tensor) -> torch.Tensor:
    shape = [random.choice([0, 1, 2, 3, side, side + 1]) for side in value.shape]
    if random.random() < 0.5:
        shape = shape[: random.randrange(len(shape) + 1)]
    return torch.zeros(shape, dtype=value.dtype)


@pytest.mark.heavy
@pytest.mark.filterwarnings("ignore:Casting complex values")
# torch says so of the architecture that a file with an empty tensor seems to have, before the file is refused.
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors:UserWarning")
def test_state_dicts(tmp_path: Path, seconds: float | None) -> None:
    def read(path: Path) -> None:
        read_checkpoint(str(path), HEADS if b"cls_token" in path.read_bytes() else None)

    seeds = [saved(state) for state in states()]
    check(
        fuzz(
            read,
            seeds,
            tmp_path / "a.pth",
            seconds=seconds,
            covers=THIRD_PARTY,
            mutate=mutate_state,
            quick=30,
        )
    )


def test_descriptions_of_checkpoints(tmp_path: Path, seconds: float | None) -> None:
    spec = TINY["vit"]
    write_checkpoint(
        tmp_path / "ckpt",
        state=dict(build_backbone(spec).state_dict()),
        spec=spec,
        form="transfer",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        provenance={"label": "a", "method": "SimMIM"},
    )
    meta = tmp_path / "ckpt" / "meta.json"
    first = meta.read_bytes()
    external = json.loads(first) | {"spec": {**EXTERNAL, "arguments": [["layers", [1, 1, 1, 1]]]}}

    def read(path: Path) -> None:
        build_backbone(read_checkpoint(str(path.parent)).spec)

    check(
        fuzz(
            read,
            [first, json.dumps(external).encode()],
            meta,
            seconds=seconds,
            covers=[
                read_module._read_directory,
                read_module._check_sizes,
                BackboneSpec.from_json,
                ExternalSpec.from_json,
                spec_from_json,
                BackboneSpec.__post_init__,
            ],
            mutate=mutate_json,
        )
    )


CONFIGURATIONS: list[dict[str, Any]] = [
    {
        "model_type": "vit",
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "num_attention_heads": 2,
        "image_size": 32,
    },
    {
        "architecture": "test_vit",
        "num_classes": 0,
        "model_args": {"img_size": 32},
        "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "input_size": [3, 32, 32]},
    },
    {"model_args": {"num_heads": 2, "img_size": 32, "window_size": 2}},
    {
        "model_type": "swinv2",
        "architectures": ["Swinv2ForMaskedImageModeling"],
        "image_size": 32,
        "patch_size": 2,
        "depths": [1, 1],
        "window_size": 4,
        "pretrained_window_sizes": [4, 4],
    },
]


def test_model_folders(tmp_path: Path, seconds: float | None) -> None:
    """Mutate the JSON files beside the weights of a model hub's folder: one JSON text that holds them."""
    model = timm.create_model("test_vit", num_classes=0, img_size=32)
    pixels = {
        "do_normalize": True,
        "rescale_factor": 1 / 127.5,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    index, contents = "model.safetensors.index.json", []
    for k, config in enumerate(CONFIGURATIONS):
        theirs = "model_type" in config
        state = transformers_names(model) if theirs else model.state_dict()
        if config.get("model_type") == "swinv2":
            spec = dataclasses.replace(
                TINY["swinv2"], img_size=(32, 32), depths=(1, 1), num_heads=(1, 2), window_size=4
            )
            state = transformers_swin_names(dict(build_backbone(spec).state_dict()))
        (tmp_path / f"{k}.safetensors").write_bytes(save(state))
        files = {"config.json": config, "preprocessor_config.json": pixels if theirs else None}
        table = {"weight_map": dict.fromkeys(state, f"{k}.safetensors")}
        contents.append(json.dumps({**files, index: table}).encode())
    names = ("config.json", "preprocessor_config.json", index)

    def read(path: Path) -> None:
        write_files(path, tmp_path, names)
        read_checkpoint(str(tmp_path))

    covers: list[Any] = [
        folder,
        transformers,
        read_module.is_model_folder,
        statistics.statistics_of,
    ]
    covers += [read_file._evidence, read_file._folder_model, read_file._transformers_evidence]
    covers += [read_file._as_window, read_file._as_windows, weights.as_pair, weights.as_values]
    covers += [timm_file.read_geometry, timm_file.check_arguments, timm_file.build_timm]
    path = tmp_path / "files.txt"
    check(fuzz(read, contents, path, seconds=seconds, covers=covers, mutate=mutate_json, quick=15))
