"""The leaderboard: tables, an HTML page and a consistency check, all derived from the records of transfer runs.

Records are found (`find`), grouped by protocol and ranked (`board`), and rendered as Markdown, CSV, JSON and
LaTeX (`tables`, `changes`) and as an HTML page (`page_data`, `figures`, `page`); `write` writes the files,
`check` verifies records and files, and `archive` copies runs to where they can be committed. May import
`results` and every layer below it; the frameworks and the transfer tasks stay out.

`simmim_bench.leaderboard("runs")` calls `build.build_leaderboard`: this package and that function of the Python
interface have one name.
"""

import sys
from types import ModuleType
from typing import Any


class _CallablePackage(ModuleType):
    def __call__(self, *roots: Any, **options: Any) -> Any:
        """Build the leaderboard; see `simmim_bench.leaderboard.build.build_leaderboard`."""
        from simmim_bench.leaderboard.build import build_leaderboard

        return build_leaderboard(*roots, **options)

    @property
    def __signature__(self) -> Any:
        """The signature that a notebook shows."""
        from inspect import signature

        from simmim_bench.leaderboard.build import build_leaderboard

        return signature(build_leaderboard)


sys.modules[__name__].__class__ = _CallablePackage
