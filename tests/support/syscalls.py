"""Observe the file operations of a process and let chosen ones fail, by Linux's seccomp user notification.

The kernel stops every thread of the process at a system call that changes files, and asks this process what to do:
continue, or return an error. So the calls of every library are seen, also of those that are not written in Python
(safetensors, torch, PIL, hotcoco), and no code of ours is replaced. Not seen: stores through a writable memory map.

Linux 5.5 or later on x86-64; other systems have other numbers of system calls.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import platform
import select
import struct
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

# include/uapi/linux/{seccomp,filter,audit,prctl}.h, arch/x86/entry/syscalls/syscall_64.tbl
PR_SET_NO_NEW_PRIVS, SYS_SECCOMP, AUDIT_ARCH_X86_64 = 38, 317, 0xC000003E
SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER = 1, 8
RET_ALLOW, RET_USER_NOTIF = 0x7FFF0000, 0x7FC00000
NOTIF_RECEIVE, NOTIF_SEND, NOTIF_CONTINUE = 0xC0502100, 0xC0182101, 1
LOAD, JUMP_IF_EQUAL, JUMP_IF_SET, RETURN = 0x20, 0x15, 0x45, 0x06
NUMBER_OFFSET, ARCH_OFFSET, FLAGS_OFFSET = 0, 4, 16 + 8 * 2  # in struct seccomp_data

# Where a call's arguments hold the file: a descriptor, a path, or a descriptor and a path relative to it.
CALLS = {
    1: ("write", "fd"),
    18: ("write", "fd"),  # pwrite64
    20: ("write", "fd"),  # writev
    296: ("write", "fd"),  # pwritev
    40: ("write", "fd"),  # sendfile, to its first argument
    326: ("write", "to"),  # copy_file_range, to its third argument
    74: ("fsync", "fd"),
    75: ("fsync", "fd"),  # fdatasync
    77: ("truncate", "fd"),
    76: ("truncate", "path"),
    285: ("allocate", "fd"),
    82: ("rename", "path"),
    264: ("rename", "at"),
    316: ("rename", "at"),
    83: ("mkdir", "path"),
    258: ("mkdir", "at"),
    84: ("rmdir", "path"),
    86: ("link", "path"),
    265: ("link", "at"),
    87: ("unlink", "path"),
    263: ("unlink", "at"),
    88: ("symlink", "target"),
    90: ("chmod", "path"),
    91: ("chmod", "fd"),
    268: ("chmod", "at"),
    257: ("open", "at"),  # openat, with the flags that the filter tests
}
OPENAT = 257
NEEDS_SPACE = ("open", "write", "fsync", "truncate", "allocate", "mkdir", "link", "symlink")
AT_FDCWD = -100


class _Instruction(ctypes.Structure):
    _fields_ = (
        ("code", ctypes.c_ushort),
        ("if_true", ctypes.c_ubyte),
        ("if_false", ctypes.c_ubyte),
        ("value", ctypes.c_uint32),
    )


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.POINTER(_Instruction)))


@dataclass(frozen=True)
class Operation:
    """A file operation, with its path relative to the observed folder."""

    name: str
    path: str

    def __str__(self) -> str:
        return f"{self.name} {self.path}"


@dataclass(frozen=True)
class Call:
    """A system call that waits for an answer."""

    id: int
    thread: int
    operation: Operation


def is_supported() -> bool:
    """Return whether this machine can observe a process; the answer of a trial in a child process."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return False
    child = os.fork()
    if child == 0:
        with suppress(OSError):
            install()
            os._exit(0)
        os._exit(1)
    return os.waitpid(child, 0)[1] == 0


