"""Tests of checkpoints of strangers: read as torch reads them, or refused in one line, and never executed."""

from __future__ import annotations

import argparse
import collections
import datetime
import functools
import io
import json
import os
import pickle
import re
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.third_party import build_vit
from torch import Tensor

from simmim_bench.checkpoints.checkpoint import write_checkpoint
from simmim_bench.checkpoints.load import restore_backbone
from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.checkpoints.third_party.hints import Hints
from simmim_bench.errors import DataError
from simmim_bench.models.archs import ARCHS
from simmim_bench.untrusted.pickles import CallError, Opaque, PickleError, read_pickle
from simmim_bench.untrusted.tensors import read_safetensors, read_torch

FOUR_HEADS = Hints(num_heads=4)


class Call:
    """Object that unpickles as a function call."""

    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


class Payload(argparse.Namespace):
    """Instance of a class that simmim-bench does not know, with attributes."""


def tensors_of(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Tensor]]:
    """Yield the tensors in dictionaries, with their keys."""
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, dict):
        for key, entry in value.items():
            yield from tensors_of(entry, (*path, str(key)))


NEW_TYPES = ("uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2")


def every_tensor(new: bool) -> dict[str, Any]:
    """Return tensors of every kind that a file of weights holds; of newer types in a zip file alone."""
    storage = torch.arange(24.0)
    kinds: dict[str, Any] = {
        "view": storage.view(4, 6),
        "part": storage.view(4, 6)[1:3, 2:],
        "transposed": storage.view(4, 6).t(),
        "strided": storage[1::5],
        "empty": torch.zeros(0, 3),
        "number": torch.tensor(7),
        "expanded": torch.ones(1).expand(3, 2),
        "parameter": torch.nn.Parameter(torch.randn(3, 3)),
        "flags": torch.tensor([True, False, True]),
    }
    for dtype in ("float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8"):
        kinds[dtype] = torch.arange(5).to(getattr(torch, dtype))
    for dtype in NEW_TYPES if new else ():
        kinds[dtype] = torch.arange(5).float().to(getattr(torch, dtype))
    attributed = torch.nn.Parameter(torch.randn(2))
    vars(attributed)["origin"] = "a note"
    return {**kinds, "attributed": attributed}


def trainer_state() -> dict[str, Any]:
    """Return what training codes save beside the weights."""
    return {
        "args": argparse.Namespace(lr=1e-3, betas=(0.9, 0.95), data=Path("/data"), none=None),
        "epoch": np.int64(3),
        "best": np.float32(1.5),
        "history": np.arange(6.0).reshape(2, 3),
        "order": collections.OrderedDict(a=1, b=[2, {3}]),
        "counts": collections.Counter("aab"),
        "lists": collections.defaultdict(list, a=[1]),
        "when": datetime.datetime(2020, 1, 2),
        "bytes": b"\x00\xff",
        "more": bytearray(b"\x00\xff"),
        "size": torch.Size([2, 3]),
        "types": [torch.float32, torch.device("cpu"), torch.strided],
        "large": 2**100,
        "partial": functools.partial(np.zeros),
        "path": Path("a"),
        "object": Payload(lr=1e-3),
        "random": np.random.default_rng(0).bit_generator.state,
        "text": "\ud800 and é",
    }


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_tensors_are_those_that_torch_reads(tmp_path: Path, new: bool, protocol: int) -> None:
    linear, path = torch.nn.Linear(3, 4), tmp_path / "a"
    net = torch.nn.Sequential(linear, torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    content = {
        "model": net.state_dict(),
        "kinds": every_tensor(new),
        "tied": {"a": linear.weight, "b": linear.weight.t()},
        "optimizer": optimizer.state_dict(),
        **trainer_state(),
    }
    torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=new)
    wanted = dict(tensors_of(torch.load(path, weights_only=False)))
    found_content = read_torch(path)
    found = dict(tensors_of(found_content))
    assert set(found) == {key for key in wanted if key[0] != "optimizer"}
    for key, tensor in found.items():
        assert tensor.dtype == wanted[key].dtype
        assert tensor.stride() == wanted[key].stride()
        assert torch.equal(tensor.double(), wanted[key].double()), key
    tied = found_content["tied"]
    assert tied["a"].data_ptr() == tied["b"].data_ptr()
    assert found_content["args"]["lr"] == 1e-3
    assert (found_content["epoch"], found_content["best"]) == (3, 1.5)
    assert found_content["order"] == {"a": 1, "b": [2, {3}]}
    assert found_content["large"] == 2**100
    assert (found_content["bytes"], found_content["more"]) == (b"\x00\xff", b"\x00\xff")
    assert isinstance(found_content["object"], Opaque)


