"""Kernels whose results do not depend on the order in which threads of a GPU add numbers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from simmim_bench.errors import UsageError

# cuBLAS reuses one workspace per stream; https://docs.nvidia.com/cuda/cublas/#results-reproducibility
CUBLAS = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@contextmanager
def deterministic_algorithms(requested: bool) -> Iterator[None]:
    """Use deterministic kernels alone for the block, if requested; must begin before the GPU is first used.

    Raises:
        UsageError: an operation has no deterministic kernel on this device.
    """
    if not requested:
        yield
        return
    os.environ.setdefault(*CUBLAS)
    cudnn = torch.backends.cudnn
    before = torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    except RuntimeError as error:
        # torch: ".. does not have a deterministic implementation, but you set .."
        if "deterministic" not in str(error):
            raise
        raise UsageError(
            f"{str(error).split(', but you set')[0]}; remove --deterministic."
        ) from error
    finally:
        torch.use_deterministic_algorithms(before[0])
        cudnn.deterministic, cudnn.benchmark = before[1:]
