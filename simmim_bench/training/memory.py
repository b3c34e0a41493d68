"""Memory of training: what a step takes, estimated from one forward pass, what is free, and the peak.

`StepMemory` turns the estimate into the number of gradient-accumulation steps of a batch.
"""

from __future__ import annotations

import ctypes
import gc
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from simmim_bench.models.buffers import preserve_buffers

GIB = 2**30
# A container's memory limit and use: cgroup version 2, version 1.
CONTAINER = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
    ),
)
COPIES = 4  # of a trained weight: the weight, its gradient, AdamW's two moments
# Ours: the backward pass allocates while it frees the saved activations. On an H200 the peak of pretraining grew by
# 0.95 of the saved bytes per image for ViT-B, and by 1.01 for Swin-B (benchmarks/results/gpu_check_h200.json).
BACKWARD = 1.1
USABLE = 0.9  # ours: fraction of the free memory, as allocators leave gaps
# Ours: fraction of a GPU's memory that a trial may take; NCCL, wrappers and gaps of the allocator come on top.
TRIAL_FRACTION = 0.92


@dataclass(frozen=True, kw_only=True)
class StepMemory:
    """The memory of a training step, in bytes.

    Attributes:
        fixed: weights, gradients and AdamW's moments.
        per_image: activations that the forward pass saves per image for the backward pass.
        shared: what it saves for any number of images: position biases, and the weights' copies of autocast.
        available: free memory of the device; None where the system does not report it.
    """

    fixed: int
    per_image: float
    shared: float = 0.0
    available: int | None

    def needed(self, images: int) -> float:
        """Estimate the bytes of a step whose forward pass has `images` images."""
        return self.fixed + BACKWARD * (self.shared + self.per_image * images)

    def accumulation_steps(self, images: int) -> int | None:
        """Return the smallest number of accumulation steps with which `images` images fit.

        Returns:
            A power of two, or `images` for one image per step; 1 where the free memory is unknown; None
            where not even one image fits.
        """
        room = math.inf if self.available is None else USABLE * self.available
        steps = 1
        while self.needed(-(-images // steps)) > room:
            if steps == images:
                return None
            steps = min(2 * steps, images)
        return steps


def step_memory(
    model: nn.Module,
    forward: Callable[[], object],
    images: int,
    device: torch.device,
    processes: int = 1,
    *,
    forward_double: Callable[[], object] | None = None,
) -> StepMemory:
    """Measure a forward pass of `images` images; nothing is trained.

    Args:
        forward_double: the forward pass of twice as many images, measured if it fits in memory: what does not grow
            with the images is then counted once. None to count everything per image.
        processes: processes of the run, which share a CPU's memory.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()  # blocks cached by an earlier seed's run
    before = available_memory(device)
    if before is not None and device.type == "cpu":
        before //= processes
    weights = sum(p.nbytes for p in model.parameters())
    saved = _saved_bytes(model, forward, device)
    memory = StepMemory(
        fixed=weights + optimizer_bytes(model),
        per_image=saved / images,
        # The weights are allocated already.
        available=None if before is None else before + weights,
    )
    if forward_double is not None and memory.accumulation_steps(2 * images) == 1:
        with suppress(torch.OutOfMemoryError):
            shared = max(0, 2 * saved - _saved_bytes(model, forward_double, device))
            memory = replace(memory, per_image=(saved - shared) / images, shared=shared)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)  # the peak in records is the run's
    return memory


def _saved_bytes(model: nn.Module, forward: Callable[[], object], device: torch.device) -> int:
    """Return the bytes that a forward pass saves for the backward pass, besides the model's tensors."""
    own = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    # Holding the storages keeps their addresses from being reused.
    saved: dict[int, torch.UntypedStorage] = {}

    def remember(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage
        return tensor

    devices = [device] if device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices=devices),
        preserve_buffers(model),
        torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor),
    ):
        result = forward()
    found = sum(storage.nbytes() for storage in saved.values())
    del result
    return found


def optimizer_bytes(
    model: nn.Module, processes: int = 1, *, shard: bool = False, accumulation_steps: int = 1
) -> int:
    """Return the bytes of a process's gradients and AdamW moments.

    DDP's buckets count as the gradients, which are views of them.

    Args:
        processes: over which they are sharded.
        shard: whether they are sharded.
        accumulation_steps: with several, a sharded model keeps whole gradients until the last one (`no_sync`).
    """
    trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    if not shard:
        return (COPIES - 1) * trained
    sharded = -(-(COPIES - 1) * trained // processes)
    return sharded + (trained if accumulation_steps > 1 else 0)


@contextmanager
def trial_memory(device: torch.device) -> Iterator[None]:
    """Limit a trial to a fraction of a GPU's memory; afterwards free its memory and forget its peak."""
    if device.type != "cuda":
        yield
        return
    gc.collect()
    torch.cuda.empty_cache()  # blocks cached by an earlier seed's run
    # Unlike the other functions, this one refuses a device without an index; None is the current GPU.
    torch.cuda.set_per_process_memory_fraction(TRIAL_FRACTION, device.index)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device.index)
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)  # the peak in records is the run's


def available_memory(device: torch.device) -> int | None:
    """Return the free bytes of a GPU, or of the machine and its container as Linux reports them.

    Returns:
        None where the system does not report it.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    path = Path("/proc/meminfo")
    if not path.is_file():
        return None
    lines = dict(line.split(":", 1) for line in path.read_text(encoding="utf-8").splitlines())
    free = [int(lines["MemAvailable"].split()[0]) * 1024] if "MemAvailable" in lines else []
    for limit, used in CONTAINER:
        with suppress(OSError, ValueError):  # no such file, or "max"
            cached = _cached_files(Path(used).with_name("memory.stat"))
            free.append(int(Path(limit).read_text()) - int(Path(used).read_text()) + cached)
    return min(free, default=None)


def _cached_files(stat: Path) -> int:
    """Return the bytes of cached files that count as used by a container, and that Linux drops when memory is short."""
    with suppress(OSError, ValueError):
        figures = dict(line.split() for line in stat.read_text(encoding="utf-8").splitlines())
        return int(figures.get("total_inactive_file", figures.get("inactive_file", 0)))
    return 0


def peak_memory(device: torch.device) -> int | None:
    """Return the most bytes that this process has held: on its GPU, else in main memory since its start.

    Returns:
        None on Windows, which does not report it.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # mallopt(3); -1 as a value means never


def retain_freed_memory() -> None:
    """Make the C library keep freed memory for the next step, for the rest of this process.

    By default glibc returns large tensors to the system at once, and every step on a CPU pays for
    hundreds of thousands of page faults. Other C libraries are left unchanged.
    """
    if sys.platform != "linux":
        return
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(M_MMAP_MAX, 0)
        set_option(M_TRIM_THRESHOLD, -1)
