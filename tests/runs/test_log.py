"""The log of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from pretrain.recipes import POCKET
from simmim_bench.display import Display
from simmim_bench.runs.run_dir import open_run


def test_a_name_of_other_people_controls_neither_terminal_nor_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_run(
        tmp_path, recipe=POCKET, deviates={}, arguments={}, display=Display(quiet=False)
    ) as run:
        run.log("knn: checkpoint=\x1b[2Jx\x9b\u202e é")
    shown = r"knn: checkpoint=\x1b[2Jx\x9b\u202e é"
    assert shown in capsys.readouterr().err
    assert (tmp_path / "log.txt").read_text().endswith(f" {shown}\n")
