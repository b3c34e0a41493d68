"""Tests of the readers of other people's files: each refuses, in one line, what exceeds its limits."""

from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from simmim_bench.errors import DataError
from simmim_bench.untrusted import yaml_text
from simmim_bench.untrusted.arrays import read_arrays
from simmim_bench.untrusted.images import read_png
from simmim_bench.untrusted.json_text import parse_json, read_json
from simmim_bench.untrusted.paths import open_regular, path_below, read_bytes
from simmim_bench.untrusted.text import visible
from simmim_bench.untrusted.yaml_text import read_yaml


def npy(header: str, content: bytes = b"") -> bytes:
    """Return an array file with a header as given."""
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + content


def npz(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


def header(dtype: str = "'<i8'", shape: str = "(2,)") -> str:
    return f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}}}"


def objects() -> bytes:
    out = io.BytesIO()
    np.save(out, np.array([{}], object), allow_pickle=True)
    return out.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        npy(header(shape="(1099511627776, 1024)")),  # petabytes
        npy(header(shape="(-1, 2)"), bytes(16)),
        npy(header(shape="(0, 1180591620717411303424)"), b""),
        npy(header(shape="(True,)"), bytes(8)),
        npy(header("'<i8'", "2"), bytes(16)),
        npy(header("'|O'"), bytes(16)),
        npy(header("[('a', '<i8')]"), bytes(16)),
        npy(header("('<i8', (2,))", "(1,)"), bytes(16)),
        npy(header("'<c16'", "(1,)"), bytes(16)),
        npy(header("'nonsense'"), bytes(16)),
        npy(header("'\x1e\\e|u1'"), bytes(16)),
        npy("(" * 5000, bytes(16)),
        npy(header(), bytes(15)),
        npy(header(), bytes(17)),
        objects(),
        b"\x93NUMPY\x09\x00",
        b"",
    ],
)
def test_an_array_that_is_not_what_its_header_promises_is_refused(
    tmp_path: Path, content: bytes
) -> None:
    path = npz(tmp_path / "x.npz", a=content)
    with pytest.raises(DataError, match=r"predictions .*x\.npz cannot be read") as raised:
        read_arrays(path, "predictions", {"a": "iu"})
    assert str(raised.value).isprintable()


def test_arrays_of_numpy_are_read_and_others_are_not_touched(tmp_path: Path) -> None:
    values = np.arange(12).reshape(3, 4)
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "x.npz", a=values, b=np.asfortranarray(values.astype(">u2")), c=values[:0])
        arrays = read_arrays(tmp_path / "x.npz", "x", {"a": "i", "b": "u", "c": "i"})
        assert (arrays["a"] == values).all()
        assert (arrays["b"] == values).all()
        assert arrays["c"].shape == (0, 4)
    with pytest.raises(DataError, match="no array 'd'"):
        read_arrays(tmp_path / "x.npz", "x", {"d": "i"})


def test_a_bomb_and_a_file_of_many_members_are_refused_before_they_are_unpacked(
    tmp_path: Path,
) -> None:
    bomb = npz(tmp_path / "bomb.npz", a=npy(header(shape=f"({1 << 17},)"), bytes(8 << 17)))
    assert bomb.stat().st_size < 10_000
    with pytest.raises(DataError, match="more than 100,000"):
        read_arrays(bomb, "x", {"a": "i"}, max_bytes=100_000)
    many = npz(tmp_path / "many.npz", **{f"m{i}": b"" for i in range(100)})
    with pytest.raises(DataError, match="100 members"):
        read_arrays(many, "x", {"m1": "i"})


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[" * 100_000 + "]" * 100_000, "nested"),
        ("[" * 65 + "]" * 65, "nested more than 64 deep"),
        ("[NaN]", "nan is not a finite number"),
        ("[-Infinity]", "not a finite number"),
        ("[1e999]", "not a finite number"),
        ("[" + "9" * 5000 + "]", "digits"),
        ("[" + "9" * 21 + "]", "more than 64 bits"),
        ('["\\ud800"]', "half of a surrogate pair"),
        ('{"\\udfff": 1}', "half of a surrogate pair"),
        (b"\xff\xfe\x00", "utf-16"),
        ("", "Expecting value"),
    ],
)
def test_json_beyond_the_limits_is_refused(
    tmp_path: Path, content: str | bytes, reason: str
) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=reason) as raised:
        read_json(path, "record")
    assert len(str(raised.value).splitlines()) == 1
    assert str(path) in str(raised.value)


