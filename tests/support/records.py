"""Records of small runs on disk, the board of them, and the leaderboard's commands."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict
from pathlib import Path

import numpy as np
from click.testing import CliRunner, Result

from simmim_bench.cli.main import cli
from simmim_bench.files import sha256_file
from simmim_bench.leaderboard.board import Board
from simmim_bench.leaderboard.find import find_records
from simmim_bench.results.metrics import scores_from_predictions, write_logits
from simmim_bench.results.record import Record
from transfer.recipes import RECIPES


def fake_hash(text: str) -> str:
    """Return a hash that differs for each text."""
    return hashlib.sha256(text.encode()).hexdigest()


def make_record(
    root: Path,
    *,
    task: str = "linear",
    label: str = "a",
    correct: int = 6,
    seed: int = 0,
    images: int = 10,
) -> Path:
    """Write the files of a run on some images of which the first `correct` are classified correctly.

    Returns:
        The path of the record.
    """
    folder = root / f"{label}-{task}-{seed}"
    labels = np.arange(images) % 6
    logits = np.eye(6)[labels] * 5.0
    logits[correct:] = np.roll(logits[correct:], 1, axis=1)
    predictions = folder / "predictions" / "logits.npz"
    write_logits(predictions, logits, labels)
    recipe = RECIPES[{"linear": "linear", "knn": "knn"}.get(task, "logistic")]
    record = Record(
        task=task,
        metrics=scores_from_predictions(task, predictions, None),
        details={},
        status="reproduced",
        checkpoint={
            "label": label,
            "name": f"nowhere/{label}",
            "sha256": fake_hash(label),
            "arch": "x",
            "params": 1000,
            "provenance": {"wall_time_s": 3600.0},
        },
        recipe={
            "name": recipe.name,
            "sha256": recipe.sha256(),
            "source": "s",
            "fields": json.loads(json.dumps(recipe.fields())),
        },
        deviates={},
        seed=seed,
        data={"root": "data/d", "fingerprint": fake_hash("f")},
        evaluated=images,
        expected=images,
        predictions={"file": "predictions/logits.npz", "sha256": sha256_file(predictions)},
        environment={"simmim_bench": "0.1.0", "dirty": False},
        cost={
            "devices": 1,
            "device_hours": 0.5,
            "peak_memory_bytes": 2**30,
            "images_seen": 20,
            "images_per_s": 20.0,
        },
        command=["simmim-bench", "transfer", task],
        wall_time_s=1800.0,
        date="2026-01-01T00:00:00Z",
    )
    path = folder / "record.json"
    path.write_text(json.dumps(asdict(record)))
    return path


def set_answers(path: Path, correct: np.ndarray) -> str:
    """Replace the predictions of a record by ones that classify the given images correctly, (N,) bool.

    Returns:
        The hash of the predictions.
    """
    record = json.loads(path.read_text())
    file = path.parent / record["predictions"]["file"]
    labels = np.arange(len(correct)) % 6
    logits = np.eye(6)[np.where(correct, labels, (labels + 1) % 6)]
    logits[0, labels[0]] += 1e-3 * (record["seed"] + 1)  # files of two seeds have different hashes
    write_logits(file, logits, labels)
    digest = sha256_file(file)
    change(
        path,
        metrics={"top1": 100 * float(correct.mean())},
        predictions={**record["predictions"], "sha256": digest},
        evaluated=len(correct),
        expected=len(correct),
    )
    return digest


def pretraining(recipe: str, seed: int) -> dict[str, object]:
    """Return the provenance of a checkpoint that a recipe gave with a pretraining seed."""
    return {
        "method": "simmim",
        "recipe": {"name": recipe, "sha256": fake_hash(recipe), "deviates": {}},
        "data": {"root": "d", "fingerprint": fake_hash("d")},
        "epochs": 6.0,
        "seed": seed,
    }


def pretrained(path: Path, label: str, seed: int) -> None:
    """Change the checkpoint of a record to one that a method, of some label, gave with a pretraining seed."""
    record = json.loads(path.read_text())
    sha256, provenance = fake_hash(f"{label}{seed}"), pretraining(label, seed)
    checkpoint = {"label": label, "sha256": sha256, "provenance": provenance}
    change(path, checkpoint=record["checkpoint"] | checkpoint)


def change(path: Path, **fields: object) -> None:
    """Replace fields of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def board_of(*roots: Path) -> Board:
    """Build the board of the records below some folders."""
    return find_records(roots).board()


def plain_cells(markdown: str) -> str:
    """Return the tables of a Markdown text without the tags that make their uncertainties small."""
    return re.sub("</?sub>", "", markdown).replace("&nbsp;", " ")


def table_lines(markdown: str) -> list[str]:
    """Return the lines of the tables in a Markdown text."""
    return [line for line in markdown.splitlines() if line.startswith("| ")]


def run_leaderboard(*arguments: object) -> Result:
    """Run `simmim-bench leaderboard` in this process."""
    return CliRunner().invoke(cli, ["leaderboard", *map(str, arguments)])
