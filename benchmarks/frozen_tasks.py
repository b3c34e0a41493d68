"""Time a task on frozen features in two source trees, alternately, and compare the choices and the scores.

    git worktree add ../before main
    python benchmarks/frozen_tasks.py linear --before ../before --ckpt runs/pocket --data pocket/imagenet
    python benchmarks/frozen_tasks.py fewshot --fraction 1% --before ../before --ckpt random:vit_b --data imagenet

A round runs `simmim-bench transfer TASK` once in either tree, in processes of their own, from the start to the record;
all seeds are in one process. Features are computed in an untimed round before, and reused. The exit code is 6 if a
choice differs, or a score by more than `TOLERANCE`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from timing import compare, report

TOLERANCE = 0.1  # of the scores, in percent
CHOICE = ("block", "pooling", "norm", "base_lr", "l2", "k")
HERE = Path(__file__).resolve().parent.parent


def main() -> None:
    """Parse the arguments, time both trees and report; exit with 6 if they differ."""
    arguments = parse_arguments()
    found: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)

        def run_in(name: str, tree: Path) -> Callable[[], None]:
            def run() -> None:
                out = folder / name
                shutil.rmtree(out, ignore_errors=True)
                transfer(arguments, tree, out, folder / "features")
                found[name] = read_results(out)

            return run

        timings = compare(
            {
                "before": run_in("before", arguments.before.resolve()),
                "after": run_in("after", HERE),
            },
            rounds=arguments.rounds,
        )
    differences = list_differences(found["before"], found["after"])
    report(
        f"{title(arguments)}: {Path(arguments.ckpt).name}, {Path(arguments.data).parent.name}/"
        f"{Path(arguments.data).name}, {arguments.seeds} seeds in one process",
        timings,
        arguments.json,
        **{
            f"{name}_of_seed_{seed}": " ".join(f"{k}={v}" for k, v in result.items())
            for name, results in found.items()
            for seed, result in enumerate(results)
        },
    )
    for difference in differences:
        print(difference, file=sys.stderr)
    sys.exit(6 if differences else 0)


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("task", choices=["linear", "knn", "fewshot"])
    parser.add_argument("--before", type=Path, required=True, help="the other source tree")
    parser.add_argument("--ckpt", required=True)
    parser.add_argument("--data", required=True, help="folder in ImageNet's layout")
    parser.add_argument("--fraction", help="of fewshot: 1%% or 10%%")
    parser.add_argument("--recipe", help="by default that of the architecture")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    if not (arguments.before / "simmim_bench").is_dir():
        parser.error(f"--before {arguments.before} holds no simmim_bench; give a source tree.")
    if arguments.rounds < 3:
        parser.error(f"--rounds {arguments.rounds} is too few for quartiles; use 3 or more.")
    # The commands run in the trees.
    arguments.ckpt, arguments.data = absolute(arguments.ckpt), absolute(arguments.data)
    return arguments


def absolute(text: str) -> str:
    """Return the absolute path of what exists, else the text, such as `random:vit_b` or `hfds:NAME`."""
    return str(Path(text).resolve()) if Path(text).exists() else text


def title(arguments: argparse.Namespace) -> str:
    """Return the task with its fraction."""
    return f"{arguments.task} {arguments.fraction}" if arguments.fraction else arguments.task


def transfer(arguments: argparse.Namespace, tree: Path, out: Path, features: Path) -> None:
    """Run the task in a tree; exit with its messages if it fails."""
    # Python looks for a module in the working directory first, which therefore is the tree.
    command = [sys.executable, "-m", "simmim_bench", "transfer", arguments.task]
    command += ["--ckpt", arguments.ckpt, "--data", arguments.data, "--seeds", str(arguments.seeds)]
    command += ["--out", str(out), "--features", str(features)]
    for option in ("fraction", "recipe"):
        if getattr(arguments, option):
            command += [f"--{option}", getattr(arguments, option)]
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    done = subprocess.run(
        command, cwd=tree, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed in {tree}:\n{done.stderr}")


def read_results(out: Path) -> list[dict[str, Any]]:
    """Return the choice and the top-1 of every seed."""
    results = []
    for path in sorted(out.rglob("record.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        choice = {key: record["details"][key] for key in CHOICE if key in record["details"]}
        results.append({**choice, "top1": round(record["metrics"]["top1"], 3)})
    return results


def list_differences(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> list[str]:
    """Describe every seed whose choice differs, or whose top-1 does by more than `TOLERANCE`."""
    return [
        f"seed {seed}: before {old}, after {new}"
        for seed, (old, new) in enumerate(zip(before, after, strict=True))
        if abs(old["top1"] - new["top1"]) > TOLERANCE
        or any(old[key] != new[key] for key in old if key != "top1")
    ]


if __name__ == "__main__":
    main()
