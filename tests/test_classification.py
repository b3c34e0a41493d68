"""Claims about classification transfers by several processes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import two_processes

from simmim_bench.cli import cli


def record_and_logits(out: Path) -> tuple[dict, np.ndarray]:
    record = json.loads((out / "record.json").read_text())
    with np.load(out / record["predictions"]["file"]) as stored:
        return record, stored["logits"].astype(np.float32)


# 60 training and 30 validation images: seven a batch and two processes divide neither.
@pytest.mark.parametrize(
    ("task", "more"),
    [
        ("knn", ["-o", "batch_size=7"]),
        ("linear", ["-o", "batch_size=7"]),
        ("imagenet", ["-o", "batch_size=14", "-o", "epochs=1", "-o", "warmup_epochs=0"]),
    ],
)
def test_two_processes_score_every_image_once_as_one_does(
    tmp_path: Path, pocket: Path, task: str, more: list[str]
) -> None:
    arguments = [
        "transfer",
        task,
        "--ckpt",
        "random:vit_pocket",
        "--data",
        str(pocket / "imagenet"),
    ]
    arguments += [*more, "--quiet", "--out"]
    assert CliRunner().invoke(cli, [*arguments, str(tmp_path / "one")]).exception is None
    two_processes(*arguments, str(tmp_path / "two"))
    (one, logits), (two, same) = (record_and_logits(tmp_path / x) for x in ("one", "two"))
    assert two["evaluated"] == two["expected"] == one["evaluated"] == 30
    assert two["metrics"] == one["metrics"]
    assert np.allclose(same, logits, rtol=1e-3, atol=1e-3)


def test_a_task_that_knows_no_team_says_so(tmp_path: Path, pocket: Path) -> None:
    with pytest.raises(AssertionError, match="coco runs in one process; start it without torchrun"):
        two_processes(
            *("transfer", "coco", "--ckpt", "random:vit_pocket", "--data", str(pocket / "coco")),
            *("--out", str(tmp_path / "coco")),
        )
