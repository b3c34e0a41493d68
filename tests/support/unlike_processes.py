"""Agree on a precision and on compiling, as processes whose GPUs differ."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from simmim_bench.display import Display
from simmim_bench.distributed import DistContext, init_distributed
from simmim_bench.runs.context import RunContext
from simmim_bench.runs.run_dir import RunDir
from simmim_bench.training.compilation import decide_compile
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
        compiled = dist.gather(compile_without_compiler(dist))
    if dist.is_main:
        print(json.dumps({"precision": both, "compiled": compiled}))


def compile_without_compiler(dist: DistContext) -> tuple[bool, str]:
    """Decide on compiling where only rank 1's machine has no compiler; return the decision and the log."""
    ones: Any = torch.ones

    def trial(function: Callable[..., Any]) -> Callable[..., Any]:
        if dist.rank:
            raise RuntimeError("no compiler found")
        return function

    patched: Any = torch
    patched.compile, patched.ones = trial, lambda size, device: ones(size)
    with TemporaryDirectory() as folder:
        run = RunDir(Path(folder), Display(quiet=True), writes=dist.is_main)
        context = RunContext(run=run, seed=0, dist=replace(dist, device=torch.device("cuda")))
        compiled = decide_compile(None, context, "train", 10**6)
        run.close()
        return compiled, (Path(folder) / "log.txt").read_text() if dist.is_main else ""
