"""SIGUSR1 requeues the SLURM job wherever it arrives, and a signal of the last step ends all processes."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
from support.commands import two_processes_of

from simmim_bench.cli.main import cli, main
from simmim_bench.distributed import init_distributed
from simmim_bench.errors import InterruptedRun
from simmim_bench.signals import REQUEUES, SIGNALS, StopSignal, raise_on_signals, requeue_job
from simmim_bench.training.stopping import stop_on_signals

VARIABLES = ("SLURM_RESTART_COUNT", "SLURM_STEP_ID", "RANK", "WORLD_SIZE")
USR1, TERM = signal.SIGUSR1, signal.SIGTERM


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], str]]:
    """A job with an `scontrol` that writes down how it was called; returns what it wrote."""
    scontrol, calls = tmp_path / "scontrol", tmp_path / "calls"
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {calls}\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield lambda: calls.read_text() if calls.exists() else ""
    for number, handler in before.items():
        signal.signal(number, handler)


def outside_of_a_loop(number: int) -> None:
    signal.raise_signal(number)


def after_a_saved_step(number: int) -> None:
    raise InterruptedRun(f"stopped by {signal.Signals(number).name}.", number)


@pytest.mark.parametrize("stop", [outside_of_a_loop, after_a_saved_step])
@pytest.mark.parametrize(("number", "called"), [(USR1, "requeue 4711\n"), (TERM, "")])
def test_a_warning_before_the_time_limit_requeues_the_job(
    slurm: Callable[[], str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    stop: Callable[[int], None],
    number: signal.Signals,
    called: str,
) -> None:
    monkeypatch.setitem(cli.commands, "stop", click.Command("stop", callback=lambda: stop(number)))
    monkeypatch.setattr(sys, "argv", ["simmim-bench", "stop"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 143
    assert slurm() == called
    said = capsys.readouterr().err.splitlines()
    requeued = ["requeued SLURM job 4711"] if called else []
    assert said == [*requeued, f"error: stopped by {number.name}."]


def test_a_job_that_never_ends_is_not_requeued_forever(
    slurm: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_RESTART_COUNT", str(REQUEUES - 1))
    assert requeue_job(USR1) == "requeued SLURM job 4711"
    monkeypatch.setenv("SLURM_RESTART_COUNT", str(REQUEUES))
    assert "restarted 100 times" in (requeue_job(USR1) or "")
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("SLURM_RESTART_COUNT")
    assert "failed to requeue SLURM job 4711" in (requeue_job(USR1) or "")
    monkeypatch.delenv("SLURM_JOB_ID")
    assert requeue_job(USR1) is None
    assert slurm() == "requeue 4711\n"


def signal_one_process() -> None:
    """Signal rank 1 after the last answer of a loop; both ranks print how they end."""
    with init_distributed() as dist:
        raise_on_signals()
        try:
            with stop_on_signals(dist):
                if dist.rank == 1:
                    signal.raise_signal(TERM)
        except StopSignal as stop:
            print(f"rank {dist.rank}: {stop}", flush=True)
        dist.barrier()


@pytest.mark.heavy
@pytest.mark.slow
def test_a_signal_of_the_last_step_that_one_process_got_ends_all() -> None:
    ended = sorted(two_processes_of(signal_one_process).stdout.splitlines())
    assert ended == ["rank 0: stopped by SIGTERM.", "rank 1: stopped by SIGTERM."]
