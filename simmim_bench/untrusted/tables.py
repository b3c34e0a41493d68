"""Read small text tables of other people: lists of names, class tables, comma-separated values."""

from __future__ import annotations

import csv
from pathlib import Path

from simmim_bench.errors import DataError
from simmim_bench.untrusted.paths import read_bytes

MAX_BYTES = 64 << 20  # the lists of a data set with a million images have 30 MB


def read_text_lines(path: Path, what: str) -> list[str]:
    """Read the lines of a text file in UTF-8, with or without a byte-order mark, without the spaces around them.

    Args:
        what: what the file should be, for error messages.

    Raises:
        DataError: the file does not exist, is not UTF-8, holds null characters or is too large.
    """
    try:
        text = read_bytes(path, what, MAX_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{what} {path} cannot be read: byte {error.start:,} is not UTF-8; save it as UTF-8."
        ) from error
    if "\0" in text:
        raise DataError(f"{what} {path} cannot be read: it is not a text file; save it as UTF-8.")
    return [line.strip() for line in text.splitlines()]


def find_delimiter(line: str) -> str:
    """Return what separates the values of a line: a tab, else a semicolon, else a comma."""
    return next((mark for mark in ("\t", ";") if mark in line), ",")


def split_cells(line: str, delimiter: str | None = None) -> list[str]:
    """Split a line of comma-, semicolon- or tab-separated values, without the spaces around them.

    Args:
        delimiter: None for the tab, semicolon or comma that the line has, in this order.

    Raises:
        ValueError: a quotation mark is not closed, or a value is too long.
    """
    delimiter = delimiter or find_delimiter(line)
    try:
        cells = next(csv.reader([line], delimiter=delimiter, skipinitialspace=True, strict=True))
    except csv.Error as error:
        raise ValueError(str(error)) from error
    return [cell.strip() for cell in cells]
