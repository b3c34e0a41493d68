"""Run a command with one failing file operation, or killed at one, and describe what it has left.

`observe` counts the operations of an undisturbed run; a `Fault` names one of them by its number.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from pathlib import Path, PurePath
from typing import Any, Literal

import torch
from support import syscalls
from support.commands import run_command, start_function
from support.syscalls import NEEDS_SPACE, Operation

from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.files import LEFTOVERS, sha256_file
from simmim_bench.results.metrics import scores_from_predictions
from simmim_bench.results.record import read_record

# Of a run directory: logs, whose content depends on time, and COCO's figure, which follows the record.
UNCOMPARED = ("log.txt", "env.json", "tensorboard", ".lock", "scratch", "predictions.png")
# Figures that depend on time, or on what an earlier attempt has done, in metrics, records and checkpoints.
TIMES = (
    *("wall_time_s", "images_per_s", "data_wait", "memory_gib", "gflop_per_s", "flop_share"),
    *(
        "date",
        "device_hours",
        "images_seen",
        "peak_memory_bytes",
        "command",
        "training_sha256",
        "seconds",
    ),
)


@dataclass(frozen=True)
class Fault:
    """A fault of a run.

    Attributes:
        kind: "full": this operation and all later ones that need disk space fail with ENOSPC; "broken": this
            one alone fails with EIO; "killed": the process gets SIGKILL instead.
        number: of the operation, from 0.
    """

    kind: Literal["full", "broken", "killed"]
    number: int


@dataclass(frozen=True)
class Ended:
    """A run that has ended.

    Attributes:
        code: exit code, negative for a signal.
        operations: the file operations below the observed folder, in order.
    """

    code: int
    operations: tuple[Operation, ...]
    stdout: str
    stderr: str


def run(root: Path, arguments: Sequence[str], fault: Fault | None = None) -> Ended:
    """Run a command in the folder `root`, whose file operations are counted.

    Args:
        fault: None for an undisturbed run.
    """
    with tempfile.TemporaryDirectory() as output:
        ours, theirs = Pipe()
        process = start_function(
            partial(_run_observed, root, tuple(arguments), theirs), Path(output), {}
        )
        theirs.close()
        assert process.pid is not None
        listener = recv_handle(ours)
        try:
            operations = _answer(listener, process.pid, root, fault)
        finally:
            os.close(listener)
        process.join()
        assert process.exitcode is not None
        texts = [Path(output, name).read_text() for name in ("stdout", "stderr")]
    return Ended(process.exitcode, tuple(operations), *texts)


def _run_observed(root: Path, arguments: tuple[str, ...], connection: Connection) -> None:
    """Run a command in this process, whose file operations another one answers."""
    os.chdir(root)
    scratch = root / "scratch"
    scratch.mkdir(exist_ok=True)
    tempfile.tempdir = str(scratch)
    torch.set_num_threads(1)
    listener = syscalls.install()
    send_handle(connection, listener, None)
    os.close(listener)
    run_command(arguments)


def _answer(listener: int, process: int, root: Path, fault: Fault | None) -> list[Operation]:
    """Answer a process's calls until it has ended; return its operations."""
    operations: list[Operation] = []
    for call in syscalls.calls(listener, process, root):
        number = len(operations)
        operations.append(call.operation)
        if fault is None or number < fault.number:
            syscalls.proceed(listener, call.id)
        elif fault.kind == "killed":
            os.kill(process, signal.SIGKILL)
            break
        elif fault.kind == "broken" and number == fault.number:
            syscalls.fail(listener, call.id, errno.EIO)
        elif fault.kind == "full" and call.operation.name in NEEDS_SPACE:
            syscalls.fail(listener, call.id, errno.ENOSPC)
        else:
            syscalls.proceed(listener, call.id)
    return operations


def list_faults(operations: Sequence[Operation]) -> list[Fault]:
    """Return every fault of a run with these operations."""
    faults = []
    for number, operation in enumerate(operations):
        faults += [Fault("broken", number), Fault("killed", number)]
        if operation.name in NEEDS_SPACE:
            faults.append(Fault("full", number))
    return faults


def describe(root: Path, folders: Sequence[str], *, leftovers: bool) -> dict[str, Any]:
    """Return the content of all files below some folders, without what depends on time.

    Args:
        leftovers: whether temporary files of a killed process count.
    """
    found = {}
    for folder in folders:
        for path in sorted((root / folder).rglob("*")):
            name = path.relative_to(root)
            left_out = any(part in UNCOMPARED for part in name.parts)
            if not leftovers:
                left_out |= any(PurePath(part).match(p) for part in name.parts for p in LEFTOVERS)
            if path.is_file() and not left_out:
                found[name.as_posix()] = _content(path)
    return found


def _content(path: Path) -> Any:
    if path.name == "metrics.jsonl":
        return [_without_times(json.loads(line)) for line in path.read_text().splitlines()]
    if path.suffix == ".json":
        return _without_times(json.loads(path.read_text()))
    if path.suffix == ".pt":
        return _plain(torch.load(path, weights_only=True))
    return sha256_file(path)


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_times(v) for k, v in value.items() if k not in TIMES}
    return [_without_times(v) for v in value] if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    """Return a training state with bytes in place of tensors, so that it compares by value."""
    if isinstance(value, torch.Tensor):
        return (str(value.dtype), tuple(value.shape), value.contiguous().numpy().tobytes())
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def check_readable(root: Path) -> None:
    """Check that every record and every checkpoint that a reader finds below a folder is whole."""
    for path in root.rglob("record.json"):
        if any(part.startswith(".") for part in path.relative_to(root).parts):
            continue
        record = read_record(path)
        predictions = path.parent / record.predictions["file"]
        assert sha256_file(predictions) == record.predictions["sha256"], path
        annotations = (
            Path(root, record.data["annotations"]) if "annotations" in record.data else None
        )
        scores = scores_from_predictions(
            record.task, predictions, annotations, masks=record.details.get("masks", True)
        )
        assert scores == record.metrics, path
    for path in root.rglob("meta.json"):
        if not any(part.startswith(".") for part in path.relative_to(root).parts):
            read_checkpoint(str(path.parent))
