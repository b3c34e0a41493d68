"""The whole path on generated data: pictures, SimMIM, six transfers for two checkpoints, one table.

In: a folder, and the functions that pretrain and transfer (handed in by `cli.py`, which alone sees
both sides). Out: run directories, a leaderboard and its page. Both rows follow the same recipes.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from simmim_bench.board import Board
from simmim_bench.display import Display
from simmim_bench.errors import UsageError
from simmim_bench.files import write_json
from simmim_bench.leaderboard import find_records, write_leaderboard
from simmim_bench.pocket import PocketCounts, write_pocket

ARCH = "vit_pocket"
SEEDS = 3  # of the tasks that cost seconds; they show how much of a difference is noise


@dataclass(frozen=True)
class Step:
    """One transfer of the demo."""

    task: str
    data: str
    fraction: str | None
    seeds: int

    @property
    def name(self) -> str:
        """The task with its fraction, as a folder's name."""
        return self.task if self.fraction is None else f"{self.task}-{self.fraction.rstrip('%')}pct"


STEPS = (
    Step("linear", "imagenet", None, SEEDS),
    Step("knn", "imagenet", None, SEEDS),
    Step("fewshot", "imagenet", "1%", SEEDS),
    Step("fewshot", "imagenet", "10%", SEEDS),
    Step("imagenet", "imagenet", None, 1),
    Step("coco", "coco", None, 1),
    Step("ade20k", "ade20k", None, 1),
)

# (data, out, display) -> checkpoint directory
Pretrain = Callable[[Path, Path, Display], Path]
# (step, ckpt, data, out, seed, display)
Transfer = Callable[[Step, str, Path, Path, int, Display], None]


def run_demo(
    out: Path,
    *,
    counts: PocketCounts,
    overwrite: bool,
    display: Display,
    pretrain: Pretrain,
    transfer: Transfer,
) -> Board:
    """Make or finish the demo in a folder; what is done is not done again.

    Raises:
        UsageError: the folder holds something else.
    """
    started = time.monotonic()
    mark = out / "demo.json"
    if out.is_file():
        raise UsageError(f"--out {out} is a file; choose a directory.")
    if out.exists() and any(out.iterdir()) and not mark.is_file():
        raise UsageError(f"{out} is not empty and not a demo's folder; choose another --out.")
    if overwrite and mark.is_file():
        shutil.rmtree(out)
    write_json(mark, {"arch": ARCH, "steps": [step.name for step in STEPS]})

    data = out / "data"
    transfers = sum(step.seeds for step in STEPS) * 2
    with display.task("demo", 2 + transfers) as overall:
        if not (data / "pocket.json").is_file():
            total = sum(vars(counts).values())
            with display.task("pictures", total) as task:
                write_pocket(data, counts=counts, progress=lambda done, _: task.advance(1))
        overall.advance()
        checkpoint = str(pretrain(data / "imagenet", out / "pretrain", display))
        overall.advance()
        for label, ckpt in (("random", f"random:{ARCH}"), ("simmim", checkpoint)):
            for step in STEPS:
                for seed in range(step.seeds):
                    run = out / "runs" / label / step.name / f"seed{seed}"
                    if not (run / "record.json").is_file():
                        transfer(step, ckpt, data / step.data, run, seed, display)
                    overall.advance()
    board = find_records([out / "runs"]).board()
    write_leaderboard(board, out / "leaderboard")
    display.say(f"{time.monotonic() - started:.0f} s in all")
    return board
