"""The checks of `simmim-bench doctor` for a data set in ADE20K's layout: list everything that is wrong with it.

A run stops at the first fault. Files and labels are checked by the same functions as in a run, so that data without
findings here is accepted there.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from simmim_bench.diagnostics.data_checks import FindingGroup, Reading
from simmim_bench.diagnostics.findings import Finding
from simmim_bench.errors import DataError
from transfer.segmentation.ade20k_classes import ADE20K_CLASSES
from transfer.segmentation.ade20k_layout import (
    MAX_CLASSES,
    SPLITS,
    SegmentationSplit,
    list_split,
    read_class_names,
)
from transfer.segmentation.label_check import PairReader, find_faults, label_remarks
from transfer.segmentation.label_maps import LabelScheme


def check_ade20k(data: Path, reading: Reading) -> list[Finding]:
    """Check a folder in ADE20K's layout.

    Args:
        data: the folder; see `ade20k_layout`.
        reading: which of the images and label maps are decoded; its recipe tells what label 0 is, its pixel
            format what the images hold.

    Returns:
        Counts, faults and their remedies.
    """
    group = FindingGroup("ade20k")
    names, finding = _name_classes(data, group)
    scheme = LabelScheme(
        classes=len(names) if names else MAX_CLASSES,
        reduce_zero_label=getattr(reading.recipe, "reduce_zero_label", True),
    )
    findings = [finding]
    readers: dict[str, PairReader] = {}
    for name in SPLITS:
        try:
            split = list_split(data, name)
        except DataError as error:
            findings.append(group.finding(name, "problem", str(error)))
            continue
        pairs = [
            (image, mask)
            for image, mask in zip(split.images, split.masks, strict=True)
            if mask not in split.missing
        ]
        reader = PairReader(pairs, scheme, reading.pixel_format)
        how, faults = reading.read(f"ade20k {name}", len(pairs), reader.read)
        findings += _examine_split(split, reader, how, faults, group)
        if not (faults or split.missing):
            readers[name] = reader
    if names:
        findings += _examine_labels(readers, names, data, group)
    return findings


def _name_classes(data: Path, group: FindingGroup) -> tuple[list[str], Finding]:
    """Return the class names and the finding; no names if classes.txt is damaged."""
    try:
        names = read_class_names(data)
    except DataError as error:
        return [], group.finding("classes", "problem", str(error))
    source = "named in classes.txt" if names else "ADE20K's own, as there is no classes.txt"
    names = names or list(ADE20K_CLASSES)
    finding = group.finding(
        "classes", "ok", f"{len(names)} classes, {source}", facts={"classes": len(names)}
    )
    return names, finding


def _examine_split(
    split: SegmentationSplit, reader: PairReader, how: str, faults: list[str], group: FindingGroup
) -> Iterator[Finding]:
    """Yield what a split holds, what is left out, and the files that cannot be used."""
    present, scheme = int((reader.labelled > 0).sum()), reader.scheme
    ignored = 100 * reader.ignored / max(1, reader.pixels.sum())
    yield group.finding(
        split.name,
        "ok",
        f"{len(split):,} images, {len(reader.pairs):,} with a label map; {how}: {present} of {scheme.classes} classes "
        f"appear, {ignored:.1f} % of the pixels are label {scheme.ignored}, which is ignored",
        facts={"images": len(split), "pairs": len(reader.pairs), "classes_seen": present},
    )
    if split.missing:
        items = [str(mask) for mask in split.missing]
        yield group.finding(f"{split.name} maps", "problem", split.describe_missing(), items=items)
    yield from group.problems(f"{split.name} files", faults)
    for remark in split.remarks():
        yield group.finding(f"{split.name} files", "warning", remark)


def _examine_labels(
    readers: dict[str, PairReader], names: list[str], data: Path, group: FindingGroup
) -> Iterator[Finding]:
    """Yield what the labels of splits show all of whose files, or of whose sample, can be used."""
    try:
        faults = find_faults(readers, names, data)
    except DataError as error:  # in a file that was read besides the sample
        faults = [str(error)]
    for fault in faults:
        yield group.finding("labels", "problem", fault)
    complete = {name: reader for name, reader in readers.items() if not reader.unread}
    for remark in label_remarks(complete, names, data):
        yield group.finding("labels", "warning", remark)
