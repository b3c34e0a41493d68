"""Read all weights of a model from a file, its heads included, by their names in the model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from simmim_bench.checkpoints.checkpoint import StateDict
from simmim_bench.checkpoints.third_party.folder import read_weights
from simmim_bench.errors import DataError
from simmim_bench.untrusted.tensors import as_safetensors

# Keys of the weights in files with other entries: SimMIM, Swin, MAE, BEiT, Detectron2; timm, mmengine; BEiT v2.
WEIGHTS_KEYS = ("model", "state_dict", "module", "model_state_dict")


def read_model_state(path: Path) -> StateDict:
    """Read the weights of a file, or of the shards of an index, without prefixes of wrappers.

    Raises:
        DataError: The file cannot be read, is damaged, requests code execution, or holds no weights.
    """
    content, _, _ = read_weights(path)
    for key in WEIGHTS_KEYS:
        if isinstance(content.get(key), Mapping):
            return _unwrapped(_tensors(content[key], path))
    return _unwrapped(_tensors(content, path))


def _tensors(content: Mapping[str, Any], path: Path) -> StateDict:
    state = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not state:
        raise DataError(
            f"{path} holds no weights by name: neither the file's content nor its entries {', '.join(WEIGHTS_KEYS)} "
            f"are a dictionary of tensors; {as_safetensors('use a file with a state dict')}"
        )
    return state


def _unwrapped(state: StateDict) -> StateDict:
    """Remove prefixes that all names share, as of DataParallel, torch.compile and an attribute of a training class."""
    wrapper, dot, _ = next(iter(state)).partition(".")
    if not dot or not all(name.startswith(wrapper + dot) for name in state):
        return state
    return _unwrapped({name.removeprefix(wrapper + dot): value for name, value in state.items()})
