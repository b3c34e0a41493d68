"""Build models of shapes alone: on the "meta" device, without memory and without initialisation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

# What constructors initialise weights with. torch computes each of these in Python on the "meta" device, which takes
# most of the time of building a model there.
_INITIALISERS = {
    *(getattr(nn.init, name) for name in dir(nn.init) if name[0] != "_" and name[-1] == "_"),
    Tensor.add_,
    Tensor.clamp_,
    Tensor.erfinv_,
    Tensor.fill_,
    Tensor.mul_,
    Tensor.normal_,
    Tensor.uniform_,
    Tensor.zero_,
}


@contextmanager
def shapes_only() -> Iterator[None]:
    """Build models on the "meta" device, whose weights have shapes and types but no values."""
    with torch.device("meta"), _WithoutInitialisation():
        yield


class _WithoutInitialisation(TorchFunctionMode):
    """Skip the initialisation of weights on the "meta" device, which changes nothing there."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _INITIALISERS:
            weight = args[0] if args else kwargs["tensor"]
            if isinstance(weight, nn.Parameter) and weight.is_meta:
                return weight
        return func(*args, **kwargs)
