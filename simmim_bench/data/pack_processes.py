"""Write the shards of a data set in several processes."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

from simmim_bench.data.pack_shard import ShardPlan, write_shard
from simmim_bench.data.packed import Packing
from simmim_bench.data.packed_index import shard_name
from simmim_bench.data.workers import leave_signals_to_parent
from simmim_bench.errors import DataError
from simmim_bench.signals import blocked_signals, end_with_parent

PARTS = ".parts"  # positions of the images of complete shards
POLL_S = 0.2


@dataclass(frozen=True)
class PackOptions:
    """How to pack.

    Attributes:
        shard_size: images per shard.
        num_workers: processes.
        skip_unreadable: allowed number of images that cannot be read.
    """

    packing: Packing
    shard_size: int
    num_workers: int
    skip_unreadable: int = 0


def split_folder_of(root: Path, split: str) -> Path:
    """Return the folder of a split's shards; the root itself for images that are in no split."""
    return root / split if split else root


def shard_paths(partial: Path, plan: ShardPlan, shard: int) -> tuple[Path, Path]:
    """Return the paths of a shard and of the positions of its images."""
    split = plan.source.split
    part = partial / PARTS / f"{split or 'images'}-{shard:06d}.npz"
    return split_folder_of(partial, split) / shard_name(shard), part


class PackJob(NamedTuple):
    """What the processes work on.

    Attributes:
        tasks: plan and shard of every shard that is not complete.
        skipped: images that complete shards have left out.
    """

    partial: Path
    plans: list[ShardPlan]
    tasks: list[tuple[int, int]]
    options: PackOptions
    skipped: int


class _Shared:
    """Counts that processes share: the next task, the images that are done and those that are left out."""

    def __init__(self, context: Any, skipped: int, limit: int) -> None:
        self.next, self.done = context.Value("q", 0), context.Value("q", 0)
        self.skipped, self.limit = context.Value("q", skipped), limit

    def tasks(self, count: int) -> Iterator[int]:
        """Yield the next task that no process has begun, until there is none."""
        while True:
            with self.next.get_lock():
                number, self.next.value = self.next.value, self.next.value + 1
            if number >= count:
                return
            yield number

    def image(self) -> None:
        """Count an image that is packed."""
        with self.done.get_lock():
            self.done.value += 1

    def skip(self, error: DataError) -> None:
        """Count an image that cannot be read; raise the error if too many."""
        with self.skipped.get_lock():
            self.skipped.value += 1
            number = self.skipped.value
        if not self.limit:
            raise DataError(
                f"{error} --skip-unreadable N leaves out up to N such images."
            ) from error
        if number > self.limit:
            raise DataError(
                f"{error} It is unreadable image number {number}; --skip-unreadable allows {self.limit}."
            ) from error


def run_processes(job: PackJob, advance: Callable[[int], None]) -> None:
    """Write shards in several processes.

    Raises:
        DataError: the first one that a process raises.
    """
    context = multiprocessing.get_context()
    shared = _Shared(context, job.skipped, job.options.skip_unreadable)
    ends, processes = [], []
    for _ in range(min(job.options.num_workers, len(job.tasks))):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(job, shared, sender), daemon=True)
        ends.append((receiver, sender))
        processes.append(process)
    with _ended(processes):
        # New processes inherit the mask, so that no signal ends one before it leaves signals to this process.
        with blocked_signals():
            for process in processes:
                process.start()
        for _, sender in ends:
            sender.close()
        shown, running = 0, list(zip(processes, (receiver for receiver, _ in ends), strict=True))
        while running:
            wait([process.sentinel for process, _ in running], POLL_S)
            ended = [one for one in running if not one[0].is_alive()]
            now = shared.done.value  # read after the last process has ended, so that none is missed
            if now > shown:
                advance(now - shown)
                shown = now
            for process, receiver in ended:
                running.remove((process, receiver))
                _check_end(process, receiver)


@contextmanager
def _ended(processes: Sequence[BaseProcess]) -> Iterator[None]:
    """End processes after the block, whatever they are at."""
    try:
        yield
    finally:
        for process in processes:
            if process.pid is not None and process.is_alive():
                process.kill()
        for process in processes:
            if process.pid is not None:
                process.join()


def _check_end(process: BaseProcess, receiver: Connection) -> None:
    """Raise the error of a process that has ended with one."""
    process.join()
    if receiver.poll():
        try:
            raise DataError(str(receiver.recv()))
        except EOFError:
            pass
    if process.exitcode:
        raise DataError(
            f"a process that packs images has ended with exit code {process.exitcode}, as one does that is out of "
            "memory; run the same command again, with a smaller --num-workers."
        )


def _work(job: PackJob, shared: _Shared, sender: Connection) -> None:
    """Write shards until all are begun; send the message of an error."""
    leave_signals_to_parent(None, 0)
    # The lock of a killed parent is then free for the next run.
    threading.Thread(target=end_with_parent, daemon=True).start()
    try:
        for number in shared.tasks(len(job.tasks)):
            plan_number, shard = job.tasks[number]
            plan = job.plans[plan_number]
            path, part = shard_paths(job.partial, plan, shard)
            write_shard(plan, shard, job.options.packing, path, part, shared)
    except DataError as error:
        sender.send(str(error))
