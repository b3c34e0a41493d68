"""Run the task `attentive`: train attentive probes on live tokens of a frozen backbone, choose one, and score it."""

from __future__ import annotations

from simmim_bench.results.record import Record
from simmim_bench.runs.context import RunContext
from transfer.attentive.recipes import AttentiveRecipe
from transfer.job import TransferJob


def run_attentive(context: RunContext, job: TransferJob[AttentiveRecipe]) -> Record | None:
    """Train attentive probes on `train/`, choose on held-out images of it, and score on `val/`.

    Returns:
        The record on rank 0; None on the other processes.
    """
    raise NotImplementedError
