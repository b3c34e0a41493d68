"""Put benchmarks/LEADERBOARD.md between the README's markers, or say that it is not there.

In: the two files. Out: the README rewritten; with --check, exit code 6 where it would change.
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
README = HERE.parent / "README.md"
BEGIN, END = "<!-- demo table: begin -->", "<!-- demo table: end -->"


def with_table(readme: str, table: str) -> str:
    """Replace what stands between the markers by the table."""
    head, _, rest = readme.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n{table.strip()}\n{END}{tail}"


def main() -> int:
    """Write or check; give the exit code."""
    readme = README.read_text(encoding="utf-8")
    wanted = with_table(readme, (HERE / "LEADERBOARD.md").read_text(encoding="utf-8"))
    if "--check" in sys.argv:
        return 0 if wanted == readme else 6
    README.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
