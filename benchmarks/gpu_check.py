"""Verify this project on one GPU, and write a report.

    python benchmarks/gpu_check.py --out gpu_check
    python benchmarks/gpu_check.py --out gpu_check --only speed

Numbers are compared with the CPU's, every command is run on synthetic data, and steps are timed. The report,
`gpu_check_CARD.json`, is written after each check. The groups "numerics" and "commands" take about five minutes
together, and so does "speed". `--tiny` tests the checks themselves on a CPU.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import torch
from gpu_checks import attention, commands, numerics, ratios, speed, steps
from gpu_checks.harness import Check, CheckGroup, Runner, Setup, card

BUDGET = 570.0  # seconds

NUMERICS = CheckGroup(
    (
        Check(numerics.gpu_matches_cpu, 20),
        Check(numerics.bfloat16_matches_float32, 30),
        Check(numerics.compiled_is_one_graph, 20),
        Check(numerics.attention_is_fused, 10, gpu_only=True),
        Check(numerics.boxes_keep_their_precision, 10),
        Check(steps.step_never_waits, 5, gpu_only=True),
        Check(steps.batches_are_prefetched, 20),
        Check(steps.overflow_changes_nothing, 5),
        Check(steps.bytes_are_normalised, 5),
        Check(steps.detector_in_float16, 15),
    )
)
COMMANDS = CheckGroup(
    (
        Check(commands.pretrain_compiled, 120, gpu_only=True),
        Check(commands.resume, 60),
        Check(commands.pretrain, 40),
        Check(commands.transfer, 70),
        Check(commands.two_ranks, 60),
        Check(commands.two_ranks_sharded, 40),
        Check(commands.one_rank, 40),
        Check(commands.nccl, 40, gpu_only=True),
        Check(commands.doctor, 30),
    ),
    concurrent=True,
)
SPEED = CheckGroup(
    (
        Check(speed.matrix_product, 5),
        Check(speed.pretrain_vit, 25),
        Check(speed.pretrain_swin, 25),
        Check(ratios.vit_against_official, 25),
        Check(ratios.swin_against_official, 30),
        Check(ratios.pretrain_vit_compiled, 90, gpu_only=True),
        Check(speed.finetune_and_features, 20),
        Check(speed.oversized_batch, 40),
        Check(speed.detector_step, 60, gpu_only=True),
        Check(speed.loading, 30),
        Check(speed.pretrain_float32, 20),
        Check(attention.attention, 100),
        Check(ratios.pretrain_swin_compiled, 120, gpu_only=True),
    )
)
GROUPS = {"numerics": NUMERICS, "commands": COMMANDS, "speed": SPEED}
NAMES = [check.name for group in GROUPS.values() for check in group.checks]


@click.command(help=(__doc__ or "").split("\n")[0])
@click.option("--tiny", is_flag=True, help="Run the smallest sizes on a CPU.")
@click.option(
    "--only",
    multiple=True,
    type=click.Choice([*GROUPS, *NAMES]),
    help="Run this check, or this group of checks; may be repeated. A report in --out keeps its other checks.",
)
@click.option(
    "--budget",
    default=BUDGET,
    show_default=True,
    metavar="SECONDS",
    help="Skip checks that would take longer.",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("gpu_check"),
    show_default=True,
    metavar="DIR",
    help="Write the report, and the output of every command, into this directory.",
)
def main(tiny: bool, only: tuple[str, ...], budget: float, out: Path) -> None:
    """Run the checks; exit with 1 when one failed."""
    if not tiny and not torch.cuda.is_available():
        raise click.UsageError("torch finds no GPU; use --tiny to test the checks on a CPU.")
    warnings.filterwarnings("ignore")
    device = torch.device("cpu") if tiny else torch.device("cuda", 0)
    logs = out / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    report = out / f"gpu_check_{card(device)}.json"
    with TemporaryDirectory(prefix="gpu_check_") as scratch:
        setup = Setup(device, tiny, Path(scratch), logs.resolve())
        runner = Runner(setup, budget, select(only), report)
        try:
            runner.run(list(GROUPS.values()))
        finally:
            for child in setup.children:
                commands.stop(child)
    failed = ", ".join(runner.failed) or "none"
    click.echo(f"{len(runner.results)} checks, failed: {failed}; {report}")
    sys.exit(bool(runner.failed))


def select(only: Iterable[str]) -> set[str]:
    """Return the names of the checks that names of checks and groups stand for; all checks for none."""
    wanted = set(only) or set(GROUPS)
    return {
        check.name
        for name, group in GROUPS.items()
        for check in group.checks
        if {name, check.name} & wanted
    }


if __name__ == "__main__":
    main()
