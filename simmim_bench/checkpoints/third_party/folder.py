"""Read the weights of a folder as model hubs distribute it: one file, or shards with an index."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simmim_bench.checkpoints.fit import shorten
from simmim_bench.checkpoints.torch_file import read_content
from simmim_bench.errors import DataError
from simmim_bench.files import sha256_file, sha256_json
from simmim_bench.untrusted.json_text import read_json

INDEX = ".index.json"  # of a file in shards
WEIGHTS = (
    "model.safetensors",
    f"model.safetensors{INDEX}",
    "pytorch_model.bin",
    f"pytorch_model.bin{INDEX}",
)


def find_weights(folder: Path) -> Path:
    """Return the weights file of a folder, or the index of its shards.

    Raises:
        DataError: The folder has none.
    """
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise DataError(
        f"{folder} has a config.json but none of {', '.join(WEIGHTS)}; use a complete folder."
    )


def find_shard(index: Path, name: str) -> Path:
    """Return the path of a shard, which may be a symbolic link: the cache of a model hub consists of links.

    Raises:
        DataError: it does not exist, or is not in the folder of the index.
    """
    shard = index.parent / name
    if shard.parent != index.parent:
        raise DataError(
            f"index of weights {index} names {shorten([name])}, which is not in its folder."
        )
    # Unlike `Path.is_file`, it returns False for a name that is too long.
    if not os.path.isfile(shard):
        raise DataError(
            f"{shorten([name])}, which {index} names, does not exist; use a complete folder."
        )
    return shard


def read_weights(path: Path) -> tuple[Mapping[str, Any], dict[str, str], str]:
    """Read a weights file, or the shards of an index.

    Returns:
        The content, the metadata of a safetensors file, and the SHA-256 of the file or of its shards' hashes.

    Raises:
        DataError: A file is missing or cannot be read, or the index names a file elsewhere.
    """
    if not path.name.endswith(INDEX):
        content, metadata = read_content(path)
        return content, metadata, sha256_file(path)
    table = read_json(path, "index of weights")
    names = table.get("weight_map") if isinstance(table, dict) else None
    if (
        not isinstance(names, dict)
        or not names
        or not all(isinstance(n, str) for n in names.values())
    ):
        raise DataError(f"index of weights {path} has no weight_map; use another copy.")
    tensors: dict[str, Any] = {}
    hashes = {}
    for name in sorted(set(names.values())):
        shard = find_shard(path, str(name))
        tensors |= read_content(shard)[0]
        hashes[name] = sha256_file(shard)
    missing = sorted(set(names) - set(tensors))
    if missing:
        raise DataError(
            f"{path.parent} lacks {len(missing)} weights that {path.name} names, such as {shorten(missing[:1])}; use "
            "another copy."
        )
    return tensors, {}, sha256_json(hashes)
