"""How steps are carried out, as options of a command: how many at once, on what, or through SLURM.

In: click's parameters. Out: an `Execution`. Nothing here loads torch.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import click

from simmim_bench.cli.options import Command


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
class Execution:
    """How steps are carried out; it changes no result.

    Attributes:
        workers: steps at once; None for as many as there are GPUs for.
        gpus_per_task: GPUs, and with them processes, of a step.
        slurm: None for this machine.
    """

    workers: int | None = None
    gpus_per_task: int = 1
    slurm: SlurmOptions | None = None


EXECUTION_OPTIONS = (
    click.option(
        "--workers",
        type=click.IntRange(1),
        metavar="N",
        help="Steps at once; by default as many as there are GPUs for, 1 on a CPU, all with --slurm.",
    ),
    click.option(
        "--gpus-per-task",
        default=1,
        show_default=True,
        type=click.IntRange(1),
        metavar="K",
        help="GPUs of a step, with a process each; on CPUs, processes.",
    ),
    click.option("--slurm", is_flag=True, help="Each step as a SLURM job, through submitit."),
    click.option("--slurm-partition", metavar="NAME", help="Partition of the jobs."),
    click.option("--slurm-account", metavar="NAME", help="Account of the jobs."),
    click.option(
        "--slurm-time",
        default="24:00:00",
        show_default=True,
        metavar="TIME",
        help="Of a job, as sbatch takes it; one that needs more saves and is queued again.",
    ),
    click.option(
        "--slurm-set",
        multiple=True,
        metavar="KEY=VALUE",
        help="Any other option of sbatch, such as cpus_per_task=12 or qos=high; may be repeated.",
    ),
    click.option(
        "--cluster",
        type=click.Choice(["slurm", "local"]),
        default="slurm",
        show_default=True,
        help="With --slurm: local runs the same jobs on this machine, to try them.",
    ),
)


def read_execution(given: dict[str, Any]) -> Execution:
    """Take the values of `EXECUTION_OPTIONS` out of a command's parameters."""
    jobs = SlurmOptions(
        partition=given.pop("slurm_partition"),
        account=given.pop("slurm_account"),
        time=given.pop("slurm_time"),
        more=given.pop("slurm_set"),
        cluster=given.pop("cluster"),
    )
    return Execution(
        workers=given.pop("workers"),
        gpus_per_task=given.pop("gpus_per_task"),
        slurm=jobs if given.pop("slurm") else None,
    )


def with_execution(command: Command) -> Command:
    """Add the options, handed to the command as one `execution`."""

    @functools.wraps(command)
    def collect(**given: Any) -> None:
        command(execution=read_execution(given), **given)

    for option in reversed(EXECUTION_OPTIONS):
        collect = option(collect)
    return collect
