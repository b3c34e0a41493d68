"""Read from the environment whether torchrun or srun has started this process as one of several.

Nothing here loads torch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from simmim_bench.errors import UsageError


def read_launcher_env(environment: Mapping[str, str]) -> tuple[int, int, int]:
    """Read (rank, number of processes, local rank) from torchrun's or srun's variables.

    Returns:
        (0, 1, 0) where neither launcher has set its variables.

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
        raise UsageError(f"{', '.join(names)} are not all integers: {error}.") from error
    if not 0 <= rank < size:
        raise UsageError(f"{names[0]} {rank} is not below {names[1]} {size}.")
    return rank, size, local


def is_one_of_several() -> bool:
    """Return whether a launcher has started this process as one of several."""
    try:
        return read_launcher_env(os.environ)[1] > 1
    except UsageError:  # the process group was never joined
        return False
