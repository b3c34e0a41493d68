"""The command in processes of their own, which come from one that has imported everything: a start takes no time."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory

from simmim_bench.jobs.process import command_line

IMPORTED = ["pretrain.train", "simmim_bench.cli.main", "timm", "transfer.launch"]


@dataclass(frozen=True)
class Ended:
    """What all processes of a command wrote, together."""

    stdout: str
    stderr: str


def start(out: Path, *arguments: str, **variables: str) -> BaseProcess:
    """Start the command; `out` is a folder for what it writes to stdout and stderr."""
    context = get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    process = context.Process(target=_be_the_command, args=(out, arguments, variables))
    process.start()
    return process


def two_processes(*arguments: str) -> Ended:
    """Run a command as two processes, with the variables that torchrun sets, and expect it to end well."""
    with TemporaryDirectory() as folder:
        out = Path(folder)
        dist = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": _free_port()}
        ranks = [start(out, *arguments, **dist, RANK=rank, LOCAL_RANK=rank) for rank in ("0", "1")]
        while any(process.is_alive() for process in ranks):
            ranks[0].join(0.1)
            ranks[1].join(0.1)
            if any(process.exitcode for process in ranks):  # the other one would wait for it
                for process in ranks:
                    process.kill()
        ended = Ended((out / "stdout").read_text(), (out / "stderr").read_text())
    codes = [process.exitcode for process in ranks]
    assert codes == [0, 0], (codes, ended.stderr[-8000:])
    return ended


def under_torchrun(*arguments: str) -> Ended:
    """Run a command as two processes of torchrun's, and expect it to end well."""
    command = command_line(arguments, 2)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-8000:]
    return Ended(done.stdout, done.stderr)


def _free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def _be_the_command(out: Path, arguments: tuple[str, ...], variables: dict[str, str]) -> None:
    for number, name in ((1, "stdout"), (2, "stderr")):
        with (out / name).open("ab") as file:
            os.dup2(file.fileno(), number)
    os.environ.update(variables)
    sys.argv = ["simmim-bench", *arguments]
    from simmim_bench.cli.main import main

    main()
