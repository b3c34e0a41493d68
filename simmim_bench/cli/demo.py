"""The whole path on generated data: pictures, SimMIM, a suite of six transfers for two checkpoints.

In: a folder, and the function that pretrains (handed in by `cli.py`, which alone sees both sides). Out: a
checkpoint, and what the suite is to do with it. Both rows follow the same recipes.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from simmim_bench.display import Display
from simmim_bench.errors import UsageError
from simmim_bench.files import write_json
from simmim_bench.pocket.write import PocketCounts, write_pocket
from simmim_bench.tasks import DATA_SETS
from transfer.suite.options import SuiteOptions

ARCH = "vit_pocket"
SEEDS = 3  # of the tasks that cost seconds; they show how much of a difference is noise

Pretrain = Callable[[Path, Path], object]  # (data, run directory)


def run_demo(
    out: Path, *, counts: PocketCounts, overwrite: bool, display: Display, pretrain: Pretrain
) -> SuiteOptions:
    """Make or finish the demo's pictures and checkpoint in a folder; what is done is not done again.

    Returns:
        What the suite is to do: all tasks, for the checkpoint and for random weights.

    Raises:
        UsageError: the folder holds something else.
    """
    mark = out / "demo.json"
    if out.is_file():
        raise UsageError(f"--out {out} is a file; choose a directory.")
    if out.exists() and any(out.iterdir()) and not mark.is_file():
        raise UsageError(f"{out} is not empty and not a demo's folder; choose another --out.")
    if overwrite and mark.is_file():
        shutil.rmtree(out)
    write_json(mark, {"arch": ARCH})
    data = out / "data"
    if not (data / "pocket.json").is_file():
        with display.task("pictures", sum(vars(counts).values())) as task:
            write_pocket(data, counts=counts, progress=lambda done, _: task.advance(1))
    pretrain(data / "imagenet", out / "pretrain")
    return SuiteOptions(
        ckpts=(str(out / "pretrain"),),
        data_sets={name: data / name for name in DATA_SETS},
        out=out / "runs",
        baseline="random",
        seeds=tuple(f"{task}={SEEDS}" for task in ("linear", "knn", "fewshot")),
    )
