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

from simmim_bench.errors import DataError

# Configuration classes that are read as dictionaries: yacs in SimMIM and Swin, argparse in MAE and BEiT.
AS_DICTIONARIES = (
    "yacs.config.CfgNode",
    "argparse.Namespace",
    "mmengine.config.config.ConfigDict",
    "addict.addict.Dict",
    "mmengine.logging.history_buffer.HistoryBuffer",
)
LFS_POINTER = b"version https://git-lfs"  # first bytes of what Git LFS leaves in place of a file
PAGE = (b"<!doctype html", b"<html")  # first bytes of a web page, in lower case


def read_content(path: Path) -> tuple[Mapping[str, Any], dict[str, str]]:
    """Read a weights file.

    Returns:
        The file's content, which may nest dictionaries, and the metadata of a safetensors file.

    Raises:
        DataError: The file cannot be read, is damaged, or requests code execution.
    """
    try:
        with open(path, "rb") as file:
            check_weights(path, file.read(len(LFS_POINTER)))
    except OSError as error:
        raise DataError(
            f"weights file {path} cannot be read: {error}; use another copy."
        ) from error
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, "pt") as file:
                return load_file(path), dict(file.metadata() or {})
        except (OSError, SafetensorError) as error:
            raise DataError(
                f"weights file {path} is damaged ({error}); use another copy."
            ) from error
    content = _load_pickle(path)
    return content if isinstance(content, Mapping) else {}, {}


def check_weights(path: Path, start: bytes) -> None:
    """Check by its first bytes that a weights file is not something in place of weights.

    Raises:
        DataError: The file is empty, a pointer of Git LFS or a web page.
    """
    if not start:
        raise DataError(f"weights file {path} is empty; use another copy.")
    if start.startswith(LFS_POINTER):
        raise DataError(
            f"weights file {path} is a Git LFS pointer, not the weights; run git lfs pull in its repository."
        )
    if start.lower().startswith(PAGE):
        raise DataError(
            f"weights file {path} is a web page, not the weights; download the file again, signed in if its host "
            "requires it."
        )


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
        with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
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
