"""Read tensors from files of strangers: `.safetensors`, and what `torch.save` writes, without executing anything.

A file of `torch.save` is a pickle, and raw storages beside it, in a zip file or (before PyTorch 1.6, and with
`_use_new_zipfile_serialization=False`) one after another. `pickles.py` reads the pickle as plain values, in which a
tensor is a `StoredTensor`: a type, and a region of a storage, which was found to be inside it.
"""

from __future__ import annotations

import io
import math
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from simmim_bench.errors import DataError
from simmim_bench.untrusted.pickles import Array, CallError, Name, Opaque, PickleError, read_pickle
from simmim_bench.untrusted.text import shorten, visible
from simmim_bench.untrusted.zips import SIGNATURE, Records, ZipError, open_records

# Types of tensors that are read, by their names in torch; complex and quantised ones are not weights of a backbone.
DTYPES: dict[str, torch.dtype] = {
    name: getattr(torch, name)
    for name in (
        *("float64", "float32", "float16", "bfloat16"),
        *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"),
        *("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool"),
    )
    if hasattr(torch, name)
}
# Storage classes of torch, the types of their elements, and their sizes in bytes (torch/__init__.py and
# torch/storage.py, `_dtype_to_storage_type_map`).
STORAGES = {
    **{"DoubleStorage": ("float64", 8), "FloatStorage": ("float32", 4)},
    **{"HalfStorage": ("float16", 2), "BFloat16Storage": ("bfloat16", 2)},
    **{"LongStorage": ("int64", 8), "IntStorage": ("int32", 4), "ShortStorage": ("int16", 2)},
    **{"CharStorage": ("int8", 1), "ByteStorage": ("uint8", 1), "BoolStorage": ("bool", 1)},
    "UntypedStorage": ("uint8", 1),
    **{"ComplexFloatStorage": ("complex64", 8), "ComplexDoubleStorage": ("complex128", 16)},
    **{
        "QInt8Storage": ("qint8", 1),
        "QUInt8Storage": ("quint8", 1),
        "QInt32Storage": ("qint32", 4),
    },
    **{"QUInt4x2Storage": ("quint4x2", 1), "QUInt2x4Storage": ("quint2x4", 1)},
}
# Entries of a file whose tensors are not weights: their storages, two thirds of a training state, are not read.
OPTIMIZER = re.compile(r"optim|scheduler|scaler")
DEEPEST = 16  # levels of dictionaries in which tensors are read
LARGEST_SIDE = 1 << 40
MOST_DIMENSIONS = 64
# Tensors may share a storage, and one may repeat an element, which takes no space in the file: all tensors together
# have at most this multiple of its size, and these bytes besides.
LARGEST_SHARING, LARGEST_REPETITION = 16, 1 << 28
MAGIC, PROTOCOL = (
    0x1950A86A20F9469CFC6C,
    1001,
)  # torch/serialization.py, of files that are not zip files


@dataclass(frozen=True)
class Storage:
    """A storage that a pickle names: its key, and the type and number of its elements.

    Attributes:
        offset: first element, in a view of another storage (before PyTorch 0.4).
    """

    key: str
    dtype: str
    itemsize: int
    count: int
    offset: int = 0


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor before it is read: a region of a storage, which was found to be inside."""

    storage: Storage
    dtype: str
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class OddTensor:
    """A tensor that is not read, and what it is, such as "sparse"."""

    kind: str


def read_torch(path: Path) -> Any:
    """Read a file of `torch.save`.

    Returns:
        The values that `read_pickle` describes. Tensors in dictionaries, other than an optimizer's, are read; of others
        their `StoredTensor` is left.

    Raises:
        DataError: the file cannot be read, is damaged, or requests code execution.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(len(SIGNATURE))
            file.seek(0)
            return _read_zip(file, size) if start == SIGNATURE else _read_legacy(file, size)
    except CallError as error:
        raise DataError(
            f"weights file {path} requests execution of {error}, which no weights need; it was not executed; "
            f"{as_safetensors('save the weights without that object')}"
        ) from error
    except (PickleError, ZipError) as error:
        raise DataError(
            f"weights file {path} is damaged, or was not written by torch.save: {error}; "
            f"{as_safetensors()}"
        ) from error
    except OSError as error:
        raise DataError(
            f"weights file {path} cannot be read: {error}; {as_safetensors()}"
        ) from error
    except MemoryError as error:
        raise DataError(
            f"weights file {path} does not fit in the memory; {as_safetensors()}"
        ) from error


