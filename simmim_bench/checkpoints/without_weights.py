"""Read checkpoints for plans, which need everything but the weights and ask again and again."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

from simmim_bench.checkpoints.checkpoint import Checkpoint
from simmim_bench.checkpoints.read import read_checkpoint


def read_without_weights(ckpt: str) -> Checkpoint:
    """Read a checkpoint and drop its weights; that of a run is read again only after it has been written again.

    Raises:
        UsageError, DataError: see `read_checkpoint`.
    """
    return _read(ckpt, _modified(ckpt))


@functools.cache
def _read(ckpt: str, modified: int) -> Checkpoint:
    return replace(read_checkpoint(ckpt), state=None)


def _modified(ckpt: str) -> int:
    """Return when a run's last checkpoint was written, in nanoseconds; 0 if there is none."""
    try:
        return (Path(ckpt) / "checkpoints" / "last" / "meta.json").stat().st_mtime_ns
    except OSError:
        return 0
