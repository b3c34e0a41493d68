"""Records of other people: a bad one is named and left out, and nothing is read or written outside of its folder."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.records import board_of, change, fake_hash, make_record, run_leaderboard

from simmim_bench.files import sha256_file
from simmim_bench.leaderboard.check import check_records
from simmim_bench.leaderboard.figure_points import pareto_front
from simmim_bench.leaderboard.figures import plot_scores
from simmim_bench.leaderboard.find import find_records
from simmim_bench.leaderboard.page_data import page_data
from simmim_bench.leaderboard.tables import to_csv, to_json, to_latex, to_markdown
from simmim_bench.leaderboard.text_tables import escape_markdown
from simmim_bench.local_paths import shorten_paths
from simmim_bench.results.metrics import write_confusion
from transfer.recipes import RECIPES

Damage = Callable[[Path], object]
HUGE = 10**400


def of_checkpoint(**fields: Any) -> Damage:
    return lambda path: change(path, checkpoint=json.loads(path.read_text())["checkpoint"] | fields)


def of_part(part: str, **fields: Any) -> Damage:
    return lambda path: change(path, **{part: json.loads(path.read_text())[part] | fields})


def text(content: str | bytes) -> Damage:
    return lambda path: path.write_bytes(
        content if isinstance(content, bytes) else content.encode()
    )


def raw(key: str, value: str) -> Damage:
    """Replace a field by a JSON text that `json.dumps` does not write."""
    return lambda path: path.write_text(
        json.dumps(json.loads(path.read_text()) | {key: "MARK"}).replace('"MARK"', value)
    )


def arrays(**changed: Any) -> Damage:
    """Replace arrays of the predictions, with the hash that fits."""

    def damage(path: Path) -> None:
        file = path.parent / "predictions" / "logits.npz"
        with np.load(file) as stored:
            np.savez(file, allow_pickle=True, **{**stored, **changed})
        of_part("predictions", sha256=sha256_file(file))(path)

    return damage


def promised(path: Path) -> None:
    """Write an array whose header promises terabytes."""
    file = path.parent / "predictions" / "logits.npz"
    content = file.read_bytes()
    with np.load(file) as stored:
        np.savez(file, **stored)
    content = file.read_bytes()
    assert content.count(b"'shape': (10, 6)") == 2
    file.write_bytes(content.replace(b"'shape': (10, 6)", b"'shape':(10**9,)"))
    of_part("predictions", sha256=sha256_file(file))(path)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def link(path: Path) -> None:
    moved = path.parents[2] / "elsewhere.json"
    path.rename(moved)
    path.symlink_to(moved)


# Records that cannot be used: `build` and `check` name them.
UNUSABLE: dict[str, Damage] = {
    "empty": text(""),
    "list": text("[]"),
    "null": text("null"),
    "deep": text("[" * 100_000),
    "utf16": text(b"\xff\xfe\x00\xd8"),
    "deep_details": raw("details", "[" * 300 + "]" * 300),
    "infinite_metric": raw("metrics", '{"top1": Infinity}'),
    "huge_metric": raw("metrics", '{"top1": 1e999}'),
    "no_metric": raw("metrics", "{}"),
    "huge_seed": raw("seed", "9" * 400),
    "huge_hours": of_part("cost", device_hours=HUGE),
    "infinite_hours": of_part("cost", device_hours=float("inf")),
    "huge_params": of_checkpoint(params=HUGE),
    "surrogate": raw("date", '"\\ud800"'),
    "surrogate_label": of_checkpoint(label="\ud800"),
    "number_label": of_checkpoint(label=5),
    "missing_label": lambda path: change(path, checkpoint={}),
    "list_provenance": of_checkpoint(provenance=[]),
    "no_fields": of_part("recipe", fields={}),
    "list_fields": of_part("recipe", fields=[]),
    "text_deviates": lambda path: change(path, deviates="x"),
    "other_command": lambda path: change(path, command=["sh", "-c", "x"]),
    "schema_text": lambda path: change(path, schema=["x" * 1000]),
    "schema_true": lambda path: change(path, schema=True),
    "absolute_arch": of_checkpoint(arch="/tmp/x"),
    "leaving_arch": of_checkpoint(arch="../../x"),
    "newline_arch": of_checkpoint(arch="vit_b\n"),
    "leaving_hash": of_checkpoint(sha256="../../../x"),
    "leaving_fingerprint": lambda path: change(path, data={"root": "d", "fingerprint": "../x"}),
    "leaving_file": of_part("predictions", file="../../secret.txt"),
    "absolute_file": of_part("predictions", file="/etc/passwd"),
    "leaving_task": lambda path: change(path, task="linear/../../x"),
    "link": link,
    "pipe": pipe,
    "loop": loop,
}
# Records whose predictions `check` cannot score.
UNSCORABLE: dict[str, Damage] = {
    "terabytes": promised,
    "pickled": arrays(labels=np.array([{}] * 10, object)),
    "negative_class": arrays(ranked=np.full((10, 6), -1)),
    "large_class": arrays(labels=np.full(10, 2**62)),
    "no_classes": arrays(classes=np.array(0)),
    "many_classes": arrays(classes=np.array(2**62)),
    "complex_logits": arrays(logits=np.zeros((10, 6), complex)),
    "nan_logits": arrays(logits=np.full((10, 6), np.nan)),
    "scalar": arrays(ranked=np.array(3)),
    "no_images": arrays(
        ranked=np.zeros((0, 6), int), logits=np.zeros((0, 6)), labels=np.zeros(0, int)
    ),
    "other_length": arrays(labels=np.zeros(4, int)),
    "text_labels": arrays(labels=np.array(["a"] * 10)),
    "unhashable_deviation": lambda path: change(path, deviates={"epochs": {"a": [1]}}),
}


def test_unusable_records_are_named_and_stop_no_other(tmp_path: Path) -> None:
    runs, damaged = tmp_path / "runs", {}
    make_record(runs, label="good")
    for name, damage in (UNUSABLE | UNSCORABLE).items():
        path = damaged[name] = make_record(runs, label=f"bad_{name}")
        damage(path)
    arguments = ("--no-reported", runs, "--out", tmp_path / "out")
    built = run_leaderboard("build", *arguments)
    assert built.exit_code == 0, built.exception
    table = (tmp_path / "out" / "LEADERBOARD.md").read_text()
    assert "| good |" in table
    for name in UNUSABLE:
        lines = [line for line in built.stderr.splitlines() if f"/bad_{name}-" in line]
        assert len(lines) == 1, name
        assert f"| bad_{name} |" not in table, name
    checked = run_leaderboard("check", *arguments)
    assert getattr(checked.exception, "exit_code", None) == 6
    for name, path in damaged.items():
        assert str(path) in str(checked.exception), name
    assert "good" not in str(checked.exception)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "entries",
    [
        [[0, 0, 3, 5]],
        [[0, -1, 0, 5]],
        [[0, 0, 0, 0]],
        [[0, 0, 0, 2**62], [0, 1, 1, 2**62]],
        np.zeros((0, 4), int),
        [[0, 0, 0]],
    ],
)
def test_impossible_confusions_are_refused(tmp_path: Path, entries: Any) -> None:
    path = make_record(tmp_path)
    file = path.parent / "predictions" / "confusion.npz"
    write_confusion(file, [np.eye(3, dtype=int)], ["a", "b", "c"])
    with np.load(file) as stored:
        np.savez(file, **{**stored, "entries": np.array(entries)})
    change(
        path,
        task="ade20k",
        predictions={"file": "predictions/confusion.npz"} | {"sha256": sha256_file(file)},
    )
    (problem,) = [
        p for p in check_records(find_records([tmp_path]).records, RECIPES) if "cannot be read" in p
    ]
    assert str(path) in problem


def test_damaged_curves_scores_and_figures_are_named_and_left_out(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    figures = {
        "metrics.jsonl": b'{"step": 1e999, "loss": 1}\n[]\n'
        + b"[" * 100_000
        + b'\n{"step": 1, "loss": "x"}\n'
        b'{"step": ' + b"9" * 300 + b', "loss": 2}\n\xff\n',
        "iou_by_class.json": b'{"a": ' + b"9" * 400 + b"}",
        "ap_by_class.json": b'{"box": [1]}',
        "reconstructions.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    }
    for name, content in figures.items():
        path = make_record(runs, label=name[:3])
        (path.parent / name).write_bytes(content)
        of_checkpoint(
            name=str(path.parent), provenance={"devices": None, "tag": [], "data": [], "recipe": 5}
        )(path)
    secret = tmp_path / "secret.jsonl"
    secret.write_text('{"step": 1, "loss": 1}\n{"step": 2, "loss": 2}\n')
    path = make_record(runs, label="link")
    (path.parent / "metrics.jsonl").symlink_to(secret)
    data = page_data(board_of(runs))
    assert [record["curve"] for record in data["records"]] == [None] * 5
    assert [record["by_class"] for record in data["records"]] == [None] * 5
    assert data["reconstructions"] == {}
    for name in ("iou_by_class.json", "ap_by_class.json", "reconstructions.png", "link-linear-0"):
        assert sum(name in problem for problem in data["problems"]) == 1, name
    assert len(data["rows"]) == 5


def test_a_figure_of_another_folder_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (4, 4)).save("reconstructions.png")
    of_checkpoint(name="some/weights.pth")(make_record(tmp_path / "runs"))
    assert page_data(board_of(tmp_path / "runs"))["reconstructions"] == {}


def test_scores_of_changed_code_are_on_no_pareto_front(tmp_path: Path) -> None:
    for label, correct in (("a", 6), ("c", 5)):
        make_record(tmp_path, label=label, correct=correct)
    path = make_record(tmp_path, label="b", correct=9)
    change(path, environment={"dirty": True})
    (plot, *_) = plot_scores(page_data(board_of(tmp_path)))
    fronts = [point.row["label"] for series in plot["series"] for point in series.front]
    assert fronts == ["a"]
    assert pareto_front([(1.0, 5.0), (1.0, 6.0)]) == [1]


def keep(tmp_path: Path) -> tuple[int, str]:
    result = run_leaderboard("keep", tmp_path / "runs", "--out", tmp_path / "kept")
    return getattr(result.exception, "exit_code", result.exit_code), str(result.exception)


@pytest.mark.parametrize("file", ["predictions/logits.npz", "metrics.jsonl", "reconstructions.png"])
def test_keep_copies_no_file_from_outside_of_a_run(tmp_path: Path, file: str) -> None:
    secret = tmp_path / "secret.png"
    Image.new("RGB", (4, 4)).save(secret)
    make_record(tmp_path / "runs", label="good")
    path = make_record(tmp_path / "runs", label="bad")
    of_checkpoint(name=str(path.parent))(path)
    (path.parent / file).unlink(missing_ok=True)
    (path.parent / file).symlink_to(secret)
    code, message = keep(tmp_path)
    assert code == 4
    assert str(path) in message
    assert "symbolic link that leads out" in message
    kept = [f for f in (tmp_path / "kept").rglob("*") if f.is_file()]
    assert secret.read_bytes() not in [f.read_bytes() for f in kept]
    assert any("good" in f.read_text() for f in kept if f.name == "record.json")


def test_keep_writes_and_removes_nothing_outside_of_its_folder(tmp_path: Path) -> None:
    path = make_record(tmp_path / "runs")
    assert keep(tmp_path)[0] == 0
    (record,) = (tmp_path / "kept").rglob("record.json")
    assert keep(tmp_path)[0] == 0  # an earlier copy is replaced
    notes = record.parent / "notes.txt"
    notes.write_text("mine")
    code, message = keep(tmp_path)
    assert code == 4
    assert "keep` did not write its notes.txt" in message
    assert notes.read_text() == "mine"
    notes.unlink()
    outside = tmp_path / "outside"
    record.parents[2].rename(outside)
    record.parents[2].symlink_to(outside)
    before = sorted(outside.rglob("*"))
    code, message = keep(tmp_path)
    assert code == 4
    assert "symbolic link that leads out" in message
    assert sorted(outside.rglob("*")) == before
    assert path.is_file()


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("/home/alice/imagenet", "imagenet"),
        ("/home/alice", "."),
        ("/Users/alice/data/coco/val", "coco/val"),
        ("/gpfs/home/alice/x", "x"),
        ("~/data/x", "data/x"),
        ("~alice/x", "x"),
        ("file:///home/alice/x/y", "x/y"),
        ("file:///data/x/y/z", "y/z"),
        ("--data=/home/alice/x", "--data=x"),
        ("data=/a/b/c", "data=b/c"),
        ("cannot read /home/alice/x: denied", "cannot read ~/x: denied"),
        ("a\n/home/alice/x", "a\n~/x"),
        ("https://example.org/a/b/c", "https://example.org/a/b/c"),
        ("demo/data/coco", "demo/data/coco"),
    ],
)
def test_no_user_name_is_left_in_a_path(value: str, shown: str) -> None:
    assert shorten_paths({"k": [value]}) == {"k": [shown]}


def test_check_loads_no_checkpoint_that_a_record_names(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "executed"),)

    weights = tmp_path / "weights.pth"
    weights.write_bytes(pickle.dumps(Attack()))
    path = make_record(tmp_path / "runs")
    (path.parent / "env.json").write_text("{}")
    content = hashlib.sha256(weights.read_bytes()).hexdigest()
    for sha256, found in ((content, 0), (fake_hash("other"), 1)):
        of_checkpoint(name=str(weights), sha256=sha256)(path)
        problems = check_records(find_records([tmp_path / "runs"]).records, RECIPES)
        assert len(problems) == found, problems
    assert not (tmp_path / "executed").exists()
    weights.unlink()
    os.mkfifo(weights)
    (problem,) = check_records(find_records([tmp_path / "runs"]).records, RECIPES)
    assert "has changed" in problem


LABEL = "\n# heading\r\x1b[31m*a* https://evil.example @user #12 \u202e"


def test_a_label_is_one_line_without_effect_in_every_format(tmp_path: Path) -> None:
    of_checkpoint(label=LABEL)(make_record(tmp_path))
    board = board_of(tmp_path)
    markdown, latex, csv = to_markdown(board), to_latex(board), to_csv(board)
    for shown in (markdown, latex, csv):
        assert "\x1b" not in shown
        assert "\u202e" not in shown
    assert "\n\n#" not in markdown
    assert "\n#" not in markdown
    assert "://" not in markdown
    assert "@user" not in markdown
    assert "#12" not in markdown
    assert r"\*a\*" in markdown
    assert len(csv.splitlines()) == 2
    assert "\n\n" not in latex.strip().replace("\n% ", "")
    assert json.loads(to_json(board))["rows"][0]["label"] == LABEL
    shown = run_leaderboard("show", tmp_path).output
    assert "\x1b[31m" not in shown
    make_record(tmp_path / "more", label="good")
    before = tmp_path / "before.json"
    before.write_text(to_json(board_of(tmp_path / "more")))
    comment = run_leaderboard("show", tmp_path, "--against", before).output
    assert "://" not in comment
    assert "\n#" not in comment


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("# a", r"\# a"),
        ("  - a", r"\- a"),
        ("* a", r"\* a"),
        ("1. a", r"1\. a"),
        ("**a** _b_ ~~c~~", r"\*\*a\*\* \_b\_ \~\~c\~\~"),
        ("vit_pocket, SimMIM cifar *", "vit_pocket, SimMIM cifar *"),
        ("<b>&[a](b)|`c`\\", r"&lt;b&gt;&amp;\[a\](b)\|\`c\`\\"),
        (
            "http://a www.b a@b.c @d #1",
            "http:&#8203;//a www&#8203;.b a@&#8203;b.c @&#8203;d #&#8203;1",
        ),
    ],
)
def test_markdown_is_escaped_where_it_would_take_effect(text: str, escaped: str) -> None:
    assert escape_markdown(text) == escaped


@pytest.mark.parametrize("label", ["=HYPERLINK(1)", "+1", "-1", "@x", " =1", "\t=1"])
def test_a_spreadsheet_reads_no_label_as_a_formula(tmp_path: Path, label: str) -> None:
    of_checkpoint(label=label)(make_record(tmp_path))
    cell = to_csv(board_of(tmp_path)).splitlines()[1].split(",")[2]
    assert cell[0] in "'\\"


@pytest.mark.parametrize(
    "content", ['{"rows": [{}]}', "[" * 70 + "]" * 70, '{"rows": 5}', '{"groups": {}, "rows": [5]}']
)
def test_an_earlier_leaderboard_that_is_damaged_is_refused(tmp_path: Path, content: str) -> None:
    make_record(tmp_path / "runs")
    before = tmp_path / "before.json"
    before.write_text(content)
    result = run_leaderboard("show", tmp_path / "runs", "--against", before)
    assert getattr(result.exception, "exit_code", None) == 4


def test_build_follows_no_link_out_of_its_folder(tmp_path: Path) -> None:
    make_record(tmp_path / "runs")
    out, target = tmp_path / "out", tmp_path / "target"
    out.mkdir()
    target.write_text("mine")
    (out / "LEADERBOARD.md").symlink_to(target)
    result = run_leaderboard("build", "--no-reported", tmp_path / "runs", "--out", out)
    assert getattr(result.exception, "exit_code", None) == 4
    assert "symbolic link that leads out" in str(result.exception)
    assert target.read_text() == "mine"
    assert [path.name for path in out.iterdir()] == ["LEADERBOARD.md"]


def test_names_that_are_too_long_are_those_of_one_record(tmp_path: Path) -> None:
    runs, long = tmp_path / "runs", "n" * 5000
    make_record(runs, label="good")
    of_checkpoint(name=long)(make_record(runs, label="bad"))
    path = make_record(runs, label="worse")
    change(path, data={"root": "d", "annotations": long, "fingerprint": fake_hash("f")})
    arguments = ("--no-reported", runs, "--out", tmp_path / "out")
    assert run_leaderboard("build", *arguments).exit_code == 0
    problems = str(run_leaderboard("check", *arguments).exception).splitlines()
    assert [("worse" in problem, "good" in problem) for problem in problems] == [(True, False)]
    # As files that do not exist: a record is kept without a figure, but not without its annotations.
    code, message = keep(tmp_path)
    assert code == 4
    assert "worse" in message
    assert "good" not in message
    assert len(list((tmp_path / "kept").rglob("record.json"))) == 2


def test_a_list_of_written_files_renames_no_other_file(tmp_path: Path) -> None:
    make_record(tmp_path / "runs")
    out, target = tmp_path / "out", tmp_path / "target"
    out.mkdir()
    target.write_text("mine")
    (out / "evil").write_text("theirs")
    for listed in (
        {str(out / "evil"): str(target)},
        [1],
        {"a": None},
        {str(out / "evil"): str(out / "b")},
    ):
        (out / ".pending.json").write_text(json.dumps(listed))
        result = run_leaderboard("build", "--no-reported", tmp_path / "runs", "--out", out)
        assert getattr(result.exception, "exit_code", None) == 4
    assert target.read_text() == "mine"
    assert (out / "evil").exists()


@pytest.mark.parametrize("named", ["checkpoint", "annotations"])
def test_a_name_that_no_file_can_have_names_no_file(tmp_path: Path, named: str) -> None:
    """Found by fuzzing: the system's error of a name that is too long."""
    path = make_record(tmp_path)
    (path.parent / "env.json").write_text("{}")
    if named == "checkpoint":
        of_checkpoint(name="x" * 5000)(path)
    else:
        of_part("data", annotations="x" * 5000)(path)
    problems = check_records(find_records([tmp_path]).records, RECIPES)
    assert not any("cannot be checked" in problem for problem in problems)
    assert any("do not exist" in problem for problem in problems) == (named == "annotations")
