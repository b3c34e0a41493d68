"""Claims about subsets: which images they have, and that they are theirs for good."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from simmim_bench.cli.studies.definition import Subset
from simmim_bench.cli.studies.subsets import write_subsets
from simmim_bench.data.pretraining_images import any_images, held_out_images
from simmim_bench.errors import DataError, UsageError


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*.JPEG")}


def test_a_smaller_subset_is_a_part_of_a_larger_one_and_may_be_moved(
    tmp_path: Path, few: Path
) -> None:
    data = tmp_path / "tree" / "images"
    for path in few.rglob("*.JPEG"):
        copy = data / path.relative_to(few)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    out = tmp_path / "tree" / "out" / "data"
    small = Subset(source=data, count=4, seed=0, folder=out / "small")
    large, other = replace(small, count=9, folder=out / "large"), replace(small, seed=1)
    other = replace(other, folder=out / "other")
    write_subsets([small, large, other])
    write_subsets([small])  # is kept
    found = {one: names(one.folder / "train") for one in (small, large, other)}
    assert found[small] < found[large] < names(data / "train")
    assert found[small] != found[other]
    assert [len(any_images(one.folder)) for one in (small, large)] == [4, 9]
    moved = (tmp_path / "tree").rename(tmp_path / "moved") / "out" / "data" / "small"
    images, held_out = any_images(moved), held_out_images(moved)
    assert held_out is not None
    assert (len(images), len(held_out)) == (4, len(names(few / "val")))
    assert images.fingerprint() != any_images(few).fingerprint()


def test_another_subset_in_its_place_and_too_few_images_are_refused(
    tmp_path: Path, few: Path
) -> None:
    subset = Subset(source=few, count=3, seed=0, folder=tmp_path / "data" / "a")
    write_subsets([subset])
    with pytest.raises(UsageError, match="give the new one another name"):
        write_subsets([replace(subset, count=2)])
    with pytest.raises(DataError, match="has 12 images in files, but a subset needs 13; use fewer"):
        write_subsets([replace(subset, count=13, folder=tmp_path / "data" / "b")])
    assert not (tmp_path / "data" / "b").exists()
