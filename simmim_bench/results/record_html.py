"""A record as an HTML table, for notebooks."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simmim_bench.display import format_duration
from simmim_bench.html import escape_html, html_table
from simmim_bench.tasks import format_metric


def record_to_html(record: Mapping[str, Any]) -> str:
    """Return the scores of a record and what determines them, with the command that reproduces them folded below.

    Args:
        record: the content of `record.json`.
    """
    scores = [(m, format_metric(m, v)) for m, v in record["metrics"].items() if "_ap_" not in m]
    checkpoint, recipe, data = record["checkpoint"], record["recipe"], record["data"]
    deviates = ", ".join(f"{key}={value}" for key, value in record["deviates"].items())
    folder = Path(data["root"]).name or data["root"]
    name = data.get("name") or data.get("title") or folder
    images = f"{record['evaluated']:,} of {record['expected']:,} validation images"
    about = [
        (record["task"], ""),
        *scores,
        ("checkpoint", f"{checkpoint['label']} ({checkpoint['arch']})"),
        ("recipe", recipe["name"] + (f", changed: {deviates}" if deviates else "")),
        ("data", f"{name}, {images}"),
        ("seed", str(record["seed"])),
        ("duration", format_duration(record["wall_time_s"])),
        ("device", str(record["environment"].get("device", "unknown"))),
    ]
    if record["status"] != "reproduced":
        about.append(("status", record["status"]))
    command = shlex.join(record["command"])
    folded = f"<details><summary>command</summary><code>{escape_html(command)}</code></details>"
    return html_table(about) + (folded if command else "")
