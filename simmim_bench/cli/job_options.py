"""The options of commands that run several steps: how many at once, on what devices, or through SLURM."""

from __future__ import annotations

import functools
from typing import Any

import click

from simmim_bench.cli.options import Command
from simmim_bench.jobs.options import JobOptions, SlurmOptions

JOB_OPTIONS = (
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


def read_job_options(given: dict[str, Any]) -> JobOptions:
    """Take the values of `JOB_OPTIONS` out of a command's parameters."""
    jobs = SlurmOptions(
        partition=given.pop("slurm_partition"),
        account=given.pop("slurm_account"),
        time=given.pop("slurm_time"),
        more=given.pop("slurm_set"),
        cluster=given.pop("cluster"),
    )
    return JobOptions(
        workers=given.pop("workers"),
        gpus_per_task=given.pop("gpus_per_task"),
        slurm=jobs if given.pop("slurm") else None,
    )


def with_job_options(command: Command) -> Command:
    """Add the options, handed to the command as one `job_options`."""

    @functools.wraps(command)
    def collect(**given: Any) -> None:
        command(job_options=read_job_options(given), **given)

    for option in reversed(JOB_OPTIONS):
        collect = option(collect)
    return collect
