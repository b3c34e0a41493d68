"""The processes of one run: alone, under `torchrun`, or under `srun`.

In: the environment that the launcher sets. Out: a `DistContext`: which process this is, how many there are, its
device, and the few things they do together. Gloo on CPUs, NCCL on GPUs.
"""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as torch_dist
from torch import nn
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

from simmim_bench.errors import UsageError

# One process may compare classifiers for hours while the others wait for it; torch waits 10 to 30 minutes.
COLLECTIVE_TIMEOUT = timedelta(days=1)


@dataclass(frozen=True)
class DistContext:
    """One process among `size`; rank 0 writes and speaks for all."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_main(self) -> bool:
        """Whether this process writes and speaks."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait until all are here."""
        if self.size > 1:
            torch_dist.barrier()

    def all_max(self, value: int) -> int:
        """Give the largest of all processes' values to each of them."""
        if self.size == 1:
            return value
        shared = torch.tensor(value, device=self.device)
        torch_dist.all_reduce(shared, op=torch_dist.ReduceOp.MAX)
        return int(shared)

    def all_mean(self, value: float) -> float:
        """Give the mean of all processes' values to each of them."""
        if self.size == 1:
            return value
        shared = torch.tensor(value, device=self.device, dtype=torch.float64)
        if self.device.type == "cuda":
            shared = shared.float()
        torch_dist.all_reduce(shared)
        return float(shared) / self.size

    def gather(self, own: Any) -> list[Any]:
        """Give what every process has, in order of rank, to the main one; the others get nothing.

        Args:
            own: of any kind that can be pickled, its tensors on the CPU; shapes may differ.
        """
        if self.size == 1:
            return [own]
        found: list[Any] | None = [None] * self.size if self.is_main else None
        torch_dist.gather_object(own, found)
        return found or []

    def broadcast_buffers(self, model: nn.Module) -> None:
        """Give every process the main one's buffers, such as the statistics of batch normalisation."""
        if self.size > 1:
            for buffer in model.buffers():
                torch_dist.broadcast(buffer, 0)

    def wrap_model(
        self,
        model: nn.Module,
        *,
        shard: bool = False,
        parts: Sequence[nn.Module] = (),
        compiled: bool = False,
    ) -> nn.Module:
        """Let all processes train one model; call what is given back for its forward pass.

        On GPUs, BatchNorm normalises over the images of all processes; torch has no such kernel for CPUs,
        where each takes its own images and the main process' running statistics are kept.

        Args:
            shard: spread it over the processes (FSDP2), each of `parts` gathered when it is needed;
                otherwise each has a copy and gradients are averaged.
            compiled: through torch.compile.

        Raises:
            UsageError: sharding with one process.
        """
        if shard and self.size == 1:
            raise UsageError(
                "--shard spreads a model over several processes; start them by torchrun."
            )
        if compiled:
            model.compile()
        if self.size == 1:
            return model
        if self.device.type == "cuda":
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        if shard:
            # SimMIM's features are a view, which nobody writes into.
            warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
            mesh = init_device_mesh(self.device.type, (self.size,))
            for part in parts:
                fully_shard(part, mesh=mesh)
            fully_shard(model, mesh=mesh)
            return model
        devices = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=devices, broadcast_buffers=False)


def per_process_batch(batch_size: int, processes: int) -> int:
    """Say how many images of a batch each process takes.

    Raises:
        UsageError: the batch cannot be shared evenly.
    """
    if batch_size % processes:
        raise UsageError(
            f"a batch of {batch_size} images cannot be shared by {processes} processes; use "
            f"-o batch_size={max(1, batch_size // processes) * processes}."
        )
    return batch_size // processes


def no_sync(model: nn.Module) -> Any:
    """Keep a shared model's gradients to this process for the block: all but the last of a step's parts."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()


def full_state(
    model: nn.Module, optimizer: torch.optim.Optimizer, dist: DistContext
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Gather the weights and the optimizer's state, by parameter names; every process must ask.

    Returns:
        Both on the CPU, the same whatever the number of processes; of use to the main one only.
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
    of_optimizer: dict[str, Any],
) -> None:
    """Put back what `full_state` gave, in a team of any size."""
    options = StateDictOptions(full_state_dict=True)
    set_model_state_dict(model, weights, options=options)
    set_optimizer_state_dict(model, optimizer, of_optimizer, options=options)


def _is_sharded(model: nn.Module) -> bool:
    return isinstance(model, FSDPModule)


def read_launcher_env(environment: Mapping[str, str]) -> tuple[int, int, int]:
    """Read (rank, size, rank on this machine) as `torchrun` or `srun` set them; (0, 1, 0) for neither.

    Raises:
        UsageError: the variables contradict each other.
    """
    if "WORLD_SIZE" in environment and "RANK" in environment:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    elif "SLURM_STEP_ID" in environment and int(environment.get("SLURM_NTASKS", "1")) > 1:
        names = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
    else:
        return 0, 1, 0
    try:
        rank, size, local = (int(environment.get(name, "0")) for name in names)
    except ValueError as error:
        raise UsageError(f"{', '.join(names)} are not all numbers: {error}.") from error
    if not 0 <= rank < size:
        raise UsageError(f"{names[0]} {rank} is not below {names[1]} {size}.")
    return rank, size, local


def _meet_under_slurm() -> None:
    """Let all processes of a SLURM step find the first one."""
    if "MASTER_ADDR" in os.environ:
        return
    nodes = os.environ.get("SLURM_STEP_NODELIST", os.environ.get("SLURM_JOB_NODELIST", ""))
    try:
        listed = subprocess.run(
            ["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise UsageError(
            f"the nodes {nodes} of this SLURM step cannot be listed ({error}); set MASTER_ADDR to the first."
        ) from error
    os.environ["MASTER_ADDR"] = listed.stdout.split()[0]
    job = int(os.environ.get("SLURM_JOB_ID", "0"))
    os.environ.setdefault("MASTER_PORT", str(20000 + job % 20000))  # ours: another port a job


@contextmanager
def init_distributed() -> Iterator[DistContext]:
    """Meet the other processes of this run, where there are any, for as long as the block runs.

    Raises:
        UsageError: the launcher's variables are not usable.
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
        _meet_under_slurm()
    if cuda:
        torch.cuda.set_device(device)
    torch_dist.init_process_group(
        "nccl" if cuda else "gloo", rank=rank, world_size=size, timeout=COLLECTIVE_TIMEOUT
    )
    try:
        yield DistContext(rank, size, device)
    finally:
        torch_dist.destroy_process_group()


def exit_process(code: int) -> None:
    """End a process that is one of several, at once; let one that is alone end as it does.

    Python's last clean-up takes away what gloo's threads need to let go of a tensor: a thread that still
    holds one then aborts the process, after all of its work is done (pytorch/pytorch, 179291).
    `destroy_process_group` ends these threads only where nothing else holds the group, as Detectron2 and
    mmengine do.

    Args:
        code: what the process exits with.
    """
    try:
        if read_launcher_env(os.environ)[1] == 1:
            return
    except UsageError:  # they never met
        return
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def best_device() -> torch.device:
    """Give the GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
