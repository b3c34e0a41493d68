"""Build models without the initialisation of their weights: of shapes alone, or for weights that are loaded."""

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
    with torch.device("meta"), _WithoutInitialisation("meta"):
        yield


@contextmanager
def uninitialised() -> Iterator[None]:
    """Build models whose weights have arbitrary values until they are loaded, which has to load all of them."""
    with _WithoutInitialisation("cpu"):
        yield


class _WithoutInitialisation(TorchFunctionMode):
    """Skip the initialisation of weights on a device."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _INITIALISERS:
            weight = args[0] if args else kwargs["tensor"]
            if isinstance(weight, nn.Parameter) and weight.device.type == self.device:
                return weight
        return func(*args, **kwargs)
