"""Experiment trackers receive the figures of a run, continue after it is resumed, and cannot end it.

The stand-ins have the signatures of wandb, mlflow and trackio, as far as they are called.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from support.cli import fails

import simmim_bench as sb
from pretrain.recipes import POCKET
from simmim_bench.display import Display
from simmim_bench.errors import DivergedError, InterruptedRun, MissingFrameworkError, UsageError
from simmim_bench.runs.loggers import check_loggers
from simmim_bench.runs.options import RunOptions
from simmim_bench.runs.run_dir import open_run
from transfer.launch import TransferRequest
from transfer.suite.step import command_words

Calls = list[tuple[Any, ...]]


class Failed(Exception):
    """The error of a library."""


def install(monkeypatch: pytest.MonkeyPatch, name: str, **content: Any) -> None:
    """Replace a library by a module."""
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None, origin="in memory")
    vars(module).update(content)
    monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Stand-ins of the three libraries, and what they were called with."""
    made: Calls = []

    class Run:
        def __init__(self, library: str) -> None:
            self.library = library

        def log(self, data: dict[str, Any], step: int | None = None) -> None:
            print("progress of the library")
            made.append((self.library, "log", step, data))

        def finish(self, exit_code: int | None = None) -> None:
            made.append((self.library, "finish", exit_code))

    def wandb_init(
        project: str, dir: str, id: str, name: str, config: dict[str, Any], **rest: Any
    ) -> Run:
        assert (rest["resume"], rest["reinit"]) == ("allow", "create_new")
        assert os.environ["WANDB_ERROR_REPORTING"] == "as the user has set it"
        assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
        made.append(("wandb", "init", id, config))
        return Run("wandb")

    def trackio_init(
        project: str, name: str, config: dict[str, Any], resume: str, embed: bool
    ) -> Run:
        print("* Trackio project initialized")
        made.append(("trackio", "init", name.rpartition(" ")[2], config))
        return Run("trackio")

    identities: dict[str, str] = {}
    experiments: list[str] = []

    class MlflowClient:
        def get_experiment_by_name(self, name: str) -> SimpleNamespace | None:
            return SimpleNamespace(experiment_id="1") if experiments else None

        def create_experiment(self, name: str) -> str:
            experiments.append(name)  # by a run that was faster
            raise Failed("the experiment exists")

        def search_runs(
            self, experiment_ids: list[str], filter_string: str = "", max_results: int = 1000
        ) -> list[SimpleNamespace]:
            identity = filter_string.partition(" = ")[2].strip("'")
            return [
                SimpleNamespace(info=SimpleNamespace(run_id=r))
                for r, i in identities.items()
                if i == identity
            ]

        def create_run(
            self, experiment_id: str, run_name: str, tags: dict[str, str]
        ) -> SimpleNamespace:
            assert experiment_id == "1"
            made.append(("mlflow", "init", tags["identity"], {}))
            identities[f"run{len(identities)}"] = tags["identity"]
            return SimpleNamespace(info=SimpleNamespace(run_id=[*identities][-1]))

        def update_run(self, run_id: str, status: str | None = None) -> None:
            made.append(("mlflow", "init", identities[run_id], {}))

        def log_param(self, run_id: str, key: str, value: Any) -> None:
            made.append(("mlflow", "param", key, value))

        def log_batch(self, run_id: str, metrics: Any = ()) -> None:
            data = {m.key: m.value for m in metrics}
            made.append(("mlflow", "log", metrics[0].step, data))

        def set_terminated(self, run_id: str, status: str | None = None) -> None:
            made.append(("mlflow", "finish", status))

    install(monkeypatch, "wandb", init=wandb_init, Settings=lambda console: None, Error=Failed)
    install(monkeypatch, "trackio", init=trackio_init)
    install(monkeypatch, "mlflow")
    install(monkeypatch, "mlflow.exceptions", MlflowException=Failed)
    install(monkeypatch, "mlflow.tracking", MlflowClient=MlflowClient)

    def metric(key: str, value: float, timestamp: int, step: int) -> SimpleNamespace:
        return SimpleNamespace(key=key, value=value, step=step)

    install(monkeypatch, "mlflow.entities", Metric=metric)
    # Set before it is removed, so that it is removed after the test.
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "")
    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "as the user has set it")
    return made


def run_once(path: Path, step: int | None, *, resume: bool = False) -> None:
    """Open a run directory and write the figures of a step, if there is one, and a score."""
    with open_run(
        path,
        recipe=POCKET,
        deviates={},
        arguments={"seed": 0},
        display=Display(quiet=True),
        resume=resume,
        loggers=("wandb", "mlflow", "trackio", "tensorboard"),
    ) as run:
        run.last_checkpoint.mkdir(parents=True, exist_ok=True)
        if step is not None:
            run.metrics(step, loss=0.5)
        run.log_scores({"top1": 60.0})


