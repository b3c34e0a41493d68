"""The network of docs/backbones.md follows the contract of our own families, and its code runs only if named."""

from __future__ import annotations

import importlib
import json
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn

from simmim_bench.backbones import load_backbone
from simmim_bench.checkpoints.read import checkpoint_path, read_checkpoint
from simmim_bench.cli.main import cli
from simmim_bench.diagnostics.checkpoint import check_checkpoint
from simmim_bench.errors import BenchError, DataError, UsageError
from simmim_bench.models import user_network
from simmim_bench.results.record import read_record

DOCUMENT = Path(__file__).parents[2] / "docs" / "backbones.md"
FAULTS = """

import timm


def broken(**changes):
    model = build()
    for name, value in changes.items():
        setattr(model, name, value)
    return model


class Maps:
    def __init__(self, change):
        self.change = change

    def __call__(self, x):
        return [self.change(level) for level in Pyramid.forward_maps(build(), x)]


def argument(x): return build()
def fails(): raise RuntimeError("a\\nb")
def quits(): raise SystemExit(3)
def number(): return 3
def levels(): return broken(feature_levels=[(16, 4), (32, 8), (64, 16), (128, 64)])
def backwards(): return broken(feature_levels=Pyramid.feature_levels[::-1])
def nan(): return broken(forward_maps=Maps(lambda x: x * float("nan")))
def flat(): return broken(forward_maps=Maps(lambda x: x.flatten(2)))
def elsewhere(): return broken(forward_maps=Maps(lambda x: x.to("meta")))
def whole(): return broken(forward_maps=Maps(lambda x: x.long()))
def nothing(): return broken(forward_maps=lambda x: None)
def crashes(): return broken(forward_maps=lambda x: 1 / 0)
def layers(): return broken(layer_id=lambda name: -1)
def size(): return broken(img_size="a")
def mean(): return broken(mean=(0.5,))
def vit(): return timm.create_model("test_vit", img_size=32, num_classes=3)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the module of the documentation, as the console script sees it: not on the path."""
    (code,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "documented.py").write_text(code + FAULTS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.setattr(user_network, "_PERMITTED", set())
    yield tmp_path
    sys.modules.pop("documented", None)


def run(*arguments: object) -> Result:
    done = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert done.exception is None or isinstance(done.exception, BenchError | SystemExit), done
    return done


@pytest.mark.parametrize("size", [(32, 32), (48, 64), (37, 51)])
@pytest.mark.parametrize("factory", ["build", "vit"])
def test_maps_have_the_declared_channels_and_strides(
    factory: str, size: tuple[int, int], folder: Path
) -> None:
    model = load_backbone(f"py:documented:{factory}").eval()
    maps = model.forward_maps(torch.randn(2, 3, *size))
    for level, (channels, stride) in zip(maps, model.feature_levels, strict=True):
        assert level.shape == (2, channels, *(math.ceil(side / stride) for side in size))


def test_features_are_those_of_the_users_network(folder: Path) -> None:
    model = load_backbone("py:documented:build", img_size=(64, 64)).eval()
    theirs: Any = sys.modules["documented"].build().eval()
    images = torch.randn(2, 3, 64, 64)
    *_, last = theirs.forward_maps(images)
    assert torch.equal(model.forward_features(images), last.mean((2, 3)))
    assert torch.equal(model.forward_pooled(images)[:, -1, -1], last.mean((2, 3)))
    assert torch.equal(model.forward_tokens(images)[-1], last.movedim(1, 3))


def test_layer_ids_cover_every_parameter_and_grow_with_depth(folder: Path) -> None:
    model = load_backbone("py:documented:build", num_classes=3)
    ids = {name: model.layer_id(name) for name, _ in model.named_parameters()}
    assert set(ids.values()) == set(range(model.num_layers))
    assert list(ids.values()) == sorted(ids.values())
    assert ids["head.weight"] == model.num_layers - 1
    assert isinstance(model.head, nn.Linear)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 3)


SMALL = ("-o", "img_size=32")
TRAINED = (*SMALL, "-o", "epochs=1", "-o", "warmup_epochs=0")
TASKS: dict[str, tuple[str, ...]] = {
    "knn": ("knn_pocket", *SMALL),
    "linear": ("linear_pocket", *SMALL, "-o", "epochs=1"),
    "attentive": ("attentive_pocket", *TRAINED),
    "imagenet": ("imagenet_pocket", *TRAINED, "-o", "batch_size=8", "-o", "drop_path_rate=0"),
}


