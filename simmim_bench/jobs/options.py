"""How steps are carried out, as options of a command: how many at once, on what, or through SLURM.

In: click's parameters. Out: an `JobOptions`. Nothing here loads torch.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class SlurmOptions:
    """What SLURM is told of a job.

    Attributes:
        time: after which a job is put back into the queue, as sbatch takes it.
        more: KEY=VALUE of sbatch's options.
        cluster: "slurm", or "local" for jobs of submitit on this machine.
    """

    partition: str | None = None
    account: str | None = None
    time: str = "24:00:00"
    more: tuple[str, ...] = ()
    cluster: str = "slurm"


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """How steps are carried out; it changes no result.

    Attributes:
        workers: steps at once; None for as many as there are GPUs for.
        gpus_per_task: GPUs, and with them processes, of a step.
        slurm: None for this machine.
    """

    workers: int | None = None
    gpus_per_task: int = 1
    slurm: SlurmOptions | None = None
