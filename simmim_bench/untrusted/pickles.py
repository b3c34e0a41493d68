"""Read a pickle as data, by an interpreter of its opcodes that calls nothing that the pickle names.

A pickle is a program: it names classes and functions of any installed package, and calls them. Here a name is never
looked up. The few calls that configurations and state dicts need are made by functions of this program, which return
numbers, texts and containers; an instance of any other class becomes an `Opaque`, which keeps its class's name
alone. A call of another function is refused: any other program that reads the file would execute it.

https://docs.python.org/3/library/pickletools.html describes the opcodes, `pickletools.genops` parses them.
"""

from __future__ import annotations

import pickletools
import re
import struct
import sys
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO, Any, cast

# The pickle of a state dict of 1,000 weights has 40,000. An empty set takes 216 bytes and one opcode: at most 2 GB for
# a file that consists of them, read in about 10 s. As many entries may be copied, which few opcodes can do with a long
# list over and over.
MOST_OPCODES = 10_000_000
LONGEST_INTEGER = 2048  # bits; the state of NumPy's random generators has 128
# Python's hash of a larger integer is its remainder, so that keys can be chosen that have equal hashes.
LARGEST_KEY = 1 << 60

# Classes that are read as dictionaries of their items and attributes: the configurations of SimMIM and Swin (yacs),
# MAE, BEiT, DINO and timm (argparse), and OpenMMLab.
CONFIGURATIONS = (
    "yacs.config.CfgNode",
    "argparse.Namespace",
    "types.SimpleNamespace",
    "mmengine.config.config.ConfigDict",
    "addict.addict.Dict",
    "mmengine.logging.history_buffer.HistoryBuffer",
)
# Functions, and classes of the standard library, that only build a value, which no state dict needs.
INERT = (
    *(
        f"pathlib{module}.{flavour}Path"
        for module in ("", "._local")
        for flavour in ("", "Posix", "Windows", "Pure", "PurePosix", "PureWindows")
    ),
    *(f"datetime.{kind}" for kind in ("date", "datetime", "time", "timedelta", "timezone")),
    *(f"builtins.{kind}" for kind in ("complex", "object", "range", "slice")),
    "decimal.Decimal",
    "fractions.Fraction",
    "functools.partial",
    "re._compile",
    "torch.device",
    "uuid.UUID",
    "numpy.core.numeric._frombuffer",
    *(f"numpy.random._pickle.__{kind}_ctor" for kind in ("bit_generator", "generator")),
    "numpy.random._pickle.__randomstate_ctor",
)
# NumPy's types of numbers and their codes in `struct`.
NUMBERS = {
    **{"b1": "?", "f2": "e", "f4": "f", "f8": "d"},
    **{"i1": "b", "i2": "h", "i4": "i", "i8": "q", "u1": "B", "u2": "H", "u4": "I", "u8": "Q"},
}
LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
# What a damaged pickle raises in the interpreter and in pickletools: a stack without an argument, a memo without an
# entry, an argument of the wrong type, a text that is not UTF-8.
FAULTS = (IndexError, KeyError, TypeError, ValueError, AttributeError, OverflowError, struct.error)


class PickleError(Exception):
    """Report a pickle that is damaged or exceeds a limit; its argument names the fault."""


class CallError(PickleError):
    """Report a pickle that calls a function which no weights need; its argument is the function's name."""


@dataclass(frozen=True)
class Name:
    """A class or function that a pickle names, which is not looked up."""

    path: str


@dataclass(frozen=True, eq=False)
class Opaque:
    """A value that is not read; `kind` is its class or what else is known of it."""

    kind: str


@dataclass(eq=False)
class NumberType:
    """NumPy's type of a number: its code, such as "f8", and "<" or ">"."""

    code: str
    order: str = "<"


@dataclass(eq=False)
class Array:
    """An array of NumPy: its elements as bytes, in row-major order; None for an order or type that is not read."""

    shape: tuple[int, ...] = ()
    kind: NumberType | None = None
    content: bytes = b""


class Configuration(dict[Any, Any]):
    """A configuration of one of `CONFIGURATIONS`: its items, and the attributes that follow in the pickle."""


Call = Callable[..., Any]


