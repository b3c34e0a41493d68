"""Time an epoch of pretraining alone and beside busy loops, with OpenMP's default waiting and with ours.

    python benchmarks/busy_neighbours.py --images 4000 --json benchmarks/results/busy_neighbours.json

Every epoch is a run of `simmim-bench pretrain --arch vit_pocket`, as in the demo, on synthetic images; its seconds are
those of its steps, without the start of the process and without the evaluation. A busy loop is a process that computes
without end, and shares the processors with the threads of the run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from timing import compare, report

from simmim_bench.processors import CHOSEN, SPIN_COUNT, THREADS, WAIT_POLICY, usable_cores

HERE = Path(__file__).resolve().parents[1]
# The variables of a user win over the program's choice. 300,000 iterations are libgomp's default.
ALTERNATIVES: dict[str, dict[str, str]] = {
    "OpenMP's default": {SPIN_COUNT: "300000"},
    "ours": {},
    "passive": {WAIT_POLICY: "passive"},
    "one thread": {THREADS: "1"},
}
SHOWN = ("alone", "beside one busy loop", "beside two busy loops")


def main() -> None:
    """Parse the arguments, time the epochs and report."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--alternatives", nargs="+", choices=ALTERNATIVES, default=ALTERNATIVES)
    parser.add_argument("--json", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    timings = []
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        counts = ["--imagenet", str(arguments.images), "20", "--coco", "1", "1"]
        pocket = ["pocket", str(folder / "data"), *counts, "--ade20k", "1", "1"]
        run_command(pocket, {}, folder)
        for loops, label in enumerate(SHOWN):
            alternatives = {
                f"{label}, {name}": partial(pretrain_epoch, folder, ALTERNATIVES[name])
                for name in arguments.alternatives
            }
            with busy_loops(loops):
                timings += compare(
                    alternatives, rounds=arguments.rounds, warm_up=False, clock=lambda run: run()
                )
    report(
        f"an epoch of pretraining, {arguments.images:,} synthetic images, beside other processes",
        timings,
        arguments.json,
        usable_processors=f"{usable_cores():g}",
    )


def pretrain_epoch(folder: Path, variables: dict[str, str]) -> float:
    """Pretrain for one epoch in a new process and return the seconds of its steps."""
    with TemporaryDirectory(dir=folder) as temporary:
        out = Path(temporary, "run")
        command = ["pretrain", "--arch", "vit_pocket", "--data", str(folder / "data" / "imagenet")]
        settings = ["-o", "epochs=1", "-o", "warmup_epochs=0", "--quiet"]
        run_command([*command, "--out", str(out), *settings], variables, folder)
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    images = len(list((folder / "data" / "imagenet" / "train").rglob("*.*")))
    return images / float([m["images_per_s"] for m in lines if "images_per_s" in m][-1])


def run_command(arguments: list[str], variables: dict[str, str], folder: Path) -> None:
    """Run `simmim-bench` with OpenMP's variables as given, and without those of this process."""
    names = (CHOSEN, SPIN_COUNT, THREADS, WAIT_POLICY)
    inherited = {name: value for name, value in os.environ.items() if name not in names}
    subprocess.run(
        [sys.executable, "-m", "simmim_bench", *arguments],
        cwd=folder,
        env={**inherited, "PYTHONPATH": str(HERE), **variables},
        check=True,
        stdout=subprocess.DEVNULL,
    )


@contextmanager
def busy_loops(count: int) -> Iterator[None]:
    """Run processes that compute without end."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


if __name__ == "__main__":
    main()
