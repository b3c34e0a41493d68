"""Compile a backbone's blocks with torch.compile, where a run is long enough to earn the time back.

Only the blocks are compiled, each with static shapes, since nearly all of a step's time is theirs: the smaller
part of a batch at the end of an accumulation then compiles one more graph instead of dynamic shapes for good.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from simmim_bench.distributed import DistContext
from simmim_bench.runs.context import RunContext

# On an H200 compiling ViT-B took 29 s and lowered a step of 256 images from 131 to 93 ms, one of 64 from about 43
# to 30 ms (benchmarks/results/gpu_check_h200.json; the latter by the same ratio): earned back after 760 to 2,400
# steps.
WORTHWHILE_STEPS = 5_000
# A block may have a drop-path rate and a shape of its own, and an accumulation two sizes.
GRAPHS_PER_BLOCK = 4


def decide_compile(
    requested: bool | None, context: RunContext, description: str, steps: int
) -> bool:
    """Return whether to compile, and log the reason; the same on every process.

    Args:
        requested: by `--compile` or `--no-compile`; None for what suits the run.
        description: the phase, as log lines name it.
        steps: optimizer steps of the whole run, so that a resumed run decides as it did before.
    """
    device = context.dist.device
    if requested is None and device.type != "cuda":
        return False
    compiled, reason = bool(requested), "as requested"
    if requested is None:
        # Machines may differ: the log of rank 0 has the reason of the first process that has one.
        against = context.dist.gather_everywhere(_reason_against(steps, context.dist))
        enough = f"steps={steps:,} are at least {WORTHWHILE_STEPS:,}; --no-compile disables it"
        reason = next(filter(None, against), enough)
        compiled = reason == enough
    context.run.log(f"{description}: torch.compile={'on' if compiled else 'off'}: {reason}")
    return compiled


def _reason_against(steps: int, dist: DistContext) -> str:
    """Return why a run on a GPU is not compiled; empty if it is."""
    if steps < WORTHWHILE_STEPS:
        return f"steps={steps:,} are below {WORTHWHILE_STEPS:,}; --compile enables it"
    if torch.are_deterministic_algorithms_enabled():
        return "--deterministic; --compile enables it"
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.ones(8, device=dist.device))
    except Exception as error:  # of torch, Triton or the C compiler that Triton calls
        first = str(error).strip().partition("\n")[0]
        machine = "this machine" if dist.size == 1 else f"the machine of process {dist.rank}"
        return f"it fails on {machine} ({type(error).__name__}: {first})"
    return ""


def compile_blocks(
    blocks: Sequence[nn.Module], *, backend: str = "inductor", fullgraph: bool = False
) -> None:
    """Compile the forward pass of every block, in place.

    Hooks of the blocks, such as FSDP2's, stay outside of the graphs, and so does the recomputation of activations;
    names in the state dict do not change.

    Args:
        backend: of torch.compile.
        fullgraph: raise where a block has a graph break, instead of running a part of it eagerly.
    """
    # The blocks of a class share one cache; beyond its limit torch would run further blocks uncompiled.
    limit = GRAPHS_PER_BLOCK * len(blocks)
    dynamo = torch._dynamo.config
    dynamo.recompile_limit = max(dynamo.recompile_limit, limit)
    dynamo.accumulated_recompile_limit = max(dynamo.accumulated_recompile_limit, limit)
    for block in blocks:
        compiled = torch.compile(block.forward, dynamic=False, fullgraph=fullgraph, backend=backend)
        block.forward = compiled


@contextmanager
def uncompiled(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Run compiled blocks eagerly: evaluation has other shapes, and would compile them again."""
    compiled = [(block, vars(block).pop("forward")) for block in blocks if "forward" in vars(block)]
    try:
        yield
    finally:
        for block, forward in compiled:
            block.forward = forward
