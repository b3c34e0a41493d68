"""The context of a run: its directory, its processes and its seed, whatever the run trains."""

from __future__ import annotations

from dataclasses import dataclass, field

from simmim_bench.checkpoints.checkpoint import Checkpoint
from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.display import Display
from simmim_bench.distributed import DistContext, best_device
from simmim_bench.files import wait_for_file
from simmim_bench.runs.run_dir import RunDir


def _single_process() -> DistContext:
    return DistContext(device=best_device())


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """The surroundings of one run.

    Attributes:
        run: the open run directory: log, metrics, checkpoints, predictions.
        seed: seed of everything that the run samples.
        resume: whether to continue from the run directory's last checkpoint.
        dist: the processes of the run; a single one by default.
    """

    run: RunDir
    seed: int
    resume: bool = False
    dist: DistContext = field(default_factory=_single_process)

    @property
    def display(self) -> Display:
        """The run's progress display."""
        return self.run.display

    def has_checkpoint(self) -> bool:
        """Return whether the run continues from a checkpoint, on every process the same; all of them must call.

        Rank 0 may have renamed the checkpoint a moment ago, which other machines see later.
        """
        path = self.run.last_checkpoint
        if not (self.resume and self.dist.all_max(path.is_dir())):
            return False
        wait_for_file(path)
        return True

    def last_checkpoint(self) -> Checkpoint | None:
        """Read the checkpoint that a resumed run continues from.

        Returns:
            None for a run that starts anew, or that had saved nothing yet.

        Raises:
            DataError: the checkpoint cannot be read.
        """
        if not self.has_checkpoint():
            return None
        return read_checkpoint(str(self.run.last_checkpoint))
