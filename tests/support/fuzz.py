"""Fuzzing: mutate valid files and count the executions whose exception is not an error of the project.

The mutations are seeded, so that a finding repeats. An input that is refused at a line where none was refused before
joins the corpus: later mutations start from it, and come deeper into a reader than mutations of the seeds alone.
"""

from __future__ import annotations

import base64
import io
import os
import resource
import signal
import time
import traceback
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import FrameType
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile

import pytest

from simmim_bench.errors import BenchError

Target = Callable[[Path], object]
Mutation = Callable[[Random, bytes, Sequence[bytes]], bytes]

QUICK = 150  # executions of a target in `make test`
SECONDS = 60.0  # of a target in the slow run, unless FUZZ_SECONDS says otherwise
TIME_LIMIT = 20  # seconds of one execution
MEMORY_LIMIT = 1 << 30  # growth of the process's peak memory by one execution, bytes
CORPUS = 400  # inputs that are kept besides the seeds
# Values at which readers of numbers break: limits of signed and unsigned integers, little- and big-endian.
EXTREMES = [
    value.to_bytes(size, order, signed=value < 0)
    for size in (1, 2, 4, 8)
    for value in (0, 1, -1, 2 ** (8 * size - 1) - 1, -(2 ** (8 * size - 1)))
    for order in ("little", "big")
]

LENGTHS = pytest.mark.parametrize(
    "long", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["quick", "long"]
)


class TooSlow(BaseException):
    """Report an input that takes too long; no reader catches it."""


@dataclass
class Campaign:
    """Result of fuzzing a target.

    Attributes:
        executions: inputs that were passed to the target.
        refused: inputs that raised an error of the project.
        places: lines at which an exception was raised.
        findings: an input and a traceback for every line at which another exception was raised.
    """

    executions: int = 0
    refused: int = 0
    places: set[str] = field(default_factory=set)
    findings: dict[str, tuple[bytes, str]] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [
            f"{self.executions:,} executions, {self.refused:,} refused at {len(self.places):,} places, "
            f"{len(self.findings)} findings"
        ]
        for place, (content, text) in self.findings.items():
            packed = base64.b64encode(zlib.compress(content, 9)).decode()
            lines.append(f"{place}\n{text}\nzlib.decompress(base64.b64decode({packed!r}))")
        return "\n".join(lines)


def fuzz(
    target: Target,
    seeds: Sequence[bytes],
    path: Path,
    *,
    long: bool,
    mutate: Mutation | None = None,
    quick: int = QUICK,
) -> Campaign:
    """Pass the seeds and mutations of them to a target.

    Args:
        target: reads the file at `path`.
        path: the file, which holds the input that ended the process if one does.
        long: for FUZZ_SECONDS instead of `quick` executions.
        mutate: changes a content, given others of the corpus; `mutate_bytes` by default.
    """
    random = Random(int(os.environ.get("FUZZ_SEED", "0")))
    corpus, campaign = list(seeds), Campaign()
    end = time.monotonic() + float(os.environ.get("FUZZ_SECONDS", SECONDS))
    while time.monotonic() < end if long else campaign.executions < quick + len(seeds):
        first = campaign.executions < len(seeds)
        content = (
            seeds[campaign.executions]
            if first
            else (mutate or mutate_bytes)(random, random.choice(corpus), corpus)
        )
        path.write_bytes(content)
        before = _peak_memory()
        place = _execute(target, path, campaign, content)
        if _peak_memory() - before > MEMORY_LIMIT:
            campaign.findings.setdefault(f"memory {place}", (content, "too much memory"))
        if place not in campaign.places:
            campaign.places.add(place)
            if len(corpus) < CORPUS + len(seeds):
                corpus.append(content)
    return campaign


def check(campaign: Campaign) -> None:
    """Print a campaign, and fail if an input raised anything but an error of the project."""
    print(str(campaign).splitlines()[0])
    assert not campaign.findings, str(campaign)


def _execute(target: Target, path: Path, campaign: Campaign, content: bytes) -> str:
    """Run a target once; return the lines at which its exception and the exception's causes were raised."""
    campaign.executions += 1
    try:
        with _limited():
            target(path)
        return "accepted"
    except BenchError as error:
        campaign.refused += 1
        place = _place(error)
        # What a reader prints is one line, however the file names its entries.
        if len(str(error).splitlines()) != 1 or not str(error).isprintable():
            campaign.findings.setdefault(f"message {place}", (content, repr(str(error))))
        return place
    except (Exception, TooSlow) as error:
        place = _place(error)
        campaign.findings.setdefault(place, (content, "".join(traceback.format_exception(error))))
        return place


def _place(error: BaseException | None) -> str:
    parts = []
    while error is not None:
        frames = traceback.extract_tb(error.__traceback__)
        last = frames[-1] if frames else None
        where = f"{Path(last.filename).name}:{last.lineno}" if last else "?"
        parts.append(f"{type(error).__name__} at {where}")
        error = error.__cause__
    return " from ".join(parts)


def _peak_memory() -> int:
    """Return the process's peak resident memory in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@contextmanager
def _limited() -> Iterator[None]:
    """Raise TooSlow if the block takes longer than `TIME_LIMIT`."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TooSlow(f"one input took longer than {TIME_LIMIT} s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(TIME_LIMIT)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def mutate_bytes(random: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Change, remove, repeat or insert a few bytes, or continue with a part of another content."""
    data = bytearray(content)
    for _ in range(random.randint(1, 4)):
        at, length = random.randint(0, len(data)), random.randint(1, 16)
        change = random.randrange(6)
        if change == 0 and at < len(data):
            data[at] ^= 1 << random.randrange(8)
        elif change == 1:
            extreme = random.choice(EXTREMES)
            data[at : at + len(extreme)] = extreme
        elif change == 2:
            del data[at : at + length]
        elif change == 3:
            data[at:at] = data[at : at + length] * random.randint(1, 4)
        elif change == 4:
            data[at:at] = random.randbytes(length)
        else:
            other = random.choice(others)
            start = random.randint(0, len(other))
            data[at : at + length] = other[start : start + length]
    return bytes(data)


def mutate_zip(
    random: Random,
    content: bytes,
    others: Sequence[bytes],
    *,
    likely: str = "",
    mutate: Mutation = mutate_bytes,
) -> bytes:
    """Mutate a member of a zip file, whose directory and checksums stay right; in one of four cases, any bytes.

    Args:
        likely: end of the names of members that are chosen more often.
        mutate: changes the content of a member, given those of all members.
    """
    if random.random() < 0.25:
        return mutate_bytes(random, content, others)
    packed = io.BytesIO()
    try:
        with ZipFile(io.BytesIO(content)) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        names = sorted(members, key=len)
        name = random.choice([n for n in names if likely and n.endswith(likely)] * 5 + names)
        members[name] = mutate(random, members[name], list(members.values()))
        with ZipFile(packed, "w", random.choice((ZIP_STORED, ZIP_DEFLATED))) as archive:
            for entry, data in members.items():
                archive.writestr(entry, data)
    except Exception:  # a file that was damaged before
        return mutate_bytes(random, content, others)
    return packed.getvalue()