def transfer(task: str, ckpt: str, data: Path, *more: object) -> Result:
    recipe, *options = TASKS[task]
    words = ["transfer", task, "--ckpt", ckpt, "--data", data, "--recipe", recipe, *options]
    return run(*words, "--out", f"runs/{task}", "--quiet", *more)


@pytest.mark.heavy
def test_a_row_of_a_users_network(folder: Path, few: Path) -> None:
    """Frozen tasks and fine-tuning, and all that reads their runs, with the function named again."""
    data, named = few, "py:documented:build"
    for task in TASKS:
        assert transfer(task, named, data).exit_code == 0, task
        record = read_record(folder / "runs" / task / "record.json")
        assert (record.checkpoint["name"], record.checkpoint["arch"]) == (named, "documented.build")
        assert record.checkpoint["params"] == sum(
            p.numel() for p in load_backbone(named).parameters()
        )
    assert transfer("imagenet", named, data, "--resume").exit_code == 0
    done = run("evaluate", "imagenet", "--ckpt", f"{named}@runs/imagenet", "--data", data)
    assert done.exit_code == 0, done.stderr
    assert "(training recorded " in done.stdout
    for task in ("linear", "imagenet"):
        words = ["transfer", "shift", "--ckpt", f"{named}@runs/{task}", "--quiet"]
        done = run(*words, "--data", f"again={data / 'val'}", "--out", f"runs/shift-{task}")
        assert done.exit_code == 0, done.exception
        scores = [read_record(folder / "runs" / r / "record.json") for r in (task, f"shift-{task}")]
        assert scores[0].metrics["top1"] == scores[1].metrics["top1"]
    images = ["--images", data / "val", "--count", 1, "--out", "a.png"]
    attention = ["--what", "attention", "--ckpt", f"{named}@runs/attentive"]
    assert run("visualize", *attention, *images).exit_code == 0
    assert run("visualize", "--what", "pca", "--ckpt", named, *images).exit_code == 0
    assert run("convert", named, "native", "--img-size", 64).exit_code == 0
    assert read_checkpoint(f"{named}@native").spec.img_size == (64, 64)
    assert run("leaderboard", "build", "runs", "--out", "board").exit_code == 0
    assert "documented:build" in (folder / "board" / "LEADERBOARD.md").read_text()


