"""A run directory may hold other runs, which it leaves alone."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import pytest

from pretrain.recipes import POCKET
from simmim_bench.display import Display
from simmim_bench.errors import DataError, UsageError
from simmim_bench.runs.lock import exclusive_lock
from simmim_bench.runs.run_dir import RunDir, open_run


def opened(
    path: Path, *, resume: bool = False, overwrite: bool = False
) -> AbstractContextManager[RunDir]:
    return open_run(
        path,
        recipe=POCKET,
        deviates={},
        arguments={},
        display=Display(quiet=True),
        resume=resume,
        overwrite=overwrite,
    )


def use(path: Path, *, resume: bool = False, overwrite: bool = False) -> None:
    with opened(path, resume=resume, overwrite=overwrite):
        pass


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_only_its_own_leftovers_are_removed_from_a_resumed_run(tmp_path: Path) -> None:
    use(tmp_path)
    own = [
        touch(tmp_path / name)
        for name in (
            ".record.json.7.tmp",
            "checkpoints/.last.old/model.safetensors",
            "predictions/label_maps/.0001.png.7.tmp",
        )
    ]
    others = [
        touch(tmp_path / name)
        for name in (
            "imagenet/seed0/.metrics.jsonl.8.tmp",
            "imagenet/seed0/checkpoints/.last.tmp/meta.json",
            "features/.a1b2.3f.tmp/features.npy",
        )
    ]
    use(tmp_path, resume=True)
    assert not any(path.exists() for path in own)
    assert all(path.exists() for path in others)


def test_a_run_below_that_another_process_works_in_is_not_removed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    use(run)
    results = touch(run / "knn" / "predictions" / "logits.npz")
    with exclusive_lock(run / "knn"):
        with pytest.raises(UsageError, match=r"another process works in .*knn, .*another --out"):
            use(run, overwrite=True)
        assert results.exists()
    use(run, overwrite=True)
    assert not results.exists()


def test_what_could_not_be_removed_at_once_is_removed_at_the_end(tmp_path: Path) -> None:
    with opened(tmp_path):
        left = touch(tmp_path / "checkpoints" / ".best.old" / "meta.json")
        other = touch(tmp_path / "knn" / ".record.json.8.tmp")
    assert not left.parent.exists()
    assert other.exists()


@pytest.mark.parametrize("nested", [False, True])
def test_a_failed_start_removes_the_directory_unless_another_process_works_in_it(
    tmp_path: Path, nested: bool
) -> None:
    run = tmp_path / "run"
    with ExitStack() as other:

        def fail() -> None:
            with opened(run):
                if nested:
                    touch(run / "knn" / "record.json")
                    other.enter_context(exclusive_lock(run / "knn"))
                raise DataError("no images")

        with pytest.raises(DataError, match="no images"):
            fail()
        assert run.exists() == nested
