"""Read the records of a zip file whose directory is not to be trusted."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from io import BufferedReader
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

SIGNATURE = b"PK\x03\x04"  # of a record's own header, with which a file begins
HEADER = struct.Struct("<4s22xHH")  # signature, length of the name, length of the extra field
ENCRYPTED = 0x1
# Weights hardly compress, and an archive of zeros expands a thousandfold.
LARGEST_EXPANSION = 100


class ZipError(Exception):
    """Report a zip file that is damaged or exceeds a limit; its argument names the fault."""


@dataclass(frozen=True)
class Records:
    """The records of a zip file by name. The file stays open for reading them."""

    file: BufferedReader
    table: dict[str, ZipInfo]

    def size(self, name: str) -> int:
        """Return the size of a record in bytes."""
        return self.table[name].file_size

    def read(self, name: str) -> bytearray:
        """Return the content of a record.

        Raises:
            ZipError: the record is damaged.
        """
        info = self.table[name]
        content = self._content(info)
        # torch.save writes no checksum, that is 0, after `torch.serialization.set_crc32_options(False)`.
        if info.CRC and zlib.crc32(content) != info.CRC:
            raise ZipError("the checksum of one of its records differs from its content")
        return content

    def _content(self, info: ZipInfo) -> bytearray:
        self.file.seek(info.header_offset)
        header = self.file.read(HEADER.size)
        if len(header) < HEADER.size:
            raise ZipError("one of its records lies outside the file")
        signature, name, extra = HEADER.unpack(header)
        if signature != SIGNATURE:
            raise ZipError("its directory names a record that is not there")
        self.file.seek(name + extra, 1)
        if info.compress_type == ZIP_STORED:
            content = bytearray(info.file_size)
            if self.file.readinto(content) < info.file_size:
                raise ZipError("one of its records lies outside the file")
            return content
        expand = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            found = expand.decompress(self.file.read(info.compress_size), info.file_size)
        except zlib.error as error:
            raise ZipError("one of its compressed records is damaged") from error
        if len(found) < info.file_size:
            raise ZipError("one of its records is shorter than its directory says")
        return bytearray(found)


def open_records(file: BufferedReader, size: int) -> Records:
    """Read the directory of a zip file.

    Args:
        size: of the file in bytes, which all sizes and positions are compared with.

    Raises:
        ZipError: the directory is damaged, or the records would expand beyond `LARGEST_EXPANSION`.
    """
    try:
        infos = ZipFile(file).infolist()
    except Exception as error:  # zipfile raises many types for a damaged directory
        raise ZipError(f"its directory is damaged ({type(error).__name__})") from error
    table: dict[str, ZipInfo] = {}
    for info in infos:
        if info.filename in table:
            raise ZipError("it holds a record twice")
        if info.flag_bits & ENCRYPTED:
            raise ZipError("it is encrypted")
        if info.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
            raise ZipError("it is compressed with another method than torch reads")
        if info.compress_type == ZIP_STORED and info.compress_size != info.file_size:
            raise ZipError("the size of one of its records is contradictory")
        if not 0 <= info.header_offset <= size:
            raise ZipError("one of its records lies outside the file")
        table[info.filename] = info
    # Records that overlap would multiply the file's content.
    if sum(info.compress_size for info in infos) > size:
        raise ZipError("its records overlap")
    if sum(info.file_size for info in infos) > LARGEST_EXPANSION * size:
        raise ZipError(f"it expands to more than {LARGEST_EXPANSION} times its size")
    return Records(file, table)
