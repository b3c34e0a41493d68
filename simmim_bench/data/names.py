"""Hold the names and numbers of many files in a few arrays, which all worker processes share.

A Python object for each of ImageNet's 1.28 million files would take several times the memory, in every process.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor


class SharedArray:
    """An integer array, of which all worker processes of a loader share one copy.

    Forked workers share it with their parent. For workers that are started in another way, it moves to shared memory
    when it is first pickled.

    Attributes:
        values: the array; do not write to it.
    """

    def __init__(self, values: np.ndarray) -> None:
        self.values = values
        self._shared: Tensor | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        if self._shared is None:
            # Shared before it is viewed: a tensor that moves to shared memory leaves its views behind.
            self._shared = torch.from_numpy(self.values.copy()).share_memory_()
            self.values = self._shared.numpy()
        return _attach, (self._shared,)


def _attach(shared: Tensor) -> SharedArray:
    attached = SharedArray(shared.numpy())
    attached._shared = shared
    return attached


class FileNames(Sequence[str]):
    """An immutable list of file names: their bytes, as the file system has them, in one buffer.

    Args:
        buffer: the bytes of all names, uint8.
        offsets: where each name begins, and where the last one ends, (N + 1,) int64.
    """

    def __init__(self, buffer: SharedArray, offsets: SharedArray) -> None:
        self.buffer, self.offsets = buffer, offsets

    @classmethod
    def pack(cls, names: Iterable[str]) -> FileNames:
        """Pack names; what is not UTF-8 keeps its bytes (`os.fsencode`)."""
        return cls._join(map(os.fsencode, names))

    @classmethod
    def _join(cls, encoded: Iterable[bytes | memoryview]) -> FileNames:
        buffer, ends = bytearray(), array("q", [0])
        for name in encoded:
            buffer += name
            ends.append(len(buffer))
        return cls(
            SharedArray(np.frombuffer(buffer, np.uint8)), SharedArray(np.frombuffer(ends, np.int64))
        )

    def __len__(self) -> int:
        return len(self.offsets.values) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> FileNames: ...

    def __getitem__(self, index: int | slice) -> str | FileNames:
        if isinstance(index, slice):
            return self.take(range(len(self))[index])
        number = range(len(self))[
            index
        ]  # counts a negative index from the end, or raises IndexError
        start, end = self.offsets.values[number : number + 2].tolist()
        return os.fsdecode(self.buffer.values[start:end].tobytes())

    def __iter__(self) -> Iterator[str]:
        # Faster than by index.
        buffer = self.buffer.values.data
        for start, end in pairwise(self.offsets.values.tolist()):
            yield os.fsdecode(bytes(buffer[start:end]))

    def take(self, indices: Sequence[int] | np.ndarray) -> FileNames:
        """Return the names at some indices, in their order."""
        chosen = np.asarray(indices, np.int64)
        starts, ends = (self.offsets.values[chosen + i].tolist() for i in (0, 1))
        buffer = self.buffer.values.data
        return self._join(buffer[start:end] for start, end in zip(starts, ends, strict=True))


class PathList(Sequence[Path]):
    """An immutable list of the paths of files below a folder.

    Args:
        names: the paths relative to the folder.
    """

    def __init__(self, folder: Path, names: FileNames) -> None:
        self.folder, self.names = folder, names
        self._above = str(Path(folder, "x")).removesuffix("x")

    def text(self, index: int) -> str:
        """Return a path as text, which takes a fraction of the time of a `Path`."""
        return self._above + self.names[index]

    @classmethod
    def pack(cls, folder: Path, paths: Iterable[Path]) -> PathList:
        """Pack paths that are all below a folder."""
        return cls(folder, FileNames.pack(str(path.relative_to(folder)) for path in paths))

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> Path: ...

    @overload
    def __getitem__(self, index: slice) -> PathList: ...

    def __getitem__(self, index: int | slice) -> Path | PathList:
        if isinstance(index, slice):
            return PathList(self.folder, self.names[index])
        return Path(self.folder, self.names[index])

    def __iter__(self) -> Iterator[Path]:
        return (Path(self.folder, name) for name in self.names)

    def take(self, indices: Sequence[int] | np.ndarray) -> PathList:
        """Return the paths at some indices, in their order."""
        return PathList(self.folder, self.names.take(indices))
