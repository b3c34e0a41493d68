"""Check a data set in ImageNet's layout before a run, and list everything that is wrong with it.

A run stops at the first fault. The files are read by the same functions as in a run, so that data without
findings here is accepted there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from simmim_bench.data.decode import decode_image
from simmim_bench.data.sources import ImageList, empty_class, list_classes
from simmim_bench.diagnostics.findings import Finding
from simmim_bench.errors import DataError
from transfer.detection.examine import examine_coco
from transfer.inspection import FindingGroup, Reading
from transfer.segmentation.examine import examine_ade20k


def examine_imagenet(data: Path, reading: Reading) -> list[Finding]:
    """Check a folder in ImageNet's layout, `{train,val}/CLASS/image`."""
    return list(_imagenet(data, reading, FindingGroup("imagenet")))


def _imagenet(data: Path, reading: Reading, group: FindingGroup) -> Iterator[Finding]:
    classes: dict[str, set[str]] = {}
    for split in ("train", "val"):
        try:
            found, outside = list_classes(data, split)
        except DataError as error:
            yield group.finding(split, "problem", str(error))
            continue
        classes[split] = set(found)
        sizes = [len(images) for images in found.values()]
        images = ImageList(
            data,
            tuple(path for paths in found.values() for path in paths),
            tuple(label for label, size in enumerate(sizes) for _ in range(size)),
            tuple(found),
        )
        how, faults = reading.read(
            f"imagenet {split}",
            len(images),
            lambda i, images=images: decode_image(images.read(i), images.name(i)),  # type: ignore[misc]
        )
        yield group.finding(
            split,
            "ok",
            f"{len(images):,} images of {len(found):,} classes, {min(sizes):,} to {max(sizes):,} a class; {how}",
            facts={"images": len(images), "classes": len(found), "fewest": min(sizes)},
        )
        empty = [empty_class(data / split / name) for name, paths in found.items() if not paths]
        yield from group.problems(f"{split} classes", empty)
        yield from group.problems(f"{split} images", faults)
        if outside:
            yield group.finding(
                f"{split} images",
                "warning",
                f"{len(outside):,} images lie beside the class folders and are not used",
                items=[str(path) for path in outside],
            )
    if len(classes) == 2:
        for here, there in (("train", "val"), ("val", "train")):
            odd = sorted(classes[here] - classes[there])
            if odd:
                yield group.finding(
                    "classes",
                    "problem",
                    f"{len(odd):,} of the classes of {here}/ are not in {there}/",
                    remedy="give train/ and val/ the same class folders",
                    items=odd,
                )


EXAMINERS: dict[str, Callable[[Path, Reading], list[Finding]]] = {
    "imagenet": examine_imagenet,
    "coco": examine_coco,
    "ade20k": examine_ade20k,
}
