"""Describe the environment of a run: version of the code, libraries, machine."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from simmim_bench import __version__

SIDE_BY_SIDE = "SIMMIM_BENCH_SIDE_BY_SIDE"  # the number of steps that a suite runs at a time
LIBRARIES = (
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "pycocotools",
    "hotcoco",
    "detectron2",
    "sal-detectron2",
    "onedl-mmsegmentation",
    "mmsegmentation",
    "mmengine",
)


def environment() -> dict[str, Any]:
    """Describe the code, the libraries, the machine and the command, as `env.json` and records store them."""
    import torch

    return {
        "simmim_bench": __version__,
        **code_version(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "libraries": {name: version for name in LIBRARIES if (version := _version(name))},
        "cpu_count": os.cpu_count(),
        # With another number of threads, sums on a CPU are rounded otherwise.
        "threads": torch.get_num_threads(),
        # A rate that was measured beside other steps is not that of the machine.
        "side_by_side": os.environ.get(SIDE_BY_SIDE, "1") != "1",
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "cuda": cuda_versions(),
        "kernels": cuda_kernels(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


def cuda_versions() -> dict[str, str]:
    """Return the versions of CUDA, cuDNN and NCCL that torch uses; empty where it sees no GPU."""
    import torch

    if not torch.cuda.is_available():
        return {}
    versions = {"CUDA": str(torch.version.cuda)}
    cudnn = torch.backends.cudnn.version()
    if cudnn is not None:
        # 91900 is 9.19.0; before version 9, the major number had one digit fewer: 8907 is 8.9.7.
        major, rest = divmod(cudnn, 10_000 if cudnn >= 90_000 else 1_000)
        versions["cuDNN"] = f"{major}.{rest // 100}.{rest % 100}"
    if torch.distributed.is_available() and torch.distributed.is_nccl_available():
        versions["NCCL"] = ".".join(map(str, torch.cuda.nccl.version()))
    return versions


def cuda_kernels() -> dict[str, bool]:
    """Return torch's settings that change the rounding of results on a GPU; empty where it sees none."""
    import torch

    if not torch.cuda.is_available():
        return {}
    return {
        "matmul_tf32": torch.backends.cuda.matmul.allow_tf32,
        "cudnn_tf32": torch.backends.cudnn.allow_tf32,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


@functools.cache
def _version(library: str) -> str | None:
    """Return the version of a library; None where it is not installed."""
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None


@functools.cache
def code_version() -> Mapping[str, Any]:
    """Return the commit of the sources and whether they have uncommitted changes; None outside a git checkout.

    A process asks git once, as it imports the sources once.
    """
    here = Path(__file__).parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", *arguments],
                cwd=here,
                capture_output=True,
                text=True,
                timeout=10,
                check=True,
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    commit = git("rev-parse", "HEAD")
    changes = git("status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": None if changes is None else bool(changes)}
