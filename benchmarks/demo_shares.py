"""Write what the demo's steps take, relative to its pretraining, and their memory: simmim_bench/jobs/demo_steps.json.

    simmim-bench demo --out DEMO && python benchmarks/demo_shares.py DEMO

DEMO is a demo that has run from its start to its end on two cores without a pause. Run it again when a recipe of the
demo has changed: from these figures a first demo forecasts its remaining time, and how many of its steps fit in memory
side by side.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path

from simmim_bench.cli.demo import DURATIONS
from simmim_bench.files import write_json
from simmim_bench.jobs import forecast
from simmim_bench.results.record import Record, read_record
from simmim_bench.training.memory import GIB


def main() -> int:
    """Read a demo's durations, records and metrics, and write the shares."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("demo", type=Path)
    demo: Path = parser.parse_args().demo
    seconds: dict[str, float] = json.loads((demo / DURATIONS).read_text(encoding="utf-8"))
    records = defaultdict[str, list[Record]](list)
    for path in sorted((demo / "runs").rglob("record.json")):
        record = read_record(path)
        records[kind_of(record)].append(record)
    whole = seconds[forecast.PRETRAIN_KIND]
    steps = {kind: describe(time / whole, records[kind]) for kind, time in seconds.items()}
    steps[forecast.PRETRAIN_KIND]["peak_memory_bytes"] = pretraining_peak(demo / "pretrain")
    path = Path(forecast.__file__).with_name("demo_steps.json")
    before: dict[str, dict[str, float]] = json.loads(path.read_text(encoding="utf-8"))
    # The memory of a recipe that the demo no longer uses stays known; its share is of another pretraining.
    kept = {kind: {k: v for k, v in step.items() if k != "share"} for kind, step in before.items()}
    write_json(path, kept | steps)
    return 0


def kind_of(record: Record) -> str:
    """Return the kind of step that a record of an unchanged recipe is of, as `SuiteStep.kind` does."""
    return f"{record.task} {record.recipe['name']} {record.checkpoint['arch']}"


def describe(share: float, records: list[Record]) -> dict[str, float]:
    """Return the figures of a kind of step; without records, its memory is left out."""
    peaks = [peak for record in records if (peak := record.cost["peak_memory_bytes"]) is not None]
    return {
        "share": round(share, 3),
        "seeds": len({record.seed for record in records}) or 1,
        **({"peak_memory_bytes": max(peaks)} if peaks else {}),
    }


def pretraining_peak(run: Path) -> int:
    """Return the most bytes that a pretraining has held, from its metrics."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return round(GIB * max(json.loads(line).get("memory_gib", 0.0) for line in lines))


if __name__ == "__main__":
    sys.exit(main())