class Bounded:
    """The rest of a file, read without memory for more than it holds: a pickle's lengths are not to be trusted."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self.file, self.size = file, size
        self.tell, self.readline = file.tell, file.readline

    def read(self, count: int) -> bytes:
        """Return the next bytes, fewer at the end of the file."""
        return self.file.read(max(0, min(count, self.size - self.file.tell())))


def read_pickle(
    file: IO[bytes],
    size: int,
    calls: Mapping[str, Call] | None = None,
    find_persistent: Callable[[Any], Any] | None = None,
) -> Any:
    """Read one pickle from a file's position, and leave the position after it.

    Args:
        size: of the file in bytes.
        calls: functions that stand for names besides those of this module; they get a pickle's values and may raise
            `PickleError` or one of `FAULTS`.
        find_persistent: returns the value of a persistent id; None if there are none.

    Returns:
        None, numbers, texts, bytes, tuples, lists, sets, dictionaries, the classes of this module, and what `calls`
        and `find_persistent` return. Containers may contain themselves, or one another many times.

    Raises:
        PickleError: the pickle is damaged, exceeds a limit, or calls another function.
    """
    try:
        machine = _Machine({**CALLS, **(calls or {})}, find_persistent, MOST_OPCODES + size // 4)
        return machine.run(Bounded(file, size))
    except FAULTS as error:
        raise PickleError(f"its pickle is damaged ({type(error).__name__})") from error
    except RecursionError as error:  # of values that are compared
        raise PickleError("its pickle is nested too deeply") from error


class _Machine:
    """The stack and memo of an unpickler. A mark begins a new stack, which no opcode can pop below."""

    def __init__(
        self, calls: Mapping[str, Call], find_persistent: Call | None, most_copied: int
    ) -> None:
        self.calls, self.find_persistent = calls, find_persistent
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.left = most_copied

    def run(self, file: Bounded) -> Any:
        for number, (opcode, argument, _) in enumerate(pickletools.genops(cast(IO[bytes], file))):
            if number > MOST_OPCODES:
                raise PickleError(f"its pickle has more than {MOST_OPCODES:,} opcodes")
            name = opcode.name
            if name in LITERALS:
                self.stack.append(_literal(argument))
            elif name == "STOP":
                return self.stack.pop()
            else:
                step = STEPS.get(name)
                if step is None:
                    raise PickleError(f"its pickle has the opcode {name}")
                step(self, argument)
        raise PickleError("its pickle has no end")

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def push_mark(self) -> None:
        self.below.append(self.stack)
        self.stack = []

    def call(self, function: Any, arguments: Any) -> Any:
        """Return the value of a call; `Opaque` for an instance of a class."""
        if not isinstance(function, Name) or not isinstance(arguments, tuple):
            raise PickleError("its pickle calls something that is not a function")
        known = self.calls.get(function.path)
        if known is not None:
            self.spend(*arguments)
            return known(*arguments)
        if function.path in INERT or _is_class(function.path):
            return Opaque(function.path)
        raise CallError(function.path)

    def new(self, cls: Any, arguments: Any) -> Any:
        """Return an instance of a class, whose `__init__` the pickle does not call."""
        if not isinstance(cls, Name) or not isinstance(arguments, tuple):
            raise PickleError("its pickle makes an instance of something that is not a class")
        known = self.calls.get(cls.path)
        if known is None:
            return Opaque(cls.path)
        self.spend(*arguments)
        return known(*arguments)

    def spend(self, *values: Any) -> None:
        """Count the entries of values that are copied; eight bytes of a text count as one."""
        for value in values:
            if isinstance(value, str | bytes):
                self.left -= len(value) // 8
            elif isinstance(value, list | tuple | dict | set):
                self.left -= len(value)
        if self.left < 0:
            raise PickleError("its pickle copies its content over and over")

    def append(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Opaque):
            raise PickleError("its pickle appends to something that is not a list")

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, dict):
            target.update(_pairs(items))
        elif not isinstance(target, Opaque):
            raise PickleError("its pickle adds an entry to something that is not a dictionary")

    def add_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, set):
            target.update(map(_key, items))
        elif not isinstance(target, Opaque):
            raise PickleError("its pickle adds to something that is not a set")

    def build(self, state: Any) -> None:
        """Set the attributes of an instance, which configurations alone keep."""
        target = self.stack[-1]
        if isinstance(target, Configuration):
            for part in state if isinstance(state, tuple) else (state,):
                self.spend(part)
                for key, value in (part or {}).items():
                    target.setdefault(_key(key), value)
        elif isinstance(target, NumberType):
            target.order = str(state[1])
        elif isinstance(target, Array):
            _, shape, kind, columns_first, content = state
            if isinstance(content, bytes) and isinstance(kind, NumberType) and not columns_first:
                target.shape, target.kind, target.content = shape, kind, content
        elif not isinstance(target, Opaque | dict):
            raise PickleError("its pickle sets attributes of something that has none")

    def persistent(self, key: Any) -> Any:
        if self.find_persistent is None:
            raise PickleError("its pickle refers to a value outside")
        return self.find_persistent(key)

    def replace(self, count: int, build: Callable[..., Any]) -> None:
        """Replace the last values of the stack by a value that is built of them."""
        if len(self.stack) < count:
            raise PickleError("its pickle lacks a value")
        values = self.stack[-count:]
        self.stack[-count:] = [build(*values)]


def _literal(value: Any) -> Any:
    if isinstance(value, int) and value.bit_length() > LONGEST_INTEGER:
        raise PickleError(f"its pickle has an integer of more than {LONGEST_INTEGER:,} bits")
    return bytes(value) if isinstance(value, bytearray) else value


def _text(argument: str) -> str | bytes:
    """Return a string of Python 2, which pickletools decodes as Latin-1."""
    content = argument.encode("latin-1")
    try:
        return content.decode()
    except UnicodeDecodeError:
        return content


def _key(value: Any) -> Any:
    """Return a key of a dictionary or set, whose hash takes no longer than reading it; others are not read."""
    if isinstance(value, str | bytes | float | Name | Opaque) or value is None:
        return value
    if isinstance(value, int) and abs(value) < LARGEST_KEY:
        return value
    return Opaque(f"key of type {type(value).__name__}")


def _pairs(items: list[Any]) -> dict[Any, Any]:
    return {_key(key): value for key, value in zip(items[::2], items[1::2], strict=True)}


def _dictionary(content: Any = ()) -> dict[Any, Any]:
    """Return the dictionary of another, or of pairs."""
    pairs = content.items() if isinstance(content, dict) else content
    if not isinstance(pairs, list | tuple | type({}.items())):
        raise PickleError("its pickle makes a dictionary of something else")
    return {_key(key): value for key, value in pairs}


def _name(path: str) -> Name:
    if not re.fullmatch(r"[\w.]{1,256}", path):
        raise PickleError("its pickle has a name that is not Python's")
    return Name(re.sub(r"^numpy\._core\.", "numpy.core.", path))


def _old_name(argument: str) -> Name:
    """Return the name of a module and an object in it, which Python 2 may have named otherwise."""
    module, _, name = argument.partition(" ")
    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
    return _name(f"{module}.{name}")


def _is_class(path: str) -> bool:
    """Return whether a name is, by its spelling, a class of a package (PEP 8); the standard library is not trusted."""
    last = path.rpartition(".")[2]
    return last.lstrip("_")[:1].isupper() and path.split(".")[0] not in sys.stdlib_module_names


def _attribute(value: Name | Opaque, name: str) -> Name:
    return _name(f"{value.path if isinstance(value, Name) else value.kind}.{name}")


def _number(kind: Any, content: Any = b"") -> Any:
    """Return a number of NumPy as Python's."""
    if not isinstance(kind, NumberType) or kind.code not in NUMBERS:
        return Opaque("numpy.generic")
    order = kind.order if kind.order == ">" else "<"  # "|" for one byte
    return struct.unpack(order + NUMBERS[kind.code], content)[0]


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """Return bytes, which protocol 2 writes as a text."""
    if encoding not in ("latin1", "latin-1"):
        raise PickleError("its pickle encodes a text otherwise than Python does")
    return text.encode("latin-1")