def as_safetensors(remedy: str = "use another copy") -> str:
    """Return the remedy for a file that is refused, with the format that can hold no code."""
    return f"{remedy}, best as safetensors."


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a `.safetensors` file: tensors by name, and its metadata.

    Raises:
        DataError: the file cannot be read or is damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            return load_file(path), dict(file.metadata() or {})
    except Exception as error:  # safetensors and torch raise many types for a damaged header
        # Names of the header are in the message.
        reason = shorten(visible(" ".join(str(error).split())))
        raise DataError(f"weights file {path} is damaged ({reason}); use another copy.") from error


def odd_tensor(value: Any) -> str:
    """Return what makes a value no plain tensor, such as "sparse"; empty for a plain one and for other values."""
    if isinstance(value, OddTensor):
        return value.kind
    if isinstance(value, Tensor) and value.dtype not in DTYPES.values():
        return "complex" if value.is_complex() else f"of type {value.dtype}"
    return ""


def _read_zip(file: BufferedReader, size: int) -> Any:
    records = open_records(file, size)
    roots = [name for name in records.table if re.fullmatch(r"[^/]+/data\.pkl", name)]
    if any(name.endswith("/constants.pkl") for name in records.table):
        raise PickleError("it is a TorchScript program; save the model's state_dict()")
    if len(roots) != 1:
        raise PickleError("it is a zip file without a pickle of torch")
    root = roots[0].removesuffix("data.pkl")
    order = bytes(records.read(f"{root}byteorder")) if f"{root}byteorder" in records.table else b""
    pickled = io.BytesIO(records.read(roots[0]))
    content = read_pickle(pickled, records.size(roots[0]), CALLS, _find_storage)
    swap = order not in (b"", sys.byteorder.encode())

    def load(storage: Storage) -> Tensor:
        return _record(records, f"{root}data/{storage.key}", storage, swap)

    return _with_tensors(content, size, load)


