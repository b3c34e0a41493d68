"""Claims about names and places of files."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner

from simmim_bench.cli.main import cli
from simmim_bench.errors import UsageError
from simmim_bench.files import escape, file_system, sha256_json, wait_for_file, write_json
from simmim_bench.untrusted.json_text import read_json

LATIN = os.fsdecode(b"A\xe9")  # a name in Latin-1, before all others of the synthetic data


@pytest.fixture
def latin(few: Path, tmp_path: Path) -> Path:
    """Return a copy of few images; the folder, the first class and its first image have names in Latin-1."""
    data = Path(shutil.copytree(few, tmp_path / LATIN))
    for split in ("train", "val"):
        first = min((data / split).iterdir())
        folder = first.rename(data / split / LATIN)
        image = min(folder.iterdir())
        image.rename(folder / f"{LATIN}{image.suffix}")
    return data


def test_json_keeps_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "names.json"
    write_json(path, {"name": LATIN, "accent": "é"})
    assert read_json(path, "names") == {"name": LATIN, "accent": "é"}
    assert path.read_bytes() == b'{\n  "name": "A\\udce9",\n  "accent": "\xc3\xa9"\n}\n'
    assert escape(f"{LATIN} é") == r"A\udce9 é"
    assert sha256_json({"é": 1}) == hashlib.sha256('{"é":1}'.encode()).hexdigest()
    assert sha256_json(LATIN) == sha256_json(json.loads(json.dumps(LATIN)))


@pytest.mark.parametrize(
    ("task", "more"),
    [
        ("imagenet", ("epochs=1", "warmup_epochs=0", "batch_size=6")),
        ("knn", ()),
    ],
)
def test_names_that_are_not_utf8_do_not_change_a_score(
    latin: Path, few: Path, tmp_path: Path, task: str, more: Sequence[str]
) -> None:
    options = [word for assignment in more for word in ("-o", assignment)]
    scores = []
    for data, out in ((few, tmp_path / "utf8"), (latin, tmp_path / "run")):
        words = ["transfer", task, "--ckpt", "random:vit_pocket", "--data", data, "--out", out]
        result = CliRunner().invoke(cli, [*map(str, words), "--quiet", *options])
        assert result.exit_code == 0, result.output
        scores.append(read_json(out / "record.json", "record")["metrics"])
    assert scores[0] == scores[1]
    assert r"A\udce9" in (tmp_path / "run" / "recipe.json").read_text(encoding="utf-8")


def test_a_run_directory_that_is_not_utf8_is_refused_before_it_exists(
    few: Path, tmp_path: Path
) -> None:
    out = tmp_path / LATIN
    words = [
        "transfer",
        "knn",
        "--ckpt",
        "random:vit_pocket",
        "--data",
        str(few),
        "--out",
        str(out),
    ]
    result = CliRunner().invoke(cli, words)
    assert isinstance(result.exception, UsageError)
    assert "is not a name in UTF-8; choose another --out" in str(result.exception)
    assert not out.exists()


@pytest.mark.skipif(shutil.which("findmnt") is None, reason="util-linux is the independent answer")
@pytest.mark.parametrize("place", ["/proc", "/dev/shm", "/"])
def test_a_file_system_is_the_one_that_findmnt_prints(place: str) -> None:
    found = subprocess.run(
        ["findmnt", "-no", "FSTYPE", "-T", place], capture_output=True, text=True, check=True
    )
    assert file_system(Path(place)) == found.stdout.splitlines()[-1].strip()


def test_a_file_that_another_process_has_just_written_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "file"
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    (temporary / "file").touch()
    timer = threading.Timer(0.2, temporary.rename, (path.parent,))
    timer.start()
    wait_for_file(path)
    assert path.exists()
