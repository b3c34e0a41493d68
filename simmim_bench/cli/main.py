"""The entry point: the group of all commands, and the translation of errors into exit codes.

Results go to stdout (`--json` for machines), logs and progress to stderr. Exit codes: 0 done, 1 failed, 2 usage,
3 a framework is missing, 4 bad data, 5 diverged, 6 a leaderboard check found a difference, 130/143 interrupted after
saving.
"""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
import time
import warnings
from contextlib import suppress
from importlib.util import find_spec as find_module
from pathlib import Path

import click

from simmim_bench import __version__
from simmim_bench.cli.ablate import ablate
from simmim_bench.cli.convert import convert
from simmim_bench.cli.data import data
from simmim_bench.cli.demo import demo
from simmim_bench.cli.doctor import doctor
from simmim_bench.cli.evaluate import evaluate
from simmim_bench.cli.leaderboard import leaderboard
from simmim_bench.cli.methods import methods
from simmim_bench.cli.pack import pack
from simmim_bench.cli.pocket import pocket
from simmim_bench.cli.pretrain import pretrain
from simmim_bench.cli.push import push
from simmim_bench.cli.recipe_options import describe_instead
from simmim_bench.cli.recipes import recipes
from simmim_bench.cli.study import study
from simmim_bench.cli.suite import suite
from simmim_bench.cli.transfer import transfer
from simmim_bench.cli.visualize import visualize
from simmim_bench.errors import BenchError, InterruptedRun, UsageError
from simmim_bench.launcher import is_one_of_several, read_launcher_env
from simmim_bench.signals import StopSignal, raise_on_signals, requeue_job
from simmim_bench.untrusted.text import visible_lines


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__)
def cli() -> None:
    """How well does a backbone pretrained with SimMIM transfer?

    Pretrain a backbone, transfer its checkpoint to classification, detection and segmentation, and collect
    the records in one leaderboard:

    \b
      simmim-bench pretrain --arch vit_b --data imagenet --out runs/vit_b
      simmim-bench transfer linear --ckpt runs/vit_b --data imagenet
      simmim-bench leaderboard build runs

    Start with `simmim-bench demo`: the whole pipeline on synthetic images, in minutes on a CPU.
    """


for _command in (
    pretrain,
    transfer,
    evaluate,
    suite,
    study,
    methods,
    ablate,
    leaderboard,
    recipes,
    data,
    pack,
    convert,
    push,
    visualize,
    pocket,
    doctor,
    demo,
):
    cli.add_command(_command)


def main() -> None:
    """Run the command line and exit."""
    try:
        _run()
    except SystemExit as end:
        # Without torch there are no other processes to leave behind.
        distributed = sys.modules.get("simmim_bench.distributed")
        if distributed is not None and isinstance(end.code, int):
            distributed.exit_process(end.code)
        raise
    except Exception as error:
        distributed = sys.modules.get("simmim_bench.distributed")
        if distributed is not None and is_one_of_several():
            distributed.exit_failed(error)
        raise


def _run() -> None:
    """Run the command line; report an error that the user can fix as one line and an exit code."""
    try:
        if isinstance(
            sys.stdout, io.TextIOWrapper
        ):  # file names may be no UTF-8; stderr escapes them by default
            sys.stdout.reconfigure(errors="backslashreplace")
        raise_on_signals()
        warnings.formatwarning = _format_warning
        _check_packages()
        code = cli.main(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except (InterruptedRun, StopSignal) as stop:
        _requeue(stop.number)
        _fail(str(stop), stop.exit_code)
    except BenchError as error:
        if error.printed_by_main:
            sys.modules["simmim_bench.distributed"].exit_after_main(error.exit_code)
        _fail(str(error), error.exit_code)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else "simmim-bench"
        message = " ".join(error.format_message().split()) + describe_instead(error)
        _fail(f"{message} See `{path} --help`.", error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        _fail("interrupted.", 130)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO):
            raise
        verb = "access" if error.errno == errno.EIO else "write"
        _fail(
            f"cannot {verb} {error.filename or 'the output'}: {error.strerror}; check the disk and its free "
            "space, then run the command again.",
            4,
        )


def _requeue(number: int) -> None:
    """Requeue the SLURM job that SIGUSR1 has stopped, in a training loop or elsewhere.

    The first of several processes does. The others wait: `srun --kill-on-bad-exit` ends all with the first exit.
    """
    if number != signal.SIGUSR1 or "SLURM_JOB_ID" not in os.environ:
        return
    from simmim_bench.distributed import LAUNCHER_S

    rank = 0
    with suppress(UsageError):  # contradicting variables: the command is one process
        rank, _, _ = read_launcher_env(os.environ)
    if rank > 0:
        time.sleep(LAUNCHER_S)
    elif (said := requeue_job(number)) is not None:
        click.echo(said, err=True)


def _fail(message: str, code: int) -> None:
    # Messages name files and values of other people, which must not control the terminal.
    click.echo(f"error: {visible_lines(message)}", err=True)
    sys.exit(code)


def _format_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,
) -> str:
    """Format a warning as one line, like an error, without the place in the code."""
    return f"warning: {visible_lines(str(message))}\n"


def _check_packages() -> None:
    """Refuse to run with another package named `pretrain` or `transfer` on the path."""
    home = Path(__file__).resolve().parents[2]
    for name in ("pretrain", "transfer"):
        found = find_module(name)
        if found is not None and found.origin is None:
            # A folder of this name without code, in the working directory, comes before an editable installation.
            sys.path.insert(0, str(home))
            found = find_module(name)
        origin = found.origin if found is not None else None
        if origin is None or Path(origin).resolve().parent.parent != home:
            raise UsageError(
                f"package '{name}' comes from {origin}, not from simmim-bench; start from another folder."
            )
