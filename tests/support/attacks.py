"""Checkpoints and shards that were made to harm: pickles, tensors, headers, descriptions and tar files."""

from __future__ import annotations

import argparse
import collections
import functools
import io
import os
import pickle
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from support.third_party import build_vit


class Call:
    """Object that unpickles as a function call."""

    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def reshaped(size: Any, stride: Any, offset: Any) -> Call:
    storage = torch.storage.TypedStorage(
        wrap_storage=torch.zeros(4).untyped_storage(), dtype=torch.float32, _internal=True
    )
    return Call(torch._utils._rebuild_tensor_v2, storage, offset, size, stride)


OBJECTS = np.dtype("O")


CALLS: dict[str, Any] = {
    "object pointers": Call(np.ndarray, (1,), OBJECTS, b"AAAAAAAA"),
    "negative offset": Call(np.ndarray, (8,), np.dtype("u1"), b"A" * 8, -4096),
    "nested pointers": Call(collections.OrderedDict, Call(np.ndarray, (1,), OBJECTS, b"A" * 8)),
    "system": Call(os.system, "true"),
    "popen": Call(subprocess.Popen, ["true"]),
    "eval": Call(eval, "1"),
    "getattr": Call(getattr(os, "get" + "env"), "HOME"),
    "import": Call(__import__, "antigravity"),
    "load": Call(pickle.loads, b"."),
    "from file": Call(np.fromfile, "/etc/passwd"),
}


PICKLES = {
    "no stop": b"}",
    "empty stack": b"0.",
    "memo": b"h\x07.",
    "extension": b"\x82\x01.",
    "append to a text": b"X\x01\x00\x00\x00a]a.",
    "entries of a list": b"]K\x01K\x02s.",
    "odd entries": b"}(K\x01u.",
    "long text": b"X\xff\xff\xff\x7fa.",
    "long bytes": b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7fa.",
    "long integer": b"\x8b\x00\x02\x00\x00" + b"\x7f" * 512 + b".",
    "text that is not UTF-8": b"X\x01\x00\x00\x00\xff.",
    "build a text": b"X\x01\x00\x00\x00a}b.",
    "call of a number": b"K\x01)R.",
    "persistent": b"K\x01Q.",
    "out-of-band buffer": b"\x97.",
    "name with a newline": b"X\x03\x00\x00\x00a\nbX\x01\x00\x00\x00c\x93.",
    "copies": b"]("
    + b"N" * 9999
    + b"eq\x000"
    + b"cbuiltins\nlist\nq\x010"
    + b"h\x01h\x00\x85R0" * 9999
    + b".",
}


SHAPES: dict[str, Any] = {
    "beyond": ((5,), (1,), 0),
    "offset": ((4,), (1,), 1),
    "negative offset": ((4,), (1,), -1),
    "negative stride": ((2,), (-1,), 3),
    "negative size": ((-1,), (1,), 0),
    "wide stride": ((2,), (2**62,), 0),
    "fraction": ((1.5,), (1,), 0),
    "flag": ((True,), (1,), 0),
    "dimensions": ((1, 1), (1,), 0),
    "terabytes": ((2**39, 2), (0, 0), 0),
    "huge": ((2**62, 0), (1, 1), 0),
    "repeated": ((2**29,), (0,), 0),
    "no tuple": (4, 1, 0),
}


def vit_with(**weights: Any) -> dict[str, Any]:
    return {**build_vit().state_dict(), **{k.replace("__", "."): v for k, v in weights.items()}}


NAMES = {
    "a block": "blocks.999999999.norm1.weight",
    "a digit of another script": "blocks.٣.norm1.weight",
    "control characters": "\x1b[31m\n",
}


KERNEL = "patch_embed__proj__weight"


def vit_with_name(key: str) -> dict[str, Any]:
    return {**vit_with(), key: torch.zeros(48)}


