"""Train a sharded model after trials of accumulation steps, in which rank 1 runs out of memory, and without."""

from __future__ import annotations

import json
from typing import Any, cast

import torch
from support.tiny import TINY
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from pretrain.simmim import SimMIM
from simmim_bench.data.loader import EpochLoader
from simmim_bench.distributed import DistContext, full_state, init_distributed
from simmim_bench.training.accumulation import accumulate_gradients, find_accumulation_steps

SPEC = TINY["vit"]
ROOM = 2  # images of a forward pass for which rank 1 has memory
STEPS = 3


class OutOfMemory(torch.autograd.Function):
    """Run out of memory in the backward pass."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor) -> Tensor:
        """Return the tokens."""
        return tokens.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Raise an error."""
        raise torch.OutOfMemoryError("CUDA out of memory")


def compute_loss(model: nn.Module, batch: list[Tensor], epoch: int) -> Tensor:
    """Return the loss of images whose upper half is hidden."""
    mask = torch.zeros(len(batch[0]), *(side // SPEC.patch_size for side in SPEC.img_size))
    mask[:, : mask.shape[1] // 2] = 1
    loss: Tensor = model(batch[0], mask).loss
    return loss


def train(dist: DistContext, *, trial: bool) -> tuple[int, dict[str, Tensor], dict[str, Tensor]]:
    """Train a sharded model; return the steps that fit, and the weights before and after."""
    model = SimMIM(SPEC, seed=0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(0)
    images: Any = TensorDataset(torch.randn(16, 3, *SPEC.img_size), torch.zeros(16))
    loader = EpochLoader(
        images, batch_size=16, num_workers=0, seed=0, rank=dist.rank, world_size=dist.size
    )

    def loss_with_little_memory(model: nn.Module, batch: list[Tensor], epoch: int) -> Tensor:
        if dist.rank == 0 or len(batch[0]) <= ROOM:
            return compute_loss(model, batch, epoch)
        # In the middle of the backward pass: the blocks above have gathered their parameters.
        first = cast(SimMIM, model).encoder.blocks_in_order[0]
        hook = first.register_forward_hook(lambda *call: OutOfMemory.apply(call[-1]))
        loss = compute_loss(model, batch, epoch)
        hook.remove()
        return loss

    fitting = 0
    if trial:
        fitting = find_accumulation_steps(
            model, loader.epoch(0), loss_with_little_memory, "fp32", dist, shard=True
        )
    wrapped = dist.wrap_model(model, shard=True, parts=model.encoder.blocks_in_order)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2, fused=True)
    for epoch in range(STEPS):
        optimizer.zero_grad()
        batch = next(iter(loader.epoch(epoch)))
        accumulate_gradients(wrapped, batch, epoch, compute_loss, "fp32", dist.device, 4)
        optimizer.step()
    return fitting, before, full_state(model, optimizer, dist)[0]


def compare() -> None:
    """Train with and without a trial; print, on rank 0, what fits and how far the weights moved and differ."""
    with init_distributed() as dist:
        fitting, before, tried = train(dist, trial=True)
        _, _, undisturbed = train(dist, trial=False)
        fits = dist.gather(fitting)
    if dist.is_main:
        moved = min(float((tried[k] - before[k]).abs().max()) for k in tried if "weight" in k)
        differ = max(float((tried[k] - undisturbed[k]).abs().max()) for k in tried)
        print(json.dumps({"fitting": fits, "moved": moved, "differ": differ}))
