"""The program's entry point: `python -m simmim_bench`, which is what `torchrun -m` needs, and the console script.

It imports little, so that Ctrl-C is handled before the modules of the command line are imported.
"""

from __future__ import annotations

import os
import signal
from types import FrameType


def main() -> None:
    """Run the command line and exit; a Ctrl-C during its imports ends it in one line as well."""
    signal.signal(signal.SIGINT, _exit)  # until `raise_on_signals` follows
    from simmim_bench.processors import choose_threads

    choose_threads(os.environ)
    from simmim_bench.cli.main import main as run_command_line

    run_command_line()


def _exit(number: int, _frame: FrameType | None) -> None:
    """Exit without an exception, which modules that are being imported may catch, or drop in a finaliser."""
    os.write(2, f"error: stopped by {signal.Signals(number).name}.\n".encode())
    os._exit(128 + number)


if __name__ == "__main__":
    main()
