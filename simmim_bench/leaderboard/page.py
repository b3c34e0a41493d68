"""Render the leaderboard as one HTML page that works from disk, without a network.

The input is the plain JSON that `page_data.py` builds from a board. DataTables (from itables' wheel) sorts and
searches the table, Matplotlib draws the plots, and Jinja escapes every text of the board. The details of a row
are stored in an inert `<template>`; the page's script only displays them.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata, resources
from typing import TYPE_CHECKING, Any

from simmim_bench.files import escape
from simmim_bench.leaderboard.figure_points import COSTS, GROUP_STYLES
from simmim_bench.leaderboard.figures import format_number, plot_scores
from simmim_bench.leaderboard.overview import RANDOM, build_overview
from simmim_bench.untrusted.text import visible

if TYPE_CHECKING:
    from jinja2 import Template

CURVE_POINTS = 150
IMAGE_URL = re.compile(r"data:image/(?:png|webp);base64,[A-Za-z0-9+/]+=*")


def render_page(board: dict[str, Any]) -> str:
    """Return the page as HTML; the same board always results in the same bytes.

    Args:
        board: the page's data; see `page_data.page_data`.
    """
    from markupsafe import Markup

    scripts = [
        _datatables(),
        "\n".join(map(_template_text, ("leaderboard.js", "copy.js", "comparison.js"))),
    ]
    groups = {group["name"]: group for group in board["groups"]}
    overview = build_overview(board)
    plots = plot_scores(board)
    return _template().render(
        board=board,
        group_style={name: k % GROUP_STYLES for k, name in enumerate(groups)},
        group_number={name: k for k, name in enumerate(groups)},
        group_title={name: group["title"] for name, group in groups.items()},
        overview=overview,
        views=column_views(board),
        tasks_of=lambda row: {
            column["task"]: None
            for column, cell in zip(board["columns"], row["cells"], strict=True)
            if cell
        },
        details=[
            (row, collect_tasks(board, row, groups.get(row["group"]))) for row in board["rows"]
        ],
        differences=protocol_differences(board),
        plots=plots,
        # The plot with the most points on Pareto fronts is displayed first.
        shown=max(plots, key=lambda plot: sum(len(s.front) for s in plot["series"]), default=None),
        costs=COSTS,
        images={
            sha256: url
            for sha256, url in board["reconstructions"].items()
            if IMAGE_URL.fullmatch(url)
        },
        style=Markup(_template_text("leaderboard.css")),
        scripts=[Markup(script) for script in scripts],
        # The Content Security Policy allows scripts by hash, so that no text of the board can run as a script.
        script_hashes=" ".join(f"'sha256-{_csp_hash(script)}'" for script in scripts),
    )


@functools.cache
def _template() -> Template:
    """Return the page's template, which is compiled once."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("simmim_bench.leaderboard", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Callable[..., Any]] = {
        "number": format_number,
        "value": format_value,
        "curve": scale_curve,
        "json": _compact_json,
        "describe": describe_row,
    }
    environment.filters |= filters
    return environment.get_template("leaderboard.html")


def _finalize(value: Any) -> Any:
    """Replace control characters and direction marks in every text of the board by visible escapes."""
    return visible(value) if type(value) is str else value


