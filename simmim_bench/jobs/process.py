"""A `simmim-bench` command in a separate process, with its own devices and log file.

The process ends with the one that started it, and its exit code and last error are read from the log.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from simmim_bench.signals import StopSignal

PR_SET_PDEATHSIG = 1  # linux/prctl.h
_C = ctypes.CDLL(None) if sys.platform == "linux" else None


def command_line(arguments: Sequence[str], processes: int) -> list[str]:
    """Return the command that runs `simmim-bench` with some arguments.

    Args:
        processes: processes on this machine; torchrun starts them where there are several.
    """
    launcher = [sys.executable, "-m"]
    if processes > 1:
        launcher += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        launcher += ["-m"]
    return [*launcher, "simmim_bench", *arguments]


def launch(
    command: Sequence[str],
    log: Path,
    devices: str | None,
    variables: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start a command in a new session.

    A terminal's Ctrl-C therefore reaches only the parent, which passes it on once. On Linux the command gets
    SIGTERM, and so saves and stops, when its parent is killed.

    Args:
        log: file that stdout and stderr are appended to.
        devices: value of CUDA_VISIBLE_DEVICES; None to leave the variable unchanged.
        variables: further environment variables.
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
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(variables or {}), **chosen},
            preexec_fn=_end_with_parent if _C is not None else None,
        )


def _end_with_parent() -> None:
    """Ask Linux to send SIGTERM to this process when its parent ends."""
    assert _C is not None
    _C.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and its children."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def exit_code(code: int, output: str) -> int:
    """Convert a process's return code to a command's exit code.

    Args:
        code: as `subprocess` returns it; negative for a signal.
        output: the command's output; torchrun prints the exit code of the process that failed.

    Returns:
        128 plus the signal's number for a signal, as a shell reports it.
    """
    if code < 0:
        return 128 - code
    found = re.findall(r"^ *exitcode *: (-?\d+)", output, re.MULTILINE) if code == 1 else []
    return exit_code(int(found[-1]), "") if found else code


def last_error(code: int, output: str) -> str:
    """Return the line of a failed command's output that names the reason."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    # After one process has failed, torchrun terminates the others.
    terminated = str(StopSignal(signal.SIGTERM))
    reasons = [error for error in errors if error != terminated] or errors
    if reasons:
        return reasons[-1]
    if code > 128:
        with suppress(ValueError):
            name = signal.Signals(code - 128).name
            memory = ", possibly out of memory" if name == "SIGKILL" else ""
            return f"ended by {name}{memory}"
    return lines[-1] if lines else f"exit code {code}, no output"
