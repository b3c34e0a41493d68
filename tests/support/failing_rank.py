"""Run the command line as one of several processes, of which rank 1 fails when it reads its second epoch.

torchrun --nproc-per-node 2 failing_rank.py KIND pretrain ...
"""

from __future__ import annotations

import os
import sys
import time
from functools import partial
from typing import Any

import torch.distributed

from simmim_bench.cli.main import main
from simmim_bench.data.loader import SeededDataset
from simmim_bench.errors import DataError

KINDS: dict[str, type[Exception]] = {"data": DataError, "defect": ValueError}


def main_with_failure(kind: str, arguments: list[str]) -> None:
    """Run a command whose rank 1 fails, with a DataError or an unexpected error."""
    read = SeededDataset.__getitem__

    def fail_in_second_epoch(self: SeededDataset, index: int) -> Any:
        if os.environ["RANK"] == "1" and self.key[1] == 1:
            raise KINDS[kind]("rank 1 cannot read an image")
        return read(self, index)

    SeededDataset.__getitem__ = fail_in_second_epoch  # type: ignore[method-assign]
    # NCCL waits here for processes that wait for this one; Gloo does not.
    torch.distributed.destroy_process_group = partial(time.sleep, 600)
    sys.argv = ["simmim-bench", *arguments]
    main()


if __name__ == "__main__":
    main_with_failure(sys.argv[1], sys.argv[2:])
