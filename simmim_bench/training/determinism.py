"""Kernels whose results do not depend on the order in which threads of a GPU add numbers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from simmim_bench.errors import UsageError

# cuBLAS reuses one workspace per stream, of either size; https://docs.nvidia.com/cuda/cublas/#results-reproducibility
CUBLAS, CUBLAS_SIZES = "CUBLAS_WORKSPACE_CONFIG", (":4096:8", ":16:8")


@contextmanager
def deterministic_algorithms(requested: bool) -> Iterator[None]:
    """Use deterministic kernels alone for the block, if requested.

    Raises:
        UsageError: an operation has no deterministic kernel on this device, or cuBLAS's workspace is configured
            otherwise or can no longer be configured, as the GPU is in use.
    """
    if not requested:
        yield
        return
    _configure_cublas()
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


def _configure_cublas() -> None:
    """Set the variable that cuBLAS reads when it first computes on a GPU.

    Raises:
        UsageError: it has another value, or comes too late.
    """
    found = os.environ.get(CUBLAS)
    if found in CUBLAS_SIZES:
        return
    advice = f"--deterministic needs {CUBLAS}={CUBLAS_SIZES[0]} or {CUBLAS_SIZES[1]}"
    if found is not None:
        raise UsageError(f"{advice}, but it is {found!r}; unset it or set one of these values.")
    if torch.cuda.is_initialized():
        raise UsageError(
            f"{advice}, which cuBLAS reads when the GPU is first used; set it before this process starts."
        )
    os.environ[CUBLAS] = CUBLAS_SIZES[0]
