"""Time two steps of the demo one after the other with two threads, and side by side with one thread each.

    python benchmarks/side_by_side.py --json benchmarks/results/side_by_side.json

It takes two idle cores and two minutes a round. The steps run on a small synthetic data set; their seconds include the
start of the processes.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from timing import compare, report

from simmim_bench.processors import THREADS, usable_cores

HERE = Path(__file__).resolve().parents[1]
STEPS = (("imagenet", "imagenet", "epochs=2"), ("ade20k", "ade20k", "max_iters=60"))


def main() -> None:
    """Run the rounds, alternately, and report."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        finish(start(["pocket", str(folder / "data")], threads=2, folder=folder))
        timings = compare(
            {
                "one after the other, two threads each": partial(run_steps, folder, together=False),
                "side by side, one thread each": partial(run_steps, folder, together=True),
            },
            rounds=arguments.rounds,
            warm_up=False,
        )
    report(
        "two steps of the demo: 2 epochs of `imagenet_pocket`, 60 iterations of `ade20k_pocket`",
        timings,
        arguments.json,
        usable_processors=f"{usable_cores():g}",
    )


def run_steps(folder: Path, *, together: bool) -> None:
    """Run all steps, with two threads each or together with one thread each."""
    with TemporaryDirectory(dir=folder) as out:
        running = []
        for task, layout, override in STEPS:
            words = ["transfer", task, "--data", str(folder / "data" / layout)]
            words += ["--ckpt", "random:vit_pocket", "-o", override, "--out", f"{out}/{task}"]
            running.append(start(words, threads=1 if together else 2, folder=folder))
            if not together:
                finish(running.pop())
        for process in running:
            finish(process)


def start(words: list[str], *, threads: int, folder: Path) -> subprocess.Popen[bytes]:
    """Start `simmim-bench` of this source tree in a folder."""
    return subprocess.Popen(
        [sys.executable, "-m", "simmim_bench", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(HERE), THREADS: str(threads)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def finish(process: subprocess.Popen[bytes]) -> None:
    """Wait for a process; exit if it has failed."""
    if process.wait():
        sys.exit("a step failed; run its command alone to see why.")


if __name__ == "__main__":
    main()