def install() -> int:
    """Stop this process and its children at every call of `CALLS`; return the listener's descriptor.

    Raises:
        OSError: the system does not allow it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    program = _build_filter()
    filter_ = _Program(len(program), program)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
    listener: int = libc.syscall(
        SYS_SECCOMP,
        SECCOMP_SET_MODE_FILTER,
        SECCOMP_FILTER_FLAG_NEW_LISTENER,
        ctypes.byref(filter_),
    )
    if listener < 0:
        raise OSError(ctypes.get_errno(), "seccomp")
    return listener


def _build_filter() -> ctypes.Array[_Instruction]:
    """Return the filter: reads and opening for reading pass without a question."""
    numbers = [number for number in CALLS if number != OPENAT]
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT
    n = len(numbers)
    lines = [
        (LOAD, 0, 0, ARCH_OFFSET),
        (JUMP_IF_EQUAL, 0, n + 4, AUDIT_ARCH_X86_64),
        (LOAD, 0, 0, NUMBER_OFFSET),
        (JUMP_IF_EQUAL, 0, 2, OPENAT),
        (LOAD, 0, 0, FLAGS_OFFSET),
        (JUMP_IF_SET, n + 1, n, writing),
        *((JUMP_IF_EQUAL, n - i, 0, number) for i, number in enumerate(numbers)),
        (RETURN, 0, 0, RET_ALLOW),
        (RETURN, 0, 0, RET_USER_NOTIF),
    ]
    return (_Instruction * len(lines))(*(_Instruction(*line) for line in lines))


def calls(listener: int, process: int, root: Path) -> Iterator[Call]:
    """Yield the calls of a process on files below `root`; the others, and its children's, continue.

    Every yielded call has to be answered by `proceed` or `fail`. Ends with the last process of the filter.
    """
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    while True:
        (_, event), *_ = poll.poll()
        if not event & select.POLLIN:
            return
        notice = bytearray(80)
        try:
            fcntl.ioctl(listener, NOTIF_RECEIVE, notice)
        except OSError:  # killed meanwhile
            continue
        id_, thread, _, number, _, _, *arguments = struct.unpack("=QIIiIQ6Q", notice)
        name, where = CALLS[number]
        try:
            path = _path(thread, where, arguments) if _process_of(thread) == process else None
        except OSError:  # the thread has ended
            path = None
        if path is None or not path.is_relative_to(root):
            proceed(listener, id_)
        else:
            yield Call(id_, thread, Operation(name, path.relative_to(root).as_posix()))


def proceed(listener: int, id_: int) -> None:
    """Continue a call."""
    _answer(listener, id_, 0, NOTIF_CONTINUE)


def fail(listener: int, id_: int, number: int) -> None:
    """Make a call return an error."""
    _answer(listener, id_, -number, 0)


def _answer(listener: int, id_: int, error: int, flags: int) -> None:
    with suppress(OSError):  # the thread was killed meanwhile
        fcntl.ioctl(listener, NOTIF_SEND, struct.pack("=QqiI", id_, 0, error, flags))


def _process_of(thread: int) -> int:
    text = Path(f"/proc/{thread}/status").read_text()
    return int(text.partition("Tgid:")[2].split(maxsplit=1)[0])


def _path(thread: int, where: str, arguments: list[int]) -> Path | None:
    """Return the absolute path that a call is about; None where it is not a file."""
    if where in ("fd", "to"):
        link = os.readlink(f"/proc/{thread}/fd/{arguments[0 if where == 'fd' else 2]}")
        return Path(link) if link.startswith("/") else None
    if where == "path":
        return _resolve(thread, AT_FDCWD, arguments[0])
    if where == "target":
        return _resolve(thread, AT_FDCWD, arguments[1])
    return _resolve(thread, ctypes.c_int(arguments[0] & 0xFFFFFFFF).value, arguments[1])


def _resolve(thread: int, folder: int, address: int) -> Path:
    with open(f"/proc/{thread}/mem", "rb", buffering=0) as memory:
        memory.seek(address)
        # A page at a time: the next page may not be mapped.
        text = memory.read(4096 - address % 4096)
        if b"\0" not in text:
            text += memory.read(4096)
    name = text.partition(b"\0")[0].decode(errors="surrogateescape")
    base = os.readlink(f"/proc/{thread}/{'cwd' if folder == AT_FDCWD else f'fd/{folder}'}")
    return Path(os.path.normpath(os.path.join(base, name)))
