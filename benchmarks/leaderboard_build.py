"""Time the build of a leaderboard of a thousand synthetic records, a hundred checkpoints and the published rows.

python benchmarks/leaderboard_build.py --json benchmarks/results/leaderboard_build.json
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from pathlib import Path

import numpy as np
from timing import compare, report

from simmim_bench.files import sha256_json
from simmim_bench.leaderboard.find import find_records
from simmim_bench.leaderboard.reported import read_reported
from simmim_bench.leaderboard.write import render_tables, write_leaderboard
from simmim_bench.results.record import Record, read_record
from simmim_bench.tasks import columns

SEEDS = {"imagenet": 1, "linear": 3, "knn": 1, "fewshot-1%": 1, "fewshot-10%": 2, "coco": 1}
SEEDS |= {"ade20k": 1}
STEPS = 100  # points of a training curve


def main() -> None:
    """Parse the arguments, write synthetic records, time the build and its steps, and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoints", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        runs, out = Path(temporary, "runs"), Path(temporary, "out")
        count = write_records(runs, arguments.checkpoints)
        reported, board = read_reported(), find_records([runs]).board()
        timings = compare(
            {
                "complete build: records, tables, page": lambda: write_leaderboard(
                    find_records([runs]).board(), out, reported=reported
                ),
                "records only, read and validated": lambda: find_records([runs]),
                "tables only": lambda: render_tables(board, out, reported),
            },
            rounds=arguments.rounds,
        )
        size = (out / "leaderboard.html").stat().st_size
    report(
        f"building a leaderboard of {count} records",
        timings,
        arguments.json,
        rows=len(board.rows),
        published_rows=len(reported),
        megabytes_of_page=round(size / 1e6, 1),
    )


def write_records(folder: Path, checkpoints: int) -> int:
    """Write synthetic records of all tasks with training curves; return their number."""
    generator = np.random.default_rng(0)
    curve = [json.dumps({"step": 10 * i, "loss": 5 / i}) + "\n" for i in range(1, STEPS + 1)]
    count = 0
    for number in range(checkpoints):
        for task, seeds in SEEDS.items():
            metrics = [column.metric for column in columns() if column.task == task]
            for seed in range(seeds):
                run = folder / str(number) / task / str(seed)
                run.mkdir(parents=True)
                scores = {metric: float(generator.uniform(1, 99)) for metric in metrics}
                record = synthetic_record(task, number, seed, scores)
                (run / "record.json").write_text(json.dumps(dataclasses.asdict(record)))
                (run / "metrics.jsonl").write_text("".join(curve))
                count += 1
    read_record(run / "record.json")
    return count


def synthetic_record(task: str, number: int, seed: int, metrics: dict[str, float]) -> Record:
    """Return a record that no run has produced."""
    return Record(
        task=task,
        metrics=metrics,
        details={},
        status="reproduced",
        checkpoint={
            "label": f"checkpoint {number}",
            "name": f"runs/{number}",
            "sha256": sha256_json(number),
            "arch": "vit_b",
            "params": 86_000_000,
            "provenance": {"method": "simmim", "wall_time_s": 3600.0 * number},
        },
        recipe={
            "name": task,
            "sha256": sha256_json(task),
            "source": "none",
            "fields": {"epochs": 100},
        },
        deviates={},
        seed=seed,
        data={"root": f"data/{task}", "fingerprint": sha256_json(task)},
        evaluated=50_000,
        expected=50_000,
        predictions={"file": "predictions/x.npz", "sha256": sha256_json([number, task, seed])},
        environment={"simmim_bench": "0.1.0", "commit": None, "dirty": False, "device": "cpu"},
        cost={
            "devices": 8,
            "device_hours": 10.0 + number,
            "peak_memory_bytes": 2**34,
            "images_seen": 10**6,
            "images_per_s": 1000.0,
        },
        command=["simmim-bench", "transfer", task],
        wall_time_s=3600.0,
        date="2026-01-01T00:00:00Z",
    )


if __name__ == "__main__":
    main()