STATES: dict[str, Callable[[], dict[str, Any]]] = {
    **{name: functools.partial(vit_with_name, key) for name, key in NAMES.items()},
    "sparse": lambda: vit_with(norm__weight=torch.eye(48).to_sparse()),
    "sparse rows": lambda: vit_with(norm__weight=torch.eye(48).to_sparse_csr()),
    "complex": lambda: vit_with(norm__weight=torch.zeros(48, dtype=torch.complex64)),
    "meta": lambda: vit_with(norm__weight=torch.zeros(48, device="meta")),
    "quantised": lambda: vit_with(
        norm__weight=torch.quantize_per_tensor(torch.zeros(48), 0.1, 0, torch.qint8)
    ),
    "negated": lambda: vit_with(norm__weight=torch.zeros(48, dtype=torch.complex64).conj().imag),
    "integers": lambda: vit_with(norm__weight=torch.ones(48, dtype=torch.int8)),
    "number": lambda: vit_with(norm__weight=torch.tensor(1.0)),
    "number as kernel": lambda: vit_with(**{KERNEL: torch.tensor(1.0)}),
    "number as attention": lambda: vit_with(blocks__0__attn__qkv__bias=torch.tensor(1.0)),
    "number as position": lambda: vit_with(pos_embed=torch.tensor(1.0)),
    "number as head": lambda: vit_with(head__weight=torch.tensor(1.0)),
    "empty kernel": lambda: vit_with(**{KERNEL: torch.zeros(0, 3, 8, 8)}),
    "no channels": lambda: vit_with(**{KERNEL: torch.zeros(48, 0, 8, 8)}),
    "patch of zero": lambda: vit_with(**{KERNEL: torch.zeros(48, 3, 0, 0)}),
    "empty position": lambda: vit_with(pos_embed=torch.zeros(1, 2**40, 0)),
    "empty mlp": lambda: vit_with(blocks__0__mlp__fc1__weight=torch.zeros(0, 48)),
    "large table": lambda: vit_with(
        rel_pos_bias__relative_position_bias_table=torch.zeros(999**2 + 3, 4)
    ),
}


NAN = float("nan")


CONFIGS: dict[str, Any] = {
    "mean": {"args": {"mean": [NAN] * 3, "std": [1.0] * 3}},
    "std": {"args": argparse.Namespace(mean=[0.5] * 3, std=[0.0] * 3)},
    "large": {"args": {"mean": [10**400] * 3, "std": [1.0] * 3}},
    "lengths": {"args": {"mean": [0.5], "std": [0.5] * 3}},
    "windows": {"config": {"MODEL": {"TYPE": "swinv2", "SWINV2": {"PRETRAINED_WINDOW_SIZES": 8}}}},
    "patch": {"config": {"MODEL": {"SIMMIM": {"NORM_TARGET": {"ENABLE": 1, "PATCH_SIZE": []}}}}},
    "model": {"arch": "vit_tiny_patch16_224", "args": {"model_kwargs": {"depth": 10**9}}},
    "path": {"arch": "vit_tiny_patch16_224", "args": {"model_kwargs": {"checkpoint_path": "/x"}}},
}


def write_safetensors(path: Path, header: str, content: bytes = b"\0" * 16) -> Path:
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode() + content)
    return path


HEADERS = {
    "overlap": '{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},'
    '"b":{"dtype":"F32","shape":[1],"data_offsets":[8,12]}}',
    "gap": '{"a":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}',
    "backwards": '{"a":{"dtype":"F32","shape":[2],"data_offsets":[12,4]}}',
    "beyond": '{"a":{"dtype":"F32","shape":[8],"data_offsets":[0,32]}}',
    "shape": '{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,16]}}',
    "overflow": '{"a":{"dtype":"F32","shape":[4611686018427387905,4],"data_offsets":[0,16]}}',
    "empty side": '{"a":{"dtype":"F32","shape":[18446744073709551615,0],"data_offsets":[0,0]},'
    '"b":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}',
    "dtype": '{"a":{"dtype":"X32","shape":[4],"data_offsets":[0,16]}}',
    "control character": '{"a":{"dtype":"F1\x7f","shape":[4],"data_offsets":[0,16]}}',
    "no offsets": '{"a":{"dtype":"F32","shape":[4]}}',
    "negative": '{"a":{"dtype":"F32","shape":[-4],"data_offsets":[0,16]}}',
    "metadata": '{"__metadata__":{"a":3},"b":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}',
    "deep": '{"a":' * 9999,
    "list": "[]",
}


