"""A process that trains over NCCL alone: DDP, FSDP2, and FSDP2 with bfloat16 gathers.

    torchrun --nproc-per-node 1 benchmarks/gpu_checks/nccl_rank.py

NCCL takes one process a GPU, and the commands leave out NCCL where there is one process.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from gpu_checks.product import DistContext, SimMIM, find_spec, gather_state

ARCH = "vit_ti"
STEPS = 2
HIDDEN_ROWS = 8  # of 14 rows of patches


def main() -> None:
    """Train with each wrapper, and compare the losses."""
    device = torch.device("cuda", 0)
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", device_id=device)
    losses = {name: train(name, device) for name in ("ddp", "fsdp", "fsdp_bf16")}
    gathered: list[Any] = [None]
    dist.gather_object({"rank": 0}, gathered)
    dist.barrier()
    dist.destroy_process_group()
    print(losses, gathered)
    spread = max(losses.values()) - min(losses.values())
    if not spread < 0.01:
        sys.exit(f"the losses differ by {spread}: {losses}")


def train(wrapper: str, device: torch.device) -> float:
    """Take two steps, gather the state, and return the last loss."""
    torch.manual_seed(0)
    images = torch.randn(4, 3, 224, 224, device=device)
    mask = torch.zeros(4, 14, 14, device=device)
    mask[:, :HIDDEN_ROWS] = 1
    model = SimMIM(find_spec(ARCH)).to(device).train()
    wrapped = wrap(model, wrapper)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
    for _ in range(STEPS):
        loss = step(wrapped, optimizer, images, mask)
    weights, _ = gather_state(model, optimizer, DistContext(0, 1, device))
    if len(weights) != len(model.state_dict()):
        sys.exit(f"{wrapper}: {len(weights)} of {len(model.state_dict())} weights were gathered")
    return loss.item()


def wrap(model: SimMIM, wrapper: str) -> nn.Module:
    """Wrap a model as `pretrain` does, or with parameters gathered in bfloat16."""
    if wrapper == "ddp":
        return DistributedDataParallel(model, device_ids=[0], broadcast_buffers=False)
    options: dict[str, Any] = {"mesh": init_device_mesh("cuda", (1,))}
    if wrapper == "fsdp_bf16":
        options["mp_policy"] = MixedPrecisionPolicy(torch.bfloat16, torch.float32)
    for block in model.encoder.blocks_in_order:
        fully_shard(block, **options)
    fully_shard(model, **options)
    return model


def step(
    model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, mask: Tensor
) -> Tensor:
    """Take a step in bfloat16; return its loss."""
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast("cuda", torch.bfloat16):
        loss: Tensor = model(images, mask).loss
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 5.0)
    optimizer.step()
    return loss


if __name__ == "__main__":
    main()
