"""Put the committed figures between the markers of the documents that show them.

In: LEADERBOARD.md, for the README, and results/*.json, for benchmarks/README.md.
Out: both rewritten; with --check, exit code 6 where one would change.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from side_by_side import markdown

HERE = Path(__file__).resolve().parent
README = HERE.parent / "README.md"


def with_table(document: str, name: str, table: str) -> str:
    """Replace what stands between a table's markers."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    head, _, rest = document.partition(begin)
    _, _, tail = rest.partition(end)
    return f"{head}{begin}\n{table.strip()}\n{end}{tail}"


def main() -> int:
    """Write or check; give the exit code."""
    results = sorted((HERE / "results").glob("*.json"))
    speed = "\n\n".join(markdown(json.loads(p.read_text(encoding="utf-8"))) for p in results)
    tables = (
        (README, "demo table", (HERE / "LEADERBOARD.md").read_text(encoding="utf-8")),
        (HERE / "README.md", "speed tables", speed),
    )
    for path, name, table in tables:
        document = path.read_text(encoding="utf-8")
        wanted = with_table(document, name, table)
        if wanted == document:
            continue
        if "--check" in sys.argv:
            return 6
        path.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