# A spec of timm's network without weights that fit; `python` runs a function of the standard library.
EXTERNAL: dict[str, Any] = {
    **{"arch": "resnet10t", "family": "timm", "source": "resnet10t", "img_size": [32, 32]},
    **{"patch_size": 4, "embed_dim": 64, "depths": [1], "levels": [[64, 4]], "own_width": 64},
}


def external(**changes: object) -> Callable[[dict[str, Any]], object]:
    """Return a damage: the spec of a network of other code, with changes."""
    return lambda meta: meta.update(spec={**EXTERNAL, **changes})


PYTHON = {"family": "python", "source": "os:system"}
# Specs that can be, of a function that the command does not name and of a network that the weights do not fit.
UNFIT: dict[str, Callable[[dict[str, Any]], object]] = {
    "python": external(**PYTHON),
    "timm": external(),
}
METAS: dict[str, Callable[[dict[str, Any]], object]] = {
    "python escape": external(**{**PYTHON, "source": "os:sys\x1b[2Jtem"}),
    "python path": external(**{**PYTHON, "source": "../os:system"}),
    "python timm": external(family="python"),
    "timm python": external(source="os:system"),
    "timm unknown": external(source="no_such_net"),
    "timm hub": external(source="hf-hub:a/b"),
    "timm large": external(source="vit_giant_patch14_dinov2", arch="a"),
    "timm file": external(arguments=[["checkpoint_path", "/etc/passwd"]]),
    "timm pretrained": external(arguments=[["pretrained", True]]),
    "timm twice": external(arguments=[["pretrained", False], ["pretrained", True]]),
    "timm depth": external(source="vit_tiny_patch16_224", arguments=[["depth", 10**9]]),
    "timm infinite": external(
        source="vit_tiny_patch16_224", arguments=[["mlp_ratio", float("inf")]]
    ),
    "timm deep": external(arguments=[["layers", [[[[[[[[1]]]]]]]]]]),
    "timm names": external(arguments=[["in_chans", 3], [5, 3]]),
    "timm size": external(
        source="vit_tiny_patch16_224", img_size=[2**15, 2**15], sized=True, arch="a"
    ),
    "levels negative": external(levels=[[64, -4]]),
    "levels infinite": external(levels=[[float("inf"), 4]]),
    "levels many": external(levels=[[64, 4]] * 5000),
    "levels huge": external(levels=[[10**9, 4]]),
    "levels text": external(levels="abc"),
    "own width": external(own_width=10**12),
    "sizing": external(sizing="some"),
    "mean": lambda meta: meta["preprocessing"].update(mean=[NAN] * 3),
    "std": lambda meta: meta["preprocessing"].update(std=[0.5, 0.0, 0.5]),
    "infinite": lambda meta: meta["preprocessing"].update(std=[float("inf")] * 3),
    "text": lambda meta: meta["preprocessing"].update(mean="abc"),
    "form": lambda meta: meta.update(form="../x"),
    "depth": lambda meta: meta["spec"].update(depths=[10**9]),
    "width": lambda meta: meta["spec"].update(embed_dim=2**15),
    "negative": lambda meta: meta["spec"].update(patch_size=-16),
    "zero": lambda meta: meta["spec"].update(patch_size=0),
    "flag": lambda meta: meta["spec"].update(embed_dim=True),
    "no heads": lambda meta: meta["spec"].pop("num_heads"),
    "heads": lambda meta: meta["spec"].update(num_heads=[7]),
    "size": lambda meta: meta["spec"].update(img_size=[2**15, 2**15]),
    "name": lambda meta: meta["spec"].update(arch="../../x"),
    "field": lambda meta: meta["spec"].update({"a\x1b": 3}),
    "family": lambda meta: meta["spec"].update(family=["vit"]),
    "label": lambda meta: meta.update(provenance=[]),
    "list": lambda meta: meta.update(spec=[]),
    "hash": lambda meta: meta.update(sha256=[]),
}


