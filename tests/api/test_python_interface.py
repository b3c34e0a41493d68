"""`import simmim_bench as sb`: what the commands do, in the caller's process, with the caller's signals and errors."""

from __future__ import annotations

import gc
import inspect
import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.cli import run
from support.commands import forked_launch
from support.interrupt import InterruptingDisplay
from support.records import make_record

import simmim_bench as sb
from simmim_bench.api import pretraining
from simmim_bench.errors import DataError, UsageError
from simmim_bench.jobs import workers
from simmim_bench.library import python_words
from simmim_bench.signals import SIGNALS

PAGE = Path(__file__).parents[2] / "docs" / "python.md"
QUICK: dict[str, Any] = {"epochs": 3, "batch_size": 6, "workers": 0, "quiet": True}


def handlers() -> list[Any]:
    return [signal.getsignal(number) for number in SIGNALS]


def test_the_import_and_wrong_arguments_load_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys, simmim_bench as sb\n"
        "heavy = {'torch', 'numpy', 'click', 'rich', 'pretrain', 'transfer'}\n"
        "print(heavy & set(sys.modules), sb.leaderboard)\n"
        "for call in (\n"
        "    lambda: sb.transfer('linar', ckpt='random:vit_pocket', data='.'),\n"
        "    lambda: sb.transfer('linear', ckpt='nothing', data='.'),\n"
        "    lambda: sb.transfer('linear', ckpt='random:vit_pocket', data='.', epoch=3),\n"
        "    lambda: sb.transfer('linear', ckpt='random:vit_pocket', data='.', epochs=0),\n"
        "    lambda: sb.transfer('fewshot', ckpt='random:vit_pocket', data='.', fraction='5%'),\n"
        "    lambda: sb.transfers('knn', ckpt='random:vit_pocket', data={'a/b': '.'}),\n"
        "    lambda: sb.pretrain('vit_base', data='.'),\n"
        "    lambda: sb.pretrain('vit_b', data='nothing'),\n"
        "    lambda: sb.pretrain('vit_b', data='.', lr=0.1, overrides={'base_lr': 0.2}),\n"
        "    lambda: sb.evaluate('coco', ckpt='nothing', data='.'),\n"
        "    lambda: sb.suite('nothing', imagenet='.'),\n"
        "    lambda: sb.suite('random:vit_pocket', imagenet='.', seeds=0),\n"
        "    lambda: sb.push('nothing', 'name'),\n"
        "    lambda: sb.transfer('linear', ckpt=3, data='.'),\n"
        "    lambda: sb.transfer('linear', ckpt='random:vit_pocket', data=3),\n"
        "    lambda: sb.transfer('linear', ckpt='random:vit_pocket', data='.', data_name=3),\n"
        "):\n"
        "    try: call()\n"
        "    except sb.BenchError as error: print(type(error).__name__, error)\n"
        "print('torch' in sys.modules)\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    first, *errors, last = done.stdout.splitlines()
    assert first.startswith("set() <module 'simmim_bench.leaderboard'")
    assert last == "False"
    kinds = [line.split()[0] for line in errors]
    usage, data = "UsageError", "DataError"
    assert kinds == [usage, data, *[usage] * 5, data, usage, data, data, *[usage] * 5]
    assert "did you mean 'linear'?" in errors[0]
    assert "did you mean 'epochs'?" in errors[2]
    assert not [*tmp_path.iterdir()]


def test_a_typed_function_stands_behind_every_name() -> None:
    for name in ("pretrain", "transfer", "evaluate", "suite", "load_backbone", "push", "records"):
        function = getattr(sb, name)
        documented = function.__doc__
        assert "Raises:" in documented
        assert "Example:" in documented
        for argument, parameter in inspect.signature(function).parameters.items():
            assert parameter.annotation is not inspect.Parameter.empty
            if name != "load_backbone":
                assert re.search(rf"^ +(\w+, )*{argument}\b.*: ", documented, re.M), argument
    assert "overall" in inspect.signature(sb.leaderboard).parameters
    assert set(sb.__all__) <= set(dir(sb))
    with pytest.raises(AttributeError, match="nothing"):
        _ = sb.nothing


