"""Options of commands that run several steps: parallel workers, GPUs per step, SLURM. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class SlurmOptions:
    """How a step is submitted to SLURM.

    Attributes:
        time: time limit in sbatch's format; a job that reaches it saves and is requeued.
        more: further sbatch options as KEY=VALUE.
        cluster: "slurm", or "local" for submitit's jobs on this machine.
    """

    partition: str | None = None
    account: str | None = None
    time: str = "24:00:00"
    more: tuple[str, ...] = ()
    cluster: str = "slurm"


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """How steps are run; no option changes a result.

    Attributes:
        workers: steps that run in parallel; None for as many as memory and processors allow.
        gpus_per_task: GPUs, and therefore processes, of a step.
        exclusive: every step has its GPUs, or a machine without one, to itself.
        slurm: how steps are submitted to SLURM; None to run them on this machine.
    """

    workers: int | None = None
    gpus_per_task: int = 1
    exclusive: bool = False
    slurm: SlurmOptions | None = None
