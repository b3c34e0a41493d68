"""The leaderboard as one HTML page that works from disk, without a network.

In: a board, the plain JSON that `leaderboard.py` derives from records. Out: the page's text. The board has
`version`, `columns` (title, task, metric), `groups` (name, protocols by task: rows of one group are ranked
together), `rows` (a checkpoint with a cell or null for every column, its rank, lineage and cost), `records`
(what the cells' indices point at), `reconstructions` (PNG data URLs by checkpoint), `problems` and `notes`.

The table is DataTables' (from itables' wheel), the plots are Matplotlib's, and every text of the board goes
through Jinja's escaping. Details of a row lie in an inert `<template>`; the script only shows them.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata, resources
from typing import TYPE_CHECKING, Any

from simmim_bench.leaderboard.figures import COSTS, KINDS, _plots, number

if TYPE_CHECKING:
    pass

CURVE_POINTS = 150
PICTURE = re.compile(r"data:image/(?:png|webp);base64,[A-Za-z0-9+/]+=*")


def to_html(board: dict[str, Any]) -> str:
    """Give the page of a board; the same board gives the same bytes."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("simmim_bench.leaderboard", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Callable[..., Any]] = {
        "number": number,
        "value": value_text,
        "curve": curve,
        "json": _json,
    }
    environment.filters |= filters
    scripts = [_datatables(), _template_text("leaderboard.js")]
    groups = {group["name"]: group for group in board["groups"]}
    plots = _plots(board)
    return environment.get_template("leaderboard.html").render(
        board=board,
        group_kind={name: k % KINDS for k, name in enumerate(groups)},
        details=[(row, tasks_of(board, row, groups.get(row["group"]))) for row in board["rows"]],
        differences=differences(board),
        plots=plots,
        # What has been compared most is shown first.
        shown=max(plots, key=lambda plot: sum(len(s.front) for s in plot["series"]), default=None),
        costs=COSTS,
        pictures={
            sha256: picture
            for sha256, picture in board["reconstructions"].items()
            if PICTURE.fullmatch(picture)
        },
        style=Markup(_template_text("leaderboard.css")),
        scripts=[Markup(script) for script in scripts],
        # Scripts by hash: whatever a text of the board might become, it cannot run.
        script_hashes=" ".join(f"'sha256-{_csp_hash(script)}'" for script in scripts),
    )


def value_text(value: Any) -> str:
    """Write a field of a recipe as a person would: strings bare, mappings as `key=value`."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={value_text(item)}" for key, item in value.items()) or "none"
    return json.dumps(value, ensure_ascii=False)


def curve(points: Sequence[Sequence[float]] | None) -> dict[str, Any] | None:
    """Scale (step, loss) pairs into a box of 300 by 80 for a polyline, thinned out; None if too few."""
    finite = [(x, y) for x, y in points or [] if y is not None and math.isfinite(y)]
    if len(finite) < 2:
        return None
    stride = math.ceil(len(finite) / CURVE_POINTS)
    finite = [*finite[:-1:stride], finite[-1]]
    steps, losses = zip(*finite, strict=True)
    left, width = min(steps), max(steps) - min(steps) or 1
    low, high = min(losses), max(losses)
    height = high - low or 1
    scaled = (f"{300 * (x - left) / width:.1f},{80 * (high - y) / height:.1f}" for x, y in finite)
    return {
        "points": " ".join(scaled),
        "first": losses[0],
        "last": losses[-1],
        "low": low,
        "high": high,
        "steps": max(steps),
    }


def tasks_of(
    board: Mapping[str, Any], row: Mapping[str, Any], group: Mapping[str, Any] | None
) -> list[dict[str, Any]]:
    """Gather a row's cells by task, with the task's protocol and the records behind it once each."""
    tasks: dict[str, dict[str, Any]] = {}
    for column, cell in zip(board["columns"], row["cells"], strict=True):
        if cell is None:
            continue
        task = tasks.setdefault(
            column["task"], {"name": column["task"], "cells": [], "records": {}}
        )
        task["cells"].append((column, cell))
        task["records"] |= {index: board["records"][index] for index in cell["records"]}
        task["protocol"] = group["protocols"].get(column["task"]) if group else None
    return list(tasks.values())


def differences(board: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Say for every task which fields of its protocol differ between the groups that have it."""
    found = []
    for task in dict.fromkeys(column["task"] for column in board["columns"]):
        protocols = {
            group["name"]: _flat(group["protocols"][task])
            for group in board["groups"]
            if task in group["protocols"]
        }
        if len(protocols) < 2:
            continue
        fields = dict.fromkeys(field for flat in protocols.values() for field in flat)
        table = {field: [flat.get(field, "–") for flat in protocols.values()] for field in fields}
        differing = {field: values for field, values in table.items() if len(set(values)) > 1}
        found.append({"task": task, "groups": list(protocols), "fields": differing})
    return found


def _flat(protocol: Mapping[str, Any]) -> dict[str, str]:
    """Write a protocol as one level of texts, the resolved recipe's nested fields with dots."""
    flat = {
        "recipe": value_text(protocol["recipe"]),
        "deviates": value_text(protocol["deviates"]),
        "data": value_text(protocol["data"]),
        "data fingerprint": value_text(protocol["fingerprint"])[:12],
        "images": value_text(protocol["images"]),
    }

    def add(prefix: str, fields: Mapping[str, Any]) -> None:
        for key, value in fields.items():
            if isinstance(value, Mapping) and value:
                add(f"{prefix}{key}.", value)
            else:
                flat[prefix + key] = value_text(value)

    add("", protocol["fields"])
    return flat


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _template_text(name: str) -> str:
    return (resources.files("simmim_bench.leaderboard") / "templates" / name).read_text(
        encoding="utf-8"
    )


def _datatables() -> str:
    """Give itables' bundle as a script that leaves DataTables in `globalThis.DataTable`.

    An inline module cannot be imported from, so the export at its end becomes an assignment.
    """
    # Located rather than imported: itables' import is slow, and looks for data frame libraries.
    path = metadata.distribution("itables").locate_file("itables/html/dt_bundle.js")
    with open(str(path), encoding="utf-8") as file:
        bundle = file.read()
    bundle, exports = re.subn(
        r"export\{[^{}]*?\b([\w$]+) as default\b[^{}]*\}",
        lambda match: f"globalThis.DataTable={match[1]}",
        bundle,
    )
    assert exports == 1, "this version of itables exports DataTables in another way"
    # HTML would end or nest the script at these; inside its strings and patterns \x3C is the same.
    return re.sub(r"<(?=!--|/?script)", r"\\x3C", bundle, flags=re.IGNORECASE)


def _csp_hash(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
