"""What the data checks of `simmim-bench doctor` share: reading files, and turning faults into findings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from simmim_bench.data.pixel_format import RGB, PixelFormat
from simmim_bench.diagnostics.findings import Finding, Severity
from simmim_bench.display import Display
from simmim_bench.errors import DataError
from simmim_bench.recipe import Recipe

CHECK_AT_ONCE = 2000  # files; larger splits are sampled, or checked when they are loaded
SAMPLE = 500  # files that are read of a split with more than CHECK_AT_ONCE files
SEED = 0


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Reads the files of a split, or a random sample of them.

    Attributes:
        every_file: whether all files are read; otherwise all files of splits with up to
            `CHECK_AT_ONCE` files, and `SAMPLE` files of larger splits.
        recipe: the recipe that the data are checked for, if one is given.
        val_fraction: the fraction of the training images that runs hold out; None to read validation images.
        pixel_format: of the images, by the pretraining recipe or the checkpoint.
    """

    display: Display
    every_file: bool = False
    recipe: Recipe | None = None
    val_fraction: float | None = None
    pixel_format: PixelFormat = RGB

    def choose(self, count: int) -> list[int]:
        """Return the indices of the files to read, ascending."""
        if self.every_file or count <= CHECK_AT_ONCE:
            return list(range(count))
        sampled = np.random.default_rng(SEED).choice(count, SAMPLE, replace=False)
        return sorted(int(index) for index in sampled)

    def read(
        self, description: str, count: int, read: Callable[[int], object]
    ) -> tuple[str, list[str]]:
        """Read the chosen files.

        Args:
            description: the split, for the progress display.
            count: number of files in the split.
            read: reads the file of an index; raises DataError for a file that cannot be used.

        Returns:
            How many files were read, in words, and the messages of the files that cannot be used.
        """
        indices, faults = self.choose(count), []
        with self.display.task(description, len(indices)) as task:
            for index in indices:
                try:
                    read(index)
                except DataError as error:
                    faults.append(str(error))
                task.advance()
        how = "all read" if len(indices) == count else f"{len(indices):,} read (seed {SEED})"
        return how, faults


@dataclass(frozen=True)
class FindingGroup:
    """Builds the findings of one data set."""

    name: str

    def finding(self, name: str, state: Severity, said: str, **more: Any) -> Finding:
        """Build a finding of this group."""
        return Finding(group=self.name, name=name, state=state, said=said, **more)

    def problems(self, name: str, faults: Sequence[str], **more: Any) -> Iterator[Finding]:
        """Yield one finding that lists all faults, or nothing if there are none."""
        if len(faults) == 1:
            yield self.finding(name, "problem", faults[0], items=(), **more)
        elif faults:
            yield self.finding(name, "problem", f"{len(faults)} faults", items=faults, **more)
