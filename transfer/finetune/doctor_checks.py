"""The checks of `simmim-bench doctor` for a data set in ImageNet's layout: list everything that is wrong with it.

A run stops at the first fault. The files are read by the same functions as in a run, so that data without
findings here is accepted there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from simmim_bench.data.class_checks import class_faults, class_sizes, unshared_classes
from simmim_bench.data.class_splits import class_images, list_classes
from simmim_bench.data.hub import HubImages
from simmim_bench.data.hub_classes import describe_empty_classes
from simmim_bench.data.named import HUB_PREFIX, DataSet, missing_folder
from simmim_bench.data.packed import packing_in_words
from simmim_bench.data.sources import ImageSource
from simmim_bench.data.split_folders import split_place
from simmim_bench.diagnostics.data_checks import FindingGroup, Reading
from simmim_bench.diagnostics.findings import Finding
from simmim_bench.diagnostics.images import ReadImages
from simmim_bench.display import plural
from simmim_bench.errors import DataError, MissingFrameworkError, UsageError
from simmim_bench.recipe import Draw
from simmim_bench.tasks import OPTIONS
from transfer.fewshot import expected_draw_warnings, fraction_fault


def check_named(data_set: DataSet, reading: Reading) -> list[Finding]:
    """Check a named data set, as `transfer --data NAME=DIR` takes it."""
    name = str(data_set.name)
    fault = missing_folder(data_set)
    if fault is not None:
        return [FindingGroup(name).finding("folder", "problem", fault)]
    return check_imagenet(data_set.root, reading, name)


def check_imagenet(data: Path, reading: Reading, name: str = "imagenet") -> list[Finding]:
    """Check images of classes: a folder in ImageNet's layout, `{train,val}/CLASS/image`, a label file or `hfds:NAME`.

    Args:
        reading: which of the images are decoded, and the fraction of the training images that is held out.
        name: the group of the findings.

    Returns:
        Counts, faults and their remedies.
    """
    group = FindingGroup(name)
    findings: list[Finding] = []
    classes: dict[str, list[str]] = {}
    known = {split: ReadImages(reading.pixel_format) for split in ("train", "val")}
    for split, found_in in known.items():
        try:
            images = _list_split(data, split, reading.val_fraction)
        except (DataError, UsageError, MissingFrameworkError) as error:
            problem = group.finding(split, "problem", str(error))
            # Both parts of held-out images have one cause.
            if not any(
                (problem.said, problem.remedy) == (one.said, one.remedy) for one in findings
            ):
                findings.append(problem)
            continue
        classes[split] = [*images.classes]
        findings += _examine_split(data, split, images, found_in, reading, group)
        is_again = split == "val" and reading.val_fraction is not None
        if images.left_out and not is_again:
            findings.append(group.finding(f"{split} files", "warning", images.left_out.describe()))
    if len(classes) == 2:
        faults = unshared_classes(classes["train"], classes["val"])
        findings += group.problems("classes", faults)
    findings += _shared_images(known["train"], known["val"], group)
    return findings


def _examine_draws(
    names: Sequence[str], sizes: Sequence[int], reading: Reading, group: FindingGroup
) -> Iterator[Finding]:
    """Report what `fewshot` would refuse, or would log of the images that it samples, by fraction."""
    draw: Draw | None = (
        "balanced" if reading.recipe is None else getattr(reading.recipe, "draw", None)
    )
    for text in OPTIONS["fraction"].kind if draw is not None and any(sizes) else ():
        assert draw is not None
        fraction = float(text.rstrip("%")) / 100
        fault = fraction_fault(sizes, fraction)
        said = expected_draw_warnings(names, sizes, fraction, draw) if fault is None else [fault]
        for line in said:
            yield group.finding(f"fewshot {text}", "warning", line)


def _list_split(data: Path, split: str, val_fraction: float | None) -> ImageSource:
    """List a split; class folders without images are listed as well, to report all of them."""
    if str(data).startswith(HUB_PREFIX) or val_fraction is not None:
        return class_images(data, split, val_fraction)
    return list_classes(data, split)


def _examine_split(
    data: Path,
    split: str,
    images: ImageSource,
    found: ReadImages,
    reading: Reading,
    group: FindingGroup,
) -> Iterator[Finding]:
    sizes = class_sizes(images)
    how, faults = reading.read(
        f"{group.name} {split}", len(images), lambda index: found.read(images, index)
    )
    yield group.finding(
        split,
        "ok",
        f"{len(images):,} images of {len(sizes):,} classes, {min(sizes):,} to {max(sizes):,} per class; {how}"
        f"{packing_in_words(images)}",
        facts={"images": len(images), "classes": len(sizes), "fewest": min(sizes)},
    )
    if split == "train":
        yield from _examine_draws(images.classes, sizes, reading, group)
    if isinstance(images, HubImages):
        empty = describe_empty_classes(images)
        if empty is not None:
            yield group.finding(f"{split} classes", "warning", empty)
    else:
        faults_of_classes = class_faults(split_place(data, split), images)
        yield from group.problems(f"{split} classes", faults_of_classes)
    yield from group.problems(f"{split} images", faults)
    yield from found.remarks(split, group)


def _shared_images(train: ReadImages, val: ReadImages, group: FindingGroup) -> Iterator[Finding]:
    """Report images of val/ that train/ holds as well, among the images that were read."""
    shared = [key for key in val.copies if key in train.copies]
    if shared:
        yield group.finding(
            "copies",
            "warning",
            f"{plural(len(shared), 'image', 'images')} of val/ {'are' if len(shared) > 1 else 'is'} in train/ as well, "
            "so that the score is too high",
            remedy="remove them from one of the splits",
            items=[f"{val.copies[key][0]} = {train.copies[key][0]}" for key in shared],
        )
