"""Tests of the commands on files that were made to harm: one line, the code of bad data, nothing written, no signal."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.attacks import (
    ARCHIVES,
    CALLS,
    HEADERS,
    METAS,
    PICKLES,
    SHAPES,
    STATES,
    UNFIT,
    reshaped,
    write_safetensors,
)
from support.many_commands import run_all

from simmim_bench.checkpoints.checkpoint import write_checkpoint
from simmim_bench.checkpoints.load import restore_backbone
from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.models.archs import ARCHS


def pickles(folder: Path) -> Iterator[Path]:
    """Write the attacks on the reader of pickles, in a zip file as torch's and as older versions wrote them."""
    for name, call in CALLS.items():
        for new in (True, False):
            path = folder / f"{name} {new}.pth"
            torch.save({"model": call}, path, _use_new_zipfile_serialization=new)
            yield path
        (folder / f"{name}.bin").write_bytes(pickle.dumps(call))
        yield folder / f"{name}.bin"
    for name, content in PICKLES.items():
        (folder / f"{name}.pt").write_bytes(content)
        yield folder / f"{name}.pt"
    for name, (size, stride, offset) in SHAPES.items():
        torch.save({"model": {"a": reshaped(size, stride, offset)}}, folder / f"shape {name}.pth")
        yield folder / f"shape {name}.pth"


def weights(folder: Path) -> Iterator[Path]:
    """Write the attacks on what reads the weights."""
    for name, build in STATES.items():
        torch.save({"model": build()}, folder / f"{name}.pth")
        yield folder / f"{name}.pth"
    for name in ("complex", "number", "integers", "a block"):
        save_file(
            {key: value.contiguous() for key, value in STATES[name]().items()},
            folder / f"{name}.safetensors",
        )
        yield folder / f"{name}.safetensors"
    for name, header in HEADERS.items():
        yield write_safetensors(folder / f"header {name}.safetensors", header)


def checkpoints(folder: Path) -> Iterator[Path]:
    """Write checkpoint directories with damaged descriptions."""
    state = restore_backbone(read_checkpoint("random:vit_pocket")).state_dict()
    for name, damage in {**METAS, **UNFIT}.items():
        path = folder / f"meta {name}"
        if not (folder / "first").exists():
            write_checkpoint(
                folder / "first",
                state=state,
                spec=ARCHS["vit_pocket"],
                form="transfer",
                mean=(0.5,) * 3,
                std=(0.5,) * 3,
                provenance={"label": "a", "method": "random"},
            )
        path.mkdir()
        (path / "model.safetensors").symlink_to(folder / "first" / "model.safetensors")
        meta = json.loads((folder / "first" / "meta.json").read_text())
        damage(meta)
        (path / "meta.json").write_text(json.dumps(meta))
        yield path


def shards(folder: Path) -> Iterator[Path]:
    """Write folders with one damaged tar file each."""
    for name, (build, _) in ARCHIVES.items():
        (folder / f"tar {name}").mkdir()
        (folder / f"tar {name}" / "a.tar").write_bytes(build())
        yield folder / f"tar {name}"


@pytest.mark.heavy
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support", "ignore:torch.quantize_per_tensor")
def test_no_attack_ends_a_command_otherwise_than_in_one_line(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    files, out = tmp_path / "files", tmp_path / "out"
    files.mkdir()
    unpickled = list(pickles(files))
    read = [*unpickled, *weights(files), *checkpoints(files)]
    commands = [["convert", str(path), str(out), "--num-heads", "4"] for path in read]
    for command in commands:
        if Path(command[1]).is_dir():
            del command[3:]
    commands += [
        ["pretrain", "--arch", "vit_pocket", "--data", str(path), "--out", str(out)]
        for path in shards(files)
    ]
    before = contents(tmp_path)
    results = run_all(commands, tmp_path_factory.mktemp("process") / "out")
    assert len(results) == len(commands)
    for command, (code, stdout, stderr) in zip(commands, results, strict=True):
        assert (code, stdout) == (4, ""), (command, code, stdout, stderr)
        (line,) = stderr.splitlines()
        assert line.startswith("error: "), command
        assert line.isprintable(), command
        assert "files/" in line, command
    refused_pickles = results[: len(unpickled)]
    assert all("best as safetensors" in outcome.stderr for outcome in refused_pickles)
    assert contents(tmp_path) == before


def contents(folder: Path) -> dict[Path, tuple[int, int]]:
    """Return size and modification time of everything below a folder."""
    entries = {path: path.lstat() for path in folder.rglob("*")}
    return {path: (status.st_size, status.st_mtime_ns) for path, status in entries.items()}
