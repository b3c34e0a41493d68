"""The command as one of two processes that share a GPU, which NCCL refuses: gloo takes its place.

    torchrun --nproc-per-node 2 benchmarks/gpu_checks/two_ranks.py pretrain ...

Gloo gathers and reduces some CUDA tensors only through the host's memory; FSDP2 needs these operations.
"""

from __future__ import annotations

import runpy
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_init_process_group = dist.init_process_group
_all_gather_into_tensor = dist.all_gather_into_tensor
_reduce_scatter_tensor = dist.reduce_scatter_tensor
_functional = torch.ops._c10d_functional


def init_over_gloo(backend: str | None = None, **options: Any) -> None:
    """Initialise the process group over gloo, whatever backend is given, bound to no device."""
    options.pop("device_id", None)
    _init_process_group("gloo", **options)


def all_gather_on_host(
    output_tensor: Tensor, input_tensor: Tensor, group: Any = None, async_op: bool = False
) -> None:
    """Gather through the host's memory; FSDP2 does not wait where no work is returned."""
    gathered = torch.empty_like(output_tensor, device="cpu")
    _all_gather_into_tensor(gathered, input_tensor.cpu(), group=group)
    output_tensor.copy_(gathered)


def reduce_scatter_on_host(
    output: Tensor, input: Tensor, op: Any = dist.ReduceOp.SUM, group: Any = None, **_: Any
) -> None:
    """Reduce and scatter through the host's memory."""
    reduced = torch.empty_like(output, device="cpu")
    _reduce_scatter_tensor(reduced, input.cpu(), op=op, group=group)
    output.copy_(reduced)


def gather_sharded_on_host(shard: Tensor, group_size: int, group_name: str) -> Tensor:
    """Gather a DTensor's shards through the host's memory."""
    gathered = _functional.all_gather_into_tensor(shard.cpu(), group_size, group_name)
    return _functional.wait_tensor(gathered).to(shard.device)


if __name__ == "__main__":
    dist.init_process_group = init_over_gloo  # type: ignore[assignment]
    dist.all_gather_into_tensor = all_gather_on_host
    dist.reduce_scatter_tensor = reduce_scatter_on_host  # type: ignore[assignment]
    if torch.cuda.is_available():
        library = torch.library.Library("_c10d_functional", "IMPL")
        library.impl("all_gather_into_tensor", gather_sharded_on_host, "CUDA")
    runpy.run_module("simmim_bench", run_name="__main__")
