"""The command line: fast help, explained options, one-line errors, exit codes."""

from __future__ import annotations

import configparser
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import click
import pytest
from support.cli import fails, run

import simmim_bench
from simmim_bench.cli.main import _check_packages, cli

SOURCES = Path(simmim_bench.__file__).parent.parent
EXECUTABLE = Path(sys.executable).with_name("simmim-bench")


def command_paths(command: click.Command, path: tuple[str, ...] = ()) -> list[list[str]]:
    """List every command that `--help` lists, and the groups, as the words that call them."""
    found = [list(path)]
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            if not inner.hidden:
                found += command_paths(inner, (*path, name))
    return found


COMMANDS = command_paths(cli)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: " ".join(c) or "simmim-bench")
def test_every_command_has_help_that_loads_no_torch(command: list[str]) -> None:
    code = (
        "import sys\n"
        "from simmim_bench.cli.main import cli\n"
        f"try: cli.main({[*command, '--help']!r})\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'timm', 'numpy', 'PIL', 'detectron2', 'mmseg'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) > 4


def test_the_installed_command_answers_help_without_loading_a_framework() -> None:
    done = subprocess.run([EXECUTABLE, "--help"], capture_output=True, text=True, check=True)
    assert "pretrain" in done.stdout
    assert "transfer" in done.stdout


def test_every_option_and_command_is_explained() -> None:
    def walk(command: object, path: str) -> list[str]:
        bare = [] if getattr(command, "help", None) else [path]
        for parameter in command.params:  # type: ignore[attr-defined]
            if parameter.param_type_name == "option" and not parameter.help:
                bare.append(f"{path} {parameter.name}")
        for name, inner in getattr(command, "commands", {}).items():
            bare += walk(inner, f"{path} {name}")
        return bare

    assert walk(cli, "simmim-bench") == []


def test_recipes_are_listed_and_shown() -> None:
    code, out, _ = run("recipes")
    assert code == 0
    assert "vit_b_800ep" in out
    code, out, _ = run("recipes", "show", "vit_b_800ep", "--json")
    assert json.loads(out)["milestones"] == [700]
    code, out, _ = run("recipes", "show", "imagenet_swin_l_800ep")
    assert "simmim_finetune__swin_large__img224_window14__800ep.yaml" in out
    assert "top-1 85.4 after swin_l_800ep (SimMIM: README.md" in out
    assert re.search(r"^layer_decay +0\.7$", out, re.MULTILINE)
    assert re.search(r"^mixup +0\.8 +SimMIM: config\.py \(AUG\.MIXUP\)$", out, re.MULTILINE)
    assert "did you mean 'vit_b_800ep'" in fails(2, "recipes", "show", "vit_b_80ep")


def test_unknown_names_exit_2_with_the_nearest(tmp_path: Path, pocket: Path) -> None:
    data = ("--data", pocket / "imagenet", "--out", tmp_path / "run")
    assert "did you mean 'vit_b'" in fails(2, "pretrain", "--arch", "vit_bb", *data)
    assert "did you mean 'pocket'" in fails(
        2, "pretrain", "--arch", "vit_pocket", "--recipe", "pockt", *data
    )
    assert "did you mean 'epochs'" in fails(
        2, "pretrain", "--arch", "vit_pocket", "-o", "epoch=1", *data
    )
    assert "did you mean 'vit_pocket'" in fails(
        2, "transfer", "linear", "--ckpt", "random:vit_poket", *data
    )
    assert "is not for coco" in fails(
        2, "transfer", "coco", "--ckpt", "random:vit_pocket", "--recipe", "logistic_pocket", *data
    )


def test_missing_and_empty_data_exit_4_and_name_the_folder(tmp_path: Path) -> None:
    out = ("--out", tmp_path / "run")
    missing = tmp_path / "nothing"
    empty = tmp_path / "empty"
    (empty / "train").mkdir(parents=True)
    for task in ("imagenet", "linear", "attentive", "knn", "fewshot", "coco", "ade20k"):
        transfer = ("transfer", task, "--ckpt", "random:vit_pocket", "--overwrite", *out)
        assert str(missing) in fails(4, *transfer, "--data", missing)
        assert str(empty) in fails(4, *transfer, "--data", empty)
    pretrain = ("pretrain", "--arch", "vit_pocket", "--overwrite", *out)
    assert str(missing) in fails(4, *pretrain, "--data", missing)
    assert str(empty) in fails(4, *pretrain, "--data", empty)


@pytest.fixture
def broken(tmp_path: Path, pocket: Path) -> Path:
    """A copy of the ImageNet-like set, to be damaged."""
    return Path(shutil.copytree(pocket / "imagenet", tmp_path / "imagenet"))


def linear(data: Path, out: Path) -> tuple[object, ...]:
    return ("transfer", "linear", "--ckpt", "random:vit_pocket", "--data", data, "--out", out)


def test_a_class_folder_without_images_is_named(broken: Path, tmp_path: Path) -> None:
    (broken / "train" / "zebra").mkdir()
    assert "zebra has no images" in fails(4, *linear(broken, tmp_path / "run"))


def test_classes_that_only_one_split_has_are_named(broken: Path, tmp_path: Path) -> None:
    shutil.rmtree(next((broken / "val").iterdir()))
    assert "1 class of train/ is missing in val/" in fails(4, *linear(broken, tmp_path / "run"))


def test_a_truncated_jpeg_is_reported_by_every_task(broken: Path, tmp_path: Path) -> None:
    victim = sorted((broken / "train").rglob("*.JPEG"))[3]
    victim.write_bytes(victim.read_bytes()[:200])
    assert victim.name in fails(4, *linear(broken, tmp_path / "a"))
    pretrain = ("pretrain", "--arch", "vit_pocket", "--data", broken, "--out", tmp_path / "b")
    assert victim.name in fails(4, *pretrain)
    # Worker processes wrap what they raise; the line stays one line.
    assert victim.name in fails(4, *linear(broken, tmp_path / "c"), "-o", "num_workers=1")
    assert not (tmp_path / "a" / "record.json").exists()


def test_a_text_file_as_checkpoint_exits_4(tmp_path: Path, pocket: Path) -> None:
    text = tmp_path / "model.pth"
    text.write_text("hello")
    message = fails(
        4, "transfer", "knn", "--ckpt", text, "--data", pocket / "imagenet", "--out", tmp_path / "r"
    )
    assert "model.pth is damaged, or was not written by torch.save" in message


def test_an_occupied_output_directory_is_refused_and_left_alone(
    tmp_path: Path, pocket: Path
) -> None:
    out = tmp_path / "mine"
    out.mkdir()
    (out / "thesis.txt").write_text("precious")
    assert "is not empty" in fails(2, *linear(pocket / "imagenet", out))
    assert "not a run directory" in fails(2, *linear(pocket / "imagenet", out), "--overwrite")
    assert [p.name for p in out.iterdir()] == ["thesis.txt"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_exits_4_and_leaves_no_half_written_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pocket: Path
) -> None:
    from simmim_bench import files

    opened = open

    def full(path: object, *args: object, **kwargs: object) -> object:
        # Every temporary file of ours turns out to be on a full device when it is flushed.
        if str(path).endswith(".tmp"):
            raise OSError(28, "No space left on device", str(path))
        return opened(path, *args, **kwargs)  # type: ignore[call-overload]

    monkeypatch.setattr(files, "open", full, raising=False)
    message = fails(4, *linear(pocket / "imagenet", tmp_path / "run"))
    assert "No space left" in message
    assert not list((tmp_path / "run").glob("*.json"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["transfer", "foo"], "'foo' is not one of"),
        (["pretrain", "--foo"], "No such option"),
        (["pretrain"], "Missing option"),
        (["pocket", "x", "--seed", "-1"], "-1 is not in the range"),
    ],
)
def test_usage_errors_are_one_line_that_points_to_help(arguments: list[str], said: str) -> None:
    message = fails(2, *arguments)
    assert said in message
    assert "--help" in message


