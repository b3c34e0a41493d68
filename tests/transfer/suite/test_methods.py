"""Claims about the table of methods: the list of public checkpoints is timm's, and a suite plans rows from lists."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from click.testing import CliRunner, Result

from simmim_bench.checkpoints.download import check_download, find_download
from simmim_bench.checkpoints.read import _fits_listed, read_checkpoint
from simmim_bench.cli.main import cli
from simmim_bench.errors import DataError, UsageError
from simmim_bench.leaderboard.reported import read_reported, rows_of_listed
from simmim_bench.methods import _by_ckpt, find_listed, read_methods, select_ckpts
from simmim_bench.models.shapes import shapes_only
from simmim_bench.results.record import read_record
from transfer.suite.options import SuiteOptions
from transfer.suite.rows import list_rows

LISTED = {one.ckpt: one for one in read_methods()}
TIMM = {ckpt.removeprefix("timm:"): one for ckpt, one in LISTED.items() if ckpt[:5] == "timm:"}
MAE = "timm:vit_base_patch16_224.mae"
TINY_FILE = "weights/ibot_vitb_16_teacher.pth"


def suite(*words: object) -> Result:
    return CliRunner().invoke(cli, ["suite", *map(str, words)])


def write_tiny_vit(path: Path) -> None:
    """Write the weights of a small ViT, as a file that a user has downloaded."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tiny = {"img_size": 224, "patch_size": 8, "depth": 1, "num_classes": 0}
    torch.save(timm.create_model("vit_tiny_patch16_224", **tiny).state_dict(), path)


class Answer(BaseHTTPRequestHandler):
    """Answer every request with 404, as a server that is there."""

    def do_HEAD(self) -> None:
        self.send_error(404)

    def log_message(self, format: str, *args: Any) -> None:
        """Write no log."""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HTTPServer]:
    """A server in the place of the Hub, and an empty cache."""
    constants = pytest.importorskip("huggingface_hub.constants")
    server = HTTPServer(("127.0.0.1", 0), Answer)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_every_listed_timm_name_has_timms_licence_and_image_size() -> None:
    known = set(timm.list_pretrained())
    for name, one in TIMM.items():
        assert name in known
        cfg = timm.get_pretrained_cfg(name)
        assert cfg is not None
        assert (one.licence, one.img_size) == (cfg.license or "", cfg.input_size[-1]), name


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name.startswith("resnet50") else pytest.mark.slow)
        for name in TIMM
    ],
)
def test_every_listed_size_is_that_of_timms_model(name: str) -> None:
    with shapes_only():
        model = timm.create_model(name, num_classes=0)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert TIMM[name].params_m == round(count / 1e6, 1)


def test_every_published_row_of_the_list_exists() -> None:
    rows = read_reported()
    for one in LISTED.values():
        found = {row.label for row in rows_of_listed(rows, one)}
        assert found == set(one.published), one.ckpt
        assert re.fullmatch(r"\d{4}\.\d{5}", one.paper)
        assert one.url.startswith("https://") == one.ckpt.startswith("weights/"), one.ckpt


def test_scores_that_name_listed_weights_are_found_through_the_list() -> None:
    """Both files say which weights a published score is of, independently."""
    rows = read_reported()
    for row in rows:
        for label in {label for s in row.scores if s is not None for label in s.checkpoints}:
            if (one := TIMM.get(label)) is not None:
                assert row.label in one.published, (label, row.label)


def test_licences_that_forbid_commercial_use_are_marked() -> None:
    assert LISTED[MAE].licence_text == "cc-by-nc-4.0 (non-commercial)"
    assert LISTED["timm:vit_base_patch14_dinov2.lvd142m"].licence_text == "apache-2.0"
    assert LISTED[TINY_FILE].licence_text == "unknown"


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("mae", {MAE, "timm:vit_large_patch16_224.mae", "timm:vit_huge_patch14_224.mae"}),
        ("DINOv2 + registers", {c for c in LISTED if "_reg4_" in c}),
        ("vit_base*.mae,ibot", {MAE, TINY_FILE}),
        ("mit", {ckpt for ckpt, one in LISTED.items() if one.licence == "mit"}),
        ("resnet-50", {"timm:resnet50.a1_in1k"}),
    ],
)
def test_patterns_select_by_name_method_architecture_and_licence(
    pattern: str, expected: set[str]
) -> None:
    assert expected
    assert set(select_ckpts(list(LISTED), [pattern])) == expected
    shown = CliRunner().invoke(cli, ["methods", "--only", pattern, "--json"])
    assert {one["ckpt"] for one in json.loads(shown.stdout)} == expected


