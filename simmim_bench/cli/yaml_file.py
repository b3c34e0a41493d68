"""Read YAML files of settings, which people write and may get wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from simmim_bench.errors import DataError
from simmim_bench.untrusted.paths import read_bytes
from simmim_bench.untrusted.text import shorten, visible

MAX_BYTES = 1 << 20


class _Loader(yaml.SafeLoader):
    """A loader that refuses a key that is given twice, of which YAML's would keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping whose keys are unique; merged ones (`<<`) may be given again."""
        keys = [one.value for one, _ in node.value if isinstance(one, yaml.ScalarNode)]
        twice = next((key for key in keys if key != "<<" and keys.count(key) > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(
                problem=f"key '{twice}' is given twice", problem_mark=node.start_mark
            )
        return super().construct_mapping(node, deep)


def read_yaml(path: Path, what: str) -> Any:
    """Read a YAML file of plain values.

    Args:
        what: what the file should be, for error messages.

    Raises:
        DataError: the file does not exist, is too large, or is not YAML.
    """
    return parse_yaml(read_bytes(path, what, MAX_BYTES), path, what)


def parse_yaml(content: bytes, path: Path, what: str) -> Any:
    """Parse the content of a file; see `read_yaml`."""
    try:
        return yaml.load(content, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).replace("<byte string>", path.name).split())
        raise DataError(
            f"{what} {path} cannot be read as YAML: {visible(shorten(reason))}"
        ) from error


def setting_text(value: Any) -> str | None:
    """Return a setting's value as -o takes it, that of a list with commas; None for what -o cannot take."""
    if isinstance(value, list) and not any(isinstance(one, list | dict) for one in value):
        return ",".join(map(str, value)) or "()"
    return None if isinstance(value, list | dict) else str(value)
