"""Read YAML of plain values within limits of size, depth and numbers.

No tag builds an object. An alias (`*NAME`) or a merge (`<<`) counts as often as it is expanded, so that a short file
cannot become a large value.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from simmim_bench.errors import DataError
from simmim_bench.untrusted.json_text import check_limits
from simmim_bench.untrusted.paths import read_bytes
from simmim_bench.untrusted.text import shorten, visible

MAX_BYTES = 1 << 20
MAX_VALUES = 100_000  # with every alias expanded
MAX_KEYS = 10_000  # of a mapping, with merged ones


class _Loader(yaml.SafeLoader):
    """A loader that refuses a key that is given twice, of which YAML's would keep the last."""

    def compose_mapping_node(self, anchor: dict[Any, yaml.Node]) -> yaml.MappingNode:
        """Compose a mapping whose keys are unique; a key may replace a merged one."""
        node = super().compose_mapping_node(anchor)
        keys = Counter(one.value for one, _ in node.value if isinstance(one, yaml.ScalarNode))
        twice = next((key for key, count in keys.items() if key != "<<" and count > 1), None)
        if twice is not None:
            raise _fault(node, f"key '{twice}' is given twice")
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Insert the merged keys of a mapping, if they are not too many."""
        super().flatten_mapping(node)
        if len(node.value) > MAX_KEYS:
            raise _fault(node, f"a mapping has more than {MAX_KEYS:,} keys")


def _fault(node: yaml.MappingNode, problem: str) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(problem=problem, problem_mark=node.start_mark)


def read_yaml(path: Path, what: str) -> Any:
    """Read a YAML file.

    Args:
        what: what the file should be, for error messages.

    Raises:
        DataError: the file does not exist, is not YAML or exceeds a limit.
    """
    try:
        value = yaml.load(read_bytes(path, what, MAX_BYTES), _Loader)
        _check_size(value)
        check_limits(value)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        reason = " ".join(str(error).replace('"<byte string>", ', "").split())
        raise DataError(
            f"{what} {path} cannot be read as YAML: {visible(shorten(reason))}"
        ) from error
    return value


def _check_size(value: Any) -> None:
    """Check the number of values, with every alias expanded; one within itself has no end.

    Raises:
        ValueError: there are too many.
    """
    left, count = [value], 0
    while left:
        item = left.pop()
        count += 1
        if count > MAX_VALUES:
            raise ValueError(f"it has more than {MAX_VALUES:,} values with its aliases expanded")
        if isinstance(item, dict):
            left += [*item, *item.values()]
        elif isinstance(item, list):
            left += item


def setting_text(value: Any) -> str | None:
    """Return a setting's value as -o takes it, that of a list with commas; None for what -o cannot take."""
    if isinstance(value, list) and not any(isinstance(one, list | dict) for one in value):
        return ",".join(map(str, value)) or "()"
    return None if isinstance(value, list | dict) else str(value)
