"""Pack a data set into tar shards with an index, in several processes, resumable.

Everything is written to `DST.partial` beside DST, which is renamed when it is complete, so that no command reads half
a data set. A shard is written to a temporary name; a killed run loses the shards under way and no others. The same
source packed in the same way has the same bytes, with any number of processes, as long as Pillow is the same.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL

from simmim_bench.data.names import SharedArray
from simmim_bench.data.pack_processes import (
    PARTS,
    PackJob,
    PackOptions,
    run_processes,
    shard_paths,
    split_folder_of,
)
from simmim_bench.data.pack_shard import ShardPlan, plan_order, read_part
from simmim_bench.data.pack_source import PackSource, make_keys
from simmim_bench.data.packed import PackedImages, Packing, ShardFiles
from simmim_bench.data.packed_index import write_index
from simmim_bench.display import Display
from simmim_bench.errors import DataError, UsageError
from simmim_bench.files import cannot_write, remove, remove_leftovers, write_json
from simmim_bench.signals import StopSignal
from simmim_bench.untrusted.json_text import read_json

LOCK = ".lock"  # of `runs/lock.py`, beside what is packed
ABOUT = "pack.json"
VERSION = 1


@dataclass(frozen=True)
class PackedSplit:
    """What was packed of a split.

    Attributes:
        resized: images that were re-encoded; the others were copied.
        skipped: names of images that cannot be read.
        bytes_before, bytes_after: of the image files, and of the shards.
    """

    images: int
    classes: int
    shards: int
    resized: int
    skipped: tuple[str, ...]
    bytes_before: int
    bytes_after: int


def partial_folder(dst: Path) -> Path:
    """Return the folder that a data set is packed in before it is complete."""
    return dst.with_name(f"{dst.name}.partial")


def describe_request(sources: Sequence[PackSource], options: PackOptions) -> dict[str, Any]:
    """Describe everything that the bytes of a packed data set depend on."""
    return {
        "version": VERSION,
        **asdict(options.packing),
        "shard_size": options.shard_size,
        "pillow": PIL.__version__,
        "source": {
            source.split or "images": {
                "images": len(source),
                "fingerprint": source.images.fingerprint(),
            }
            for source in sources
        },
    }


def check_destination(src: Path, dst: Path, *, overwrite: bool) -> None:
    """Check where a data set is to be packed, before its images are listed.

    Raises:
        UsageError: DST is SRC or inside of it or around it, or holds something that no pack has written.
    """
    own, other = dst.resolve(), src.resolve()
    if own == other or own.is_relative_to(other) or other.is_relative_to(own):
        raise UsageError(f"DST {dst} is SRC {src}, or one is inside the other; use another folder.")
    if dst.name in ("", ".."):
        raise UsageError(f"DST {dst} names no new folder; use one such as {dst / 'packed'}.")
    if other == partial_folder(own):
        raise UsageError(f"SRC {src} is where DST {dst} is packed; use another DST.")
    for folder in (dst, partial_folder(dst)):
        known = (folder / ABOUT).is_file() or not folder.exists()
        if not known and (not folder.is_dir() or set(os.listdir(folder)) - {LOCK}):
            advice = ", which --overwrite does not replace" if overwrite else ""
            raise UsageError(f"{folder} exists and is no packed data set{advice}; use another DST.")


def is_packed(dst: Path, request: dict[str, Any], *, overwrite: bool) -> bool:
    """Return whether DST is complete and of the same request.

    Raises:
        UsageError: it is of another request, and may not be replaced.
    """
    if overwrite or not (dst / ABOUT).is_file():
        return False
    known = _read_about(dst)
    differs = _difference(known.get("request"), request)
    if differs is not None:
        raise UsageError(f"{dst} was packed with {differs}; use --overwrite, or another DST.")
    return True


def prepare(partial: Path, request: dict[str, Any], *, overwrite: bool) -> None:
    """Create the folder to pack in, or continue in that of an interrupted run.

    Raises:
        UsageError: the interrupted run is of another request, and may not be replaced.
        DataError: the folder cannot be written.
    """
    known = _read_about(partial).get("request") if (partial / ABOUT).is_file() else None
    differs = None if known is None else _difference(known, request)
    if differs is not None and not overwrite:
        raise UsageError(
            f"{partial} was begun with {differs}; pack with the same options to continue it, or use --overwrite to "
            "start again."
        )
    try:
        # The description last: without it, a folder that is removed in part would be refused as somebody else's.
        for entry in [*partial.iterdir()] if differs is not None else []:
            if entry.name not in (LOCK, ABOUT):
                remove(entry)
        remove_leftovers(partial, ())
        for split in request["source"]:
            folder = split_folder_of(partial, "" if split == "images" else split)
            folder.mkdir(exist_ok=True)
            remove_leftovers(folder, ())
        (partial / PARTS).mkdir(exist_ok=True)
        remove_leftovers(partial / PARTS, ())
    except OSError as error:
        raise cannot_write(partial, error, option="DST") from error
    write_json(partial / ABOUT, {"request": request})


def pack(
    partial: Path,
    sources: Sequence[PackSource],
    options: PackOptions,
    request: dict[str, Any],
    display: Display,
) -> None:
    """Pack all images into a prepared folder; complete shards of an interrupted run are kept.

    Raises:
        DataError: an image cannot be read, or the disk is full.
    """
    plans = [
        ShardPlan(
            source,
            make_keys(source.names),
            plan_order(source.split, len(source)),
            options.shard_size,
        )
        for source in sources
    ]
    tasks, kept, skipped = [], 0, 0
    for number, plan in enumerate(plans):
        for shard in range(plan.shards):
            part = read_part(*shard_paths(partial, plan, shard))
            if part is None:
                tasks.append((number, shard))
            else:
                kept += len(plan.rows(shard))
                skipped += len(part["skipped"])
    total = sum(map(len, sources))
    if kept:
        display.log(f"pack: continue {partial}: images={kept:,} of {total:,} are packed")
    job = PackJob(partial, plans, tasks, options, skipped)
    try:
        with display.task("pack", total) as task:
            if kept:
                task.advance(kept)
            run_processes(job, task.advance)
    except StopSignal:
        display.log("pack: complete shards are kept; run the same command again to continue")
        raise
    done = {plan.source.split: _finish_split(partial, plan, options.packing) for plan in plans}
    write_json(
        partial / ABOUT,
        {"request": request, "splits": {split: asdict(d) for split, d in done.items()}},
    )


def is_complete(partial: Path, request: dict[str, Any]) -> bool:
    """Return whether all of a request is packed, and only its folder is still to be renamed."""
    known = _read_about(partial) if (partial / ABOUT).is_file() else {}
    return known.get("request") == request and "splits" in known


def publish(partial: Path, dst: Path) -> None:
    """Rename a complete folder to its name, in place of an earlier one.

    Raises:
        DataError: it cannot be renamed.
    """
    old = dst.with_name(f".{dst.name}.old")
    try:
        remove(partial / PARTS)
        remove(old)
        if dst.exists():
            dst.rename(old)
        partial.rename(dst)
        remove(old)
    except OSError as error:
        raise cannot_write(dst, error, option="DST") from error


def read_packed(dst: Path) -> dict[str, PackedSplit]:
    """Return what was packed in a complete folder, by split.

    Raises:
        DataError: the description is damaged.
    """
    splits: Any = _read_about(dst).get("splits")
    try:
        return {split: PackedSplit(**counts) for split, counts in splits.items()}
    except (AttributeError, TypeError) as error:
        raise DataError(f"{dst / ABOUT} is damaged; use --overwrite to pack again.") from error


def _read_about(folder: Path) -> dict[str, Any]:
    about = read_json(folder / ABOUT, "description of a packed data set")
    return about if isinstance(about, dict) else {}


def _difference(known: Any, request: dict[str, Any]) -> str | None:
    """Return in what an earlier request differs, in words; None if it does not."""
    if known == request:
        return None
    if not isinstance(known, dict):
        return "unknown options"
    for key in ("short_side", "quality", "shard_size", "pillow", "version"):
        if known.get(key) != request[key]:
            return f"{key}={json.dumps(known.get(key))}, not {json.dumps(request[key])}"
    return "another SRC, or images of it have changed since"


def _finish_split(partial: Path, plan: ShardPlan, packing: Packing) -> PackedSplit:
    """Write the index of a split whose shards are complete."""
    source = plan.source
    positions = np.zeros((len(source), 3), np.int64)
    resized, found = np.zeros(len(source), bool), np.zeros(len(source), bool)
    sizes, skipped = np.zeros(2, np.int64), []
    for shard in range(plan.shards):
        part = read_part(*shard_paths(partial, plan, shard))
        assert part is not None
        rows = part["rows"]
        positions[rows] = np.stack([np.full_like(rows, shard), part["offsets"], part["sizes"]], 1)
        resized[rows], found[rows] = part["resized"], True
        skipped += part["skipped"].tolist()
        sizes += part["bytes"]
    rows = np.flatnonzero(found)
    if not len(rows):
        raise DataError("none of the images can be read; check SRC.")
    folder = split_folder_of(partial, source.split)
    images = PackedImages(
        folder,
        ShardFiles(tuple(shard_paths(partial, plan, shard)[0] for shard in range(plan.shards))),
        SharedArray(positions[rows]),
        SharedArray(source.labels[rows]),
        source.classes,
        source.names.take(rows),
        SharedArray(resized[rows]),
        packing,
        source.above,
    )
    write_index(images)
    return PackedSplit(
        images=len(rows),
        classes=len(source.classes),
        shards=plan.shards,
        resized=int(resized.sum()),
        skipped=tuple(source.names.take(sorted(skipped))),
        bytes_before=int(sizes[1]),
        bytes_after=int(sizes[0]),
    )
