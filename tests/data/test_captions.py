"""Headings and legends of figures."""

from __future__ import annotations

import numpy as np

from simmim_bench.data.captions import LINE, add_captions


def test_headings_are_above_and_the_legend_below_in_its_colours() -> None:
    image = np.full((30, 200, 3), 7, np.uint8)
    headings = [(0, "ground truth"), (100, "prediction that is much too long for its column")]
    legend = [("sky\n", (10, 20, 30)), ("a name that needs a row of its own", (40, 50, 60))]
    found = add_captions(image, headings, legend)
    assert found.shape == (LINE + 30 + 2 * LINE, 200, 3)
    assert (found[LINE : LINE + 30] == image).all()
    assert (found[:LINE, :100] == 0).any()
    assert (found[:LINE, 100:] == 0).any()
    middle = LINE // 2
    assert found[LINE + 30 + middle, middle].tolist() == [10, 20, 30]
    assert found[2 * LINE + 30 + middle, middle].tolist() == [40, 50, 60]
    assert add_captions(image, headings).shape == (LINE + 30, 200, 3)
