"""Read XML of other people: elements and text alone, without a document type, whose entities name files and addresses.

A document type is refused as a whole: entities that expand to each other fill the memory from a file of a kilobyte, and
external ones read files of this machine. Annotation tools write none.
"""

from __future__ import annotations

from pathlib import Path
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from simmim_bench.errors import DataError
from simmim_bench.untrusted.paths import read_bytes

MAX_BYTES = 16 << 20  # an annotation of Pascal VOC has a few kilobytes
MAX_DEPTH = 64  # nested elements; code that follows recurses


def read_xml(path: Path, what: str) -> Element:
    """Read an XML file and return its root element.

    Args:
        what: what the file should be, for error messages.

    Raises:
        DataError: the file does not exist, is not XML, has a document type or exceeds a limit.
    """
    try:
        return parse_xml(read_bytes(path, what, MAX_BYTES))
    except ValueError as error:
        raise DataError(f"{what} {path} cannot be read as XML: {error}") from error


def parse_xml(content: bytes) -> Element:
    """Parse XML; see `read_xml`.

    Raises:
        ValueError: the content is not XML, has a document type or is nested too deeply.
    """
    tree, depth = TreeBuilder(), 0
    parser = expat.ParserCreate()

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > MAX_DEPTH:
            raise ValueError(f"its elements are nested more than {MAX_DEPTH} deep")
        tree.start(tag, attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        tree.end(tag)

    def refuse(*_: object) -> None:
        raise ValueError("it has a document type (<!DOCTYPE ...>); remove it.")

    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = tree.data
    parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = refuse
    try:
        parser.Parse(content, True)
    except expat.ExpatError as error:
        raise ValueError(f"{error}; correct it or remove the file.") from error
    except LookupError as error:  # an encoding that Python does not know
        raise ValueError(f"{error}; save it as UTF-8.") from error
    return tree.close()