def test_json_within_the_limits_is_read() -> None:
    assert parse_json("[" * 64 + "]" * 64)
    assert parse_json("[NaN]", finite=False)
    assert parse_json('["\\udc80 \\ud83d\\ude00"]') == [
        "\udc80 \U0001f600"
    ]  # a name that is not UTF-8


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        "../x",
        "a/../../x",
        "",
        "C:\\x",
        "a\\..\\x",
        "x\0",
        "out/x",
        "loop",
        "n" * 5000,
    ],
)
def test_a_path_that_leaves_its_folder_is_refused(tmp_path: Path, name: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "out").symlink_to(tmp_path)
    (root / "loop").symlink_to("loop")
    with pytest.raises(DataError):
        path_below(root, name, "x")
    (root / "in").mkdir()
    (root / "link").symlink_to("in")
    assert path_below(root, "link/x", "x") == root / "link" / "x"


def test_a_pipe_and_a_device_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        with pytest.raises(DataError):
            open_regular(path, "record", 100)


def png(width: int, height: int) -> bytes:
    """Return a PNG that states a size, with the pixels of one row."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    size = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = zlib.compress(bytes(100))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_only_a_png_of_the_size_of_a_figure_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
    jpeg = io.BytesIO()
    Image.new("RGB", (4, 4)).save(jpeg, "JPEG")
    for content in (postscript, jpeg.getvalue(), png(100_000, 100_000), png(4, 4)[:40], b""):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"x\.png cannot be read"):
            read_png(path, "image")
    path.write_bytes(png(9, 1))
    assert read_png(path, "image").size == (9, 1)


def test_yaml_has_plain_values_of_bounded_size_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.yaml"
    monkeypatch.setattr(yaml_text, "MAX_KEYS", 3)
    grown = "".join(
        f"- &{b} [{', '.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdef", "bcdefg", strict=True)
    )
    refused = {
        f"- &a [1]\n{grown}": "more than 100,000 values",
        "a: &a {b: 1, c: 2}\nd: {<<: *a, e: 3, f: 4}": "a mapping has more than 3 keys",
        "a: &a [*a]": "more than 100,000 values",
        "!!python/object/apply:os.system [exit]": "could not determine a constructor",
        "{a: 1, a: 2}": "key 'a' is given twice",
        "[" * 1000: "recursion",
        "[" * 100 + "]" * 100: "nested more than 64 deep",
        "a: .inf": "inf is not a finite number",
        "{[1]: 2}": "unhashable",
        "a: \xff": "",
    }
    for content, reason in refused.items():
        path.write_bytes(content.encode("latin-1"))
        with pytest.raises(DataError, match=r"a\.yaml cannot be read as YAML") as error:
            read_yaml(path, "study")
        assert reason in str(error.value)
        assert len(str(error.value).splitlines()) == 1
    monkeypatch.undo()
    path.write_text("base: &b {k: 1, l: [2, yes]}\nmore: {<<: *b, k: 3}\n")
    assert read_yaml(path, "study")["more"] == {"k": 3, "l": [2, True]}


def test_control_characters_and_direction_marks_become_visible() -> None:
    assert visible("a\nb\x1b[31m\u202ec\x85") == r"a\nb\x1b[31m\u202ec\x85"
    assert visible("Ünïcode 中文 ±") == "Ünïcode 中文 ±"


def test_reading_allocates_what_a_file_has_not_its_limit(tmp_path: Path) -> None:
    """With a limit of memory (`ulimit -v`), reading 16 GiB at once fails for a file of bytes."""
    path = tmp_path / "a.json"
    path.write_bytes(b"[1]")
    assert read_bytes(path, "file", 1 << 60) == b"[1]"
    with pytest.raises(DataError, match="more than"):
        read_bytes(Path("/proc/self/maps"), "file", 10)  # generated: its size is 0


def test_bytes_of_a_name_that_are_no_text_are_shown_as_escapes() -> None:
    assert visible("a\udc80\ud800") == r"a\udc80\ud800"
