"""Test --deterministic and --precision."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch.nn import functional

from simmim_bench.cli.main import cli
from simmim_bench.errors import UsageError
from simmim_bench.training.determinism import deterministic_algorithms


def test_kernels_are_deterministic_for_the_block_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    cudnn = torch.backends.cudnn
    with deterministic_algorithms(False):
        assert not torch.are_deterministic_algorithms_enabled()
    with deterministic_algorithms(True):
        assert torch.are_deterministic_algorithms_enabled()
        assert cudnn.deterministic
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] in (
            ":4096:8",
            ":16:8",
        )  # cuBLAS's documentation
    assert not torch.are_deterministic_algorithms_enabled()
    assert not cudnn.deterministic


def test_a_workspace_of_cublas_that_is_not_deterministic_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    with pytest.raises(UsageError, match=r"it is ':0:0'; unset"), deterministic_algorithms(True):
        pass
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)  # cuBLAS may have read it
    with (
        pytest.raises(UsageError, match=r"CONFIG=:4096:8 .* before this process starts"),
        deterministic_algorithms(True),
    ):
        pass
    assert not torch.are_deterministic_algorithms_enabled()
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    with deterministic_algorithms(True):
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


def test_a_kernel_without_a_deterministic_form_is_named() -> None:
    # One of the few that have none on a CPU.
    maximum, index = functional.max_pool2d(torch.randn(1, 1, 4, 4), 2, return_indices=True)
    with (
        pytest.raises(
            UsageError, match=r"^max_unpool\w+ .* implementation; remove --deterministic"
        ),
        deterministic_algorithms(True),
    ):
        functional.max_unpool2d(maximum, index, [2, 2])
    with pytest.raises(RuntimeError, match="another"), deterministic_algorithms(True):
        raise RuntimeError("another error")


def test_the_command_line_sets_both(
    tmp_path: Path, few: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[bool] = []
    monkeypatch.setattr(torch, "use_deterministic_algorithms", calls.append)
    words = ["--data", str(few), "--quiet", "--deterministic", "--precision", "fp32"]
    words += ["-o", "epochs=1", "-o", "warmup_epochs=0", "-o", "batch_size=4"]
    trained = tmp_path / "pretrain"
    command = ["pretrain", "--arch", "vit_pocket", "--out", str(trained), *words]
    assert CliRunner().invoke(cli, command).exit_code == 0
    assert calls == [True, False]
    command = [
        "transfer",
        "imagenet",
        "--ckpt",
        str(trained),
        "--out",
        str(tmp_path / "it"),
        *words,
    ]
    assert CliRunner().invoke(cli, command).exit_code == 0
    assert calls == [True, False, True, False]
    command = ["evaluate", "imagenet", "--ckpt", str(tmp_path / "it"), "--data", str(few)]
    command += ["--out", str(tmp_path / "scored"), "--quiet", "--deterministic"]
    assert CliRunner().invoke(cli, command).exit_code == 0
    assert calls == [True, False] * 3
    for run in (trained, tmp_path / "it"):
        assert json.loads((run / "recipe.json").read_text())["deviates"]["precision"] == "fp32"
