"""Call the user's function that `py:package.module:factory` names, and check what it returns.

A function runs only if the user has named it in the command; a file that names one, such as a record, is refused.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Any

from torch import nn

from simmim_bench.errors import BenchError, DataError, UsageError
from simmim_bench.models.network import UserModule, is_timm_model
from simmim_bench.untrusted import text

SOURCE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
_PERMITTED: set[str] = set()


def permit(source: str) -> None:
    """Permit this process to run a function, which the user has named."""
    _PERMITTED.add(source)


def is_permitted(source: str) -> bool:
    """Return whether the user has named a function."""
    return source in _PERMITTED


def refuse_unnamed(source: str, holder: str) -> DataError:
    """Return the error for a file that needs a function which the user has not named.

    Args:
        holder: path of the checkpoint or run.
    """
    source = text.shorten(text.visible(source))
    return DataError(
        f"{holder} needs the code of py:{source}, which runs only if the command names it; if you trust that code, use "
        f"--ckpt py:{source}@{holder}."
    )


def call_factory(source: str) -> nn.Module:
    """Import a user's module and call its function without arguments.

    Args:
        source: `package.module:factory`.

    Raises:
        UsageError: there is no such module or function, or it returns no backbone.
        DataError: the function raises an error, or only a file has named it.
    """
    if not is_permitted(source):
        raise refuse_unnamed(source, "the checkpoint")
    factory = _find_factory(source)
    net: Any = run_user_code(factory, what=f"py:{source}")
    if not isinstance(net, nn.Module) or not (is_timm_model(net) or isinstance(net, UserModule)):
        raise UsageError(
            f"py:{source} returns {type(net).__name__}, which has neither timm's forward_intermediates nor "
            "feature_levels and forward_maps; see docs/backbones.md."
        )
    return net


def _find_factory(source: str) -> Callable[[], Any]:
    """Return the function that `package.module:factory` names.

    Raises:
        UsageError: there is none, or it needs arguments.
        DataError: its module raises an error.
    """
    if SOURCE.fullmatch(source) is None:
        raise UsageError(f"py:{source} names no function; use py:package.module:factory.")
    module_name, _, name = source.partition(":")
    # The console script has its own folder on the path, where `python -m simmim_bench` has the current one.
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    try:
        with redirect_stdout(sys.stderr):  # stdout carries results
            module = importlib.import_module(module_name)
    except ImportError as error:
        raise UsageError(
            f"py:{source} cannot be imported ({text.describe_error(error)}); run the command from the folder of the "
            "package, install it, or add its folder to PYTHONPATH."
        ) from error
    except (Exception, SystemExit) as error:
        raise DataError(f"py:{source} cannot be imported: {text.describe_error(error)}.") from error
    factory = getattr(module, name, None)
    if not callable(factory):
        raise UsageError(
            f"py:{source} names no function of {getattr(module, '__file__', module_name)}."
        )
    try:
        inspect.signature(factory).bind()
    except TypeError as error:
        raise UsageError(
            f"py:{source} needs arguments ({text.describe_error(error)}); name a function that takes none and calls it."
        ) from error
    except ValueError:  # a function without signature, of an extension
        pass
    return factory


def run_user_code(function: Callable[..., Any], *arguments: Any, what: str) -> Any:
    """Call a function of the user's; its errors are reported in one line.

    Args:
        what: is called, for the message.

    Raises:
        DataError: the function raises an error.
    """
    try:
        with redirect_stdout(sys.stderr):
            return function(*arguments)
    except BenchError:
        raise
    except (Exception, SystemExit) as error:
        raise DataError(f"{what} raises {text.describe_error(error)}.") from error
