"""Read third-party weights files, `.safetensors` or written by `torch.save`, without executing their content.

`simmim_bench.untrusted.tensors` reads the files; this module refuses what is not a weights file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simmim_bench.errors import DataError
from simmim_bench.files import LFS_POINTER
from simmim_bench.untrusted.pickles import Opaque
from simmim_bench.untrusted.tensors import as_safetensors, read_safetensors, read_torch

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
        return read_safetensors(path)
    content = read_torch(path)
    if isinstance(content, Opaque):
        raise DataError(
            f"weights file {path} holds an object of {content.kind}, not weights by name; "
            f"{as_safetensors('save its state_dict()')}"
        )
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
