"""Put the committed figures of speed between the markers of benchmarks/README.md.

In: results/*.json. Out: benchmarks/README.md rewritten; with --check, exit code 6 where it would change.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from side_by_side import markdown

from simmim_bench.tables import with_table

HERE = Path(__file__).resolve().parent


def main() -> int:
    """Write or check; give the exit code."""
    results = sorted((HERE / "results").glob("*.json"))
    speed = "\n\n".join(markdown(json.loads(p.read_text(encoding="utf-8"))) for p in results)
    path = HERE / "README.md"
    document = path.read_text(encoding="utf-8")
    wanted = with_table(document, speed, path, "speed tables")
    if wanted == document:
        return 0
    if "--check" in sys.argv:
        return 6
    path.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
