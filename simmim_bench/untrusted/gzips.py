"""Read gzip files of other people within a limit of what they expand to."""

from __future__ import annotations

import zlib
from pathlib import Path

from simmim_bench.errors import DataError
from simmim_bench.untrusted.paths import read_bytes

SUFFIX = ".gz"
GZIP = 16 + zlib.MAX_WBITS
# Results in COCO's format shrink to about a quarter, and a file of zeros expands a thousandfold.
LARGEST_EXPANSION = 100


def read_maybe_gzipped(path: Path, what: str, max_bytes: int) -> bytes:
    """Read a regular file, and expand it if its name ends in `.gz`; `max_bytes` limits it before and after.

    Raises:
        DataError: the file cannot be read, is damaged, expands to more than 100 times its size or to more than
            `max_bytes`, or has further content after its end.
    """
    content = read_bytes(path, what, max_bytes)
    if path.suffix != SUFFIX:
        return content
    limit = min(max_bytes, LARGEST_EXPANSION * len(content))
    expand = zlib.decompressobj(GZIP)
    try:
        text = expand.decompress(content, limit)
    except zlib.error as error:
        raise DataError(f"{what} {path} cannot be expanded: {error}.") from error
    if expand.unconsumed_tail:
        most = f"{limit:,} bytes" if limit == max_bytes else f"{LARGEST_EXPANSION} times its size"
        raise DataError(f"{what} {path} expands to more than {most}.")
    if not expand.eof:
        raise DataError(f"{what} {path} is cut off.")
    if expand.unused_data:
        raise DataError(
            f"{what} {path} has {len(expand.unused_data):,} bytes after its end; compress it again as one file."
        )
    return text
