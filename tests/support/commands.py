"""Run the command in separate processes, forked from a server that has imported everything, to start fast."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context, set_start_method
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from simmim_bench.distributed import exit_process
from simmim_bench.jobs.process import command_line

# What commands import when they need it, too, and the frameworks of the extras where there are any.
IMPORTED = [
    "matplotlib.figure",
    "pretrain.train",
    "simmim_bench.cli.main",
    "simmim_bench.leaderboard.write",
    "timm",
    "torch.utils.tensorboard",
    "transfer.attentive.run",
    "transfer.dense.run",
    "transfer.detection.loop",
    "transfer.finetune.run",
    "transfer.frozen.run",
    "transfer.launch",
    "transfer.segmentation.loop",
    "transfer.suite.run",
]


@dataclass(frozen=True)
class Ended:
    """The output of all processes of a command, and an exit code that tells whether all succeeded."""

    stdout: str
    stderr: str
    code: int = 0


def start(out: Path, *arguments: str, **variables: str) -> BaseProcess:
    """Start the command in a process group; stdout and stderr go to files of these names in the folder `out`."""
    return start_function(partial(run_command, arguments), out, variables)


def two_processes(*arguments: str) -> Ended:
    """Run a command as two processes with torchrun's variables, and check that both succeed."""
    return two_processes_of(partial(run_command, arguments))


def two_processes_of(function: Callable[[], None]) -> Ended:
    """Run a function as two processes with torchrun's variables, and check that both succeed."""
    with TemporaryDirectory() as folder:
        out = Path(folder)
        dist = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
        ranks = [
            start_function(function, out, {**dist, "RANK": rank, "LOCAL_RANK": rank})
            for rank in ("0", "1")
        ]
        while any(process.is_alive() for process in ranks):
            ranks[0].join(0.1)
            ranks[1].join(0.1)
            if any(
                process.exitcode for process in ranks
            ):  # the other process would wait for it forever
                for process in ranks:
                    process.kill()
        ended = Ended((out / "stdout").read_text(), (out / "stderr").read_text())
    codes = [process.exitcode for process in ranks]
    assert codes == [0, 0], (codes, ended.stderr[-8000:])
    return ended


def run_forked(function: Callable[[], None], **variables: str) -> Ended:
    """Run a function in one process."""
    with TemporaryDirectory() as folder:
        process = start_function(function, Path(folder), variables)
        process.join()
        stdout, stderr = (Path(folder, name).read_text() for name in ("stdout", "stderr"))
    return Ended(stdout, stderr, process.exitcode or 0)


def forked_interpreter(command: Sequence[str], **_: Any) -> subprocess.CompletedProcess[str]:
    """Run a command `[sys.executable, ..., "-c", code, ...]` as `subprocess.run` does, without its imports."""
    assert command[0] == sys.executable
    code = command.index("-c") + 1
    ended = run_forked(partial(_interpret, command[code], tuple(command[code + 1 :])))
    return subprocess.CompletedProcess(command, ended.code, ended.stdout, ended.stderr)


def _interpret(code: str, arguments: tuple[str, ...]) -> None:
    sys.argv = ["-c", *arguments]
    exec(code, {"__name__": "__main__"})


def under_torchrun(*arguments: str) -> Ended:
    """Run a command as two processes under torchrun, and check that it succeeds."""
    done = torchrun(*command_line(arguments, 2)[3:])
    assert done.code == 0, done.stderr[-8000:]
    return done


def torchrun(*arguments: str, **variables: str) -> Ended:
    """Run torchrun's launcher; the processes that it starts are new interpreters."""
    return run_forked(partial(_launch, arguments), **variables)


def _launch(arguments: tuple[str, ...]) -> None:
    from torch.distributed.run import main

    main(list(arguments))


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def start_function(
    function: Callable[[], None], out: Path, variables: dict[str, str]
) -> BaseProcess:
    """Call a function in a process of the server; its output is appended to `stdout` and `stderr` in `out`."""
    return _start(function, {1: out / "stdout", 2: out / "stderr"}, variables)


def _start(
    function: Callable[[], None], outputs: dict[int, Path], variables: dict[str, str]
) -> BaseProcess:
    context = get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    process = context.Process(target=_run, args=(function, outputs, variables))
    process.start()
    return process


class ForkedPopen:
    """A process of the server with the part of `subprocess.Popen` that the steps of a suite need."""

    def __init__(self, process: BaseProcess) -> None:
        assert process.pid is not None
        self._process, self.pid = process, process.pid

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal; None while the process runs."""
        return self._process.exitcode

    def wait(self) -> int:
        """Return the exit code once the process has ended."""
        self._process.join()
        assert self._process.exitcode is not None
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Send a signal to the process, if it runs."""
        if self.poll() is None:
            os.kill(self.pid, number)


def forked_launch(
    command: Sequence[str],
    log: Path,
    devices: str | None,
    variables: Mapping[str, str] | None = None,
) -> ForkedPopen:
    """Run what `command_line` returns for one process, as `simmim_bench.jobs.process.launch` does, without its imports.

    A test replaces `simmim_bench.jobs.workers.launch` by it. That a step's interpreter starts, with its devices,
    and ends with its parent is tested with the real one.
    """
    arguments = tuple(command)[len(command_line((), 1)) :]
    assert list(command) == command_line(arguments, 1)
    log.parent.mkdir(parents=True, exist_ok=True)
    chosen = {} if devices is None else {"CUDA_VISIBLE_DEVICES": devices}
    outputs = {1: log, 2: log}
    environment = {**os.environ, **(variables or {}), **chosen}
    return ForkedPopen(_start(partial(run_command, arguments), outputs, environment))


def _run(function: Callable[[], None], outputs: dict[int, Path], variables: dict[str, str]) -> None:
    for number, path in outputs.items():
        with path.open("ab") as file:
            os.dup2(file.fileno(), number)
    os.environ.update(variables)
    os.setsid()
    set_start_method(None, force=True)  # of loaders: this system's default, not the server's own
    function()
    exit_process(0)


def forget(*packages: str) -> None:
    """Forget imported packages, and the modules of ours that use MMSegmentation."""
    for name in list(sys.modules):
        if (
            name.startswith(("transfer.segmentation", "transfer.mmseg_backbone"))
            or name.partition(".")[0] in packages
        ):
            del sys.modules[name]


def run_command(arguments: tuple[str, ...]) -> None:
    """Run the command line in this process, which it ends."""
    sys.argv = ["simmim-bench", *arguments]
    from simmim_bench.cli.main import main

    main()
