"""Add the generated pages to the documentation when MkDocs builds it.

MkDocs loads this file by its path (`hooks` in mkdocs.yml) and calls the functions named `on_...`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from generated.commands import command_pages
from generated.recipes import recipe_pages
from generated.tasks import task_pages

# Entry of the navigation -> the pages under it, as (title, path, Markdown).
SECTIONS = {"Tasks": task_pages, "Command line": command_pages, "Recipes": recipe_pages}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fill the sections of the navigation that mkdocs.yml leaves empty."""
    config.nav = _filled(config.nav or [])
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages to the files of the documentation."""
    for pages in SECTIONS.values():
        for _, path, text in pages():
            files.append(File.generated(config, path, content=text))
    return files


def _filled(nav: list[Any]) -> list[Any]:
    """Return the navigation with the pages of every section that has a name of `SECTIONS` and no pages."""
    filled = []
    for entry in nav:
        ((title, value),) = entry.items()
        if isinstance(value, list) and not value:
            value = [{name: path} for name, path, _ in SECTIONS[title]()]
        elif isinstance(value, list):
            value = _filled(value)
        filled.append({title: value})
    return filled