def test_messages_name_options_as_python_does() -> None:
    text = "a is not empty; continue with --resume, or choose another --out; see `x --help`."
    words = "a is not empty; continue with resume=True, or choose another out; see `x --help`."
    assert python_words(text) == words
    assert (
        python_words("use --img-size 64 or -o img_size=64") == "use img_size 64 or -o img_size=64"
    )


@pytest.mark.heavy
def test_an_interrupt_raises_and_the_resumed_run_ends_in_the_same_weights(
    tmp_path: Path, few: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    # A shell that starts the tests in the background lets them ignore Ctrl-C.
    started_with = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, started_with))
    whole = sb.pretrain("vit_pocket", data=few, out=tmp_path / "whole", **QUICK)
    before, frozen = handlers(), gc.get_freeze_count()
    interrupting = InterruptingDisplay("pretrain", 5, signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(pretraining, "open_display", lambda quiet: interrupting)
        with pytest.raises(KeyboardInterrupt):
            sb.pretrain("vit_pocket", data=few, out=tmp_path / "stopped", **QUICK)
    assert (handlers(), gc.get_freeze_count()) == (before, frozen)
    with pytest.raises(UsageError, match="continue with resume=True"):
        sb.pretrain("vit_pocket", data=few, out=tmp_path / "stopped", **QUICK)
    resumed = sb.pretrain("vit_pocket", data=few, out=tmp_path / "stopped", resume=True, **QUICK)
    ours, theirs = (sb.load_simmim(path).state_dict() for path in (resumed, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_command_line_resumes_a_run_of_python(tmp_path: Path, few: Path) -> None:
    out, ckpt, before = tmp_path / "knn", "random:vit_pocket", handlers()
    record = sb.transfer(
        "knn",
        ckpt=ckpt,
        data=few,
        data_name="few shapes",
        out=out,
        img_size=32,
        overrides={"k": (2, 3)},
        quiet=True,
    )
    assert record.deviates == {"k": [2, 3]}  # 32 pixels are the recipe's
    arguments = ("--ckpt", ckpt, "--data", few, "--data-name", "few shapes", "--out", out)
    changed = ("-o", "k=2,3", "-o", "img_size=32")
    code, shown, _ = run("transfer", "knn", *arguments, *changed, "--resume", "--json")
    assert code == 0
    assert handlers() == before  # `run` restores them, for tests that interrupt a library call
    assert json.loads(shown)["metrics"] == record.metrics == sb.read_record(out).metrics
    (row,) = sb.records(tmp_path)
    assert (row["top1"], row["task"], row["data"]) == (record.metrics["top1"], "knn", "few shapes")
    assert row["path"] == str(out / "record.json")


def test_tables_in_a_notebook_escape_what_records_hold(tmp_path: Path) -> None:
    record = sb.read_record(make_record(tmp_path, label="<b>a"))
    board = sb.leaderboard(tmp_path, quiet=True)
    for shown in (record._repr_html_(), board._repr_html_()):
        assert "&lt;b&gt;a" in shown
        assert "<b>a" not in shown
    assert [row["linear/top1"] for row in board.rows()] == [record.metrics["top1"]]
    with pytest.raises(DataError):
        sb.records(tmp_path / "nothing")


@pytest.mark.heavy
def test_the_examples_of_the_page_run(
    tmp_path: Path,
    pocket: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(workers, "launch", forked_launch)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pocket").symlink_to(pocket)
    before, names = handlers(), dict[str, Any]()
    for block in re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), re.M | re.S):
        exec(block, names)
    assert handlers() == before
    assert {row["task"] for row in names["rows"]} == {"linear", "knn"}
    assert names["record"].deviates == {"blocks": [2]}
    assert [tuple(one.shape[2:]) for one in names["maps"]] == [(16, 24)] * 4
    assert names["output"].loss > 0
    shown = capsys.readouterr().out
    assert "above random:vit_pocket" in shown
    assert "has no option epoch; did you mean 'epochs'?" in shown
