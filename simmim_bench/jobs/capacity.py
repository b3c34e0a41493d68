"""Decide which steps fit side by side, from the free memory of a GPU or the machine and the steps' expected peaks.

A step of unknown peak has its GPUs, or the machine, to itself, and so has one that has run out of memory beside others.
Loads no torch.
"""

from __future__ import annotations

import math
import shutil
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

MIB, GIB = 2**20, 2**30
# Ours: the largest tensors are allocated in one piece, so an allocator reserves more than the peak of its tensors. A
# step that measures the free memory itself uses 0.9 of it (`training.memory.USABLE`), which is 1 / 1.11.
MARGIN = 1.15
CONTEXT = 3 * GIB // 4  # ours: what CUDA and its libraries take of a GPU per process
USABLE = 0.95  # ours: fraction of the free memory that is given to steps


@dataclass(frozen=True)
class Need:
    """The memory of a step.

    Attributes:
        peak: bytes that it reaches, of each of its GPUs or of main memory; None where it is not known.
        source: how the peak was determined.
    """

    peak: int | None = None
    source: str = "not known"

    def reserved(self, *, gpu: bool) -> float:
        """Return the bytes that are kept for the step; infinity where its peak is not known."""
        if self.peak is None:
            return math.inf
        return MARGIN * self.peak + (CONTEXT if gpu else 0)

    def __str__(self) -> str:
        return self.source if self.peak is None else f"{self.peak / GIB:.1f} GiB, {self.source}"


@dataclass
class Place:
    """A group of GPUs, or the machine's processors and memory.

    Attributes:
        devices: value of CUDA_VISIBLE_DEVICES; None for a machine without a GPU.
        seats: the most steps at a time.
        free: returns the free bytes now, the least of any GPU of the group; None where they are not known.
    """

    devices: str | None
    seats: int
    free: Callable[[], float | None]
    _reserved: list[float] = field(default_factory=list)
    _free_at_first: float = math.inf

    @property
    def steps(self) -> int:
        """Return the number of steps that run here."""
        return len(self._reserved)

    def fits(self, need: Need) -> bool:
        """Return whether a step fits beside those that run here; an empty place takes any step."""
        if not self._reserved:
            return True
        more = need.reserved(gpu=self.devices is not None)
        if len(self._reserved) >= self.seats or sum(self._reserved) + more > self._free_at_first:
            return False
        # Other people's processes may have come since.
        now = self.free()
        return now is not None and more <= USABLE * now

    def take(self, need: Need) -> Callable[[], None]:
        """Reserve a step's memory; return the function that gives it back."""
        if not self._reserved:
            now = self.free() if self.seats > 1 else None
            # Without a figure, nothing fits beside the first step.
            self._free_at_first = 0.0 if now is None else USABLE * now
        reserved = need.reserved(gpu=self.devices is not None)
        self._reserved.append(reserved)
        return lambda: self._reserved.remove(reserved)

    def most(self, need: Need) -> int:
        """Return how many steps of some memory fit here at a time, once the first of them has been taken in."""
        reserved = need.reserved(gpu=self.devices is not None)
        return max(1, min(self.seats, int(self._free_at_first / max(1.0, reserved))))


def choose_place(places: Sequence[Place], need: Need) -> Place | None:
    """Return the place with the fewest steps in which a step fits, or None."""
    return next((p for p in sorted(places, key=lambda place: place.steps) if p.fits(need)), None)


def free_gpu_memory(uuid: str) -> int | None:
    """Return the free bytes of a GPU as the driver reports them, which takes no memory of the GPU itself.

    Args:
        uuid: as torch returns it, without the prefix.

    Returns:
        None where nvidia-smi is missing or does not know the GPU, such as a part of one.
    """
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = [program, "-i", f"GPU-{uuid}", "--query-gpu=memory.free"]
    with suppress(OSError, subprocess.SubprocessError, ValueError):
        done = subprocess.run(
            [*query, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
        return int(done.stdout.strip()) * MIB
    return None
