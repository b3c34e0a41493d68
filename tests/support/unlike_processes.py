"""Agree on a precision, as processes whose GPUs differ."""

from __future__ import annotations

import json

from simmim_bench.distributed import init_distributed
from simmim_bench.training.precision import Precision, agree_on_precision

DECIDED: tuple[tuple[Precision, Precision], ...] = (
    ("bf16", "fp16"),
    ("fp16", "bf16"),
    ("fp32", "bf16"),
    ("fp32", "fp32"),
)


def agree() -> None:
    """Print, on rank 0, the precision of both processes for every pair that they have decided on."""
    with init_distributed() as dist:
        found = [agree_on_precision(pair[dist.rank], dist) for pair in DECIDED]
        both = dist.gather(found)
    if dist.is_main:
        print(json.dumps(both))
