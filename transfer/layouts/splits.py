"""Choose which images of a source become the training, validation and test split.

A source names its splits (`train`, `valid`, `default`, ...). Where it has no validation split, a fraction of the
training images is taken: an image's place depends on the seed and its name alone, so that it stays where it is when
other images are added.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from simmim_bench.data.hold_out import place_of
from simmim_bench.errors import DataError, UsageError
from simmim_bench.untrusted.text import visible

SPLITS = ("train", "val", "test")
# Roboflow's `valid`, ADE20K's `training` and `validation`; a year follows in COCO's names.
SYNONYMS = {"training": "train", "valid": "val", "validation": "val", "testing": "test"}
VAL_FRACTION = 0.1


@dataclass(frozen=True, kw_only=True)
class SplitRequest:
    """The options of a command that concern splits.

    Attributes:
        train: the source's split to train on; None to infer it.
        val: the source's split to validate on; None to infer it, or to take a fraction of the training images.
        test: whether to convert the test split, too.
        val_fraction: fraction of the training images; None for `VAL_FRACTION` where the source has no validation split.
        seed: seed of that choice.
    """

    train: str | None = None
    val: str | None = None
    test: bool = False
    val_fraction: float | None = None
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The images of one split of the result.

    Attributes:
        source: the split of the source.
        names: the names of the images.
    """

    source: str
    names: frozenset[str]


def common_name(name: str) -> str:
    """Return `train`, `val` or `test` for a split's name of any tool, and any other name as it is."""
    short = re.sub(r"\d{4}$", "", name.lower())
    short = SYNONYMS.get(short, short)
    return short if short in SPLITS else name


def choose_splits(
    found: Mapping[str, Sequence[str]], request: SplitRequest, where: str
) -> tuple[dict[str, Chosen], list[str]]:
    """Choose the splits of the result.

    Args:
        found: the names of the images by split of the source.
        where: the source, for messages.

    Returns:
        The chosen images by split, "train", "val" and possibly "test", and what a user should know of the choice.

    Raises:
        UsageError: an option names a split that the source does not have, or the training split is ambiguous.
        DataError: two splits mean the same, or a split has too few images.
    """
    common: dict[str, str] = {}
    for name in found:
        if common_name(name) in common:
            raise DataError(
                f"{where} has two splits that mean the same, {common[common_name(name)]} and {name}; rename one."
            )
        common[common_name(name)] = name
    val = _named(found, common, request.val, "--val", where) or common.get("val")
    train = _named(found, common, request.train, "--train", where)
    train = train or _training_split(found, common, val, where)
    if train == val:
        raise UsageError(
            f"split '{train}' of {where} would be trained on and validated on; name two splits with --train and --val."
        )
    test = common.get("test")
    test = None if test in (train, val) else test
    if request.test and test is None:
        raise UsageError(f"{where} has no test split ({_listed(found)}); remove --test.")
    notes = []
    if val is None:
        parts = split_by_hash(found[train], request.val_fraction or VAL_FRACTION, request.seed)
        if not all(parts):
            raise DataError(
                f"{where} has {len(found[train])} image to train on, which cannot be split in two; add images."
            )
        names = dict(zip(("train", "val"), parts, strict=True))
        chosen = {split: Chosen(source=train, names=frozenset(names[split])) for split in names}
        notes.append(
            f"no validation split: {len(parts[1]):,} of {len(found[train]):,} images of '{train}' become one "
            f"(--val-fraction {request.val_fraction or VAL_FRACTION:g} --seed {request.seed})"
        )
    else:
        if request.val_fraction is not None:
            raise UsageError(
                f"{where} has a validation split, '{val}'; remove --val-fraction, which takes one from the training "
                "images."
            )
        chosen = {
            split: Chosen(source=name, names=frozenset(found[name]))
            for split, name in (("train", train), ("val", val))
        }
    if request.test and test is not None:
        chosen["test"] = Chosen(source=test, names=frozenset(found[test]))
    unused = [name for name in found if name not in {c.source for c in chosen.values()}]
    if unused:
        counted = ", ".join(f"'{name}' ({len(found[name]):,} images)" for name in unused)
        option = "; --test converts it, too" if test in unused else ""
        notes.append(f"not converted: {counted}{option}")
    _check_images(chosen, where)
    return chosen, notes


def _named(
    found: Mapping[str, Sequence[str]],
    common: Mapping[str, str],
    name: str | None,
    option: str,
    where: str,
) -> str | None:
    """Return the split of the source that an option names."""
    if name is None or name in found:
        return name
    if common_name(name) in common:
        return common[common_name(name)]
    raise UsageError(f"{option} {name}: {where} has no such split; it has {_listed(found)}.")


def _training_split(
    found: Mapping[str, Sequence[str]], common: Mapping[str, str], val: str | None, where: str
) -> str:
    """Return the split to train on: `train`, or the only one that is neither for validation nor for testing."""
    if "train" in common:
        return common["train"]
    others = [name for key, name in common.items() if key not in SPLITS and name != val]
    if len(others) == 1:
        return others[0]
    raise UsageError(
        f"{where} has no split that is called train; name the one to train on with --train, of {_listed(found)}."
    )


def _listed(found: Iterable[str]) -> str:
    return ", ".join(f"'{visible(name)}'" for name in found)


def split_by_hash(names: Sequence[str], fraction: float, seed: int) -> tuple[list[str], list[str]]:
    """Split names in two: the part without, and the part with about the given fraction of them.

    Both have at least one name, where there are two.
    """
    places = {name: place_of(name, seed) for name in names}
    ordered = sorted(places, key=places.__getitem__)
    count = sum(place < fraction for place in places.values())
    count = min(max(count, 1), len(ordered) - 1)
    return sorted(ordered[count:]), sorted(ordered[:count])


def _check_images(chosen: Mapping[str, Chosen], where: str) -> None:
    """Check that every split has images."""
    for split, choice in chosen.items():
        if not choice.names:
            raise DataError(
                f"split '{choice.source}' of {where} has no images; add some, or name another split with "
                f"{'--test' if split == 'test' else f'--{split}'}."
            )
