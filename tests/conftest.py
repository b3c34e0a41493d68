"""Tiny specs and data sets that the claims share."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
import torch

from simmim_bench.display import Display
from simmim_bench.models.archs import ARCHS, BackboneSpec
from simmim_bench.pocket.write import PocketCounts, write_pocket

# The suite runs as a process a core (pytest-xdist); more threads than that wait for each other.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that claims start

TINY = {
    "vit": dataclasses.replace(
        ARCHS["vit_pocket"], embed_dim=32, depths=(4,), num_heads=(2,), img_size=(32, 32)
    ),
    "swin": dataclasses.replace(
        ARCHS["swin_pocket"],
        embed_dim=16,
        depths=(1, 1, 2, 1),
        num_heads=(1, 2, 4, 8),
        img_size=(32, 32),
    ),
    "swinv2": dataclasses.replace(
        ARCHS["swin_pocket"],
        family="swinv2",
        embed_dim=16,
        depths=(1, 1, 2, 1),
        num_heads=(1, 2, 4, 8),
        img_size=(32, 32),
    ),
    "convnext": dataclasses.replace(ARCHS["convnext_pocket"], embed_dim=16),
    "resnet": dataclasses.replace(ARCHS["resnet_pocket"], embed_dim=16),
}


@pytest.fixture(params=sorted(TINY))
def tiny_spec(request: pytest.FixtureRequest) -> BackboneSpec:
    return TINY[request.param]


@pytest.fixture(scope="session")
def pocket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small generated data set in all three layouts; nobody may write into it."""
    root = tmp_path_factory.mktemp("data") / "pocket"
    counts = PocketCounts(
        imagenet_train=60,
        imagenet_val=30,
        coco_train=8,
        coco_val=6,
        ade20k_train=8,
        ade20k_val=6,
    )
    write_pocket(root, img_size=(32, 32), counts=counts)
    return root


@pytest.fixture(scope="session")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fewer images yet, for claims that hold of any run; nobody may write into it."""
    root = tmp_path_factory.mktemp("few") / "pocket"
    counts = PocketCounts(
        imagenet_train=12, imagenet_val=10, coco_train=1, coco_val=1, ade20k_train=1, ade20k_val=1
    )
    write_pocket(root, img_size=(32, 32), counts=counts)
    return root / "imagenet"


@pytest.fixture
def display() -> Display:
    return Display(quiet=True)