@pytest.mark.heavy
def test_strangers_files_run_no_code(
    folder: Path, few: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run, a record and a checkpoint directory that name a function are refused in one line."""
    data, named = few, "py:documented:build"
    for task in ("attentive", "linear", "imagenet"):
        assert transfer(task, named, data).exit_code == 0
    assert run("convert", named, "native").exit_code == 0
    # Strangers' files, in a process whose command names nothing; the code would leave a file.
    monkeypatch.setattr(user_network, "_PERMITTED", set())
    sys.modules.pop("documented")
    (folder / "documented.py").write_text("open('ran', 'w').close()")
    images = ["--images", data / "val", "--out", "a.png"]
    shift = ["--data", f"again={data / 'val'}", "--out", "runs/shift"]
    commands: list[tuple[list[object], str]] = [
        (["transfer", "shift", "--ckpt", "runs/linear", *shift], "runs/linear"),
        (["transfer", "shift", "--ckpt", "runs/imagenet", *shift], "runs/imagenet"),
        (
            ["visualize", "--what", "attention", "--ckpt", "runs/attentive", *images],
            "runs/attentive",
        ),
        (["evaluate", "imagenet", "--ckpt", "runs/imagenet", "--data", data], "runs/imagenet"),
        (["transfer", "knn", "--ckpt", "native", "--data", data], "native"),
        (["suite", "--ckpt", "native", "--tasks", "knn", "--imagenet", data], "native"),
        (["convert", "native", "other"], "native"),
        (["visualize", "--what", "pca", "--ckpt", "native", *images], "native"),
        (["transfer", "knn", "--ckpt", "py:os:getcwd@native", "--data", data], "native"),
        (
            [
                "pretrain",
                "--arch",
                "vit_pocket",
                "--init-from",
                "native",
                "--data",
                data,
                "--out",
                "p",
                "--batch-size",
                "4",
            ],
            "native",
        ),
    ]
    for command, holder in commands:
        done = run(*command)
        assert isinstance(done.exception, DataError), (command, done)
        assert f"use --ckpt {named}@{holder}" in str(done.exception), (command, done.exception)
        assert "\n" not in str(done.exception)
    assert run("leaderboard", "build", "runs", "--out", "board").exit_code == 0
    _, (finding,) = check_checkpoint("native")  # what doctor prints
    assert f"use --ckpt {named}@native" in finding.said
    assert not (folder / "ran").exists()
    assert "documented" not in sys.modules


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("nowhere:build", UsageError, r"cannot be imported \(ModuleNotFoundError: .*PYTHONPATH"),
        ("documented:other", UsageError, r"names no function of .*documented\.py"),
        ("documented", UsageError, "names no function; use py:package.module:factory"),
        ("documented:build:x", UsageError, "names no function; use"),
        ("documented:argument", UsageError, "needs arguments .*'x'"),
        ("os:system", UsageError, "needs arguments"),
        ("documented:fails", DataError, "raises RuntimeError: a b"),
        ("documented:quits", DataError, "raises SystemExit: 3"),
        ("documented:number", UsageError, "returns int, which has neither"),
        ("documented:levels", UsageError, r"\(128, 64\)\), but for images of \(224, 224\)"),
        ("documented:backwards", UsageError, "whose strides decrease"),
        ("documented:nan", DataError, "map 0 of forward_maps contains a value that is not finite"),
        ("documented:flat", UsageError, r"shape \(1, 16, 3136\) and type torch.float32"),
        ("documented:elsewhere", UsageError, "is on meta, but the images are on cpu"),
        ("documented:whole", UsageError, "type torch.int64 for one image"),
        ("documented:nothing", UsageError, "forward_maps returns NoneType"),
        ("documented:crashes", DataError, "raises ZeroDivisionError: division by zero"),
        ("documented:layers", UsageError, r"layer_id\('stages.0.weight'\) of Pyramid is -1"),
        ("documented:size", UsageError, "img_size of Pyramid is 'a'; use 2 numbers"),
        ("documented:mean", UsageError, "mean of Pyramid is .*; use 3 numbers"),
    ],
)
def test_a_fault_of_the_users_code_is_one_line(
    name: str, kind: type[BenchError], message: str, folder: Path
) -> None:
    with pytest.raises(kind, match=message) as refusal:
        read_checkpoint(f"py:{name}")
    assert "\n" not in str(refusal.value)


def test_random_weights_of_a_users_network_are_refused(folder: Path, few: Path) -> None:
    done = transfer("linear", "py:documented:build", few, "--baseline", "random")
    assert isinstance(done.exception, UsageError)
    assert "--baseline random has no random weights of py:documented:build" in str(done.exception)
    suite = ["suite", "--ckpt", "py:documented:build", "--tasks", "knn", "--dry-run"]
    done = run(*suite, "--imagenet", few, "--baseline", "random")
    assert "--baseline random has no random weights" in str(done.exception)
    assert run(*suite, "--imagenet", few).exit_code == 0


@pytest.mark.slow
def test_ade20k_of_a_users_network(folder: Path, few: Path) -> None:
    pytest.importorskip("mmseg")
    named, data = "py:documented:build", few.parent / "ade20k"
    words = [
        "--data",
        data,
        "--recipe",
        "ade20k_pocket",
        "-o",
        "max_iters=2",
        "-o",
        "warmup_iters=0",
    ]
    done = run("transfer", "ade20k", "--ckpt", named, *words, "--out", "runs/ade20k")
    assert done.exit_code == 0, done.exception
    done = run("evaluate", "ade20k", "--ckpt", f"{named}@runs/ade20k", "--data", data, "--json")
    found = json.loads(done.stdout)
    assert (
        found["metrics"]["miou"] == read_record(folder / "runs/ade20k/record.json").metrics["miou"]
    )


def test_features_of_other_code_have_another_hash(folder: Path) -> None:
    torch.manual_seed(0)
    first = read_checkpoint("py:documented:build")
    code = (folder / "documented.py").read_text()
    (folder / "documented.py").write_text(
        code.replace("feature_levels = [", "feature_levels =  [", 1)
    )
    sys.modules.pop("documented")
    importlib.invalidate_caches()
    torch.manual_seed(0)
    second = read_checkpoint("py:documented:build")
    assert first.state is not None
    assert second.state is not None
    assert all(torch.equal(value, second.state[name]) for name, value in first.state.items())
    assert first.sha256 != second.sha256


def test_an_empty_checkpoint_of_a_function_is_refused() -> None:
    for read in (read_checkpoint, checkpoint_path):
        with pytest.raises(
            UsageError, match="py:own_net:Net@ names no checkpoint after @; use py:o"
        ):
            read("py:own_net:Net@")