def test_configurations_of_frameworks_are_dictionaries(tmp_path: Path) -> None:
    yacs, mmengine = pytest.importorskip("yacs.config"), pytest.importorskip("mmengine")
    content = {
        "yacs": yacs.CfgNode({"MODEL": {"TYPE": "swin", "SIZES": [1, 2]}}),
        "mmengine": mmengine.ConfigDict(model={"type": "a"}, lr=0.1),
        "history": mmengine.logging.HistoryBuffer([1.0, 2.0], [1, 1]),
    }
    torch.save(content, tmp_path / "a")
    found = read_torch(tmp_path / "a")
    assert found["yacs"]["MODEL"] == {"TYPE": "swin", "SIZES": [1, 2], **found["yacs"]["MODEL"]}
    assert found["mmengine"]["model"]["type"] == "a"
    assert found["mmengine"]["lr"] == 0.1


def test_a_tensor_of_a_tpu_is_read(tmp_path: Path) -> None:
    """torch_xla saves arrays of NumPy (torch/_tensor.py until 2.5, `_reduce_ex_internal`)."""
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    rebuild = torch._utils._rebuild_device_tensor_from_numpy
    torch.save({"a": Call(rebuild, array, torch.float32, "cpu", False)}, tmp_path / "a")
    assert torch.equal(read_torch(tmp_path / "a")["a"], torch.from_numpy(array))


