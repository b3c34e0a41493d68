"""Check the machine: processors, GPUs, bfloat16, memory, shared memory, disk. torch must be importable."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import torch

from simmim_bench.diagnostics.findings import Finding
from simmim_bench.diagnostics.threads import check_threads
from simmim_bench.display import plural
from simmim_bench.runs.environment import cuda_versions
from simmim_bench.training.memory import GIB, available_memory
from simmim_bench.training.precision import MIN_WIDTH, decide_precision, default_precision

CPU = torch.device("cpu")
BF16_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")  # x86, x86's matrix units, ARM
HIDING = "CUDA_VISIBLE_DEVICES"
GET_STARTED = "PyTorch's page 'Get Started' has the command"
SHARED_MEMORY = Path("/dev/shm")  # data-loading workers hand over their batches in it
# What the workers of one GPU fill at most with SimMIM's config: 8 workers, each with 2 batches of 128 images, the
# GPU's share, of 3 x 224 x 224 bytes. Docker gives a container 64 MiB by default.
SHARED_PER_GPU = 8 * 2 * 128 * 3 * 224 * 224


def check_machine(folder: Path) -> list[Finding]:
    """Check the machine.

    Args:
        folder: the folder that runs will be written to; it need not exist yet.
    """
    return [
        _python(),
        _processor(),
        check_threads(),
        *check_gpus(),
        _memory(),
        *check_shared_memory(SHARED_MEMORY, max(1, torch.cuda.device_count())),
        _disk(folder),
    ]


def _finding(name: str, said: str, /, **facts: object) -> Finding:
    return Finding(group="machine", name=name, state="ok", said=said, facts=facts)


def _python() -> Finding:
    version, system = platform.python_version(), platform.platform()
    return _finding(
        "python",
        f"{version} at {sys.executable}, {system}",
        version=version,
        executable=sys.executable,
        platform=system,
    )


def _processor() -> Finding:
    """Report the processor, and by a trial whether bfloat16 is faster on it; flags do not tell."""
    text = ""
    with suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    named = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    listed = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    model = named[1] if named else platform.processor() or platform.machine()
    flags = [flag for flag in BF16_FLAGS if listed and flag in listed[1].split()]
    precision = decide_precision("auto", CPU, MIN_WIDTH)
    return _finding(
        "processor",
        f"{model}; bfloat16 instructions: {', '.join(flags) or 'none'}; measured: precision=auto is "
        f"{precision} for models with {MIN_WIDTH} or more channels",
        model=model,
        bf16_flags=flags,
        precision=precision,
    )


def check_gpus() -> list[Finding]:
    """Check the GPUs: those that the driver lists, and those that torch can compute on."""
    build = f"torch {torch.__version__}, built for " + (
        f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPUs only"
    )
    libraries = [f"{name} {v}" for name, v in cuda_versions().items() if name != "CUDA"]
    build = ", ".join([build, *libraries])
    if torch.cuda.is_available():
        return [_gpu(number, build) for number in range(torch.cuda.device_count())]
    listed = _query_driver("--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
    facts = {"torch": torch.__version__, "built_for_cuda": torch.version.cuda, "listed": listed}
    if not listed:
        return [_finding("gpu", f"none; {build}", **facts)]
    what = f"nvidia-smi lists {'; '.join(listed)}, but torch sees no GPU"
    hidden = os.environ.get(HIDING)
    if hidden is not None and (not hidden or hidden.startswith("-")):
        return [
            Finding(
                group="machine",
                name="gpu",
                state="warning",
                said=f"{what}: {HIDING} is '{hidden}'",
                remedy=f"unset {HIDING}",
                facts=facts,
            )
        ]
    if torch.version.cuda is None:
        why, remedy = build, f"install a torch and torchvision built for CUDA; {GET_STARTED}"
    else:
        why = "no device answers"
        try:
            torch.cuda.init()
        except (RuntimeError, AssertionError) as error:
            why = str(error).splitlines()[0]
        driven = re.search(r"CUDA Version: *([\d.]+)", " ".join(_query_driver()))
        older = f"CUDA {driven[1]}" if driven else "the driver's CUDA version"
        remedy = (
            f"update the NVIDIA driver to one for CUDA {torch.version.cuda}, or install a torch and "
            f"torchvision built for {older} or older; {GET_STARTED}"
        )
    return [
        Finding(
            group="machine",
            name="gpu",
            state="problem",
            said=f"{what}: {why}",
            remedy=remedy,
            facts=facts,
        )
    ]


def _query_driver(*arguments: str) -> list[str]:
    """Return the lines that nvidia-smi prints; none if it is missing or finds no driver."""
    try:
        done = subprocess.run(
            ["nvidia-smi", *arguments], capture_output=True, text=True, check=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]


def _gpu(number: int, build: str) -> Finding:
    """Check one GPU by computing on it: torch may lack kernels for old or new ones."""
    properties = torch.cuda.get_device_properties(number)
    driver = _query_driver("--query-gpu=driver_version", "--format=csv,noheader")
    name, total = properties.name, properties.total_memory
    facts = {
        "name": name,
        "memory": total,
        "capability": f"{properties.major}.{properties.minor}",
        "driver": driver[0] if driver else None,
        "torch": torch.__version__,
        "built_for_cuda": torch.version.cuda,
        "libraries": cuda_versions(),
    }
    said = f"{name}, {total / GIB:.1f} GiB"
    try:
        device = torch.device("cuda", number)
        torch.ones(8, 8, device=device).mm(torch.ones(8, 8, device=device)).sum().item()
        with torch.cuda.device(device):
            free, auto = (
                available_memory(device),
                default_precision("auto", device, allow_fp16=True),
            )
    except RuntimeError as error:
        return Finding(
            group="machine",
            name=f"gpu {number}",
            state="problem",
            said=f"{said}, torch cannot compute on it: {str(error).splitlines()[0]}",
            remedy=f"install a torch and torchvision with kernels for it ({build}); {GET_STARTED}",
            facts=facts,
        )
    return _finding(
        f"gpu {number}",
        f"{said}, {(free or 0) / GIB:.1f} free; precision=auto is {auto}; driver "
        f"{facts['driver'] or 'unknown'}, {build}",
        **facts,
        free=free,
        precision=auto,
    )


def _memory() -> Finding:
    left = available_memory(CPU)
    said = "unknown on this system" if left is None else f"{left / GIB:.1f} GiB available"
    return _finding("memory", said, available=left)


def check_shared_memory(folder: Path, gpus: int) -> list[Finding]:
    """Check that a container's shared memory holds the batches of data-loading workers.

    Args:
        folder: where the shared memory is mounted; without it, as on macOS, nothing is checked.
        gpus: GPUs, or processes, whose workers share it.
    """
    try:
        size = shutil.disk_usage(folder)
    except OSError:
        return []
    wanted = gpus * SHARED_PER_GPU
    said = f"{size.free / GIB:.2f} GiB of {size.total / GIB:.2f} free in {folder}"
    facts = {"folder": str(folder), "free": size.free, "total": size.total, "wanted": wanted}
    if size.free >= wanted:
        return [_finding("shared memory", said, **facts)]
    return [
        Finding(
            group="machine",
            name="shared memory",
            state="warning",
            said=f"{said}: data-loading workers of {plural(gpus, 'process', 'processes')} may need "
            f"{wanted / GIB:.2f} GiB, and end with a bus error without it",
            remedy="start the container with --ipc=host or --shm-size=16g, or use -o num_workers=0",
            facts=facts,
        )
    ]


def free_disk(folder: Path) -> tuple[Path, int]:
    """Return the nearest existing folder, and the free bytes of its file system."""
    existing = folder.absolute()
    while not existing.is_dir():
        existing = existing.parent
    return existing, shutil.disk_usage(existing).free


def _disk(folder: Path) -> Finding:
    existing, free = free_disk(folder)
    said = f"{free / GIB:.1f} GiB free in {existing}"
    return _finding("disk", said, folder=str(existing), free=free)
