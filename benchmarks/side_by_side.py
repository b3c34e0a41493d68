"""Time two steps of the demo one after the other with two threads, and side by side with one thread each.

    python benchmarks/side_by_side.py DATA --rounds 3

DATA is what `simmim-bench pocket DATA` writes. It takes two idle cores and two minutes a round, and prints the seconds
of every round.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STEPS = (("imagenet", "imagenet", "epochs=2"), ("ade20k", "ade20k", "max_iters=60"))


def main() -> int:
    """Run the rounds, alternately."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    ratios = []
    for _ in range(arguments.rounds):
        times = [time_steps(arguments.data, together=together) for together in (False, True)]
        ratios.append(times[0] / times[1])
        print(f"one after the other {times[0]:.1f} s, side by side {times[1]:.1f} s")
    print(f"ratio {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}")
    return 0


def time_steps(data: Path, *, together: bool) -> float:
    """Return the seconds of all steps, with two threads each or together with one thread each."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1" if together else "2"}
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as out:
        running = []
        for task, layout, override in STEPS:
            words = [sys.executable, "-m", "simmim_bench", "transfer", task, "--data"]
            words += [str(data / layout), "--ckpt", "random:vit_pocket", "-o", override]
            command = [*words, "--out", f"{out}/{task}"]
            running.append(subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL))
            if not together:
                running[-1].wait()
        if any(process.wait() for process in running):
            raise SystemExit("a step failed; run its command alone to see why.")
    return time.monotonic() - started


if __name__ == "__main__":
    sys.exit(main())
