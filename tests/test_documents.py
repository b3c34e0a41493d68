"""The documents agree with the code: commands, options, make targets, pinned versions and tables."""

from __future__ import annotations

import configparser
import functools
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.documents import parse

from simmim_bench import __version__
from simmim_bench.cli.main import cli
from simmim_bench.diagnostics.frameworks import DETECTRON2_REQUIREMENT, DETECTRON2_SOURCES
from simmim_bench.runs.loggers import TRACKERS

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md")]
PAGES = sorted((ROOT / "docs").glob("*.md"))


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


README = read("README.md")
INSTALLATION = read("docs/quickstart.md")
MAKEFILE = read("Makefile")


def command_lines() -> list[str]:
    lines = [line for path in DOCUMENTS for line in path.read_text(encoding="utf-8").splitlines()]
    return [line.strip() for line in lines if line.startswith("    simmim-bench ")]


def pinned(lines: list[str], operator: str) -> dict[str, str]:
    """Return package -> version of the requirements that pin one by an operator."""
    parts = [line.split(";")[0].split("#")[0].strip().partition(operator) for line in lines]
    return {name: version for name, found, version in parts if found}


def test_every_command_is_in_the_readme_or_a_page() -> None:
    texts = README + "".join(page.read_text(encoding="utf-8") for page in PAGES)
    for name in cli.commands:
        assert f"simmim-bench {name}" in texts or f"make {name}" in texts, name


def test_the_readme_is_short() -> None:
    """At most 600 words outside of generated tables, and the first command within the first 30 lines."""
    text = re.sub(r"<!-- ([\w ]+): begin -->.*?<!-- \1: end -->", "", README, flags=re.DOTALL)
    assert len(text.split()) <= 600
    assert any(line.startswith("    make ") for line in README.splitlines()[:30])


@pytest.mark.parametrize("line", command_lines())
def test_every_command_line_in_the_documents_parses(line: str) -> None:
    parse(line.split()[1:])


def test_every_python_file_is_checked_for_style() -> None:
    run = functools.partial(subprocess.run, cwd=ROOT, capture_output=True, text=True, check=True)
    tracked = run(["git", "ls-files", "*.py"]).stdout.split()
    shown = run([sys.executable, "-m", "ruff", "check", "--show-files"]).stdout.splitlines()
    assert {str(ROOT / name) for name in tracked} <= {*shown}


def test_the_quickstart_the_makefile_and_doctor_install_the_same_detectron2() -> None:
    requirement = str(DETECTRON2_REQUIREMENT.relative_to(ROOT))
    assert f"{DETECTRON2_SOURCES} {requirement}\n" in INSTALLATION
    assert f"DETECTRON2 ?= {requirement}\n" in MAKEFILE
    for option in re.findall(r" (--(?!target)[^ ]+|3\.10)(?= )", DETECTRON2_SOURCES):
        assert option in MAKEFILE, option
    lines = DETECTRON2_REQUIREMENT.read_text(encoding="utf-8").splitlines()
    (line,) = (line for line in lines if not line.startswith("#"))
    assert re.fullmatch(r"[\w-]+==[\d.]+ --hash=sha256:[0-9a-f]{64}", line)


def test_the_constraints_cover_the_declared_dependencies() -> None:
    """constraints.txt pins all but the platform's torch; constraints-lowest.txt the lower bounds."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    extras = dict(config["options.extras_require"])
    development = extras.pop("dev").splitlines()
    for tracker in TRACKERS:  # `make install` leaves them out; trackio needs an older Pillow
        del extras[tracker]
    required = "\n".join([config["options"]["install_requires"], *extras.values()]).splitlines()
    lowest = pinned(required, ">=") | pinned(required, "==")
    assert pinned(read("constraints-lowest.txt").splitlines(), "==") == lowest
    tried = pinned(read("constraints.txt").splitlines(), "==")
    named = lowest.keys() | pinned(development, ">=").keys()
    assert tried.keys() == named - {"torch", "torchvision"} | {"mmengine", "opencv-python"}


def test_the_changelog_and_the_citation_name_the_version() -> None:
    assert f"\n## [{__version__}]" in read("CHANGELOG.md")
    assert f"\nversion: {__version__}\n" in read("CITATION.cff")


@pytest.mark.parametrize("path", [*DOCUMENTS, *PAGES], ids=lambda path: path.name)
def test_every_make_target_in_the_documents_exists(path: Path) -> None:
    for target in re.findall(r"(?:`|^ *)make ([a-z-]+)", path.read_text("utf-8"), re.MULTILINE):
        assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE), target


@pytest.mark.parametrize("path", sorted((ROOT / ".github").rglob("*.yml")), ids=lambda p: p.name)
def test_every_make_target_in_the_workflows_exists(path: Path) -> None:
    for target in re.findall(r"run: make ([a-z-]+)", path.read_text(encoding="utf-8")):
        assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE), target


def test_every_source_file_that_the_documents_name_exists() -> None:
    source = r"`((?:simmim_bench|pretrain|transfer|tests|benchmarks)/[\w/]*(?:\.\w+)?)`"
    texts = (path.read_text(encoding="utf-8") for path in (*DOCUMENTS, *PAGES))
    named = {name for text in texts for name in re.findall(source, text)}
    assert named
    for name in named:
        assert (ROOT / name).exists(), name


def test_the_tables_in_the_documents_are_the_committed_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setattr(sys, "argv", ["tables.py", "--check"])
    import tables

    assert tables.main() == 0