def test_methods_shows_published_scores_with_their_source() -> None:
    shown = CliRunner().invoke(cli, ["methods", "--only", "dinov3", "--json"])
    scores = {one["ckpt"]: one["scores"] for one in json.loads(shown.stdout)}
    # results.csv of efficient-probing at the commit that the source names.
    (linear,) = [
        score
        for score in scores["timm:vit_large_patch16_dinov3.lvd1689m"]
        if score["task"] == "linear"
    ]
    assert linear["value"] == 86.62
    assert "efficient-probing" in linear["source"]
    table = CliRunner().invoke(cli, ["methods", "--only", MAE]).stdout
    assert "cc-by-nc-4.0 (non-commercial)" in table
    assert re.search(r"linear [^;]*\b68\.0\b", table)


def test_a_list_has_one_checkpoint_per_line(tmp_path: Path) -> None:
    path = tmp_path / "LIST.TXT"
    path.write_bytes(
        b"\xef\xbb\xbf# all of ours\r\nruns/a b \r\n\r\n  runs/c#1\t# best\r\nruns/a b\r\nrandom:vit_b"
    )
    rows = list_rows(SuiteOptions(ckpts=("runs/x", str(path), "runs/x"), data_sets={}))
    assert [(row.ckpt, row.place) for row in rows] == [
        ("runs/x", ""),
        ("runs/a b", f"{path}, line 2"),
        ("runs/c#1", f"{path}, line 4"),
        ("random:vit_b", f"{path}, line 6"),
    ]
    only = list_rows(SuiteOptions(ckpts=(str(path),), data_sets={}, only=("random:*",)))
    assert [row.ckpt for row in only] == ["random:vit_b"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"# nothing yet\n", "lists no checkpoint; write one CKPT per line"),
        (b"runs/a\nruns/\xe9\n", "line 2 is not UTF-8"),
        (b"\nother.txt\n", "line 2 names another list, other.txt"),
        (b"list:methods\n", "line 1 names another list, list:methods"),
        (b"py:os:getcwd\n", "line 1 names code to run, py:os:getcwd"),
        (None, "does not exist"),
    ],
)
def test_a_list_that_cannot_be_used_is_refused(
    tmp_path: Path, few: Path, content: bytes | None, said: str
) -> None:
    path = tmp_path / "list.txt"
    if content is not None:
        path.write_bytes(content)
    refused = suite("--ckpt", path, "--imagenet", few, "--out", tmp_path / "runs", "--dry-run")
    assert isinstance(refused.exception, DataError)
    assert str(path) in str(refused.exception)
    assert said in str(refused.exception)


def test_a_mistyped_list_is_no_path(few: Path) -> None:
    refused = suite("--ckpt", "list:method", "--imagenet", few, "--dry-run")
    assert isinstance(refused.exception, UsageError)
    assert "use list:methods or a file" in str(refused.exception)


def test_a_pattern_without_a_match_is_refused(few: Path) -> None:
    refused = suite("--ckpt", "list:methods", "--only", "dinov22", "--imagenet", few)
    assert isinstance(refused.exception, UsageError)
    assert "--only dinov22 matches no checkpoint; did you mean 'dinov2'?" in str(refused.exception)