def test_a_failed_start_leaves_no_run_directory(tmp_path: Path, pocket: Path) -> None:
    out = tmp_path / "run"
    fails(4, *linear(tmp_path / "nothing", out))
    assert not out.exists()
    assert "contradict" in fails(2, *linear(pocket / "imagenet", out), "--resume", "--overwrite")


def test_another_package_named_pretrain_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pretrain").mkdir()
    (tmp_path / "pretrain" / "__init__.py").write_text("")
    done = subprocess.run(
        [sys.executable, "-c", "from simmim_bench.cli.main import main; main()", "--help"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "package 'pretrain' comes from" in done.stderr


def test_a_folder_without_code_named_as_a_package_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with an editable installation, whose packages are found after the folders of the path."""
    elsewhere = [entry for entry in sys.path if Path(entry or ".").resolve() != SOURCES.resolve()]
    monkeypatch.setattr(sys, "path", [str(tmp_path), *elsewhere])
    for name in ("pretrain", "transfer"):
        monkeypatch.delitem(sys.modules, name, raising=False)
        (tmp_path / name).mkdir()
        assert (
            getattr(find_spec(name), "origin", "") is None
        )  # the folder is what an import would find
    _check_packages()
    for name in ("pretrain", "transfer"):
        origin = getattr(find_spec(name), "origin", "")
        assert Path(origin).parent.parent.resolve() == SOURCES.resolve()


WRONG = {
    "data": ["transfer", "knn", "--ckpt", "random:vit_pocket", "--data", "nothing"],
    "checkpoint": ["transfer", "knn", "--ckpt", "nothing.pth", "--data", "."],
    "baseline": [
        *("transfer", "knn", "--ckpt", "random:vit_pocket", "--data", "."),
        *("--baseline", "nothing.pth"),
    ],
    "recipe": ["transfer", "knn", "--ckpt", "random:vit_pocket", "--data", ".", "--recipe", "x"],
    "key": ["transfer", "knn", "--ckpt", "random:vit_pocket", "--data", ".", "-o", "kk=1"],
    "images": ["pretrain", "--arch", "vit_pocket", "--data", "nothing"],
    "architecture": ["pretrain", "--arch", "vit_base", "--data", "."],
    "evaluated": ["evaluate", "imagenet", "--ckpt", "nothing.pth", "--data", "."],
    "suite": ["suite", "--ckpt", "nothing", "--imagenet", "."],
    "converted": ["convert", "nothing.pth", "out"],
    "packed": ["pack", "nothing", "out"],
}


@pytest.mark.heavy
def test_wrong_names_are_reported_before_torch_is_loaded(tmp_path: Path) -> None:
    code = (
        "import json, sys\n"
        "from simmim_bench.cli.main import main\n"
        f"for name, arguments in {WRONG!r}.items():\n"
        "    sys.argv = ['simmim-bench', *arguments]\n"
        "    try: main()\n"
        "    except SystemExit as end: print(name, end.code, 'torch' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(SOURCES)},
        capture_output=True,
        text=True,
        check=True,
    )
    codes = {"recipe": 2, "key": 2, "architecture": 2}
    assert done.stdout.splitlines() == [f"{name} {codes.get(name, 4)} False" for name in WRONG]
    assert done.stderr.count("error: ") == len(WRONG)
    assert "did you mean 'vit_b'?" in done.stderr
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("imported", ["simmim_bench.cli.main", "click", "simmim_bench.signals"])
def test_an_interrupt_during_the_imports_is_one_line(imported: str) -> None:
    """At the import of a module by the entry point of the console script and of `python -m`."""
    code = (
        "import signal, sys\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, *_):\n"
        f"        if name == '{imported}': signal.raise_signal(signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        "from simmim_bench.__main__ import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "recipes"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (130, "error: stopped by SIGINT.\n")


def test_the_console_script_is_the_entry_point_of_python_m() -> None:
    settings = configparser.ConfigParser()
    settings.read(SOURCES / "setup.cfg")
    scripts = settings["options.entry_points"]["console_scripts"].split()
    assert scripts == ["simmim-bench", "=", "simmim_bench.__main__:main"]
