"""Seeded mutations of files: of any bytes, and of the parts of JSON, NumPy's arrays, zip files and pickles."""

from __future__ import annotations

import copy
import io
import json
import pickletools
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile

from simmim_bench.untrusted.pickles import CALLS, INERT
from simmim_bench.untrusted.tensors import CALLS as TENSOR_CALLS

Mutation = Callable[[Random, bytes, Sequence[bytes]], bytes]

# Values at which readers of numbers break: limits of signed and unsigned integers, little- and big-endian.
EXTREMES = [
    value.to_bytes(size, order, signed=value < 0)
    for size in (1, 2, 4, 8)
    for value in (0, 1, -1, 2 ** (8 * size - 1) - 1, -(2 ** (8 * size - 1)))
    for order in ("little", "big")
]
# Values at which code that computes, formats or looks up breaks.
VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 0.5, 1e-320, 1e308, 2**31, 2**53, 2**63, 2**64, 10**30, 10**400),
    *(float("nan"), float("inf"), -float("inf"), "", "a", "0", "..", "/", "\n", "\0", "\udc80"),
    *("\ud800", "\x1b[1m", "1e9", "x" * 5000, [], {}, [[]], [{}], {"": []}, [0] * 50),
]
# Opcodes and values of pickles: https://docs.python.org/3/library/pickletools.html
SNIPPETS = [
    *(opcode.code.encode("latin-1") for opcode in pickletools.opcodes if opcode.arg is None),
    *(
        b"c" + b"\n".join(name.encode().rsplit(b".", 1)) + b"\n"
        for name in (*CALLS, *TENSOR_CALLS, *INERT)
    ),
    *(b"I%d\n" % value for value in (0, 1, -1, 2, 4, 2**31, 2**40, 2**63, 2**70, 2**3000)),
    *(b"F%s\n" % value for value in (b"nan", b"inf", b"1e308")),
    *(
        b"X%s%s" % (len(text).to_bytes(4, "little"), text)
        for text in (b"", b"a", b"storage", b"\xff", b"a\nb")
    ),
    *(
        b"cnowhere\nName\n",
        b"(S'x'\n)",
        b"N)R",
        b"(K\1K\2t",
        b"]K\1a",
        b"}K\1K\2s",
        b"G\x7f\xf8" + bytes(6),
        b"ccopyreg\n_reconstructor\n(cnowhere\nName\ncbuiltins\nobject\nNtR",
        b"ccopyreg\n_reconstructor\n(cargparse\nNamespace\ncbuiltins\ndict\n}K\1K\2stR",
        b"ccopyreg\n__newobj__\n(cnowhere\nName\nK\1tR",
        b"ccopyreg\n__newobj_ex__\n(ccollections\nOrderedDict\n)}tR",
    ),
]