def _bytes(content: Any = b"", encoding: str = "latin1") -> bytes:
    return _encode(content, encoding) if isinstance(content, str) else bytes(memoryview(content))


def _configuration(*content: Any) -> Configuration:
    return Configuration(_dictionary(content[0]) if content else {})


CALLS: dict[str, Call] = {
    "collections.OrderedDict": _dictionary,
    "collections.Counter": _dictionary,
    "collections.defaultdict": lambda factory=None, content=(): _dictionary(content),
    "collections.deque": lambda content=(), length=None: list(content),
    "builtins.set": lambda content=(): set(map(_key, content)),
    "builtins.frozenset": lambda content=(): set(map(_key, content)),
    "builtins.list": lambda content=(): list(content),
    "builtins.dict": _dictionary,
    "builtins.bytes": _bytes,
    "builtins.bytearray": _bytes,
    "builtins.getattr": _attribute,
    "_codecs.encode": _encode,
    "numpy.dtype": lambda code, align=False, copy=True: NumberType(str(code)),
    "numpy.core.multiarray.scalar": _number,
    "numpy.core.multiarray._reconstruct": lambda cls, shape, code: Array(),
    **dict.fromkeys(CONFIGURATIONS, _configuration),
}


def _reconstruct(machine: _Machine, cls: Any, arguments: Any) -> Any:
    """Apply REDUCE; the functions by which older protocols make an instance stand for it."""
    if isinstance(cls, Name) and cls.path.startswith("copyreg.") and isinstance(arguments, tuple):
        if cls.path == "copyreg._reconstructor":  # (class, its base, the base's value)
            content = arguments[2]
            return machine.new(arguments[0], (content,) if isinstance(content, dict) else ())
        if cls.path == "copyreg.__newobj__":
            return machine.new(arguments[0], arguments[1:])
        if cls.path == "copyreg.__newobj_ex__":
            return machine.new(arguments[0], arguments[1])
    return machine.call(cls, arguments)


