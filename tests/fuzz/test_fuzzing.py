"""Fuzzing finds what it looks for: exceptions, messages of several lines, and the end of a process."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.fuzz import check, fuzz

from simmim_bench.errors import DataError
from simmim_bench.untrusted import json_text


def refuse(path: Path) -> None:
    raise DataError("two\nlines")


def allocate(path: Path) -> None:
    bytearray(4 << 30)


def end(path: Path) -> None:
    os.kill(os.getpid(), signal.SIGXCPU)


def block(path: Path) -> None:
    """Wait as compiled code does, which no signal handler interrupts."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
    time.sleep(60)


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("target", "place"),
    [
        (refuse, "message DataError"),
        (lambda path: int("a"), "ValueError"),
        (lambda path: time.sleep(60), "TooSlow"),
        (allocate, "MemoryError"),
        (end, "the process ended by SIGXCPU"),
        (block, "the process ended by SIGKILL"),
    ],
)
def test_findings_are_reported_with_their_input(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    target: Callable[[Path], object],
    place: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    campaign = fuzz(
        target, [b"seed"], tmp_path / "f", seconds=0.01, covers=[], quick=0, time_limit=0.1
    )
    assert [found.startswith(place) for found in campaign.findings] == [True]
    with pytest.raises(AssertionError, match="FUZZ_REPLAY=build/fuzz/"):
        check(campaign)
    [file] = (tmp_path / "build" / "fuzz").iterdir()
    assert file.read_bytes() == b"seed"


def test_one_input_is_replayed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "input").write_bytes(b"input")
    monkeypatch.setenv("FUZZ_REPLAY", str(tmp_path / "input"))
    seen: list[bytes] = []
    fuzz(lambda p: seen.append(p.read_bytes()), [b""], tmp_path / "f", seconds=None, covers=[])
    assert seen == [b"input"]


def test_lines_of_functions_are_counted(tmp_path: Path) -> None:
    def parse(path: Path) -> None:
        json_text.parse_json(path.read_bytes())

    campaign = fuzz(
        parse, [b"[1]"], tmp_path / "f", seconds=None, covers=[json_text.check_limits], quick=0
    )
    # Of its lines, those that raise and those of texts, dictionaries and numbers that are not whole are missed.
    [lines], [reached] = campaign.lines.all.values(), campaign.lines.reached.values()
    source = Path(str(json_text.__file__)).read_text().splitlines()
    missed = {source[line - 1].strip().split()[0] for line in lines - reached}
    assert "raise" in missed
    assert "level," not in missed
    assert "inner" in missed  # inner += item.keys()
