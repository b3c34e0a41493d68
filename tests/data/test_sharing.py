"""Test that rank 0 alone lists the images of several processes: two processes, over Gloo."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path

import pytest
from support.commands import free_port, start_function, two_processes_of
from support.shared_listing import describe, list_on_both, run_command_below

from simmim_bench.data.class_splits import class_folders
from simmim_bench.data.pretraining_images import any_images
from simmim_bench.data.sharing import open_once
from simmim_bench.distributed import DistContext
from simmim_bench.errors import DataError


@pytest.fixture
def above(tmp_path: Path) -> Path:
    """Make a folder for each process; rank 0's alone has data, whose names are partly no UTF-8."""
    (tmp_path / "rank1").mkdir()
    for number, name in enumerate([b"a/1.jpg", b"a/\xff.jpg", b"b/2.png", b"b/x.txt", b"3.jpg"]):
        path = tmp_path / "rank0" / "data" / "train" / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * number)
    return tmp_path


@pytest.mark.heavy
def test_processes_know_what_rank_0_has_listed(
    above: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = json.loads(two_processes_of(partial(list_on_both, above)).stdout)
    monkeypatch.chdir(above / "rank0")
    alone = json.loads(json.dumps(describe(class_folders(Path("data"), "train"))))
    assert first["train"] == second["train"] == alone
    assert alone["labels"] == [0, 0, 1]
    assert first["any"] == second["any"]
    assert len(first["any"]["names"]) == 4
    assert first["held out"] is second["held out"] is None
    kind, message, printed = first["error"]
    assert (kind, printed) == ("DataError", False)
    assert message.startswith("data folder data/val does not exist;")
    assert second["error"] == [kind, message, True]


def test_only_images_of_a_fingerprint_are_measured(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").symlink_to("nowhere")
    open_images = partial(any_images, tmp_path)
    # A held-out image that cannot be read may be skipped.
    assert len(open_once(open_images, DistContext(), measure=False)) == 1
    with pytest.raises(DataError, match=r"image .*1\.jpg cannot be read: .*; fix the link"):
        open_once(open_images, DistContext())


@pytest.mark.heavy
def test_a_fault_of_the_data_is_printed_once_and_ends_all_processes(above: Path) -> None:
    command = ("transfer", "imagenet", "--ckpt", "random:vit_pocket", "--data", "data")
    arguments = (*command, "--out", str(above / "run"), "--quiet")
    run = partial(run_command_below, above, arguments)
    dist = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    ranks = [
        start_function(run, above, {**dist, "RANK": rank, "LOCAL_RANK": rank}) for rank in "01"
    ]
    for process in ranks:
        process.join(60)
    errors = (above / "stderr").read_text()
    assert [process.exitcode for process in ranks] == [4, 4], errors
    assert errors.count("error: data folder data/val does not exist; hold out") == 1
    assert errors.count("error") == 1
