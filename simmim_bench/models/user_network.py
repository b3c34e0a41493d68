"""Call the user's function that `py:package.module:factory` names, and check what it returns."""

from __future__ import annotations

import importlib
from typing import Any

from torch import nn

from simmim_bench.errors import DataError, UsageError
from simmim_bench.models.network import UserModule, is_timm_model

_PERMITTED: set[str] = set()


def permit(source: str) -> None:
    """Permit this process to run a function, which the user has named."""
    _PERMITTED.add(source)


def call_factory(source: str) -> nn.Module:
    """Import a user's module and call its function without arguments.

    Args:
        source: `package.module:factory`.

    Raises:
        UsageError: there is no such module or function, it returns no backbone, or only a file has named it.
        DataError: the function raises an error.
    """
    if source not in _PERMITTED:
        raise UsageError(
            f"the checkpoint is of py:{source}, whose code runs only if the command names it; use --ckpt "
            f"py:{source}@CHECKPOINT."
        )
    module_name, _, name = source.partition(":")
    if not module_name or not name.isidentifier():
        raise UsageError(f"py:{source} names no function; use py:package.module:factory.")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UsageError(
            f"py:{source} cannot be imported ({error}); run the command from the folder of the package, install "
            "it, or add its folder to PYTHONPATH."
        ) from error
    factory = getattr(module, name, None)
    if not callable(factory):
        raise UsageError(f"py:{source} names no function of {module.__file__}.")
    try:
        net: Any = factory()
    except Exception as error:
        raise DataError(f"py:{source} raises {type(error).__name__}: {error}") from error
    if not isinstance(net, nn.Module) or not (is_timm_model(net) or isinstance(net, UserModule)):
        raise UsageError(
            f"py:{source} returns {type(net).__name__}, which has neither timm's forward_intermediates nor "
            "feature_levels and forward_maps; see docs/backbones.md."
        )
    return net