def mutate_bytes(random: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Change, remove, repeat or insert a few bytes, or continue with a part of another content."""
    data = bytearray(content)
    for _ in range(random.randint(1, 4)):
        at, length = random.randint(0, len(data)), random.randint(1, 16)
        change = random.randrange(6)
        if change == 0 and at < len(data):
            data[at] ^= 1 << random.randrange(8)
        elif change == 1:
            extreme = random.choice(EXTREMES)
            data[at : at + len(extreme)] = extreme
        elif change == 2:
            del data[at : at + length]
        elif change == 3:
            data[at:at] = data[at : at + length] * random.randint(1, 4)
        elif change == 4:
            data[at:at] = random.randbytes(length)
        else:
            other = random.choice(others)
            start = random.randint(0, len(other))
            data[at : at + length] = other[start : start + length]
    return bytes(data)


def mutate_zip(
    random: Random,
    content: bytes,
    others: Sequence[bytes],
    *,
    likely: str = "",
    mutate: Mutation = mutate_bytes,
) -> bytes:
    """Mutate a member of a zip file, whose directory and checksums stay right; in one of four cases, any bytes.

    Args:
        likely: end of the names of members that are chosen more often.
        mutate: changes the content of a member, given those of all members.
    """
    if random.random() < 0.25:
        return mutate_bytes(random, content, others)
    packed = io.BytesIO()
    try:
        with ZipFile(io.BytesIO(content)) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        names = sorted(members, key=len)
        name = random.choice([n for n in names if likely and n.endswith(likely)] * 5 + names)
        members[name] = mutate(random, members[name], list(members.values()))
        with ZipFile(packed, "w", random.choice((ZIP_STORED, ZIP_DEFLATED))) as archive:
            for entry, data in members.items():
                archive.writestr(entry, data)
    except Exception:  # a file that was damaged before
        return mutate_bytes(random, content, others)
    return packed.getvalue()


def mutate_json(random: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Replace, remove or copy values of a JSON text; change its bytes in one of ten cases."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return mutate_bytes(random, content, others)
    if random.random() < 0.1:
        return mutate_bytes(random, content, others)
    for _ in range(random.randint(1, 3)):
        value = change_value(random, value)
    try:
        return json.dumps(value).encode()
    except RecursionError:  # nested again and again
        return mutate_bytes(random, content, others)


def change_value(random: Random, root: Any) -> Any:
    """Replace, remove, copy, nest or repeat one value of lists and dictionaries; return the changed root."""
    places: list[tuple[Any, Any]] = []
    level = [root] if isinstance(root, dict | list) else []
    while level:
        node = level.pop()
        keys = list(node) if isinstance(node, dict) else range(len(node))
        places += [(node, key) for key in keys]
        level += [node[key] for key in keys if isinstance(node[key], dict | list)]
    if not places or random.random() < 0.01:
        return copy.deepcopy(random.choice(VALUES))
    node, key = random.choice(places)
    change = random.randrange(6)
    if change == 0:
        del node[key]
    elif change == 1:
        other, name = random.choice(places)
        try:
            node[key] = json.loads(json.dumps(other[name]))
        except (
            KeyError,
            IndexError,
            ValueError,
            RecursionError,
        ):  # removed before, or nested too deeply
            node[key] = None
    elif change == 2:
        for _ in range(random.choice((2, 70, 400))):
            node[key] = [node[key]]
    elif change == 3 and isinstance(node, list):
        node += node[: random.randint(1, 20)]
    else:
        node[key] = copy.deepcopy(random.choice(VALUES))
    return root


def write_files(path: Path, folder: Path, names: Iterable[str]) -> None:
    """Write the files whose contents a JSON object has by name; a list makes lines, a text is written as it is.

    Args:
        names: of the files; one that the object lacks is removed.
    """
    try:
        contents = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        contents = path.read_text(errors="replace")
    for name in names:
        content = contents.get(name) if isinstance(contents, dict) else contents
        lines = content if isinstance(content, list) else [content]
        (folder / name).unlink(missing_ok=True)
        with suppress(RecursionError):
            text = "\n".join(ln if isinstance(ln, str) else json.dumps(ln) for ln in lines)
            if content is not None:
                (folder / name).write_text(text, errors="surrogatepass")


def mutate_array(random: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Mutate an .npy file; in two of five cases its values alone, behind NumPy's header of 128 bytes."""
    if random.random() >= 0.4 or len(content) <= 128:
        return mutate_bytes(random, content, others)
    at = random.randrange(128, len(content))
    extreme = random.choice(EXTREMES)
    return content[:at] + (extreme + content[at + len(extreme) :])[: len(content) - at]


def mutate_pickle(random: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Change, remove, repeat, move or insert opcodes of the pickles with which a content begins."""
    parts = _split_pickles(content)
    if len(parts) < 2 or random.random() < 0.2:
        return mutate_bytes(random, content, others)
    *opcodes, rest = parts
    for _ in range(random.randint(1, 3)):
        at, other = random.randrange(len(opcodes)), random.randrange(len(opcodes))
        change = random.randrange(6)
        if change == 0:
            opcodes[at] = mutate_bytes(random, opcodes[at], others)
        elif change == 1:
            opcodes[at] = b""
        elif change == 2:
            opcodes[at], opcodes[other] = opcodes[other], opcodes[at]
        elif change == 3:
            opcodes[at] += b"".join(opcodes[other : other + random.randint(1, 8)])
        elif change == 4:
            opcodes[at] += b"".join(random.choices(SNIPPETS, k=random.randint(1, 3)))
        else:
            opcodes[at] = random.choice(SNIPPETS)
    return b"".join([*opcodes, rest])


def _split_pickles(content: bytes) -> list[bytes]:
    """Return the opcodes of the pickles with which a content begins, and what follows them."""
    file, starts = io.BytesIO(content), [0]
    with suppress(Exception), warnings.catch_warnings():  # what is no pickle follows them
        warnings.simplefilter("ignore")
        while file.tell() < len(content):
            for _ in pickletools.genops(file):
                starts.append(file.tell())
    return [
        content[start:end] for start, end in zip(starts, [*starts[1:], len(content)], strict=True)
    ]
