"""Preserve a model's buffers, such as BatchNorm's running statistics, during a forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def preserve_buffers(model: nn.Module) -> Iterator[None]:
    """Restore a model's buffers at exit: a forward pass in training mode updates BatchNorm's statistics."""
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        for buffer, value in before:
            buffer.data.copy_(value)