def test_every_tracker_receives_figures_and_configuration_and_continues_a_resumed_run(
    tmp_path: Path, calls: Calls, capsys: pytest.CaptureFixture[str]
) -> None:
    run_once(tmp_path / "run", 3)
    for name in ("wandb", "mlflow", "trackio"):
        own = [call[1:] for call in calls if call[0] == name and call[1] != "param"]
        assert [call[0] for call in own] == ["init", "log", "log", "finish"], name
        assert own[1] == ("log", 3, {"loss": 0.5})
        assert own[2] == ("log", 4, {"score/top1": 60.0})
    assert [c[2] for c in calls if c[1] == "finish"] == [0, "FINISHED", None]
    described = json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert [call[3] for call in calls if call[:2] == ("wandb", "init")] == [described]
    params = {call[2]: call[3] for call in calls if call[1] == "param"}
    assert params["recipe.epochs"] == described["recipe"]["epochs"]
    assert capsys.readouterr().out == ""  # stdout is for results

    first = {call[0]: call[2] for call in calls if call[1] == "init"}
    calls.clear()
    run_once(tmp_path / "run", None, resume=True)  # trained already, and only scored
    assert {call[2] for call in calls if call[1] == "log"} == {4}
    assert {call[0]: call[2] for call in calls if call[1] == "init"} == first
    run_once(tmp_path / "other", 5)
    assert {call[2] for call in calls if call[1] == "init"} > set(first.values())


@pytest.mark.parametrize(
    ("error", "code", "status"),
    [
        (DivergedError("loss nan"), 5, "FAILED"),
        (InterruptedRun("stopped", signal.SIGTERM), 143, "KILLED"),
        (KeyboardInterrupt(), 130, "KILLED"),
        (ValueError("a defect"), 1, "FAILED"),
    ],
)
def test_trackers_receive_how_a_run_has_ended(
    tmp_path: Path, calls: Calls, error: BaseException, code: int, status: str
) -> None:
    options: dict[str, Any] = {"deviates": {}, "arguments": {}, "display": Display(quiet=True)}
    path, loggers = tmp_path / "run", ("wandb", "mlflow")

    def end() -> None:
        with open_run(path, recipe=POCKET, loggers=loggers, **options) as run:
            run.metrics(0, loss=0.5)
            raise error

    with pytest.raises(type(error)):
        end()
    ended = [call for call in calls if call[1] == "finish"]
    assert ended == [("wandb", "finish", code), ("mlflow", "finish", status)]


def test_a_tracker_that_fails_is_given_up_and_the_run_goes_on(
    tmp_path: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**options: Any) -> None:
        raise Failed("no API key")

    monkeypatch.setattr(sys.modules["wandb"], "init", fail)
    run_once(tmp_path / "run", 0)
    log = (tmp_path / "run" / "log.txt").read_text()
    assert log.count("wandb receives nothing from here on (Failed: no API key)") == 1
    assert ("trackio", "log", 0, {"loss": 0.5}) in calls
    assert '"loss": 0.5' in (tmp_path / "run" / "metrics.jsonl").read_text()


def test_a_logger_without_its_package_is_refused_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    pretrain = ("pretrain", "--arch", "vit_pocket", "--data", tmp_path, "--out", tmp_path / "run")
    message = fails(3, *pretrain, "--log", "wandb")
    assert "pip install 'simmim-bench[wandb]'" in message
    suite = ("suite", "--ckpt", "random:vit_pocket", "--imagenet", tmp_path, "--dry-run")
    assert "simmim-bench[wandb]" in fails(3, *suite, "--log", "wandb")
    with pytest.raises(MissingFrameworkError, match="wandb"):
        sb.transfer("knn", ckpt="random:vit_pocket", data=tmp_path, log="wandb")
    with pytest.raises(UsageError, match="did you mean 'mlflow'"):
        sb.transfer("knn", ckpt="random:vit_pocket", data=tmp_path, log="mlfow")
    assert not (tmp_path / "run").exists()
    (tmp_path / "mlflow").mkdir()  # a folder of this name is no package
    monkeypatch.delitem(sys.modules, "mlflow", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(MissingFrameworkError, match="mlflow"):
        check_loggers(["mlflow"])


def test_a_step_of_a_suite_is_started_with_its_loggers() -> None:
    options = RunOptions(data=Path("data"), loggers=("wandb", "mlflow"))
    words = command_words(TransferRequest(task="knn", options=options), "ckpt")
    assert words[-4:] == ["--log", "wandb", "--log", "mlflow"]
