"""How the scores of a column vary with images, seeds and pretrainings, read from the predictions of its records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from simmim_bench.uncertainty.interval import Difference, Side, difference
from simmim_bench.uncertainty.run_scores import RunScores


@dataclass(frozen=True)
class ColumnSample:
    """The runs of all comparable rows of a group in one column.

    Attributes:
        runs: the scores of all runs.
        sides: the runs of each row, by its label.
        paired: whether runs of one seed share their training images.
    """

    runs: RunScores
    sides: Mapping[str, Side]
    paired: bool

    def compare(self, ours: str, theirs: str) -> Difference | None:
        """Compute the difference of two rows, by their labels; None if one of them has no sample."""
        if ours not in self.sides or theirs not in self.sides:
            return None
        return difference(self.runs, self.sides[ours], self.sides[theirs], paired=self.paired)
