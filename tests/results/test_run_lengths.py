"""Sums of COCO's run lengths against pycocotools, which decodes what its own encoder writes."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pycocotools.mask import area, encode

from simmim_bench.results.run_lengths import MASK, check_masks, sum_compressed, sum_run_lengths


def test_sums_of_masks_are_their_pixels() -> None:
    """Of many masks at once, more than are decoded in one step, with a damaged one between each two."""
    random = np.random.default_rng(0)
    masks = [random.random((int(h), 31)) < random.random() for h in random.integers(1, 99, 60)]
    encoded = [encode(np.asfortranarray(mask, np.uint8)) for mask in masks]
    assert [area(e) for e in encoded] == [mask.sum() for mask in masks]
    counts = [e["counts"] for e in encoded]
    assert sum(map(len, counts)) > 1 << 14
    assert sum_compressed(counts) == [mask.size for mask in masks]
    assert [sum_run_lengths(c.decode()) for c in counts] == [mask.size for mask in masks]
    mixed = [text for c in counts for text in (c, c[:-1] + b"o")]
    assert sum_compressed(mixed) == [n for mask in masks for n in (mask.size, -1)]


def test_run_lengths_with_backslashes_are_read() -> None:
    r"""A backslash is one of their characters, and doubled in JSON: "\\"."""
    random, counts = np.random.default_rng(0), ""
    while counts.count("\\") < 2:
        mask = np.asfortranarray(random.random((64, 64)) < 0.03, np.uint8)
        counts = encode(mask)["counts"].decode()
    truth = {"images": [{"id": 3, "height": 64, "width": 64}]}
    found = {"image_id": 3, "segmentation": {"size": [64, 64], "counts": counts}}
    check_masks(json.dumps([found] * 2).encode(), truth)
    assert len(MASK.findall(json.dumps([found] * 2).encode())) == 2  # without parsing the file
    found["segmentation"] = {"size": [64, 64], "counts": counts + "1"}
    with pytest.raises(ValueError, match="detection 0 do not add up"):
        check_masks(json.dumps([found]).encode(), truth)


def test_a_mask_is_held_against_the_image_of_its_own_detection() -> None:
    """A key that is there twice must not pair a mask with the next detection, which has none."""
    sizes = {1: (4, 4), 2: (4, 5)}
    truth = {"images": [{"id": n, "height": h, "width": w} for n, (h, w) in sizes.items()]}
    own, other = (
        json.dumps(
            {"size": list(s), "counts": encode(np.ones(s, np.uint8, "F"))["counts"].decode()}
        )
        for s in sizes.values()
    )
    twice = f'{{"image_id": 1, "segmentation": {own}, "segmentation": {other}}}'
    with pytest.raises(ValueError, match="detection 0 has a mask of size"):
        check_masks(f'[{twice}, {{"image_id": 2}}]'.encode(), truth)


def test_damaged_run_lengths_have_no_sum() -> None:
    # Empty; unfinished; a character before "0"; one behind "o"; a run of more than 35 bits; a negative run.
    damaged = [b"", b"o", b"/", b"p", b"ooooooo0", b"O"]
    assert sum_compressed(damaged) == [-1] * len(damaged)
    assert all(sum_run_lengths(text.decode()) is None for text in damaged)
    assert sum_run_lengths([1, -1]) is None
    assert sum_run_lengths([1, 2.0]) is None
    assert sum_run_lengths([0, 3, 2]) == 5
