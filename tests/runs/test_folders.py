"""The default folder of a run, what is advised about an occupied one, and `suite --overwrite`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.cli import fails, run

from simmim_bench.errors import UsageError
from simmim_bench.jobs import workers
from simmim_bench.runs import lock
from simmim_bench.runs.default_folder import choose_folder
from simmim_bench.runs.lock import exclusive_lock
from simmim_bench.runs.removal import remove_runs
from simmim_bench.runs.run_check import check_run_dir

CKPT = "random:vit_pocket"


def write_run(folder: Path, data: str, **more: object) -> None:
    folder.mkdir(parents=True)
    description = {
        "recipe": {"k": 3},
        "recipe_sha256": "a",
        "deviates": {},
        "arguments": {"data": data, **more},
    }
    (folder / "recipe.json").write_text(json.dumps(description))


def chosen(plain: Path, data: str, name: str | None = None) -> str:
    folder = choose_folder(plain, lambda word: plain / word, Path(data), name)
    return str(folder.relative_to(plain.parent))


def test_every_data_set_has_a_folder_which_it_keeps(tmp_path: Path) -> None:
    plain = tmp_path / "knn"
    assert chosen(plain, "/a/pets") == "knn"
    write_run(plain / "seed3", "/a/pets")
    assert chosen(plain, "/a/pets") == "knn"  # other seeds of the same data, too
    assert chosen(plain, "/b/flowers") == "knn/flowers"
    assert chosen(plain, "/b/pets") == "knn/pets"
    write_run(plain / "pets" / "seed0", "/b/pets")
    assert chosen(plain, "/b/pets") == "knn/pets"
    assert chosen(plain, "/c/pets") == "knn/c-pets"
    assert chosen(plain, "hfds:org/pets") == "knn/hfds-org-pets"
    assert chosen(plain, "/x/seed3") == "knn/x-seed3"  # no run directory's name
    write_run(plain / "birds" / "seed0", "/b/birds", data_name="birds")
    assert chosen(plain, "/b/birds") == "knn/b-birds"
    assert chosen(plain / "birds", "/b/birds", "birds") == "birds"
    (plain / "seed3" / "recipe.json").unlink()  # the first data set is removed; the others stay
    assert chosen(plain, "/b/pets") == "knn/pets"


def test_resume_starts_no_run_on_moved_data(
    tmp_path: Path, few: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    knn = Path("runs", "random-vit_pocket", "knn")
    resume = ("transfer", "knn", "--ckpt", CKPT, "--data", few, "--resume")
    write_run(knn / "seed0", "/old/pets")
    refused = fails(2, *resume)
    assert f"no run on {few} to resume: {knn} has a run on /old/pets." in refused
    assert "without --resume" in refused
    assert [path.name for path in knn.iterdir()] == ["seed0"]
    write_run(knn / few.name / "seed3", str(few))  # another seed of the same data has been started
    assert choose_folder(knn, lambda word: knn / word, few, resume=True) == knn / few.name
    free = tmp_path / "free"  # nothing at all: a requeued job's first start
    assert choose_folder(free, lambda word: free / word, few, resume=True) == free


def test_only_what_works_is_advised_about_an_occupied_directory(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    write_run(run_dir, "a")
    same = json.loads((run_dir / "recipe.json").read_text())
    other = {**same, "arguments": {"data": "b"}}

    def advice(description: dict[str, object]) -> str:
        with pytest.raises(UsageError, match="is not empty") as refused:
            check_run_dir(run_dir, description, resume=False, overwrite=False)
        return str(refused.value)

    assert "continue with --resume" in advice(same)
    assert "with another data a, now b. Replace it with --overwrite" in advice(other)
    (run_dir / "recipe.json").write_text("{")
    assert "--resume" not in advice(same)
    assert "--overwrite" in advice(same)
    (run_dir / "recipe.json").unlink()
    (run_dir / "notes.txt").touch()
    assert "not a run directory" in advice(same)
    assert "--overwrite" not in advice(same)


def test_a_suite_replaces_the_runs_of_its_own_steps(tmp_path: Path, few: Path) -> None:
    home = tmp_path / "random-vit_pocket"
    suite = ("suite", "--ckpt", CKPT, "--imagenet", few, "--out", tmp_path, "--tasks", "knn")
    write_run(home / "knn" / "seed0", str(few))
    write_run(home / "knn" / "seed7", str(few))
    refused = fails(2, *suite)
    assert "Or replace the runs of all steps with --overwrite." in refused
    code, out, _ = run(*suite, "--overwrite", "--dry-run")
    assert code == 0
    assert "1 earlier run is removed; if the suite is interrupted, continue without" in out
    assert (home / "knn" / "seed0" / "recipe.json").is_file()
    with exclusive_lock(home / "knn" / "seed0"):
        code, out, err = run(*suite, "--overwrite", "--dry-run")
    assert code == 2
    assert "running elsewhere" in out
    assert "wait until it has ended" in err


def test_a_suite_removes_all_runs_or_none(
    tmp_path: Path, few: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    knn = tmp_path / "random-vit_pocket" / "knn"
    suite = (
        *("suite", "--ckpt", CKPT, "--imagenet", few, "--out", tmp_path, "--tasks", "knn"),
        *("--seeds", 2, "--overwrite"),
    )
    seeds = [knn / "seed0", knn / "seed1", knn / "seed7"]
    for run_dir in seeds:
        write_run(run_dir, str(few))

    def kept() -> list[bool]:
        return [(run_dir / "recipe.json").is_file() for run_dir in seeds]

    for other in (knn / "seed1", knn / "seed1" / "below"):
        other.mkdir(exist_ok=True)
        with exclusive_lock(other):
            assert f"another process works in {other}" in fails(2, *suite)
            assert kept() == [True, True, True]
    monkeypatch.setattr(lock, "PAUSE_S", 0.0)
    with exclusive_lock(knn / "seed1"), pytest.raises(UsageError, match="another process"):
        remove_runs(seeds)  # one that has started after the plan was made
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "submitit", None)
        assert "submitit" in fails(3, *suite, "--slurm", "--slurm-time", "1:00:00")
    assert kept() == [True, True, True]
    monkeypatch.setattr(workers, "launch", lambda *_: subprocess.Popen(["false"]))
    assert run(*suite)[0] == 1  # the step, which ends at once
    assert kept() == [False, False, True]
