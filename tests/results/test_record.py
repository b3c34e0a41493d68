"""Tests of records: their schema, older versions, and concurrent writing."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from support.records import board_of, change, make_record

from simmim_bench.errors import DataError
from simmim_bench.leaderboard.find import find_records
from simmim_bench.leaderboard.tables import to_markdown
from simmim_bench.results.record import Record, read_record


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"metrics": [1]}, "metrics: "),
        ({"metrics": {"top1": "6"}}, "metrics.top1: "),
        ({"metrics": {"top1": float("nan")}}, "metrics: nan is not a finite number"),
        ({"metrics": {"top1": 101}}, "metrics.top1: "),
        ({"metrics": {"ece": 101}}, "metrics.ece: "),
        ({"metrics": {"nll": -1}}, "metrics.nll: "),
        ({"metrics": {"brier": 2.1}}, "metrics.brier: "),
        ({"recipe": "r"}, "recipe: "),
        ({"predictions": {}}, "predictions: "),
        ({"date": "yesterday"}, "date: "),
        ({"extra": 1}, "extra"),
        ({"schema": 3}, "schema 3"),
    ],
)
def test_the_error_names_the_record_and_the_invalid_key(
    tmp_path: Path, fields: dict[str, object], where: str
) -> None:
    path = make_record(tmp_path)
    change(path, **fields)
    with pytest.raises(DataError, match=str(path)) as raised:
        read_record(path)
    assert where in str(raised.value)


def test_the_schema_describes_every_key() -> None:
    text = resources.files("simmim_bench.results").joinpath("record.schema.json").read_text()
    schema = json.loads(text)
    Draft202012Validator.check_schema(schema)
    assert set(schema["properties"]) == {field.name for field in fields(Record)}

    def undescribed(part: dict[str, Any], name: str) -> list[str]:
        inner = part.get("properties", {})
        missing = [] if part.get("description") else [name]
        return missing + [
            n for key, sub in inner.items() for n in undescribed(sub, f"{name}.{key}")
        ]

    assert undescribed(schema, "record") == []


def test_a_record_of_schema_version_1_is_read(tmp_path: Path) -> None:
    path = make_record(tmp_path)
    old = json.loads(path.read_text())
    for key in ("status", "cost", "command"):
        del old[key]
    del old["recipe"]["fields"], old["checkpoint"]["params"]
    path.write_text(json.dumps(old | {"schema": 1, "evaluated": 9}))
    record = read_record(path)
    assert record.status == "partial"
    assert record.cost["device_hours"] is None
    assert "60.0†" in to_markdown(board_of(tmp_path))


@pytest.mark.heavy
def test_concurrent_writers_lose_no_record(tmp_path: Path) -> None:
    template = make_record(tmp_path / "template")
    script = (
        "import json, pathlib, sys; from simmim_bench.files import write_json\n"
        "record = json.loads(pathlib.Path(sys.argv[1]).read_text())\n"
        "for seed in range(200): write_json(\n"
        "    pathlib.Path(sys.argv[2], str(seed), 'record.json'), record | {'seed': seed})"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", script, str(template), str(tmp_path / letter)])
        for letter in "abcdefgh"
    ]
    assert [writer.wait() for writer in writers] == [0] * 8
    found = find_records([tmp_path])
    assert (len(found.records), found.problems) == (1601, ())
