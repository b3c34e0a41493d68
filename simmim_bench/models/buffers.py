"""Keep a model's buffers as they are while it runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def preserve_buffers(model: nn.Module) -> Iterator[None]:
    """Leave a model's buffers as they were before the block: a forward pass moves BatchNorm's statistics."""
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        for buffer, value in before:
            buffer.data.copy_(value)
