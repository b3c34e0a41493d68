"""Read JSON of other people within limits of size, depth and numbers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from simmim_bench.errors import DataError
from simmim_bench.untrusted.paths import read_bytes

MAX_BYTES = 64 << 20  # of records, descriptions and tables, which have kilobytes
MAX_BYTES_OF_DATA = 16 << 30  # of COCO annotations and results; train2017's have 0.4 GB
MAX_DEPTH = 64  # nested lists and objects; code that follows recurses
MAX_INT = 2**64  # whole numbers below are a float, if not exactly; JSON has larger ones


def read_json(path: Path, what: str, *, finite: bool = True, max_bytes: int = MAX_BYTES) -> Any:
    """Read a JSON file in UTF-8, UTF-16 or UTF-32, with or without a byte-order mark.

    Args:
        what: what the file should be, for error messages.
        finite: whether to refuse NaN and infinities, which Python's JSON has.

    Raises:
        DataError: the file does not exist, is not JSON or exceeds a limit.
    """
    try:
        return parse_json(read_bytes(path, what, max_bytes), finite=finite)
    except ValueError as error:
        raise DataError(f"{what} {path} cannot be read as JSON: {error}") from error


def parse_json(content: bytes | str, *, finite: bool = True) -> Any:
    """Parse JSON; see `read_json`.

    Raises:
        ValueError: the content is not JSON or exceeds a limit.
    """
    value = parse_unlimited(content)
    check_limits(value, finite=finite)
    return value


def parse_unlimited(content: bytes | str) -> Any:
    """Parse JSON without limits of depth and numbers, for content whose every value is checked afterwards.

    Raises:
        ValueError: the content is not JSON.
    """
    try:
        return json.loads(content)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"byte {error.start:,} is not {error.encoding}; save it as UTF-8."
        ) from error
    except RecursionError as error:
        raise ValueError("its lists and objects are nested too deeply") from error


def check_limits(value: Any, *, finite: bool = True) -> None:
    """Check depth, numbers and strings of a JSON value, without recursion.

    Raises:
        ValueError: the value exceeds a limit.
    """
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise ValueError(f"its lists and objects are nested more than {MAX_DEPTH} deep")
        inner: list[Any] = []
        for item in level:
            if isinstance(item, str):
                _check_text(item)
            elif isinstance(item, dict):
                inner += item.keys()
                inner += item.values()
            elif isinstance(item, list):
                inner += item
            elif isinstance(item, float):
                if finite and not math.isfinite(item):
                    raise ValueError(f"{item} is not a finite number")
            elif isinstance(item, int) and abs(item) >= MAX_INT:
                raise ValueError("a whole number has more than 64 bits")
        level = inner


def _check_text(text: str) -> None:
    r"""Refuse half of a surrogate pair, which is no character.

    Python reads the bytes of a file name that is not UTF-8 as \udc80 to \udcff, so these are accepted.
    """
    if text.isascii():
        return
    if any(
        "\ud800" <= letter <= "\udfff" and not "\udc80" <= letter <= "\udcff" for letter in text
    ):
        raise ValueError("a text has half of a surrogate pair")