def _record(records: Records, name: str, storage: Storage, swap: bool) -> Tensor:
    """Read a storage's bytes from its record."""
    if name not in records.table or records.size(name) < storage.count * storage.itemsize:
        raise PickleError("one of its storages is missing or too short")
    content = torch.frombuffer(records.read(name) or bytearray(1), dtype=torch.uint8)
    if swap and storage.itemsize > 1:
        whole = content[: len(content) // storage.itemsize * storage.itemsize]
        return whole.view(-1, storage.itemsize).flip(1).flatten()
    return content


def _read_legacy(file: BufferedReader, size: int) -> Any:
    if read_pickle(file, size) != MAGIC or read_pickle(file, size) != PROTOCOL:
        raise PickleError("it does not begin as torch's files do")
    system = read_pickle(file, size)
    content = read_pickle(file, size, CALLS, found := _Storages())
    keys = read_pickle(file, size)
    little = system.get("little_endian", True) if isinstance(system, dict) else True
    if not isinstance(keys, list) or little is not True or sys.byteorder != "little":
        raise PickleError("its storages are missing, or written on a machine of another byte order")
    places: dict[str, tuple[int, int]] = {}
    position = file.tell()
    for key in keys:
        if not isinstance(key, str) or key not in found.roots or key in places:
            raise PickleError("its list of storages differs from its tensors")
        root = found.roots[key]
        file.seek(position)
        count, length = int.from_bytes(file.read(8), "little"), root.count * root.itemsize
        if count != root.count or position + 8 + length > size:
            raise PickleError("one of its storages is missing or too short")
        places[key] = (position + 8, length)
        position += 8 + length

    def load(storage: Storage) -> Tensor:
        if storage.key not in places:
            raise PickleError("one of its storages is missing or too short")
        place, length = places[storage.key]
        content = bytearray(length)
        file.seek(place)
        if file.readinto(content) < length:
            raise PickleError("one of its storages is missing or too short")
        return torch.frombuffer(content or bytearray(1), dtype=torch.uint8)

    return _with_tensors(content, size, load)


class _Storages:
    """Find storages of persistent ids, and keep those that the file holds, by key."""

    def __init__(self) -> None:
        self.roots: dict[str, Storage] = {}

    def __call__(self, key: Any) -> Any:
        if isinstance(key, tuple) and key[0] == "module":  # a class, and its source code
            return key[1]
        storage = _find_storage(key[:5])
        root = self.roots.setdefault(storage.key, storage)
        if root.itemsize * root.count != storage.itemsize * storage.count:
            raise PickleError("one of its storages has two sizes")
        if key[5] is None:
            return storage
        _, offset, count = key[5]
        _check_counts(offset, count)
        if offset + count > storage.count:
            raise PickleError("a view lies outside its storage")
        return replace(storage, offset=offset, count=count)


def _find_storage(key: Any) -> Storage:
    """Return the storage of a persistent id: ("storage", class, key, device, number of elements)."""
    kind, cls, name, _, count = key
    if (
        kind not in ("storage", b"storage")
        or not isinstance(cls, Name)
        or not isinstance(name, str)
    ):
        raise PickleError("its pickle refers to something that is not a storage")
    dtype, itemsize = STORAGES[cls.path.rpartition(".")[2]]
    _check_counts(count)
    return Storage(name, dtype, itemsize, count)


def _check_counts(*counts: Any) -> None:
    """Check that values are numbers of elements."""
    if not all(type(count) is int and 0 <= count <= LARGEST_SIDE for count in counts):
        raise PickleError("one of its tensors has a size, stride or offset that no tensor has")


def _tensor(
    storage: Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *more: Any
) -> Any:
    """Check a tensor's region, as `_rebuild_tensor_v2` (requires_grad, hooks, bits) and older versions have it."""
    return _region(storage, storage.dtype, offset, size, stride, more[2:])


def _typed_tensor(
    storage: Storage,
    offset: int,
    size: Any,
    stride: Any,
    grad: Any,
    hooks: Any,
    dtype: Name,
    *bits: Any,
) -> Any:
    """Check a tensor's region, as `_rebuild_tensor_v3` has it: the storage's elements are bytes."""
    name = dtype.path.removeprefix("torch.")
    if name not in DTYPES:
        return OddTensor(name)
    itemsize = DTYPES[name].itemsize
    count, first = (n * storage.itemsize for n in (storage.count, storage.offset))
    if first % itemsize:
        raise PickleError("a view lies between the elements of its storage")
    typed = replace(storage, itemsize=itemsize, count=count // itemsize, offset=first // itemsize)
    return _region(typed, name, offset, size, stride, bits)


def _region(
    storage: Storage, dtype: str, offset: Any, size: Any, stride: Any, bits: tuple[Any, ...]
) -> StoredTensor | OddTensor:
    if not isinstance(storage, Storage) or not isinstance(size, tuple | list):
        raise PickleError("one of its tensors has no storage")
    _check_counts(offset, *size, *stride)
    if len(size) != len(stride) or len(size) > MOST_DIMENSIONS:
        raise PickleError("one of its tensors has a size, stride or offset that no tensor has")
    if math.prod(max(side, 1) for side in size) > LARGEST_SIDE:
        raise PickleError("one of its tensors has a size, stride or offset that no tensor has")
    empty = 0 in size
    last = offset + sum((side - 1) * step for side, step in zip(size, stride, strict=True))
    if not empty and last >= storage.count:
        raise PickleError("one of its tensors lies outside its storage")
    if dtype not in DTYPES:
        return OddTensor("complex" if dtype.startswith("complex") else "quantised")
    if any(bits) and any(bits[0].values()):
        return OddTensor("negated")  # a view whose elements torch negates when it reads them
    first = 0 if empty else offset + storage.offset
    return StoredTensor(storage, dtype, first, tuple(size), tuple(stride))


def _subclass(function: Name, cls: Name, arguments: tuple[Any, ...], state: Any) -> Any:
    """Return a tensor of a subclass, whose attributes are not read."""
    plain = cls.path in PLAIN_TENSORS and function.path in CALLS
    return CALLS[function.path](*arguments) if plain else OddTensor(cls.path.rpartition(".")[2])


def _array_tensor(array: Array, dtype: Name, *more: Any) -> Any:
    """Return a tensor of an array: torch_xla saves the tensors of a TPU so."""
    name = None if array.kind is None else ARRAY_DTYPES.get(array.kind.code)
    if name is None or array.kind is None or array.kind.order == ">":
        return OddTensor("NumPy's")
    _check_counts(*array.shape)
    if len(array.shape) > MOST_DIMENSIONS or math.prod(array.shape) * DTYPES[name].itemsize != len(
        array.content
    ):
        raise PickleError("one of its tensors lies outside its storage")
    content = torch.frombuffer(bytearray(array.content or b"\0"), dtype=torch.uint8)
    strides = [math.prod(array.shape[i + 1 :]) for i in range(len(array.shape))]
    storage = Storage("", name, DTYPES[name].itemsize, math.prod(array.shape))
    return _view(StoredTensor(storage, name, 0, array.shape, tuple(strides)), content)


def _odd(kind: str) -> Callable[..., OddTensor]:
    return lambda *arguments: OddTensor(kind)


ARRAY_DTYPES = {
    **{f"f{size}": f"float{8 * size}" for size in (2, 4, 8)},
    **{f"i{size}": f"int{8 * size}" for size in (1, 2, 4, 8)},
    **{"u1": "uint8", "b1": "bool"},
}
PLAIN_TENSORS = ("torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer")
CALLS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _typed_tensor,
    "torch._utils._rebuild_parameter": lambda data, *more: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *more: data,
    "torch.nn.parameter.Parameter": lambda data=None, *more: data,
    "torch._tensor._rebuild_from_type_v2": _subclass,
    "torch._utils._rebuild_sparse_tensor": _odd("sparse"),
    "torch._utils._rebuild_qtensor": _odd("quantised"),
    "torch._utils._rebuild_nested_tensor": _odd("nested"),
    "torch._utils._rebuild_meta_tensor_no_storage": _odd("meta"),
    "torch._utils._rebuild_wrapper_subclass": _odd("wrapped"),
    "torch._utils._rebuild_device_tensor_from_numpy": _array_tensor,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": lambda data, *more: data,
    "torch.serialization._get_layout": lambda name: Opaque("torch.layout"),
    "torch.Size": lambda sides=(): tuple(sides),
}


def _with_tensors(content: Any, size: int, load: Callable[[Storage], Tensor]) -> Any:
    """Read the tensors in dictionaries; each storage and each dictionary once, however often it is named.

    Args:
        size: of the file in bytes.
        load: reads the bytes of a storage.
    """
    storages: dict[tuple[str, int], Tensor] = {}
    done: dict[int, Any] = {}
    left = LARGEST_SHARING * size + LARGEST_REPETITION

    def read(value: Any, depth: int) -> Any:
        nonlocal left
        if isinstance(value, StoredTensor):
            left -= math.prod(value.size) * DTYPES[value.dtype].itemsize
            if left < 0:
                raise PickleError("its tensors repeat the same storages over and over")
            key = value.storage.key, value.storage.itemsize
            if key not in storages:
                storages[key] = load(value.storage)
            return _view(value, storages[key])
        if not isinstance(value, dict) or depth > DEEPEST:
            return value
        if id(value) not in done:
            done[id(value)] = value
            for key, entry in value.items():
                if not (isinstance(entry, dict) and OPTIMIZER.search(str(key))):
                    value[key] = read(entry, depth + 1)
        return value

    return read(content, 0)


def _view(tensor: StoredTensor, content: Tensor) -> Tensor:
    """Return a tensor of the bytes of its storage."""
    dtype = DTYPES[tensor.dtype]
    if 0 in tensor.size:
        return torch.empty(tensor.size, dtype=dtype)
    steps = zip(tensor.size, tensor.stride, strict=True)
    last = tensor.offset + sum((side - 1) * step for side, step in steps)
    if (last + 1) * dtype.itemsize > len(content):
        raise PickleError("one of its tensors lies outside its storage")
    whole = content[: len(content) // dtype.itemsize * dtype.itemsize]
    # A byte other than 0 and 1 is no value of `bool`.
    elements = whole != 0 if dtype is torch.bool else whole.view(dtype)
    return elements.as_strided(tensor.size, tensor.stride, tensor.offset)
