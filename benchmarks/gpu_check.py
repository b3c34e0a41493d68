"""Verify this project on one GPU in under ten minutes, and write a report.

    python benchmarks/gpu_check.py --out gpu_check

Numbers are compared with the CPU's, every command is run on synthetic data, and steps are timed. The report,
`gpu_check_CARD.json`, is written after each check. `--tiny` tests the checks themselves on a CPU.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import torch
from gpu_checks import commands, numerics, speed
from gpu_checks.harness import Check, CheckGroup, Runner, Setup, card

BUDGET = 570.0  # seconds

NUMERICS = CheckGroup(
    (
        Check(numerics.gpu_matches_cpu, 20),
        Check(numerics.bfloat16_matches_float32, 30),
        Check(numerics.compiled_is_one_graph, 20),
        Check(numerics.attention_is_fused, 10, gpu_only=True),
        Check(numerics.step_never_waits, 5, gpu_only=True),
        Check(numerics.boxes_keep_their_precision, 10),
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
        Check(speed.pretrain_vit_compiled, 90, gpu_only=True),
        Check(speed.finetune_and_features, 20),
        Check(speed.oversized_batch, 40),
        Check(speed.detector_step, 60, gpu_only=True),
        Check(speed.loading, 30),
        Check(speed.pretrain_float32, 20),
        Check(speed.pretrain_swin_compiled, 110, gpu_only=True),
    )
)
GROUPS = (NUMERICS, COMMANDS, SPEED)
NAMES = [check.name for group in GROUPS for check in group.checks]


@click.command(help=(__doc__ or "").split("\n")[0])
@click.option("--tiny", is_flag=True, help="Run the smallest sizes on a CPU.")
@click.option(
    "--only", multiple=True, type=click.Choice(NAMES), help="Run this check; may be repeated."
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
        runner = Runner(setup, budget, only, report)
        try:
            runner.run(GROUPS)
        finally:
            for child in setup.children:
                commands.stop(child)
    failed = ", ".join(runner.failed) or "none"
    click.echo(f"{len(runner.results)} checks, failed: {failed}; {report}")
    sys.exit(bool(runner.failed))


if __name__ == "__main__":
    main()