def format_value(value: Any) -> str:
    """Format a field of a recipe: strings without quotes, mappings as `key=value`, other values as JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={format_value(item)}" for key, item in value.items()) or "none"
    return json.dumps(value, ensure_ascii=False)


def scale_curve(points: Sequence[Sequence[float]] | None) -> dict[str, Any] | None:
    """Scale (step, loss) pairs to the points of an SVG polyline in a box of 300 by 80 units.

    Args:
        points: pairs by step; pairs without a finite loss are left out.

    Returns:
        The polyline's `points`, at most `CURVE_POINTS` + 1, the `first`, `last`, `low`(est) and `high`(est) loss and
        the last of the `steps`; None for fewer than two finite losses.
    """
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


def column_views(board: Mapping[str, Any]) -> list[str]:
    """Return for each column which rows have a score there: `measured`, `published`, both, or none of them."""
    kinds = ("published" if row["status"] == "reported" else "measured" for row in board["rows"])
    scored: list[dict[str, None]] = [{} for _ in board["columns"]]
    for kind, row in zip(kinds, board["rows"], strict=True):
        for found, cell, inapplicable in zip(
            scored, row["cells"], row["inapplicable"], strict=True
        ):
            if cell or inapplicable:
                found[kind] = None
    return [" ".join(found) for found in scored]


def describe_row(row: Mapping[str, Any], family: str, title: str) -> str:
    """Describe a row in one or two sentences.

    Args:
        family: of its method.
        title: of its group; see `group_names.group_titles`.
    """
    if row["status"] == "reported":
        return f"{row['arch']} of {family}, as published. The scores were not reproduced here."
    lineage = row["lineage"]
    if family == RANDOM:
        first = f"Random weights of {row['arch']}, without pretraining"
    else:
        epochs = f" for {lineage['epochs']} epochs" if "epochs" in lineage else ""
        data = f" on {lineage['data']}" if "data" in lineage else ""
        if data and isinstance(lineage.get("images"), int):
            data += f" ({lineage['images']:,} images)"
        count = len(row["pretrainings"])
        several = f", {count} times with different seeds" if count else ""
        first = f"{row['arch']} pretrained by {family}{epochs}{data}{several}"
    return f"{first}. Scored on {title}."


def collect_tasks(
    board: Mapping[str, Any], row: Mapping[str, Any], group: Mapping[str, Any] | None
) -> list[dict[str, Any]]:
    """Collect a row's cells by task, with the task's protocol and its records without duplicates."""
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


def protocol_differences(board: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the protocol fields that differ between groups, for every task of at least two groups.

    Returns:
        For every such task its name `task`, the names of its `groups`, and its `fields`: field name -> one text
        per group.
    """
    found = []
    for task in dict.fromkeys(column["task"] for column in board["columns"]):
        protocols = {
            group["name"]: _flatten_protocol(group["protocols"][task])
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


def _flatten_protocol(protocol: Mapping[str, Any]) -> dict[str, str]:
    """Convert a protocol to texts by field name; nested fields of the recipe get dotted names."""
    flat = {
        "recipe": format_value(protocol["recipe"]),
        "deviates": format_value(protocol["deviates"]),
        "data": format_value(protocol["data"]),
        "data fingerprint": format_value(protocol["fingerprint"])[:12],
        "images": format_value(protocol["images"]),
        **{key: format_value(protocol[key]) for key in ("classifier",) if key in protocol},
    }

    def add(prefix: str, fields: Mapping[str, Any]) -> None:
        for key, value in fields.items():
            if isinstance(value, Mapping) and value:
                add(f"{prefix}{key}.", value)
            else:
                flat[prefix + key] = format_value(value)

    add("", protocol["fields"])
    return flat


def _compact_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _template_text(name: str) -> str:
    folder = resources.files("simmim_bench.leaderboard") / "templates"
    return (folder / name).read_text(encoding="utf-8")


def _datatables() -> str:
    """Load itables' JavaScript bundle, changed to assign DataTables to `globalThis.DataTable`.

    An inline module cannot be imported from, so the export at the end of the bundle becomes an assignment.
    """
    # The file is located without importing itables, whose import is slow and searches for data frame libraries.
    path = metadata.distribution("itables").locate_file("itables/html/dt_bundle.js")
    with open(str(path), encoding="utf-8") as file:
        bundle = file.read()
    bundle, exports = re.subn(
        r"export\{[^{}]*?\b([\w$]+) as default\b[^{}]*\}",
        lambda match: f"globalThis.DataTable={match[1]}",
        bundle,
    )
    assert exports == 1, "this version of itables exports DataTables in another way"
    # HTML would end the script at `</script` and nest it at `<script` or `<!--`. JavaScript reads \x3C as `<`.
    return re.sub(r"<(?=!--|/?script)", r"\\x3C", bundle, flags=re.IGNORECASE)


def _csp_hash(script: str) -> str:
    return base64.b64encode(hashlib.sha256(escape(script).encode()).digest()).decode()
