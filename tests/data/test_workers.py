"""Claims about the worker processes of data loaders."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from support.pretraining import pretrain_pocket
from torch.utils.data import DataLoader, Dataset, Sampler

from simmim_bench.cli.main import cli
from simmim_bench.data.workers import WorkerLoader, start_workers
from simmim_bench.signals import SIGNALS, StopSignal, raise_on_signals
from simmim_bench.training.stopping import stop_on_signals


class Slow(Dataset[int]):
    """Sixty numbers, of which each takes ten milliseconds."""

    def __len__(self) -> int:
        return 60

    def __getitem__(self, index: int) -> int:
        time.sleep(0.01)
        return index


@pytest.mark.heavy
def test_workers_leave_signals_to_their_parent_and_end_at_its_request() -> None:
    batches: Any = iter(WorkerLoader(Slow(), batch_size=2, num_workers=1))
    numbers = next(batches).tolist()
    (worker,) = batches._workers
    for number in SIGNALS:
        # Sent by another process: a parent's own SIGTERM ends its worker.
        os.waitpid(os.spawnlp(os.P_NOWAIT, "kill", "kill", f"-{number}", str(worker.pid)), 0)
    for batch in batches:
        numbers += batch.tolist()
    assert numbers == list(range(60))
    batches = iter(WorkerLoader(Slow(), batch_size=30, num_workers=1))
    (worker,) = batches._workers
    worker.terminate()  # what torch does to a worker that does not end when its loader is closed
    worker.join(5)
    assert worker.exitcode == 0


@pytest.fixture
def restored_handlers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("simmim_bench.signals.REPEAT_S", 0.5)  # as in a command
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class Signalling(Sampler[int]):
    """Forty numbers; asking for them, as a loader does while it starts workers, signals this process."""

    def __iter__(self) -> Iterator[int]:
        os.kill(os.getpid(), signal.SIGTERM)
        yield from range(40)


class Finalised:
    def __del__(self) -> None:
        signal.raise_signal(signal.SIGUSR1)


@pytest.mark.heavy
def test_a_signal_waits_until_workers_are_started(restored_handlers: None) -> None:
    raise_on_signals()
    batches = start_workers(DataLoader(Slow(), num_workers=1, sampler=Signalling()))
    with pytest.raises(StopSignal, match=r"^stopped by SIGTERM\.$") as stopped:
        time.sleep(5)
    assert stopped.value.exit_code == 143
    assert len(list(batches)) == 40


def test_a_signal_waits_until_an_object_is_finalised(
    restored_handlers: None, capfd: pytest.CaptureFixture[str]
) -> None:
    raise_on_signals()
    finalised = [Finalised()]
    finalised.clear()
    with pytest.raises(StopSignal, match=r"^stopped by SIGUSR1\.$") as stopped:
        time.sleep(5)
    assert stopped.value.exit_code == 143
    assert capfd.readouterr() == ("", "")


@pytest.mark.heavy
def test_a_signal_of_the_last_step_is_not_lost(restored_handlers: None) -> None:
    raise_on_signals()
    done = []

    def interrupted_twice() -> None:
        with stop_on_signals() as stop:
            repeated = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
            repeated.start()
            signal.raise_signal(signal.SIGINT)
            repeated.join()
            done.append(stop.number)

    with pytest.raises(StopSignal, match="SIGINT"):
        interrupted_twice()
    assert done == [signal.SIGINT]


@pytest.mark.heavy
def test_a_second_signal_is_not_remembered(restored_handlers: None) -> None:
    raise_on_signals()
    done = []

    def terminated_twice() -> None:
        with stop_on_signals():
            for _ in range(2):
                signal.raise_signal(signal.SIGTERM)
                done.append(time.monotonic())

    with pytest.raises(StopSignal, match="SIGTERM"):
        terminated_twice()
    assert len(done) == 1


def shipped(loader: DataLoader[Any]) -> tuple[object, ...]:
    return loader.dataset, loader.collate_fn, loader.worker_init_fn


@pytest.mark.heavy
def test_whatever_a_training_run_ships_to_workers_can_be_pickled(
    tmp_path: Path, few: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python 3.14 starts processes on Linux by a server, to which everything is pickled."""
    seen = set()
    start = DataLoader.__iter__

    def pickle_first(self: DataLoader[Any]) -> Any:
        ForkingPickler.dumps(shipped(self))
        seen.add(type(self.dataset).__name__)
        return start(self)

    monkeypatch.setattr(DataLoader, "__iter__", pickle_first)
    pretrain_pocket(tmp_path / "run", few, "epochs=1", "batch_size=6")
    common = ("--ckpt", "random:vit_pocket", "--data", str(few), "--quiet", "-o", "num_workers=0")
    for task, *more in (
        (
            "imagenet",
            "epochs=1",
            "warmup_epochs=0",
            "batch_size=6",
            "random_erasing=0.25",
            "auto_augment=rand-m9-mstd0.5-inc1",
        ),
        ("linear", "epochs=1", "blocks=2", "base_lr=0.1", "crops=1", "crop_rule=mae"),
    ):
        options = [word for assignment in more for word in ("-o", assignment)]
        out = ("--out", str(tmp_path / task))
        result = CliRunner().invoke(cli, ["transfer", task, *common, *out, *options])
        assert result.exit_code == 0, result.output
    assert {"ImageDataset", "EpochsDataset", "Subset"} <= seen


def test_detectors_loaders_can_be_pickled(pocket: Path) -> None:
    pytest.importorskip("detectron2")
    from support.detection import RECIPE, batches

    from transfer.detection.coco_layout import read_splits
    from transfer.detection.data import val_loader

    train, val = read_splits(pocket / "coco", "refuse")
    for loader in (batches(train, RECIPE, 0, 0), val_loader(val, RECIPE)):
        ForkingPickler.dumps(shipped(loader.loader))


@pytest.mark.heavy
def test_segmentors_loaders_can_be_pickled(pocket: Path) -> None:
    pytest.importorskip("mmseg")
    from support.segmentation import RECIPE, build_loaders, split_of

    splits = [split_of(pocket / "ade20k", name) for name in ("training", "validation")]
    names = [str(number) for number in range(11)]
    for recipe in (RECIPE, replace(RECIPE, test_scales=(0.5, 1.0), test_flip=True)):
        for loader in build_loaders(recipe, *splits, names, seed=0, first_iteration=0):
            assert isinstance(loader, WorkerLoader)
            ForkingPickler.dumps(shipped(loader))


def test_workers_of_an_iterator_in_a_cycle_end_at_once() -> None:
    """Such as one that the traceback of an error refers to; torch alone would wait five seconds for each worker."""
    iterator: Any = iter(WorkerLoader(Slow(), num_workers=1))
    assert next(iterator) == 0
    (worker,) = iterator._workers
    iterator.itself = iterator
    del iterator
    began = time.monotonic()
    gc.collect()
    assert not worker.is_alive()
    assert time.monotonic() - began < 4
