"""The commands whose file operations fail, one at a time, and the state that each starts from."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from support.records import make_record

TINY = ("-o", "img_size=32")


def _nothing(root: Path) -> None:
    """Start in an empty folder."""


@dataclass(frozen=True)
class Scenario:
    """A command in a folder.

    Attributes:
        arguments: `DATA` stands for the folder of the synthetic data, `RUNS` for that of finished runs.
        again: arguments added when the command is given again.
        prepare: writes what the command starts from into its folder.
        folders: what the command writes; compared with an undisturbed run.
        uncompared: names of files with the times of runs.
        replaces: whether the folder holds the result of an earlier command that is to be replaced.
        is_one_state: whether all files belong together, so that a reader finds all new or all old ones.
    """

    arguments: tuple[str, ...]
    folders: tuple[str, ...] = ("out",)
    again: tuple[str, ...] = ("--resume",)
    prepare: Callable[[Path], None] = _nothing
    uncompared: tuple[str, ...] = ()
    replaces: bool = False
    is_one_state: bool = False

    @property
    def is_run(self) -> bool:
        """Whether the command writes a run directory, from which it removes what a killed process has left."""
        return "--resume" in self.again

    def command(self, data: Path, runs: Path) -> list[str]:
        """Return the command's arguments."""
        return [a.replace("DATA", str(data)).replace("RUNS", str(runs)) for a in self.arguments]


def _transfer(task: str, data: str, *options: str) -> Scenario:
    ckpt = ("--ckpt", "random:vit_pocket", "--data", f"DATA/{data}", "--out", "out")
    return Scenario(("transfer", task, *ckpt, *options))


def _evaluate(task: str, data: str) -> Scenario:
    place = ("--ckpt", f"RUNS/{task}/out", "--data", f"DATA/{data}", "--out", "out")
    return Scenario(("evaluate", task, *place))


def _convert(*options: str, destination: str = "out") -> Scenario:
    return Scenario(
        ("convert", "RUNS/pretrain/out", destination, "--overwrite", *options),
        folders=(".",),
        again=(),
        replaces=True,
    )


def _data_convert(layout: str, *options: str) -> Scenario:
    arguments = ("data", "convert", f"DATA/{layout}", "out", "--overwrite", *options)
    return Scenario(arguments, folders=(".",), again=())


def _older_tables(root: Path) -> None:
    """Write the tables of one record, and add another record."""
    from simmim_bench.leaderboard.find import find_records
    from simmim_bench.leaderboard.write import write_leaderboard

    (root / "README.md").write_text("<!-- leaderboard: begin -->\n<!-- leaderboard: end -->\n")
    make_record(root / "records", label="a")
    board = find_records([root / "records"]).board()
    write_leaderboard(board, root / "tables", into=[root / "README.md"])
    make_record(root / "records", label="b", correct=8)


def _older_archive(root: Path) -> None:
    """Archive a record, and replace it by that of another run."""
    from simmim_bench.leaderboard.archive import archive_runs
    from simmim_bench.leaderboard.find import find_records

    make_record(root / "records")
    archive_runs(find_records([root / "records"]).records, root / "kept")
    shutil.rmtree(root / "records")
    make_record(root / "records", correct=8)
    make_record(root / "records", label="b")


SCENARIOS = {
    "pretrain": Scenario(
        (
            *("pretrain", "--arch", "vit_pocket", "--data", "DATA/imagenet", "--out", "out"),
            *("-o", "epochs=2", "-o", "batch_size=6", "-o", "mask_patch_size=8", *TINY),
        )
    ),
    "imagenet": _transfer("imagenet", "imagenet", "-o", "epochs=2", "-o", "batch_size=6", *TINY),
    "linear": _transfer("linear", "imagenet", "-o", "epochs=2", *TINY),
    "attentive": _transfer(
        *("attentive", "imagenet", "-o", "epochs=2", "-o", "batch_size=6", "-o", "norm_images=6"),
        *TINY,
    ),
    "shift": Scenario(
        (
            *("transfer", "shift", "--ckpt", "RUNS/linear/out"),
            *("--data", "own=DATA/imagenet/val", "--out", "out"),
        )
    ),
    "knn": _transfer("knn", "imagenet", *TINY),
    "fewshot": _transfer("fewshot", "imagenet", "--fraction", "10%", *TINY),
    "coco": _transfer("coco", "coco", "-o", "max_iters=2", "-o", "warmup_iters=0"),
    "ade20k": _transfer("ade20k", "ade20k", "-o", "max_iters=2", "-o", "warmup_iters=0"),
    "evaluate imagenet": _evaluate("imagenet", "imagenet"),
    "evaluate coco": _evaluate("coco", "coco"),
    "evaluate ade20k": _evaluate("ade20k", "ade20k"),
    "suite": Scenario(
        (
            *("suite", "--ckpt", "random:vit_pocket", "--imagenet", "DATA/imagenet"),
            *("--tasks", "knn", "--out", "out", "-o", "knn.img_size=32"),
        ),
        again=(),
        uncompared=("leaderboard.html",),
    ),
    "leaderboard build": Scenario(
        ("leaderboard", "build", "records", "--out", "tables", "--into", "README.md"),
        folders=("tables", "."),
        again=(),
        prepare=_older_tables,
        is_one_state=True,
    ),
    "leaderboard keep": Scenario(
        ("leaderboard", "keep", "records", "--out", "kept"),
        folders=("kept",),
        again=(),
        prepare=_older_archive,
    ),
    "data convert coco": _data_convert("coco", "--from", "coco"),
    "data convert ade20k": _data_convert("ade20k", "--ignore-label", "0"),
    "convert": _convert(),
    "convert timm": _convert("--to", "timm"),
    "convert detectron2": _convert("--to", "detectron2", destination="out.pth"),
}
# The scenario whose run another one reads.
STARTS_FROM = {f"evaluate {task}": task for task in ("imagenet", "coco", "ade20k")}
STARTS_FROM["shift"] = "linear"
STARTS_FROM |= {name: "pretrain" for name in SCENARIOS if name.startswith("convert")}