def _object(machine: _Machine) -> Any:
    cls, *arguments = machine.pop_mark()
    return machine.call(cls, tuple(arguments))


def _put(machine: _Machine, number: int) -> None:
    machine.memo[number] = machine.stack[-1]


def _get(machine: _Machine, number: int) -> None:
    machine.push(machine.memo[number])


def _string(machine: _Machine, argument: str) -> None:
    machine.push(_text(argument))


Step = Callable[[_Machine, Any], object]
STEPS: dict[str, Step] = {
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _get),
    **dict.fromkeys(("STRING", "BINSTRING", "SHORT_BINSTRING"), _string),
    **dict.fromkeys(("PROTO", "FRAME"), lambda m, a: None),
    "MEMOIZE": lambda m, a: m.memo.__setitem__(len(m.memo), m.stack[-1]),
    "NONE": lambda m, a: m.push(None),
    "NEWTRUE": lambda m, a: m.push(True),
    "NEWFALSE": lambda m, a: m.push(False),
    "EMPTY_TUPLE": lambda m, a: m.push(()),
    "EMPTY_LIST": lambda m, a: m.push([]),
    "EMPTY_DICT": lambda m, a: m.push({}),
    "EMPTY_SET": lambda m, a: m.push(set()),
    "MARK": lambda m, a: m.push_mark(),
    "POP": lambda m, a: m.stack.pop() if m.stack else m.pop_mark(),
    "POP_MARK": lambda m, a: m.pop_mark(),
    "DUP": lambda m, a: m.push(m.stack[-1]),
    "TUPLE": lambda m, a: m.push(tuple(m.pop_mark())),
    "TUPLE1": lambda m, a: m.replace(1, lambda *values: values),
    "TUPLE2": lambda m, a: m.replace(2, lambda *values: values),
    "TUPLE3": lambda m, a: m.replace(3, lambda *values: values),
    "LIST": lambda m, a: m.push(m.pop_mark()),
    "DICT": lambda m, a: m.push(_pairs(m.pop_mark())),
    "FROZENSET": lambda m, a: m.push(set(map(_key, m.pop_mark()))),
    "APPEND": lambda m, a: m.append([m.stack.pop()]),
    "APPENDS": lambda m, a: m.append(m.pop_mark()),
    "SETITEM": lambda m, a: m.set_items([m.stack.pop(-2), m.stack.pop()]),
    "SETITEMS": lambda m, a: m.set_items(m.pop_mark()),
    "ADDITEMS": lambda m, a: m.add_items(m.pop_mark()),
    "GLOBAL": lambda m, a: m.push(_old_name(a)),
    "STACK_GLOBAL": lambda m, a: m.replace(2, lambda *parts: _name(".".join(parts))),
    "REDUCE": lambda m, a: m.replace(2, lambda *call: _reconstruct(m, *call)),
    "NEWOBJ": lambda m, a: m.replace(2, m.new),
    "NEWOBJ_EX": lambda m, a: m.replace(3, lambda cls, values, named: m.new(cls, values)),
    "INST": lambda m, a: m.push(m.call(_old_name(a), tuple(m.pop_mark()))),
    "OBJ": lambda m, a: m.push(_object(m)),
    "BUILD": lambda m, a: m.build(m.stack.pop()),
    "BINPERSID": lambda m, a: m.push(m.persistent(m.stack.pop())),
}