BLOCK = tarfile.BLOCKSIZE


def tar_of(*infos: tarfile.TarInfo, form: int = tarfile.PAX_FORMAT) -> bytearray:
    """Return a tar file of members; those with a size have that many bytes x."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        for info in infos:
            archive.addfile(info, io.BytesIO(b"x" * info.size))
    return bytearray(file.getvalue())


def image(name: str = "a.jpg", size: int = 600, **fields: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size = size
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def patched(content: bytearray, at: int, value: bytes, header: int = 0) -> bytearray:
    """Overwrite a field of a header, and correct its checksum."""
    start = header * BLOCK
    content[start + at : start + at + len(value)] = value
    content[start + 148 : start + 156] = b" " * 8
    total = sum(content[start : start + BLOCK])
    content[start + 148 : start + 156] = b"%06o\0 " % total
    return content


SIZE = 124  # of the field of a member's size (POSIX.1-1988); 12 bytes, octal, or binary after 0x80 (GNU) or 0xff


SPARSE = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.size": "900"}


def old_sparse() -> bytearray:
    """Return a shard with a sparse image as GNU tar writes it: two regions, at 0 and at 100."""
    content = tar_of(image(), form=tarfile.GNU_FORMAT)
    regions = b"".join(b"%011o\0" % number for number in (0, 300, 400, 300))
    content = patched(content, 386, regions + bytes(48) + b"\0" + b"%011o\0" % 700)
    return patched(content, 156, b"S")


ARCHIVES: dict[str, tuple[Callable[[], bytes | bytearray], str]] = {
    "negative size": (lambda: patched(tar_of(image()), SIZE, b"\xff" * 12), "cannot be read"),
    "size of exabytes": (
        lambda: patched(tar_of(image()), SIZE, b"\x80" + b"\x7f" * 11),
        "cannot be read",
    ),
    "size that is no number": (lambda: patched(tar_of(image()), SIZE, b"9" * 11), "cannot be read"),
    "beyond the end": (lambda: tar_of(image())[: BLOCK + 100], "cannot be read"),
    "long name of gigabytes": (
        lambda: patched(
            tar_of(image("d/" * 90 + "a.jpg"), form=tarfile.GNU_FORMAT), SIZE, b"7" * 11
        ),
        "an extension of a size that no name has",
    ),
    "long names of long names": (
        lambda: patched(tar_of(image("L", BLOCK)), 156, b"L")[: 2 * BLOCK] * 3000,
        "cannot be read",
    ),
    "extension without numbers": (
        lambda: tar_of(image(pax_headers={"size": "many"})),
        "damaged header at byte 1,536",
    ),
    "damaged header after an image": (
        lambda: tar_of(image(), image("b.jpg")).replace(b"b.jpg", b"c.jpg"),
        "damaged header at byte 1,536",
    ),
    "negative size in an extension": (
        lambda: tar_of(image(pax_headers={"size": "-512"})),
        "cannot be read",
    ),
    "sparse map without numbers": (
        lambda: tar_of(image(pax_headers={**SPARSE, "GNU.sparse.map": "a,b"})),
        "cannot be read",
    ),
    "sparse": (old_sparse, "is stored as a sparse file; write the shard without --sparse"),
    "sparse with a map": (
        lambda: tar_of(image(pax_headers={**SPARSE, "GNU.sparse.map": "0,300,600,300"})),
        "is stored as a sparse file",
    ),
}
