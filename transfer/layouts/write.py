"""Write a converted data set: images are linked, annotations written, and the folder appears when it is complete."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from PIL import Image

from simmim_bench import __version__
from simmim_bench.display import Display
from simmim_bench.errors import DataError
from simmim_bench.files import ESCAPED, cannot_write, replacing_directory, write_json, write_text
from transfer.layouts.mask_labels import MaskConverter
from transfer.layouts.source import MaskPair, ObjectSplit
from transfer.layouts.splits import Chosen

DESCRIPTION = "conversion.json"
# What a conversion writes; a folder with other content is never replaced.
OWNED = {
    *("annotations", "images", "classes.txt", DESCRIPTION),
    *("train2017", "val2017", "test2017"),
}
ADE20K_SPLIT = {"train": "training", "val": "validation", "test": "test"}


@contextmanager
def writing(target: Path, dry_run: bool) -> Iterator[Path | None]:
    """Yield a temporary folder that becomes the target when the block succeeds; None in a dry run.

    Raises:
        DataError: the folder cannot be written.
    """
    if dry_run:
        yield None
        return
    try:
        with replacing_directory(target) as temporary:
            temporary.mkdir()
            yield temporary
    except OSError as error:
        raise cannot_write(target, error, "data set") from error


def place_image(source: Path, target: Path, copy: bool) -> bool:
    """Link an image, or copy it where it cannot be linked or `copy` is set; return whether it was linked."""
    target.parent.mkdir(parents=True, exist_ok=True)
    path = os.path.realpath(source)  # a hard link to a symbolic link would be a symbolic link
    if not copy:
        with suppress(
            OSError
        ):  # another disk, a file system without links, or a file of somebody else
            os.link(path, target)
            return True
    try:
        shutil.copyfile(path, target)
    except FileNotFoundError as error:
        raise DataError(
            f"image {source} was removed while it was converted; run the command again."
        ) from error
    return False


def write_objects(
    out: Path | None,
    splits: Mapping[str, ObjectSplit],
    chosen: Mapping[str, Chosen],
    *,
    copy: bool,
    display: Display,
) -> tuple[dict[str, dict[str, int]], int]:
    """Write objects in COCO's layout.

    Args:
        out: the folder; None to count alone.
        splits: by split of the source.
        chosen: by split of the result.

    Returns:
        The numbers of images and annotations by split, and the number of images that were linked.
    """
    counts, linked = {}, 0
    with display.task("convert images", sum(len(c.names) for c in chosen.values())) as task:
        for split, choice in chosen.items():
            source = splits[choice.source]
            content = _select(source.content, choice.names)
            counts[split] = {
                "images": len(content["images"]),
                "annotations": len(content["annotations"]),
            }
            for image in content["images"]:
                task.advance()
                if out is not None:
                    name = image["file_name"]
                    linked += place_image(source.files[name], out / f"{split}2017" / name, copy)
            if out is not None:
                # Compact: the files of a large data set have hundreds of megabytes.
                text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
                write_text(out / "annotations" / f"instances_{split}2017.json", text + "\n")
    return counts, linked


def _select(content: Mapping[str, Any], names: frozenset[str]) -> dict[str, Any]:
    """Return the entries of an instances file that concern some of its images."""
    images = [image for image in content["images"] if image["file_name"] in names]
    ids = {image["id"] for image in images}
    annotations = [a for a in content["annotations"] if a["image_id"] in ids]
    return {**content, "images": images, "annotations": annotations}


def write_masks(
    out: Path | None,
    splits: Mapping[str, Sequence[MaskPair]],
    chosen: Mapping[str, Chosen],
    converter: MaskConverter,
    *,
    copy: bool,
    display: Display,
) -> tuple[dict[str, dict[str, int]], int]:
    """Write images and label maps in ADE20K's layout; see `write_objects`.

    Raises:
        DataError: a mask cannot be used, or has labels or colours that the class table does not have.
    """
    counts, linked = {}, 0
    with display.task("convert masks", sum(len(c.names) for c in chosen.values())) as task:
        for split, choice in chosen.items():
            pairs = [pair for pair in splits[choice.source] if pair.name in choice.names]
            counts[split] = {"images": len(pairs)}
            for pair in pairs:
                labels = converter.convert(pair)
                task.advance()
                if out is None:
                    continue
                folder, name = ADE20K_SPLIT[split], Path(pair.name)
                linked += place_image(pair.image, out / "images" / folder / name, copy)
                path = out / "annotations" / folder / name.with_suffix(".png")
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(labels).save(path)
    converter.check()
    if out is not None:
        names = "".join(f"{name}\n" for name in converter.mapping.names)
        (out / "classes.txt").write_text(names, encoding="utf-8", errors=ESCAPED)
    return counts, linked


def write_description(out: Path | None, description: Mapping[str, Any]) -> None:
    """Write how a data set was converted, which also marks the folder as one that may be replaced."""
    if out is not None:
        write_json(out / DESCRIPTION, {"version": __version__, **description})
