"""Test what one of several processes does to the others: two processes, over Gloo."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from pathlib import Path

import pytest
from support.accumulated_step import compare as accumulate
from support.commands import Ended, torchrun, two_processes_of
from support.sharded_trial import compare
from support.unlike_processes import agree

SUPPORT = Path(__file__).resolve().parents[1] / "support"
PRETRAIN = ("pretrain", "--arch", "vit_pocket", "-o", "batch_size=4")
READS = "error: rank 1 cannot read an image"
SMALLER: dict[str, tuple[str, ...]] = {
    "coco": ("batch_size=2", "neck_channels=16", "box_head_dim=16"),
    "ade20k": ("batch_size=4",),
}
FINETUNE = ("transfer", "imagenet", "--ckpt", "random:vit_pocket", "-o", "batch_size=4")


def fail_under_torchrun(*arguments: str) -> Ended:
    """Run `support/failing_rank.py` as two processes under torchrun."""
    paths = os.pathsep.join([str(SUPPORT.parent), *sys.path])
    script = str(SUPPORT / "failing_rank.py")
    return torchrun("--standalone", "--nproc-per-node", "2", script, *arguments, PYTHONPATH=paths)


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("kind", "command", "code", "message"),
    [
        ("defect", PRETRAIN, 1, "ValueError: rank 1 cannot read an image"),
        pytest.param(
            *("data", FINETUNE, 4, "error: rank 1 cannot read an image"), marks=pytest.mark.slow
        ),
    ],
    ids=["pretrain", "transfer"],
)
def test_an_error_of_one_process_is_printed_and_ends_all(
    tmp_path: Path, few: Path, kind: str, command: tuple[str, ...], code: int, message: str
) -> None:
    folders = ("--data", str(few), "--out", str(tmp_path / "run"))
    changes = ("epochs=2", "warmup_epochs=0", "precision=fp32", "num_workers=0")
    options = (word for change in changes for word in ("-o", change))
    done = fail_under_torchrun(kind, *command, *folders, *options, "--quiet")
    assert_all_ended(done, tmp_path / "run" / "metrics.jsonl", code, message)


@pytest.mark.parametrize(
    ("kind", "task", "library", "code", "message"),
    [
        ("data", "coco", "detectron2", 4, READS),
        ("data", "ade20k", "mmseg", 4, READS),
        ("box", "coco", "detectron2", 5, "error: coco: a proposed box is not finite at step "),
    ],
)
@pytest.mark.slow
def test_an_error_of_one_process_in_a_frameworks_loop_ends_all(
    tmp_path: Path, pocket: Path, kind: str, task: str, library: str, code: int, message: str
) -> None:
    pytest.importorskip(library)
    command = ("transfer", task, "--ckpt", "random:vit_pocket", "--data", str(pocket / task))
    changes = SMALLER[task] + ("precision=fp32", "num_workers=0", "max_iters=20", "warmup_iters=0")
    options = (word for change in changes for word in ("-o", change))
    done = fail_under_torchrun(kind, *command, "--out", str(tmp_path / "run"), *options, "--quiet")
    assert_all_ended(done, tmp_path / "run" / "log.txt", code, message)


def assert_all_ended(done: Ended, last: Path, code: int, message: str) -> None:
    """Check that rank 1's message was printed before the launcher ended rank 0, seconds after a file's last line."""
    ended = time.time()
    assert done.code == 1
    found = re.findall(r"rank +: (\d).*\n +exitcode +: (-?\d+)", done.stderr)
    # The last one is the first failure, whose exit code suites report.
    assert found[-1] == ("1", str(code)), done.stderr[-3000:]
    # Rank 0 waits in a collective, until Gloo reports that rank 1 is gone. torchrun's SIGTERM comes in the
    # training loop (1), while files are closed (143), or afterwards (-15).
    assert [rank for rank, _ in found[:-1]] == ["0"]
    assert found[0][1] in {"1", "143", "-15"}
    assert done.stderr.index(message) < done.stderr.index("closing signal SIGTERM")
    assert ended - last.stat().st_mtime < 30


@pytest.mark.heavy
def test_a_trial_that_runs_out_of_memory_changes_nothing_in_a_sharded_run() -> None:
    found = json.loads(two_processes_of(compare).stdout)
    # Rank 1 has room for 2 of its 8 images; rank 0 has room for all.
    assert found["fitting"] == [4, 4]
    assert found["moved"] > 1e-3
    assert found["differ"] == 0


@pytest.mark.heavy
def test_processes_whose_machines_differ_agree_and_say_why() -> None:
    found = json.loads(two_processes_of(agree).stdout)
    wanted = ["fp16", "fp16", "bf16", "fp32"]
    assert found["precision"] == [wanted, wanted]
    (first, log), (second, _) = found["compiled"]
    assert not first
    assert not second
    reason = "it fails on the machine of process 1 (RuntimeError: no compiler found)"
    assert f"train: torch.compile=off: {reason}" in log


@pytest.mark.heavy
def test_accumulated_gradients_are_those_of_one_process_and_exchanged_once() -> None:
    for name, found in json.loads(two_processes_of(accumulate).stdout).items():
        assert found["parameters"] == 0, name
        # bfloat16 has 8 bits, and the loss of two images is rounded otherwise than that of four.
        assert found["apart"] < (1e-2 if "bf16" in name else 1e-6), name
        # A sharded model exchanges per unit that is gathered; a small copied one has one bucket.
        assert found["exchanges"] == (found["units"] if "shards" in name else 1), name
        if "copies" in name:
            assert found["views"] == 1  # the buckets need no memory of their own
