"""Run the command line as one of several processes, of which rank 1 fails when it reads its second epoch.

Of detection and segmentation, which count no epochs, it fails when it reads image 8 of the stream. Of the kind "box",
Detectron2 finds a proposed box there that is not finite, in the fifth iteration.

torchrun --nproc-per-node 2 failing_rank.py KIND pretrain ...
"""

from __future__ import annotations

import importlib
import itertools
import os
import sys
import time
from functools import partial
from typing import Any

import torch
import torch.distributed

from simmim_bench.cli.main import main
from simmim_bench.errors import DataError

SEEDED = ("simmim_bench.data.loader", "SeededDataset")
STREAMS = {
    "coco": ("transfer.detection.data", "TrainingStream"),
    "ade20k": ("transfer.segmentation.data", "TrainingSamples"),
}
KINDS: dict[str, type[Exception]] = {"data": DataError, "defect": ValueError}


def main_with_failure(kind: str, arguments: list[str]) -> None:
    """Run a command whose rank 1 fails, with a DataError, an unexpected error, or a box that is not finite."""
    if kind == "box":
        spoil_a_box()
    else:
        fail_to_read(kind, arguments)
    # NCCL waits here for processes that wait for this one; Gloo does not.
    torch.distributed.destroy_process_group = partial(time.sleep, 600)
    sys.argv = ["simmim-bench", *arguments]
    main()


def spoil_a_box() -> None:
    """Hand Detectron2's selection of proposals one that is not finite."""
    rpn: Any = importlib.import_module("detectron2.modeling.proposal_generator.rpn")
    select, calls = rpn.find_top_rpn_proposals, itertools.count()

    def spoilt(proposals: list[Any], *arguments: Any) -> Any:
        if os.environ["RANK"] == "1" and next(calls) == 8:
            proposals = [boxes.detach() * torch.nan for boxes in proposals]
        return select(proposals, *arguments)

    rpn.find_top_rpn_proposals = spoilt


def fail_to_read(kind: str, arguments: list[str]) -> None:
    """Raise an error where rank 1 reads an image."""
    source = STREAMS.get(arguments[1], SEEDED)
    dataset = getattr(importlib.import_module(source[0]), source[1])
    read = dataset.__getitem__

    def fail(self: Any, index: int) -> Any:
        late = self.key[1] == 1 if source is SEEDED else index >= 8
        if os.environ["RANK"] == "1" and late:
            raise KINDS[kind]("rank 1 cannot read an image")
        return read(self, index)

    dataset.__getitem__ = fail


if __name__ == "__main__":
    main_with_failure(sys.argv[1], sys.argv[2:])
