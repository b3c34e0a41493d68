"""How much memory a training step takes, from one forward pass, and how much there is.

In: a model and a forward pass of some images. Out: bytes, and the number of parts that a batch is cut into.
"""

from __future__ import annotations

import ctypes
import gc
import math
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from simmim_bench.models.buffers import preserve_buffers

GIB = 2**30
# A container's limit and use: cgroup version 2, version 1.
CONTAINER = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
    ),
)
COPIES = 4  # of a trained weight: itself, its gradient, AdamW's two moments
BACKWARD = 1.25  # ours: what the backward pass allocates while it frees what was kept
USABLE = 0.9  # ours: share of the free memory, as allocators leave gaps


@dataclass(frozen=True, kw_only=True)
class StepMemory:
    """What a training step takes, in bytes.

    Attributes:
        fixed: weights, gradients and AdamW's moments.
        per_image: what the forward pass keeps of an image for the backward pass.
        available: what the device has left; None where the system does not say.
    """

    fixed: int
    per_image: float
    available: int | None

    def needed(self, images: int) -> float:
        """Estimate a step whose parts have so many images."""
        return self.fixed + BACKWARD * self.per_image * images

    def parts(self, images: int) -> int | None:
        """Give the smallest number of parts in which so many images fit, a power of two or one image each.

        Returns:
            1 where the system does not say what is available; None where not even one image fits.
        """
        room = math.inf if self.available is None else USABLE * self.available
        parts = 1
        while self.needed(-(-images // parts)) > room:
            if parts == images:
                return None
            parts = min(2 * parts, images)
        return parts


def step_memory(
    model: nn.Module,
    forward: Callable[[], object],
    images: int,
    device: torch.device,
    processes: int = 1,
) -> StepMemory:
    """Measure a forward pass of some images, which is not followed by a step.

    Args:
        processes: of the run; on a CPU they share the memory, and several keep each gradient twice.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what an earlier seed's run has left
    before = available_memory(device)
    if before is not None and device.type == "cpu":
        before //= processes
    own = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    kept: dict[
        int, torch.UntypedStorage
    ] = {}  # holding them keeps their addresses from being reused

    def remember(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    devices = [device] if device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices=devices),
        preserve_buffers(model),
        torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor),
    ):
        result = forward()
    kept_bytes = sum(storage.nbytes() for storage in kept.values())
    del result
    weights = sum(p.nbytes for p in model.parameters())
    trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    return StepMemory(
        fixed=weights + (COPIES - 1 + (processes > 1)) * trained,
        per_image=kept_bytes / images,
        # Weights are there already.
        available=None if before is None else before + weights,
    )


def available_memory(device: torch.device) -> int | None:
    """Give the bytes that a device has left: a GPU's own, or what Linux says of machine and container."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    path = Path("/proc/meminfo")
    if not path.is_file():
        return None
    lines = dict(line.split(":", 1) for line in path.read_text(encoding="utf-8").splitlines())
    left = [int(lines["MemAvailable"].split()[0]) * 1024] if "MemAvailable" in lines else []
    for limit, used in CONTAINER:
        with suppress(OSError, ValueError):  # not there, or "max"
            left.append(int(Path(limit).read_text()) - int(Path(used).read_text()))
    return min(left, default=None)


M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # mallopt(3); -1 as a value means never


def retain_freed_memory() -> None:
    """Let the C library keep what a step frees for the next one, for the rest of this process.

    By default glibc gives large tensors back to the system at once, and every step on a CPU pays for
    hundreds of thousands of page faults. Other C libraries are left as they are.
    """
    if sys.platform != "linux":
        return
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(M_MMAP_MAX, 0)
        set_option(M_TRIM_THRESHOLD, -1)
