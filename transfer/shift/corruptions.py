"""Find the conditions of a set in ImageNet-C's layout: `CORRUPTION/SEVERITY/CLASS/image`.

The published archives have the corruptions in the folders of their categories, `noise/gaussian_noise/...`; both layouts
are read, and a mixture of them.
"""

from __future__ import annotations

from pathlib import Path

from simmim_bench.display import first_names
from simmim_bench.errors import DataError
from simmim_bench.results.shift import ALEXNET_ERRORS, CORRUPTIONS, SEVERITIES
from transfer.shift.class_maps import class_names

CATEGORIES = ("blur", "digital", "extra", "noise", "weather")  # zenodo.org/record/2235448
Condition = tuple[str, int]  # corruption, severity from 1 to 5


def find_conditions(root: Path) -> dict[Condition, Path]:
    """Return the folder of every condition that a set has.

    Raises:
        DataError: it has none of the 15 corruptions, or the classes of the conditions differ.
    """
    if not root.is_dir():
        raise DataError(f"data folder {root} does not exist; use the folder of the corruptions.")
    found: dict[Condition, Path] = {}
    for corruption in CORRUPTIONS:
        folders = (root / corruption, *(root / name / corruption for name in CATEGORIES))
        folder = next((one for one in folders if one.is_dir()), None)
        for severity in range(1, SEVERITIES + 1):
            if folder is not None and (folder / str(severity)).is_dir():
                found[corruption, severity] = folder / str(severity)
    if not any(corruption in ALEXNET_ERRORS for corruption, _ in found):
        raise DataError(
            f"c: {root} has no folder CORRUPTION/SEVERITY, such as gaussian_noise/1, of the 15 corruptions of "
            "ImageNet-C; use the folder that holds them, or their categories blur/, digital/, noise/ and weather/."
        )
    first, *others = found.values()
    classes = class_names(first)
    for folder in others:
        different = {*class_names(folder)} ^ {*classes}
        if different:
            raise DataError(
                f"c: the class folders of {folder} and {first} differ: {first_names(sorted(different))}; extract the "
                "whole set."
            )
    return found


def missing_conditions(found: dict[Condition, Path]) -> list[str]:
    """Return the conditions of the 15 corruptions that a set lacks, such as `fog/5`."""
    return [
        f"{corruption}/{severity}"
        for corruption in ALEXNET_ERRORS
        for severity in range(1, SEVERITIES + 1)
        if (corruption, severity) not in found
    ]


def describe_missing(missing: list[str]) -> str:
    """Return what is logged where conditions are missing."""
    count = len(ALEXNET_ERRORS) * SEVERITIES
    return (
        f"{len(missing)} of {count} conditions are missing ({first_names(missing)}), so that the score is partial and "
        "has no mCE"
    )