def test_a_file_without_or_with_wrong_checksums(tmp_path: Path) -> None:
    """torch writes zeros as checksums after `set_crc32_options(False)`, and does not compare others."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    torch.save({"a": torch.arange(99.0)}, tmp_path / "a")
    torch.serialization.set_crc32_options(before)
    assert torch.equal(read_torch(tmp_path / "a")["a"], torch.arange(99.0))
    torch.save({"a": torch.arange(99.0)}, tmp_path / "b")
    content = (tmp_path / "b").read_bytes()
    weights = torch.arange(99.0).numpy().tobytes()
    (tmp_path / "b").write_bytes(content.replace(weights, weights[:-1] + b"\x00"))
    with pytest.raises(DataError, match="the checksum of one of its records differs"):
        read_torch(tmp_path / "b")


def test_a_compressed_file_is_read_and_a_bomb_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.randn(99)}, tmp_path / "a")
    wanted = torch.load(tmp_path / "a", weights_only=True)["a"]
    repack(tmp_path / "a", lambda name, content: content)
    assert torch.equal(read_torch(tmp_path / "a")["a"], wanted)
    torch.save({"a": torch.zeros(10_000_000)}, tmp_path / "b")
    repack(tmp_path / "b", lambda name, content: content)
    assert (tmp_path / "b").stat().st_size < 100_000
    with pytest.raises(DataError, match="expands to more than 100 times its size"):
        read_torch(tmp_path / "b")


def repack(path: Path, change: Callable[[str, bytes], bytes]) -> None:
    """Compress the records of a zip file, changed."""
    with zipfile.ZipFile(path) as archive:
        records = {name: change(name, archive.read(name)) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in records.items():
            archive.writestr(name, content)


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


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("protocol", range(6))
def test_a_call_is_refused_by_its_name(name: str, protocol: int) -> None:
    content = pickle.dumps({"model": CALLS[name]}, protocol)
    with pytest.raises(CallError):
        read_pickle(io.BytesIO(content), len(content))


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


@pytest.mark.parametrize("name", PICKLES)
def test_a_damaged_pickle_is_refused(name: str) -> None:
    with pytest.raises(PickleError):
        read_pickle(io.BytesIO(PICKLES[name]), len(PICKLES[name]))


def test_values_that_no_hash_ends_on_are_no_keys() -> None:
    """A tuple of the same tuple twice, 60 times over, has 2**60 entries, each of which its hash visits."""
    content = b"\x80\x02K\x01" + b"2\x86" * 60 + b"q\x00}h\x00K\x01s."
    (key,) = read_pickle(io.BytesIO(content), len(content))
    assert isinstance(key, Opaque)


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


@pytest.mark.parametrize("name", SHAPES)
def test_a_tensor_outside_its_storage_is_refused(tmp_path: Path, name: str) -> None:
    size, stride, offset = SHAPES[name]
    torch.save({"model": {"a": reshaped(size, stride, offset)}}, tmp_path / "a")
    with pytest.raises(DataError) as refusal:
        read_torch(tmp_path / "a")
    assert len(str(refusal.value).splitlines()) == 1


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


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support", "ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("name", STATES)
def test_weights_of_other_kinds_and_sizes_are_refused(tmp_path: Path, name: str) -> None:
    torch.save({"model": STATES[name]()}, tmp_path / "a.pth")
    with pytest.raises(DataError) as refusal:
        read_checkpoint(str(tmp_path / "a.pth"), FOUR_HEADS)
    assert str(refusal.value).isprintable()


@pytest.mark.parametrize("name", ["complex", "number", "integers", "a block"])
def test_weights_of_other_kinds_in_safetensors_are_refused(tmp_path: Path, name: str) -> None:
    state = {key: value.contiguous() for key, value in STATES[name]().items()}
    save_file(state, tmp_path / "a.safetensors")
    with pytest.raises(DataError) as refusal:
        read_checkpoint(str(tmp_path / "a.safetensors"), FOUR_HEADS)
    assert str(refusal.value).isprintable()


def test_an_odd_tensor_beside_the_weights_does_not_matter(tmp_path: Path) -> None:
    content = {"model": vit_with(), "buffer": torch.eye(3).to_sparse(), "optimizer": {0: 1}}
    torch.save(content, tmp_path / "a.pth")
    assert read_checkpoint(str(tmp_path / "a.pth"), FOUR_HEADS).spec.embed_dim == 48


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


@pytest.mark.parametrize("name", CONFIGS)
def test_values_that_a_configuration_cannot_have_are_refused(tmp_path: Path, name: str) -> None:
    torch.save({"model": vit_with(), **CONFIGS[name]}, tmp_path / "a.pth")
    if name in ("model", "path"):  # timm's model is not built: the file is read without it
        assert read_checkpoint(str(tmp_path / "a.pth"), FOUR_HEADS).spec.depths == (2,)
        return
    with pytest.raises(DataError, match=r"the configuration of .* has a value that it cannot have"):
        read_checkpoint(str(tmp_path / "a.pth"), FOUR_HEADS)


@pytest.mark.parametrize(
    "config",
    [
        {"config": 3, "args": [1], "epoch": "4", "arch": {}},
        {"config": {"MODEL": {"SIMMIM": "a", "TYPE": "swinv2", "SWINV2": 3}, "TAG": 3}},
        {"epoch": 2**2000, "config": {"TAG": "a\x1b[31m" + "b" * 999}},
    ],
)
def test_configurations_of_other_types_are_ignored(tmp_path: Path, config: Any) -> None:
    torch.save({"model": vit_with(), **config}, tmp_path / "a.pth")
    provenance = read_checkpoint(str(tmp_path / "a.pth"), FOUR_HEADS).provenance
    assert "epochs" not in provenance
    assert str(provenance.get("tag", "")).isprintable()


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


@pytest.mark.parametrize("name", HEADERS)
def test_damaged_headers_of_safetensors_are_refused(tmp_path: Path, name: str) -> None:
    path = write_safetensors(tmp_path / "a.safetensors", HEADERS[name])
    with pytest.raises(DataError, match="is damaged") as refusal:
        read_safetensors(path)
    assert str(refusal.value).isprintable()


METAS: dict[str, Callable[[dict[str, Any]], object]] = {
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


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a small checkpoint directory."""
    folder = tmp_path_factory.mktemp("meta") / "ckpt"
    spec = ARCHS["vit_pocket"]
    write_checkpoint(
        folder,
        state=restore_backbone(read_checkpoint("random:vit_pocket")).state_dict(),
        spec=spec,
        form="transfer",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        provenance={"label": "a", "method": "random"},
    )
    return folder


@pytest.mark.parametrize("name", METAS)
def test_values_that_meta_json_cannot_have_are_refused(checkpoint: Path, name: str) -> None:
    path = checkpoint / "meta.json"
    original = path.read_text()
    assert read_checkpoint(str(checkpoint)).spec.arch == "vit_pocket"
    try:
        meta = json.loads(original)
        METAS[name](meta)
        path.write_text(json.dumps(meta))
        with pytest.raises(DataError, match=r"meta\.json") as refusal:
            read_checkpoint(str(checkpoint))
        assert re.fullmatch(r".+", str(refusal.value))
    finally:
        path.write_text(original)


def test_a_configuration_is_read_within_limits(tmp_path: Path) -> None:
    save_file(vit_with(), tmp_path / "model.safetensors")
    nested: Any = {}
    for _ in range(100):
        nested = {"a": nested}
    (tmp_path / "config.json").write_text(json.dumps({"num_heads": 4, "spare": nested}))
    with pytest.raises(DataError, match=r"config\.json cannot be read as JSON: .*nested"):
        read_checkpoint(str(tmp_path), FOUR_HEADS)
