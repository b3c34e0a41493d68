"""The checks of `simmim-bench doctor` for a data set in ImageNet's layout: list everything that is wrong with it.

A run stops at the first fault. The files are read by the same functions as in a run, so that data without
findings here is accepted there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from simmim_bench.data.decode import decode_image
from simmim_bench.data.sources import ImageList, empty_class, list_classes
from simmim_bench.diagnostics.findings import Finding
from simmim_bench.errors import DataError
from transfer.doctor_checks import FindingGroup, Reading


def check_imagenet(data: Path, reading: Reading) -> list[Finding]:
    """Check a folder in ImageNet's layout, `{train,val}/CLASS/image`.

    Args:
        reading: which of the images are decoded.

    Returns:
        Counts, faults and their remedies.
    """
    group = FindingGroup("imagenet")
    findings: list[Finding] = []
    classes: dict[str, set[str]] = {}
    for split in ("train", "val"):
        try:
            found, outside = list_classes(data, split)
        except DataError as error:
            findings.append(group.finding(split, "problem", str(error)))
            continue
        classes[split] = set(found)
        findings += _examine_split(data, split, found, reading, group)
        if outside:
            findings.append(
                group.finding(
                    f"{split} images",
                    "warning",
                    f"{len(outside):,} images are outside of the class folders and are not used",
                    items=[str(path) for path in outside],
                )
            )
    if len(classes) == 2:
        findings += _compare_classes(classes, group)
    return findings


def _examine_split(
    data: Path,
    split: str,
    classes: Mapping[str, Sequence[Path]],
    reading: Reading,
    group: FindingGroup,
) -> Iterator[Finding]:
    sizes = [len(paths) for paths in classes.values()]
    images = ImageList(
        data,
        tuple(path for paths in classes.values() for path in paths),
        tuple(label for label, size in enumerate(sizes) for _ in range(size)),
        tuple(classes),
    )
    how, faults = reading.read(
        f"imagenet {split}",
        len(images),
        lambda index: decode_image(images.read(index), images.name(index)),
    )
    yield group.finding(
        split,
        "ok",
        f"{len(images):,} images of {len(classes):,} classes, {min(sizes):,} to {max(sizes):,} per class; {how}",
        facts={"images": len(images), "classes": len(classes), "fewest": min(sizes)},
    )
    empty = [empty_class(data / split / name) for name, paths in classes.items() if not paths]
    yield from group.problems(f"{split} classes", empty)
    yield from group.problems(f"{split} images", faults)


def _compare_classes(classes: Mapping[str, set[str]], group: FindingGroup) -> Iterator[Finding]:
    """Report class folders that only one of the two splits has."""
    for split, other in (("train", "val"), ("val", "train")):
        unshared = sorted(classes[split] - classes[other])
        if unshared:
            yield group.finding(
                "classes",
                "problem",
                f"{len(unshared):,} classes of {split}/ are missing in {other}/",
                remedy="create the same class folders in train/ and val/",
                items=unshared,
            )
