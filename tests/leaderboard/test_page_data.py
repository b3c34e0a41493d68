"""Tests of the page's data: costs, curves, per-class scores, reconstructions, published rows."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path

import pytest
from PIL import Image
from support.records import board_of, change, make_record, pretraining, run_leaderboard

from simmim_bench.leaderboard.page import render_page
from simmim_bench.leaderboard.page_data import page_data
from simmim_bench.leaderboard.reported import read_reported


def test_a_row_costs_its_pretraining_and_the_mean_over_seeds_of_each_task(tmp_path: Path) -> None:
    for task, seed, hours in (("linear", 0, 1.0), ("linear", 1, 2.0), ("knn", 0, 0.25)):
        path = make_record(tmp_path, task=task, seed=seed)
        change(path, cost=json.loads(path.read_text())["cost"] | {"device_hours": hours})
        checkpoint = json.loads(path.read_text())["checkpoint"]
        change(path, checkpoint=checkpoint | {"provenance": {"wall_time_s": 7200.0, "devices": 4}})
    (row,) = page_data(board_of(tmp_path))["rows"]
    assert row["cost"] == {"device_hours": pytest.approx(1.5 + 0.25 + 8.0), "params_m": 0.001}


@pytest.mark.parametrize("unknown", ["transfer", "pretraining"])
def test_a_partly_unknown_cost_is_not_shown(tmp_path: Path, unknown: str) -> None:
    path = make_record(tmp_path)
    content = json.loads(path.read_text())
    if unknown == "transfer":
        change(path, cost=dict.fromkeys(content["cost"]))
    else:
        change(path, checkpoint=content["checkpoint"] | {"provenance": {"method": "mae"}})
    (row,) = page_data(board_of(tmp_path))["rows"]
    assert row["cost"]["device_hours"] is None


def test_random_weights_cost_only_their_transfers(tmp_path: Path) -> None:
    path = make_record(tmp_path)
    checkpoint = json.loads(path.read_text())["checkpoint"]
    change(path, checkpoint=checkpoint | {"provenance": {"method": "random"}})
    assert page_data(board_of(tmp_path))["rows"][0]["cost"]["device_hours"] == 0.5


def test_a_method_has_the_mean_cost_and_the_common_provenance_of_its_pretrainings(
    tmp_path: Path,
) -> None:
    for seed, hours in ((0, 2.0), (1, 4.0)):
        path = make_record(tmp_path, label=f"new{seed}", correct=5 + seed)
        of_seed = {"psnr": 17.0 + seed, "wall_time_s": 3600 * hours}
        provenance = pretraining("pocket", seed) | of_seed
        checkpoint = json.loads(path.read_text())["checkpoint"]
        change(path, checkpoint=checkpoint | {"label": "new", "provenance": provenance})
    data = page_data(board_of(tmp_path))
    (row,) = data["rows"]
    assert row["cost"]["device_hours"] == pytest.approx(3.0 + 0.5)
    assert row["lineage"] == {"method": "simmim", "recipe": "pocket", "data": "d", "epochs": 6}
    linear = next(i for i, column in enumerate(data["columns"]) if column["task"] == "linear")
    assert row["cells"][linear]["mean"] == pytest.approx(55.0)
    assert row["cells"][linear]["spread"][0] == "pretrainings ± 7.1"
    scores = [(one["seed"], one["cells"][linear]["text"]) for one in row["pretrainings"]]
    assert scores == [(0, "50.0"), (1, "60.0")]
    page = render_page(data)
    assert "mean over 2 pretrainings" in page
    table = page.partition('<table class="plain pretrainings">')[2].partition("</table>")[0]
    assert re.findall(r'<th scope="col">(.*?)</th>', table) == ["pretraining", "linear"]
    assert re.findall(r"<td>([\d.]+)", table) == ["50.0", "60.0"]
    assert "nowhere/new1, seed 0" in page
    searched = page.partition('data-search="')[2].partition('"')[0]
    assert all(one["checkpoint"] in searched for one in row["pretrainings"])


@pytest.mark.parametrize("overall", [False, True])
def test_the_mean_rank_is_shown_if_requested(tmp_path: Path, overall: bool) -> None:
    for label, correct in (("a", 10), ("b", 2)):
        for task in ("linear", "knn"):
            for seed in range(2):
                make_record(tmp_path, label=label, task=task, correct=correct, seed=seed)
    options = ["--overall"] if overall else []
    out = tmp_path / "out"
    done = run_leaderboard("build", tmp_path, "--out", out, "--no-reported", *options)
    assert done.exit_code == 0, done.output
    page = (out / "leaderboard.html").read_text(encoding="utf-8")
    assert (">Mean rank</th>" in page) == overall
    assert ('data-order="1.0"' in page and 'data-order="2.0"' in page) == overall
    assert run_leaderboard("check", tmp_path, "--out", out, "--no-reported", *options).stdout
    shown = run_leaderboard("show", tmp_path, *options).stdout
    assert ("mean rank" in shown) == overall


def test_curves_and_per_class_scores_are_read_from_the_run(tmp_path: Path) -> None:
    folder = make_record(tmp_path).parent
    lines = [json.dumps({"step": 10 * i, "loss": 1 / i}) for i in range(1, 301)]
    lines[5] = lines[5][:7]  # a line that an interrupted run did not complete
    lines.append(json.dumps({"step": 3000, "held_out_loss": 0.5}))
    (folder / "metrics.jsonl").write_text("\n".join(lines))
    (folder / "ap_by_class.json").write_text(json.dumps({"box": {"cat": 1.5}, "mask": {"cat": 2}}))
    (record,) = page_data(board_of(tmp_path))["records"]
    curve = record["curve"]
    assert 40 <= len(curve) <= 80
    assert all(loss == pytest.approx(10 / step) for step, loss in curve)
    assert [step for step, _ in curve] == sorted({step for step, _ in curve})
    assert record["by_class"] == {"cat, box": 1.5, "cat, mask": 2.0}


def test_a_run_without_curves_and_reconstructions_is_shown_without_them(tmp_path: Path) -> None:
    make_record(tmp_path)
    data = page_data(board_of(tmp_path))
    assert data["records"][0]["curve"] is None
    assert data["records"][0]["by_class"] is None
    assert data["reconstructions"] == {}


def test_the_archive_contains_the_reconstructions_of_the_pretraining(tmp_path: Path) -> None:
    run = tmp_path / "pretraining"
    run.mkdir()
    Image.new("RGB", (2000, 100), (200, 30, 30)).save(run / "reconstructions.png")
    path = make_record(tmp_path / "runs")
    content = json.loads(path.read_text())["checkpoint"]
    change(path, checkpoint=content | {"name": str(run)})
    archive = tmp_path / "archive"
    assert run_leaderboard("keep", tmp_path / "runs", "--out", archive).exit_code == 0
    (run / "reconstructions.png").unlink()
    ((sha256, url),) = page_data(board_of(archive))["reconstructions"].items()
    assert sha256 == content["sha256"]
    head, _, encoded = url.partition(",")
    assert head == "data:image/webp;base64"
    with Image.open(io.BytesIO(base64.b64decode(encoded))) as image:
        assert image.size == (900, 45)
        red, green, _ = image.convert("RGB").getpixel((450, 20))
        assert red > 150 > green


def test_published_rows_have_a_protocol_and_a_source_but_no_rank(tmp_path: Path) -> None:
    make_record(tmp_path)
    data = page_data(board_of(tmp_path), read_reported())
    published = [row for row in data["rows"] if row["status"] == "reported"]
    assert len(published) == len(read_reported())
    assert all(row["rank"] is None and row["group"] is None for row in published)
    assert all(row["source"] and row["protocol_text"] for row in published)
    assert len({row["id"] for row in data["rows"]}) == len(data["rows"])
    assert "SimMIM, Swin-L (IN1K, 800 epochs)" in render_page(data)
