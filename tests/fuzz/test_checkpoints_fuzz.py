"""Fuzzing of the readers of checkpoints: a mutated file is read or refused in one line."""

from __future__ import annotations

import collections
import io
from argparse import Namespace
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save
from support.fuzz import LENGTHS, check, fuzz, mutate_zip
from support.third_party import build_vit
from support.tiny import TINY

from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.checkpoints.third_party.hints import Hints
from simmim_bench.models.build import build_backbone
from simmim_bench.untrusted.tensors import read_safetensors, read_torch

HEADS = Hints(num_heads=4)


def saved(content: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


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
    }


@LENGTHS
def test_files_of_torch(tmp_path: Path, long: bool) -> None:
    seeds = [saved(small()), saved(small(), pickle_protocol=4)]
    check(
        fuzz(
            read_torch,
            seeds,
            tmp_path / "a.pth",
            long=long,
            mutate=partial(mutate_zip, likely="data.pkl"),
        )
    )


@LENGTHS
def test_files_of_torch_that_are_no_zip_files(tmp_path: Path, long: bool) -> None:
    old = {"_use_new_zipfile_serialization": False}
    seeds = [saved(small(), **old), saved(small(), pickle_protocol=0, **old)]
    check(fuzz(read_torch, seeds, tmp_path / "a.pth", long=long))


@LENGTHS
def test_safetensors(tmp_path: Path, long: bool) -> None:
    state = {"a": torch.zeros(3, 4), "b.c": torch.zeros(2).half(), "n": torch.tensor(1)}
    seeds = [save(state), save(state, {"epoch": "3"})]
    check(fuzz(read_safetensors, seeds, tmp_path / "a.safetensors", long=long))


def states() -> list[dict[str, Any]]:
    found = [build_vit(depth=1).state_dict()]
    for family in ("swin", "swinv2", "convnext"):
        model = build_backbone(TINY[family])
        found.append(dict(model.state_dict()))
    return found


def mutate_state(random: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Rename, drop or reshape some weights, or give one another type."""
    state = torch.load(io.BytesIO(content), weights_only=True)
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
    return saved(state)


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


@pytest.mark.filterwarnings("ignore:Casting complex values")
@LENGTHS
def test_state_dicts(tmp_path: Path, long: bool) -> None:
    def read(path: Path) -> None:
        read_checkpoint(str(path), HEADS if b"cls_token" in path.read_bytes() else None)

    seeds = [saved(state) for state in states()]
    check(fuzz(read, seeds, tmp_path / "a.pth", long=long, mutate=mutate_state, quick=30))
