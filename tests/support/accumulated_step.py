"""Accumulate a batch's gradients over two processes, as copies and as shards, and compare them with one process's."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import torch
import torch.distributed as torch_dist
from support.sharded_trial import SPEC, compute_loss
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.tensor import DTensor

from pretrain.simmim import SimMIM
from simmim_bench.distributed import DistContext, init_distributed
from simmim_bench.training.accumulation import accumulate_gradients

IMAGES, STEPS = 8, 2
# What FSDP2 calls, by its newer and its older name.
SCATTER = next(
    name for name in ("reduce_scatter_single", "reduce_scatter_tensor") if hasattr(torch_dist, name)
)


def gradients(
    dist: DistContext, model: SimMIM, wrapped: nn.Module, steps: int, precision: str
) -> dict[str, Tensor]:
    """Return the whole gradients of this process's part of a batch, accumulated in steps."""
    torch.manual_seed(0)
    images = torch.randn(IMAGES, 3, *SPEC.img_size)[dist.rank :: dist.size]
    accumulate_gradients(wrapped, [images], 0, compute_loss, precision, dist.device, steps)
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {n: g.full_tensor() if isinstance(g, DTensor) else g for n, g in found.items()}


def counted_exchange(calls: list[int], bucket: Any) -> Any:
    """Count an exchange of gradients by DDP."""
    calls.append(1)
    exchange: Any = allreduce_hook
    return exchange(None, bucket)


counted_exchange.__annotations__.clear()  # DDP refuses other annotations than its own


def count(calls: list[int], function: Any, *given: Any, **options: Any) -> Any:
    """Count a call of a function of torch."""
    calls.append(1)
    return function(*given, **options)


def compare() -> None:
    """Print, on rank 0, how far the gradients differ, how often they were exchanged, and where they are stored."""
    found: dict[str, Any] = {}
    with init_distributed() as dist:
        for precision in ("fp32", "bf16"):
            alone = SimMIM(SPEC, seed=0)
            wanted = gradients(DistContext(), alone, alone, STEPS, precision)
            for kind in ("copies", "shards"):
                model, calls = SimMIM(SPEC, seed=0), list[int]()
                parts = model.encoder.blocks_in_order
                wrapped: Any = dist.wrap_model(model, shard=kind == "shards", parts=parts)
                scatter = getattr(torch_dist, SCATTER)
                if kind == "copies":
                    wrapped.register_comm_hook(calls, counted_exchange)
                setattr(torch_dist, SCATTER, partial(count, calls, scatter))
                own = gradients(dist, model, wrapped, STEPS, precision)
                setattr(torch_dist, SCATTER, scatter)
                apart = max(float((own[n] - g).norm() / g.norm()) for n, g in wanted.items())
                found[f"{kind} {precision}"] = {
                    "parameters": len(own) - len(wanted),
                    "apart": apart,
                    "exchanges": len(calls),
                    "views": sum(g._is_view() for g in own.values()) / len(own),
                    "units": len(parts) + 1,
                }
    if dist.is_main:
        print(json.dumps(found))
