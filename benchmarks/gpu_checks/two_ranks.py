"""The command as one of two processes that share a GPU, which NCCL refuses: gloo takes its place.

torchrun --nproc-per-node 2 benchmarks/gpu_checks/two_ranks.py pretrain ...
"""

from __future__ import annotations

import runpy
from typing import Any

import torch.distributed as dist

_init_process_group = dist.init_process_group


def init_over_gloo(backend: str | None = None, **options: Any) -> None:
    """Initialise the process group over gloo, whatever backend is given."""
    _init_process_group("gloo", **options)


if __name__ == "__main__":
    dist.init_process_group = init_over_gloo  # type: ignore[assignment]
    runpy.run_module("simmim_bench", run_name="__main__")