def test_a_row_that_cannot_be_read_is_blocked_alone(tmp_path: Path, few: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text(f"nowhere\nrandom:vit_pocket\n{TINY_FILE}\n")
    common = ("--imagenet", few, "--tasks", "knn,linear", "--out", tmp_path / "runs", "--dry-run")
    planned = suite("--ckpt", path, *common)
    assert planned.exit_code == DataError.exit_code
    assert "2 of 2 steps to do" in planned.stdout
    blocked = [line for line in planned.stdout.splitlines() if line.startswith("blocked")]
    assert len(blocked) == 2
    assert "nowhere does not exist" in blocked[0]
    assert f"({path}, line 1)" in blocked[0]
    assert f"download it from {LISTED[TINY_FILE].url}" in blocked[1]
    steps = json.loads(suite("--ckpt", path, *common, "--json").stdout)
    assert [(step["ckpt"], step["task"], step["state"]) for step in steps] == [
        ("random:vit_pocket", "linear", "to do"),
        ("random:vit_pocket", "knn", "to do"),
        ("nowhere", None, "blocked"),
        (TINY_FILE, None, "blocked"),
    ]
    path.write_text("nowhere\n")
    refused = suite("--ckpt", path, *common)
    assert isinstance(refused.exception, DataError)
    assert "all 1 rows are blocked; nothing was started" in str(refused.exception)
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_downloads_nothing_and_shows_the_size(
    tmp_path: Path, few: Path, hub: HTTPServer
) -> None:
    common = ("--imagenet", few, "--tasks", "knn", "--out", tmp_path / "runs", "--dry-run")
    words = ("--ckpt", "list:methods", "--only", "mae", "--ckpt", "timm:resnet18.a1_in1k")
    planned = suite(*words, "--only", "resnet18*", *common)
    assert planned.exit_code == 0, planned.output
    # 85.8, 303.3 and 630.8 million weights of 4 bytes; resnet18 is not listed.
    assert "4 checkpoints to download" in planned.stdout
    assert "about 4.1 GB, and 1 of unknown size" in planned.stdout
    assert re.search(rf"{MAE} +all tasks +to download +download of about 343 MB", planned.stdout)
    assert not (tmp_path / "cache").exists()

    # As the client of the Hub lays out its cache.
    repository = tmp_path / "cache" / "models--timm--vit_base_patch16_224.mae"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    assert find_download(MAE) is not None
    (snapshot / "model.safetensors").touch()
    assert find_download(MAE) is None
    assert find_download("timm:vit_base_patch16_224.nonsense") is None  # the reader refuses it
    assert find_download("hub:timm/vit_base_patch16_224.mae") is None
    assert find_download("hub:timm/vit_base_patch16_224.mae@other") is not None


def test_a_download_without_a_network_is_refused_in_words(hub: HTTPServer) -> None:
    check_download(MAE)
    hub.shutdown()
    hub.server_close()
    with HTTPServer(("127.0.0.1", 0), Answer) as other:
        address = f"http://127.0.0.1:{other.server_port}"
    constants = pytest.importorskip("huggingface_hub.constants")
    constants.ENDPOINT = address  # of a server that is closed; the fixture restores it
    for ckpt in (MAE, "hub:org/name"):
        with pytest.raises(DataError, match=f"{ckpt} cannot be downloaded: {address} cannot be"):
            read_checkpoint(ckpt)


@pytest.mark.heavy
def test_a_row_of_the_list_is_made_once_and_compared_with_published_scores(
    tmp_path: Path, few: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_tiny_vit(tmp_path / TINY_FILE)
    # As if the list were of a small ViT.
    weights = torch.load(tmp_path / TINY_FILE).values()
    params_m = sum(weight.numel() for weight in weights) / 1e6
    listed = replace(LISTED[TINY_FILE], params_m=params_m)
    monkeypatch.setitem(_by_ckpt(), TINY_FILE, listed)
    single = ["transfer", "knn", "--ckpt", TINY_FILE, "--data", str(few), "-o", "img_size=32"]
    assert CliRunner().invoke(cli, [*single, "--quiet"]).exit_code == 0
    (path,) = tmp_path.glob("runs/*/knn/seed0/record.json")
    record = read_record(path)
    plain = record.checkpoint["provenance"]
    assert (plain["method"], plain["data"], plain["paper"]) == ("iBOT", "IN1K", "arXiv 2111.07832")
    # The same weights under another name are not in the list.
    (tmp_path / TINY_FILE).rename(tmp_path / "own.pth")
    other = read_checkpoint("own.pth")
    assert other.provenance["method"] != "iBOT"
    assert other.sha256 == record.checkpoint["sha256"]
    (tmp_path / "own.pth").rename(tmp_path / TINY_FILE)

    common = ("--imagenet", few, "--tasks", "knn", "-o", "knn.img_size=32", "--quiet")
    done = suite("--ckpt", "list:methods", "--only", "ibot", *common)
    assert done.exit_code == 0, done.output
    assert "0 of 1 steps to do" in done.stdout
    published = "73.58, 77.1, 77.3"  # iBOT's README and efficient-probing, k-NN of ViT-B/16
    # Not as the named recipe; perhaps with changes of the code.
    score = rf"{record.metrics['top1']:.1f}\*‡?, images ± \d+\.\d"
    assert re.search(rf"ibot_vitb_16_teacher +iBOT +k-NN +{score} +{published}", done.stdout)

    # No architecture of the list has this width and depth, so that it has no random weights to begin with.
    Path("list.txt").write_text(f"{TINY_FILE}\nrandom:vit_pocket\n")
    words = ("--ckpt", "list.txt", *common, "--baseline", "random", "--dry-run", "--json")
    steps = json.loads(suite(*words).stdout)
    assert [(step["ckpt"], step["state"]) for step in steps] == [
        ("random:vit_pocket", "to do"),
        (TINY_FILE, "done"),
        ("random:vit_192x1", "blocked"),
    ]
    # A list that has grown: what is done stays done.
    Path("list.txt").write_text(f"{TINY_FILE}\nnowhere\nrandom:vit_pocket\n")
    steps = json.loads(suite("--ckpt", "list.txt", *common, "--dry-run", "--json").stdout)
    assert [step["state"] for step in steps] == ["done", "to do", "blocked"]
    Path("list.txt").write_text(f"{TINY_FILE}\nnowhere\n")
    finished = suite("--ckpt", "list.txt", *common, "--json")
    assert finished.exit_code == DataError.exit_code
    result = json.loads(finished.stdout)
    assert [step["state"] for step in result["steps"]] == ["done"]
    assert [row["ckpt"] for row in result["blocked"]] == ["nowhere"]


def test_another_network_at_the_path_of_a_listed_file_is_not_the_listed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_tiny_vit(tmp_path / TINY_FILE)
    provenance = read_checkpoint(TINY_FILE).provenance
    assert (provenance["method"], "data" in provenance, "paper" in provenance) == (
        "weights",
        False,
        False,
    )


@pytest.mark.parametrize(
    ("file", "arch", "changes", "fits"),
    [
        (TINY_FILE, "vit_b", {"rel_pos_bias": False, "abs_pos_embed": True}, True),
        (TINY_FILE, "vit_b", {"patch_size": 32}, False),
        (TINY_FILE, "vit_b", {"img_size": (384, 384)}, False),
        (TINY_FILE, "vit_s", {}, False),
        (TINY_FILE, "swin_b", {}, False),
        ("weights/simmim_pretrain__vit_base__img224__800ep.pth", "vit_b", {}, True),
        ("weights/simmim_pretrain__swin_base__img192_window6__100ep.pth", "swin_b", {}, True),
        ("weights/simmim_pretrain__swin_large__img192_window12__800ep.pth", "swin_l", {}, True),
    ],
)
def test_a_listed_file_is_known_by_its_architecture(
    file: str, arch: str, changes: dict[str, Any], fits: bool
) -> None:
    checkpoint = read_checkpoint(f"random:{arch}")
    checkpoint = replace(checkpoint, spec=replace(checkpoint.spec, **changes))
    assert _fits_listed(checkpoint, LISTED[file]) == fits


def test_names_of_the_hub_and_of_timm_are_the_same_entry() -> None:
    assert find_listed("hub:timm/vit_base_patch16_224.mae") is LISTED[MAE]
    assert find_listed("hub:other/vit_base_patch16_224.mae") is None


def test_a_suite_runs_on_named_data_sets_as_transfer_does(
    tmp_path: Path, few: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--ckpt", "random:vit_pocket", "--data", f"pets={few}", "--quiet"]
    single = ["transfer", "knn", *words, "--data", f"flowers={few}", "-o", "k=[3]"]
    assert CliRunner().invoke(cli, single).exit_code == 0
    common = (*words, "--tasks", "knn,imagenet", "-o", "knn.k=[3]", "--dry-run")
    planned = suite(*common, "--imagenet", few, "--json")
    assert planned.exit_code == 0, planned.output
    # Fine-tuning takes no named data sets.
    steps = [
        (step["task"], step["data_name"], step["state"]) for step in json.loads(planned.stdout)
    ]
    assert steps == [("knn", None, "to do"), ("knn", "pets", "done"), ("imagenet", None, "to do")]
    assert f"--data pets={few}" in json.loads(planned.stdout)[1]["command"]
    knn = (*words, "--tasks", "knn", "--dry-run")
    assert "knn on pets" in suite(*knn, "-o", "knn.k=[3]").stdout
    for wrong, said in (
        (("--data", few), f"--data {few} has no name"),
        (("--data", f"PETS={few}"), "--data pets=... is given more than once"),
        (("--data", "birds=nowhere"), "data folder nowhere of the data set birds does not exist"),
        (("--tasks", "imagenet"), "--tasks imagenet needs a data set"),
    ):
        assert said in str(suite(*knn, *wrong).exception)
