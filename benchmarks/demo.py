"""Run the demo for several pretraining seeds, of this source tree and of an earlier one, and compare the tables.

    python benchmarks/demo.py --out /tmp/demos --json benchmarks/results/demo.json --before ../earlier

The trees run in turn, seed by seed, each in its own processes. A tree without `demo --seed` runs the commands that its
demo consists of. Seeds start their tasks apart, so that no two of them share a random initialisation. A second call
continues with the runs that --out lacks; then only the scores count, and the report says so.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import timing

from simmim_bench.tasks import TASKS, columns, tasks_with

HERE = Path(__file__).resolve().parents[1]
TASK_SEEDS = 3  # of every task on frozen features, as in the demo
MIN_SEEDS = 2  # below it, nothing is known of the noise
LEFT_OUT = ("attentive", "shift")
RESULT = "demo.json"  # in results/, whose table is in README.md
ROWS = ("random", "SimMIM")
COLUMNS = columns()


def main() -> None:
    """Parse the arguments, run the demos and write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the demos")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--before", type=Path, help="root of an earlier source tree")
    parser.add_argument("--json", type=Path, help="file of the report")
    args = parser.parse_args()
    if len(args.seeds) < MIN_SEEDS:
        parser.error(f"--seeds has {len(args.seeds)} seed; the noise needs {MIN_SEEDS} or more.")
    trees = {"after": HERE} if args.before is None else {"before": args.before, "after": HERE}
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in trees}
    for seed in args.seeds:
        for name, tree in trees.items():
            runs[name].append(
                run_demo(tree.resolve(), (args.out / f"{name}-{seed}").resolve(), seed)
            )
    content = {
        "title": "the demo",
        "device": timing.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "seeds": args.seeds,
        "demos": {name: summarise(found) for name, found in runs.items()},
    }
    print(to_markdown(content))
    if args.json is not None:
        args.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def run_demo(tree: Path, out: Path, seed: int) -> dict[str, Any]:
    """Run one demo and return its seconds, whether it ran in one go, and the scores of each row by column.

    Args:
        tree: root of the source tree whose code runs; absolute, as `out`.
    """
    whole = not out.exists()
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    started = time.perf_counter()
    for command in commands(tree, out, seed):
        # Python looks for a module in the working directory first, which may be another source tree.
        subprocess.run(
            [sys.executable, "-m", "simmim_bench", *command],
            cwd=tree,
            env=environment,
            check=True,
        )
    return {
        "seconds": time.perf_counter() - started,
        "in_one_go": whole,
        **read_scores(out / "runs"),
    }


def commands(tree: Path, out: Path, seed: int) -> list[list[str]]:
    """Return the demo as one command, or as those that it consists of in a tree without `demo --seed`."""
    if '"--seed"' in (tree / "simmim_bench" / "cli" / "demo.py").read_text(encoding="utf-8"):
        return [["demo", "--out", str(out), "--seed", str(seed)]]
    data, pretrained = out / "data", out / "pretrain"
    tasks = ",".join(task for task in TASKS if task not in LEFT_OUT)
    suite = ["suite", "--ckpt", str(pretrained), "--baseline", "random", "--out", str(out / "runs")]
    for layout in ("imagenet", "coco", "ade20k"):
        suite += [f"--{layout}", str(data / layout)]
    for task in tasks_with("features"):
        if task not in LEFT_OUT:
            suite += ["--seeds", f"{task}={TASK_SEEDS}"]
    pretrain = ["pretrain", "--arch", "vit_pocket", "--data", str(data / "imagenet")]
    return [
        *([] if (data / "pocket.json").is_file() else [["pocket", str(data)]]),
        [*pretrain, "--out", str(pretrained), "--seed", str(seed), "--resume"],
        [*suite, "--tasks", tasks, "--seed", str(seed * TASK_SEEDS)],
    ]


def read_scores(runs: Path) -> dict[str, Any]:
    """Read a demo's records: the mean over task seeds by row and column, and the seconds of each part."""
    scores: dict[str, dict[str, list[float]]] = {row: {} for row in ROWS}
    seconds: dict[str, float] = {}
    for path in sorted(runs.rglob("record.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        row = ROWS["SimMIM" in record["checkpoint"]["label"]]
        if row == "SimMIM":
            seconds["pretraining"] = record["checkpoint"]["provenance"]["wall_time_s"]
        seconds[record["task"]] = seconds.get(record["task"], 0.0) + record["wall_time_s"]
        for column in COLUMNS:
            if column.task == record["task"]:
                scores[row].setdefault(column.title, []).append(record["metrics"][column.metric])
    return {
        "seconds_by_part": seconds,
        "scores": {row: {c: mean(s) for c, s in of.items()} for row, of in scores.items()},
    }


def summarise(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a tree's seconds and, by column, the scores of every pretraining seed with the rows' difference.

    The noise of a difference is the standard error over the seeds.
    """
    table = {}
    for column in runs[0]["scores"]["SimMIM"]:
        random, pretrained = ([run["scores"][row][column] for run in runs] for row in ROWS)
        gains = [b - a for a, b in zip(random, pretrained, strict=True)]
        noise = stdev(gains) / len(gains) ** 0.5
        table[column] = {
            "random": random,
            "SimMIM": pretrained,
            "gain": mean(gains),
            "noise": noise,
        }
    whole = [run for run in runs if run["in_one_go"]]
    return {
        "seconds": [run["seconds"] for run in whole],
        "seconds_by_part": {
            part: median(run["seconds_by_part"][part] for run in whole)
            for part in (whole[0]["seconds_by_part"] if whole else ())
        },
        "table": table,
    }


def to_markdown(content: Mapping[str, Any]) -> str:
    """Render a report as a Markdown section: a table of scores for each tree, with its seconds below."""
    lines = [f"### {content['title'][0].upper()}{content['title'][1:]}", ""]
    lines += [
        f"{content['device']}, {content['cores']} cores; pretraining seeds {', '.join(map(str, content['seeds']))}; "
        "mean and standard deviation over them. The noise is the standard error of the difference.",
    ]
    for name, demo in content["demos"].items():
        lines += ["", f"| {name} | random | SimMIM | difference | noise |"]
        lines += ["| --- | ---: | ---: | ---: | ---: |"]
        for column, row in demo["table"].items():
            rows = " | ".join(f"{mean(row[of]):.1f} ± {stdev(row[of]):.1f}" for of in ROWS)
            lines.append(f"| {column} | {rows} | {row['gain']:+.1f} | {row['noise']:.1f} |")
        lines += ["", _describe_seconds(name, demo)]
    return "\n".join(lines)


def _describe_seconds(name: str, demo: Mapping[str, Any]) -> str:
    if not demo["seconds"]:
        return f"{name}: not timed, since no demo ran in one go."
    parts = ", ".join(f"{part} {seconds:.0f}" for part, seconds in demo["seconds_by_part"].items())
    elapsed = ", ".join(f"{seconds:.0f}" for seconds in demo["seconds"])
    return f"{name}: {elapsed} s in all; medians of the parts, both rows and all task seeds: {parts} s."


if __name__ == "__main__":
    main()
