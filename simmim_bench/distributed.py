"""Distributed training: the processes of one run, alone, under `torchrun`, or under `srun`.

`init_distributed` reads the launcher's environment and yields a `DistContext`, which carries rank, number of
processes, device and the collective operations of the project. What a training step exchanges goes through
NCCL on GPUs, Gloo on CPUs; values of the host and waiting go through Gloo, with a longer timeout.
"""

from __future__ import annotations

import atexit
import inspect
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as torch_dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from simmim_bench.errors import BenchError, UsageError
from simmim_bench.launcher import is_one_of_several, read_launcher_env

# A step's collectives wait for processes that compute the same; 10 minutes is torch's default for NCCL.
STEP_TIMEOUT = timedelta(minutes=10)
# Rank 0 may compare classifiers for hours while the others wait.
WAITING_TIMEOUT = timedelta(days=1)
LAUNCHER_S = 3.0  # ours: torchrun looks at its processes ten times a second
# In the message of a RuntimeError of Gloo: "Connection closed by peer", or "writev ..: Broken pipe".
LOST_PEER = ("by peer", "gloo/transport")
EXIT_HANDLERS_S = 10.0  # ours: a handler that waits for another process must not keep this one


@dataclass(frozen=True)
class DistContext:
    """One process of a run; rank 0 writes files, logs and prints results.

    Attributes:
        rank: number of this process, from 0.
        size: number of processes.
        device: the device of this process.
        waiting: the Gloo group for waiting and for values of the host; None for the default group.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    waiting: torch_dist.ProcessGroup | None = None

    @property
    def is_main(self) -> bool:
        """Whether this process is rank 0."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait until all processes have reached this call."""
        if self.size > 1:
            torch_dist.barrier(self.waiting)

    def all_max(self, value: int) -> int:
        """Return the largest of all processes' values, on every process."""
        if self.size == 1:
            return value
        shared = torch.tensor(value, device=self._host_device)
        torch_dist.all_reduce(shared, op=torch_dist.ReduceOp.MAX, group=self.waiting)
        return int(shared)

    def all_mean(self, value: float) -> float:
        """Return the mean of all processes' values, on every process."""
        if self.size == 1:
            return value
        shared = torch.tensor(value, device=self._host_device, dtype=torch.float64)
        torch_dist.all_reduce(shared, group=self.waiting)
        return float(shared) / self.size

    @property
    def _host_device(self) -> torch.device:
        """The device on which values of the host are exchanged."""
        return self.device if self.waiting is None else torch.device("cpu")

    def any_process(self, flag: Tensor) -> Tensor:
        """Return whether a flag is set on any process, on the device and without waiting for it.

        Args:
            flag: a boolean scalar on this process's device.
        """
        if self.size == 1:
            return flag
        shared = flag.float()
        torch_dist.all_reduce(shared, op=torch_dist.ReduceOp.MAX)
        return shared > 0

    def gather(self, own: Any) -> list[Any]:
        """Gather one object per process on rank 0.

        Args:
            own: this process's object; picklable, with its tensors on the CPU. Shapes may differ.

        Returns:
            The objects in order of rank on rank 0; an empty list on the other processes.
        """
        if self.size == 1:
            return [own]
        found: list[Any] | None = [None] * self.size if self.is_main else None
        torch_dist.gather_object(own, found, group=self.waiting)
        return found or []

    def gather_everywhere(self, own: Any) -> list[Any]:
        """Gather one object per process on every process, in order of rank; see `gather`."""
        if self.size == 1:
            return [own]
        found: list[Any] = [None] * self.size
        torch_dist.all_gather_object(found, own, group=self.waiting)
        return found

    def compute_once(self, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Compute named tensors on rank 0, and return them on every process.

        Args:
            compute: called on rank 0 alone; returns tensors on the CPU.

        Raises:
            BenchError: as `compute` raised it on rank 0, on every process; the message is printed once.
        """
        if self.size == 1:
            return compute()
        tensors: dict[str, Tensor] = {}
        failure: BenchError | None = None
        if self.is_main:
            try:
                tensors = compute()
            except BenchError as error:
                failure = error
        # Sent before the tensors: the error, or what the other processes need to receive them.
        kinds = {name: (x.shape, x.dtype) for name, x in tensors.items()}
        header: list[Any] = [kinds if failure is None else (type(failure), str(failure))]
        torch_dist.broadcast_object_list(header, 0, group=self.waiting)
        if failure is not None:
            raise failure
        if isinstance(header[0], tuple):
            kind, message = header[0]
            failure = kind(message)
            failure.printed_by_main = True
            raise failure
        for name, (shape, dtype) in header[0].items():
            tensor = tensors.setdefault(name, torch.empty(shape, dtype=dtype))
            if tensor.numel():
                torch_dist.broadcast(tensor, 0, group=self.waiting)
        return tensors

    def broadcast_buffers(self, model: nn.Module) -> None:
        """Copy rank 0's buffers, such as BatchNorm's running statistics, to every process."""
        self.barrier()  # rank 0 may have computed the buffers for longer than a step's timeout
        if self.size > 1:
            for buffer in model.buffers():
                torch_dist.broadcast(buffer, 0)

    def wrap_model(
        self,
        model: nn.Module,
        *,
        shard: bool = False,
        parts: Sequence[nn.Module] = (),
    ) -> nn.Module:
        """Wrap a model for training by all processes: DDP, or FSDP2 with `shard`.

        On GPUs, BatchNorm is converted to normalise over the images of all processes. torch has no such
        kernel for CPUs, where each process normalises over its own images, and rank 0's running statistics
        are kept.

        Args:
            shard: shard weights, gradients and optimizer state (FSDP2) instead of copying the model.
            parts: modules that FSDP2 gathers one at a time, in the order of the forward pass.

        Returns:
            The module to call in the forward pass.

        Raises:
            UsageError: sharding with one process.
        """
        if shard and self.size == 1:
            raise UsageError(
                "--shard splits a model over several processes, but there is one; start them by torchrun."
            )
        if self.size == 1:
            return model
        if self.device.type == "cuda":
            from timm.layers import convert_sync_batchnorm  # timm imports every model

            # torch's function would remove the activation of timm's BatchNormAct2d.
            model = convert_sync_batchnorm(model)
        if shard:
            # SimMIM's features are a view; no code writes into them.
            warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
            mesh = init_device_mesh(self.device.type, (self.size,))
            # Autocast rules the precision, as without sharding. A `MixedPrecisionPolicy` in bfloat16 would also
            # round what autocast keeps in float32: weights of norms, position biases and the tokens themselves.
            sharded = [fully_shard(part, mesh=mesh) for part in parts]
            _prefetch_neighbours(sharded)
            fully_shard(model, mesh=mesh)
            return model
        # Of 1 x 1 convolutions, whose strides differ in dimensions of one element alone.
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        devices = [self.device.index] if self.device.type == "cuda" else None
        # torch 2.14 deprecates the older name.
        known = inspect.signature(DistributedDataParallel).parameters
        buffers = next(n for n in ("forward_sync_buffers", "broadcast_buffers") if n in known)
        options: dict[str, Any] = {"gradient_as_bucket_view": True, buffers: False}
        return DistributedDataParallel(model, device_ids=devices, **options)


def per_process_batch(batch_size: int, processes: int) -> int:
    """Return the images of a batch per process.

    Raises:
        UsageError: the batch size is not a multiple of the number of processes.
    """
    if batch_size % processes:
        raise UsageError(
            f"batch_size={batch_size} is not a multiple of the {processes} processes; use "
            f"-o batch_size={max(1, batch_size // processes) * processes}."
        )
    return batch_size // processes


@contextmanager
def no_sync(model: nn.Module) -> Iterator[None]:
    """Leave gradients unsynchronised for the block: of all accumulation steps but the last.

    A sharded model then keeps whole gradients, which `optimizer_bytes` counts, and exchanges them once per batch.
    """
    if isinstance(model, DistributedDataParallel):
        with model.no_sync():
            yield
        return
    if not isinstance(model, FSDPModule):
        yield
        return
    model.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        model.set_requires_gradient_sync(True)


def _prefetch_neighbours(parts: Sequence[FSDPModule]) -> None:
    """Gather the parameters of the next module in both directions while one is computed.

    FSDP2 itself does so going forward only as far as the host is ahead of the device.
    """
    for part, following in pairwise(parts):
        part.set_modules_to_forward_prefetch([following])
        following.set_modules_to_backward_prefetch([part])


def full_state(
    model: nn.Module, optimizer: torch.optim.Optimizer, dist: DistContext
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Gather the weights and the optimizer's state by parameter name; every process must call.

    Returns:
        Both on the CPU, independent of the number of processes, on rank 0; on other processes empty or
        partial.
    """
    if dist.size > 1 and not dist.is_main and not _is_sharded(model):
        return {}, {}
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return (
        get_model_state_dict(model, options=options),
        dict(get_optimizer_state_dict(model, optimizer, options=options)),
    )


def load_full_state(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    weights: dict[str, Any],
    optimizer_state: dict[str, Any],
) -> None:
    """Load what `full_state` returned, with any number of processes.

    An optimizer state whose keys are indices, as fine-tuning wrote it until version 0.1, is loaded as well.
    """
    options = StateDictOptions(full_state_dict=True)
    set_model_state_dict(model, weights, options=options)
    if any(isinstance(key, int) for key in optimizer_state["state"]):
        optimizer.load_state_dict(optimizer_state)
    else:
        set_optimizer_state_dict(model, optimizer, optimizer_state, options=options)
    _match_layouts(optimizer)


def _match_layouts(optimizer: torch.optim.Optimizer) -> None:
    """Store moments in the memory layout of their weights, which an earlier start may have had otherwise.

    A fused optimizer reads weights and moments as flat arrays. Loading a weight keeps its layout, loading a moment
    does not.
    """
    for parameter, moments in optimizer.state.items():
        for name, moment in moments.items():
            if moment.shape == parameter.shape and moment.stride() != parameter.stride():
                moments[name] = torch.empty_like(parameter).copy_(moment)


def _is_sharded(model: nn.Module) -> bool:
    return isinstance(model, FSDPModule)


def _set_slurm_rendezvous() -> None:
    """Set MASTER_ADDR and MASTER_PORT from the first node of a SLURM step."""
    if "MASTER_ADDR" in os.environ:
        return
    nodes = os.environ.get("SLURM_STEP_NODELIST", os.environ.get("SLURM_JOB_NODELIST", ""))
    try:
        listed = subprocess.run(
            ["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise UsageError(
            f"the nodes {nodes} of this SLURM step cannot be listed ({error}); set MASTER_ADDR to the first node."
        ) from error
    os.environ["MASTER_ADDR"] = listed.stdout.split()[0]
    job = int(os.environ.get("SLURM_JOB_ID", "0"))
    os.environ.setdefault("MASTER_PORT", str(20000 + job % 20000))  # ours: a different port per job


@contextmanager
def init_distributed() -> Iterator[DistContext]:
    """Join the process group of this run for the block; a single process joins none.

    A block that fails leaves the group to the end of the process: to destroy it, NCCL waits for processes that
    may be waiting for this one, and the error would not be printed until then.

    Raises:
        UsageError: the launcher's variables contradict each other.
    """
    rank, size, local = read_launcher_env(os.environ)
    cuda = torch.cuda.is_available()
    # Under `srun --gpus-per-task=1` each process sees one GPU, which is its number 0.
    device = (
        torch.device("cuda", local % torch.cuda.device_count()) if cuda else torch.device("cpu")
    )
    if size == 1:
        yield DistContext(device=torch.device("cuda") if cuda else device)
        return
    if "RANK" not in os.environ:
        _set_slurm_rendezvous()
    if cuda:
        torch.cuda.set_device(device)
    torch_dist.init_process_group(
        "nccl" if cuda else "gloo",
        rank=rank,
        world_size=size,
        timeout=STEP_TIMEOUT,
        # NCCL connects at once: a machine on which it cannot fails here, not in the first step.
        device_id=device if cuda else None,
    )
    waiting = torch_dist.new_group(backend="gloo", timeout=WAITING_TIMEOUT)
    assert not isinstance(waiting, int)  # torch's sign of a process outside of the group
    yield DistContext(rank, size, device, waiting)
    torch_dist.destroy_process_group()


def exit_process(code: int) -> None:
    """Exit immediately if this is one of several processes; return if it is the only one.

    Nothing follows the call, so whatever there is to report is printed before it.

    Python's finalisation destroys what Gloo's threads need to release a tensor: a thread that still holds a
    tensor then aborts the process after all of its work is done (pytorch/pytorch, 179291).
    `destroy_process_group` ends these threads only if nothing else refers to the group, as Detectron2 and
    mmengine do.

    Args:
        code: the exit code.
    """
    if not is_one_of_several():
        return
    sys.stdout.flush()
    sys.stderr.flush()
    late = threading.Timer(EXIT_HANDLERS_S, os._exit, (code,))
    late.daemon = True
    late.start()
    try:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def exit_failed(error: Exception) -> None:
    """Print the traceback of an error of one of several processes, and exit with code 1.

    A process that has lost another one waits for the launcher's SIGTERM first: the launcher reports the exit
    code of the process that failed first, at a resolution of a second.
    """
    # The signal may come while the traceback is printed, and must not raise another error there.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    traceback.print_exception(error)
    if isinstance(error, torch_dist.DistError) or any(sign in str(error) for sign in LOST_PEER):
        sys.stderr.flush()
        time.sleep(LAUNCHER_S)
    exit_process(1)


def exit_after_main(code: int) -> None:
    """Exit with the code of an error that rank 0 prints, once the launcher has noticed that rank 0 has ended.

    The launcher ends all processes as soon as it notices the first one that has failed.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(LAUNCHER_S)
    exit_process(code)


def best_device() -> torch.device:
    """Return the GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
