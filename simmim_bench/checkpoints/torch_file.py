"""Weights files of others: what is in them, without running anything that is in them.

In: a `.safetensors` file, or what `torch.save` wrote. Out: tensors by name, and the plain values beside
them. A pickle names functions to call; torch's `weights_only` reader calls those of an allow-list, and
the names below, which published checkpoints hold beside their weights, are read as plain dictionaries.
A file that names anything else is refused and has created nothing.
"""

from __future__ import annotations

import re
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from simmim_bench.errors import DataError

# Configurations, read as dictionaries: yacs in SimMIM and Swin, argparse in MAE and BEiT.
AS_DICTIONARIES = (
    "yacs.config.CfgNode",
    "argparse.Namespace",
    "mmengine.config.config.ConfigDict",
    "addict.addict.Dict",
    "mmengine.logging.history_buffer.HistoryBuffer",
)
# Where the weights are in a file that holds more: SimMIM, Swin, MAE, BEiT; mmpretrain; BEiT v2.
WEIGHTS_KEYS = ("model", "state_dict", "module", "model_state_dict")


def read_weights_file(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a weights file.

    Returns:
        The tensors by name, and what else the file holds by its key.

    Raises:
        DataError: it cannot be read, is damaged, asks to run code, or holds no weights.
    """
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, "pt") as file:
                return load_file(path), dict(file.metadata() or {})
        except (OSError, SafetensorError) as error:
            raise DataError(
                f"weights file {path} is damaged ({error}); use another copy."
            ) from error
    content = _load_pickle(path)
    for key in WEIGHTS_KEYS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            rest = {k: v for k, v in content.items() if k != key}
            return _tensors(content[key], path), rest
    return _tensors(content, path), {}


def _load_pickle(path: Path) -> Any:
    """Read a file of `torch.save` through the allow-list."""
    harmless: list[Any] = [(OrderedDict, name) for name in AS_DICTIONARIES]
    harmless += [
        np.ndarray,
        np.dtype,
        type(np.dtype(np.float64)),
        type(np.dtype(np.float32)),
        type(np.dtype(np.int64)),
        # Older files spell numpy's module without the underscore.
        *(
            (function, f"numpy.{core}.multiarray.{function.__name__}")
            for core in ("core", "_core")
            for function in _numpy_functions()
        ),
    ]
    try:
        if path.stat().st_size == 0:
            raise DataError(f"weights file {path} is empty; use another copy.")
        with torch.serialization.safe_globals(harmless), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except DataError:
        raise
    except UnpicklingError as error:
        wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
        if wanted is not None:
            raise DataError(
                f"weights file {path} asks to run {wanted[1]}, which no weights need: it was not run and "
                "the file is refused. Get the weights as safetensors, or saved without that object."
            ) from error
        raise DataError(
            f"weights file {path} is damaged, or not what torch.save writes; use another copy."
        ) from error
    except OSError as error:
        raise DataError(
            f"weights file {path} cannot be read: {error}; use another copy."
        ) from error
    except Exception as error:  # torch.load raises whatever the damaged archive makes it raise
        raise DataError(
            f"weights file {path} is damaged, or no weights file ({type(error).__name__}); use another copy."
        ) from error


def _numpy_functions() -> list[Any]:
    """Give the two functions that rebuild numbers and arrays, wherever this numpy has them."""
    array, scalar = np.zeros(1).__reduce__()[0], np.float64(0).__reduce__()[0]
    return [array, scalar]


def _tensors(content: Any, path: Path) -> dict[str, Tensor]:
    """Take the tensors out of a dictionary; a file of none is refused."""
    found = (
        {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
        if isinstance(content, Mapping)
        else {}
    )
    if not found:
        raise DataError(
            f"{path} holds no weights by name: neither itself nor its entries "
            f"{', '.join(WEIGHTS_KEYS)} are a dictionary of tensors."
        )
    return found
