"""A command in a process of its own, with its devices and its log, that does not outlive who started it.

In: the arguments of `simmim-bench`. Out: a running process; what it says goes to the end of a file.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

PR_SET_PDEATHSIG = 1  # linux/prctl.h
_C = ctypes.CDLL(None) if sys.platform == "linux" else None


def launch_words(arguments: Sequence[str], processes: int) -> list[str]:
    """Give the command of `simmim-bench` with some arguments, for some processes on this machine."""
    launcher = [sys.executable, "-m"]
    if processes > 1:
        launcher += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        launcher += ["-m"]
    return [*launcher, "simmim_bench", *arguments]


def launch(command: Sequence[str], log: Path, devices: str | None) -> subprocess.Popen[bytes]:
    """Start a command.

    It has a session of its own: a terminal's Ctrl-C reaches who started it, who passes it on, once. Where
    the system can (Linux), it is asked to save and stop when who started it is killed.

    Args:
        log: the file that all it says is added to.
        devices: of CUDA_VISIBLE_DEVICES; None to leave it as it is.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    chosen = {} if devices is None else {"CUDA_VISIBLE_DEVICES": devices}
    with open(log, "ab") as file:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **chosen},
            preexec_fn=_end_with_parent if _C is not None else None,
        )


def _end_with_parent() -> None:
    """Ask Linux to send SIGTERM to this process when the one that started it ends."""
    assert _C is not None
    _C.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def kill(process: subprocess.Popen[bytes]) -> None:
    """End a process and those that it has started, at once."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def exit_code(code: int, said: str) -> int:
    """Give a command's exit code: that of its signal, and under `torchrun` that of the process that failed."""
    if code < 0:
        return 128 - code
    found = re.findall(r"^ *exitcode *: (-?\d+)", said, re.MULTILINE) if code == 1 else []
    return exit_code(int(found[-1]), "") if found else code


def last_error(code: int, said: str) -> str:
    """Give the line that says why a command failed."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    if errors:
        return errors[-1].removeprefix("error: ")
    if code > 128:
        with suppress(ValueError):
            name = signal.Signals(code - 128).name
            memory = ", perhaps for want of memory" if name == "SIGKILL" else ""
            return f"ended by {name}{memory}"
    return lines[-1] if lines else f"ended with exit code {code} and said nothing"
