"""Fuzzing: mutate valid files and count the executions whose exception is not an error of the project.

The mutations are seeded, so that a finding repeats. An input that reaches a new line of the modules under test, or is
refused at a new line, joins the corpus: later mutations start from it, and come deeper into a reader than mutations
of the seeds alone.

The long run executes a target in a process of its own, so that an input that ends the process, stops it or takes all
memory is a finding, too.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import resource
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import FrameType

from support.fuzz_coverage import Covered, Lines
from support.fuzz_mutators import Mutation, mutate_bytes

from simmim_bench.errors import BenchError

Target = Callable[[Path], object]

QUICK = 150  # executions of a target in `make test`
TIME_LIMIT = 20.0  # seconds of one execution
MEMORY_LIMIT = 1 << 30  # growth of the process's peak memory by one execution, bytes
ADDRESS_SPACE = (
    2 << 30
)  # bytes that the process of the long run may reserve besides what it has at its start
TRACED = 4  # every fourth execution records its lines, at two to three times the cost
CORPUS = 1000  # inputs that are kept besides the seeds
FINDINGS = Path("build/fuzz")


class TooSlow(BaseException):
    """Report an input that takes too long; no reader catches it."""


@dataclass
class Campaign:
    """Result of fuzzing a target.

    Attributes:
        seed: of the mutations.
        executions: inputs that were passed to the target.
        refused: inputs that raised an error of the project.
        places: lines at which an exception was raised, and "accepted".
        findings: an input and a description for every line at which another exception was raised.
        lines: lines of the modules under test that were reached, of those in functions.
        seconds: duration.
    """

    seed: int = 0
    executions: int = 0
    refused: int = 0
    places: set[str] = field(default_factory=set)
    findings: dict[str, tuple[bytes, str]] = field(default_factory=dict)
    lines: Lines = field(default_factory=Lines)
    seconds: float = 0.0

    def __str__(self) -> str:
        return (
            f"{self.executions:,} executions in {self.seconds:.0f} s, {self.executions - self.refused:,} accepted, "
            f"{self.refused:,} refused, {len(self.places):,} distinct outcomes, {len(self.findings)} findings, "
            f"{self.lines}"
        )


def fuzz(
    target: Target,
    seeds: Sequence[bytes],
    path: Path,
    *,
    seconds: float | None,
    covers: Sequence[Covered],
    mutate: Mutation = mutate_bytes,
    quick: int = QUICK,
    time_limit: float = TIME_LIMIT,
) -> Campaign:
    """Pass the seeds and mutations of them to a target; `FUZZ_REPLAY=FILE` passes that input alone.

    Args:
        target: reads the file at `path`.
        path: the file, which holds the input that ended the process if one does.
        seconds: duration of the long run; None for `quick` executions.
        covers: modules and functions under test, whose lines are recorded.
        mutate: changes a content, given others of the corpus.
        time_limit: seconds of one execution.
    """
    replayed = os.environ.get("FUZZ_REPLAY")
    if replayed:
        seeds, quick = [Path(replayed).read_bytes()], 0

    def run() -> Campaign:
        return _run(
            target, seeds, path, None if replayed else seconds, covers, mutate, quick, time_limit
        )

    return run() if seconds is None else _in_process(run, path, time_limit)


def check(campaign: Campaign) -> None:
    """Print a campaign, and fail if an input raised anything but an error of the project.

    The input of each finding is written to a file, for replaying it.
    """
    print(f"\n{campaign}")
    for line in campaign.lines.missed():
        print(f"    {line}")
    report = []
    for place, (content, text) in campaign.findings.items():
        FINDINGS.mkdir(parents=True, exist_ok=True)
        file = FINDINGS / hashlib.sha256(content).hexdigest()[:16]
        file.write_bytes(content)
        test = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0]
        report.append(
            f"{place} (FUZZ_SEED={campaign.seed}); replay: FUZZ_REPLAY={file} python -m pytest -s '{test}'\n{text}"
        )
    assert not report, "\n".join([str(campaign), *report])


def _run(
    target: Target,
    seeds: Sequence[bytes],
    path: Path,
    seconds: float | None,
    covers: Sequence[Covered],
    mutate: Mutation,
    quick: int,
    time_limit: float,
) -> Campaign:
    campaign = Campaign(int(os.environ.get("FUZZ_SEED", "0")), lines=Lines.of(covers))
    random, corpus, start = Random(campaign.seed), list(seeds), time.monotonic()
    while campaign.executions < quick + len(seeds) or (
        seconds is not None and campaign.seconds < seconds
    ):
        number = campaign.executions
        first = number < len(seeds)
        content = seeds[number] if first else mutate(random, random.choice(corpus), corpus)
        path.write_bytes(content)
        before, reached = _peak_memory(), campaign.lines.count()
        with campaign.lines.traced() if first or number % TRACED == 0 else nullcontext():
            place = _execute(target, path, campaign, content, time_limit)
        if _peak_memory() - before > MEMORY_LIMIT:
            campaign.findings.setdefault(f"memory {place}", (content, "too much memory"))
        new = place not in campaign.places or campaign.lines.count() > reached
        campaign.places.add(place)
        if new and not first and len(corpus) < CORPUS + len(seeds):
            corpus.append(content)
        campaign.seconds = time.monotonic() - start
    return campaign


def _in_process(run: Callable[[], Campaign], path: Path, time_limit: float) -> Campaign:
    """Run a campaign in another process; return one with a finding if an input ends or stops that process."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def work() -> None:
        _limit_address_space()
        sender.send(run())

    path.write_bytes(b"")
    process = context.Process(target=work)
    process.start()
    sender.close()
    # Python code is stopped by `_limited`; the limit here is for compiled code, which no signal handler interrupts.
    while not receiver.poll(min(1.0, time_limit)):
        if time.time() - path.stat().st_mtime > 2 * time_limit + 1:
            process.kill()
            break
    try:
        campaign: Campaign = receiver.recv()
    except EOFError:
        process.join()
        code = process.exitcode or 0
        how = f"the process ended by {signal.Signals(-code).name if code < 0 else f'exit code {code}'}"
        seed = int(os.environ.get("FUZZ_SEED", "0"))
        return Campaign(seed, 1, 0, {how}, {how: (path.read_bytes(), how)})
    process.join()
    return campaign


def _limit_address_space() -> None:
    """Limit the memory of this process, where the system tells how much it has reserved."""
    with suppress(OSError):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + ADDRESS_SPACE
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _execute(
    target: Target, path: Path, campaign: Campaign, content: bytes, time_limit: float
) -> str:
    """Run a target once; return the lines at which its exception and the exception's causes were raised."""
    campaign.executions += 1
    try:
        with _limited(time_limit):
            target(path)
        return "accepted"
    except BenchError as error:
        campaign.refused += 1
        place = _place(error)
        # What a reader prints is one line, however the file names its entries.
        if len(str(error).splitlines()) != 1 or not str(error).isprintable():
            campaign.findings.setdefault(f"message {place}", (content, repr(str(error))))
        if "MemoryError" in place:
            campaign.findings.setdefault(f"memory {place}", (content, str(error)))
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
def _limited(seconds: float) -> Iterator[None]:
    """Raise TooSlow if the block takes longer."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TooSlow(f"one input took longer than {seconds} s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
