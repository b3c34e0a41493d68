"""Read third-party weights files, `.safetensors` or written by `torch.save`, without executing their content.

A pickle names functions to call. torch's `weights_only` reader calls only those of an allow-list, and the
classes below, which published checkpoints hold besides their weights, are read as plain dictionaries. A file that
names any other function is refused before anything is called.
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

from simmim_bench.checkpoints.checkpoint import StateDict
from simmim_bench.errors import DataError

# Configuration classes that are read as dictionaries: yacs in SimMIM and Swin, argparse in MAE and BEiT.
AS_DICTIONARIES = (
    "yacs.config.CfgNode",
    "argparse.Namespace",
    "mmengine.config.config.ConfigDict",
    "addict.addict.Dict",
    "mmengine.logging.history_buffer.HistoryBuffer",
)
# Keys of the weights in files with other entries: SimMIM, Swin, MAE, BEiT; mmpretrain; BEiT v2.
WEIGHTS_KEYS = ("model", "state_dict", "module", "model_state_dict")


def read_weights_file(path: Path) -> tuple[StateDict, dict[str, Any]]:
    """Read a weights file.

    Returns:
        The tensors by name, and the file's other entries by key.

    Raises:
        DataError: The file cannot be read, is damaged, requests code execution, or holds no weights.
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
    """Read a file written by `torch.save` with the allow-list."""
    allowed: list[Any] = [(OrderedDict, name) for name in AS_DICTIONARIES]
    allowed += [
        np.ndarray,
        np.dtype,
        type(np.dtype(np.float64)),
        type(np.dtype(np.float32)),
        type(np.dtype(np.int64)),
        # Older versions of numpy name the module without the underscore.
        *(
            (function, f"numpy.{core}.multiarray.{function.__name__}")
            for core in ("core", "_core")
            for function in _numpy_functions()
        ),
    ]
    try:
        if path.stat().st_size == 0:
            raise DataError(f"weights file {path} is empty; use another copy.")
        with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except DataError:
        raise
    except UnpicklingError as error:
        wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
        if wanted is not None:
            raise DataError(
                f"weights file {path} requests execution of {wanted[1]}, which no weights need; it was not "
                "executed. Use a safetensors file, or save the weights without that object."
            ) from error
        raise DataError(
            f"weights file {path} is damaged, or was not written by torch.save; use another copy."
        ) from error
    except OSError as error:
        raise DataError(
            f"weights file {path} cannot be read: {error}; use another copy."
        ) from error
    except Exception as error:  # torch.load raises many types for a damaged archive
        raise DataError(
            f"weights file {path} is damaged, or not a weights file ({type(error).__name__}); use another copy."
        ) from error


def _numpy_functions() -> list[Any]:
    """Return the two functions that unpickle arrays and scalars, whose module depends on numpy's version."""
    array, scalar = np.zeros(1).__reduce__()[0], np.float64(0).__reduce__()[0]
    return [array, scalar]


def _tensors(content: Any, path: Path) -> StateDict:
    """Return the tensors of a dictionary.

    Raises:
        DataError: `content` is not a dictionary or has no tensors.
    """
    found = (
        {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
        if isinstance(content, Mapping)
        else {}
    )
    if not found:
        raise DataError(
            f"{path} holds no weights by name: neither the file's content nor its entries "
            f"{', '.join(WEIGHTS_KEYS)} are a dictionary of tensors; use a file with a state dict."
        )
    return found
