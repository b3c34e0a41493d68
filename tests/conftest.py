"""Tiny specs and data sets that the claims share."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.tiny import TINY

from simmim_bench import signals
from simmim_bench.display import Display
from simmim_bench.models.spec import BackboneSpec
from simmim_bench.pocket.write import PocketCounts, write_pocket
from simmim_bench.training import flops

gc.disable()  # until the tests are collected

# The suite runs as a process a core (pytest-xdist); more threads than that wait for each other.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that claims start


def pytest_collection_finish() -> None:
    """Exclude modules and tests, which stay, from the collection of garbage.

    It takes a third of a second otherwise, and mmengine collects for every data set.
    """
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def short_waits() -> Iterator[None]:
    """Shorten what every run, or every stopped run, waits for without computing anything that is compared."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flops, "CPU_SIDE", 64)  # a rate that a figure of the log is a share of
        patch.setattr(signals, "REPEAT_S", 0.05)  # for a launcher that repeats a signal
        patch.setattr(os, "fsync", lambda _: None)  # for a disk, in case that the power fails
        yield


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
