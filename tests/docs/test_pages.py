"""Every command and every Python example of the documentation runs, page by page, on synthetic data."""

from __future__ import annotations

import contextlib
import csv
import io
import re
import shutil
from pathlib import Path
from typing import Any

import click
import pytest
from support.cli import run
from support.commands import forked_launch
from support.documents import Example, parse, read_examples, shortened

from simmim_bench.jobs import workers

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = sorted([*DOCS.glob("*.md"), *(DOCS / "generated" / "texts").glob("*.md")])
ELSEWHERE = ("python.md",)  # its examples have a test with claims about their results
RUN = [
    page
    for page in PAGES
    if page.name not in ELSEWHERE and any(e.not_run is None for e in read_examples(page))
]


@pytest.fixture(scope="session")
def reader(pocket: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a reader who has data and a few runs, under the names that all pages use."""
    folder = tmp_path_factory.mktemp("reader")
    for name in ("imagenet", "coco", "ade20k"):
        (folder / name).symlink_to(pocket / name)
    shutil.copytree(pocket / "imagenet" / "train", folder / "pets")
    with open(folder / "pets.csv", "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label"])
        rows.writerows(
            [path.relative_to(folder), path.parent.name]
            for path in sorted((folder / "pets").glob("*/*"))
        )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        quick = ["-o", "epochs=1", "-o", "warmup_epochs=0", "--quiet"]
        data = ["--data", "imagenet"]
        succeed("pretrain", "--arch", "vit_pocket", *data, "--out", "runs/vit_b", *quick)
        for task in ("linear", "imagenet"):
            succeed("transfer", task, "--ckpt", "runs/vit_b", *data, *quick)
        succeed("transfer", "knn", "--ckpt", "runs/vit_b", *data, "--quiet")
        random = ["--ckpt", "random:vit_pocket", "--out", "runs/random/knn/seed0"]
        succeed("transfer", "knn", *random, *data, "--quiet")
    return folder


def succeed(*words: str) -> None:
    code, _, err = run(*words)
    assert code == 0, (words, err[-3000:])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_of_a_page_parses(page: Path) -> None:
    fences = re.findall(r"^```(\S+)", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert {*fences} <= {"sh", "python", "text", "yaml", "html"}, "commands belong into ```sh"
    for example in read_examples(page):
        if example.words is not None:
            try:
                parse(example.words)
            except click.UsageError as error:
                pytest.fail(f"{example.text}: {error.format_message()}")


@pytest.mark.heavy
@pytest.mark.parametrize("page", RUN, ids=lambda page: page.stem)
def test_every_example_of_a_page_runs(
    page: Path, reader: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(reader, tmp_path / "reader", symlinks=True)
    monkeypatch.chdir(tmp_path / "reader")
    monkeypatch.setattr(workers, "launch", forked_launch)
    names: dict[str, Any] = {}
    for example in read_examples(page):
        if example.not_run is None:
            run_example(example, names)


def run_example(example: Example, names: dict[str, Any]) -> None:
    if example.words is not None:
        succeed(*shortened(example.words))
        return
    with contextlib.redirect_stdout(io.StringIO()):
        exec(example.text, names)
