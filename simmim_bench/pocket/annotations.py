"""Compute COCO instance annotations and ADE20K label maps of rendered scenes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from simmim_bench.pocket.classes import STUFF_CLASSES, THING_CLASSES
from simmim_bench.pocket.render import Rendering
from simmim_bench.pocket.scenes import Scene

Mask = NDArray[np.bool_]

COCO_CATEGORY_IDS = (1, 2, 3, 5, 6, 8, 9, 11, 13, 14)
"""Category ids with gaps, as in COCO, which expose code that uses an id as an index."""

STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))
"""(x, y) step along a pixel edge in each of the four directions, in clockwise order."""

STARTS = ((0, 0), (1, 0), (1, 1), (0, 1))
"""(x, y) offset of an edge's start from its pixel, by direction."""


def coco_annotations(scene: Scene, rendering: Rendering) -> Iterator[dict[str, Any]]:
    """Yield a COCO annotation, without ids, for every visible object and for the crowd, if any.

    An object has one polygon for every visible piece that is large enough; holes are filled, because COCO's
    polygons have none. A crowd has a run-length encoding.
    """
    height, width = rendering.item.shape
    min_area = 12 * (min(height, width) / 64) ** 2
    crowd = [index for index, item in enumerate(scene.items) if item.crowd]
    single = [[i] for i, item in enumerate(scene.items) if item.is_thing and not item.crowd]
    for members in [*single, crowd] if crowd else single:
        visible = np.isin(rendering.item, members)
        is_crowd = members is crowd
        segmentation = _run_lengths(visible) if is_crowd else _polygons(visible, min_area)
        if not segmentation:
            continue
        encoded = coco_mask.frPyObjects(segmentation, height, width)
        region = encoded if is_crowd else coco_mask.merge(encoded)
        category = THING_CLASSES.index(scene.items[members[0]].kind)
        yield {
            "category_id": COCO_CATEGORY_IDS[category],
            "segmentation": segmentation,
            "area": float(coco_mask.area(region)),
            "bbox": coco_mask.toBbox(region).tolist(),
            "iscrowd": int(is_crowd),
        }


def ade20k_labels(scene: Scene, rendering: Rendering) -> NDArray[np.uint8]:
    """Return the label map (H, W): 0 for clutter, then the stuff classes, then the object classes."""
    first_thing = len(STUFF_CLASSES) + 1
    of_item = [
        first_thing + THING_CLASSES.index(item.kind) if item.is_thing else 0 for item in scene.items
    ]
    # Pixels without an item have index -1, the last entry, and get the label of their stuff below.
    labels = np.array([*of_item, 0])[rendering.item]
    return np.where(rendering.item < 0, rendering.stuff + 1, labels).astype(np.uint8)


def _run_lengths(mask: Mask) -> dict[str, list[int]]:
    """Encode a mask as COCO's uncompressed run lengths, in column-major order, starting with zeros."""
    flat = mask.ravel(order="F")
    ends = np.flatnonzero(np.diff(flat, prepend=False, append=not flat[-1]))
    return {"counts": np.diff(ends, prepend=0).tolist(), "size": list(mask.shape)}


def _outline_edges(mask: Mask) -> dict[tuple[int, int, int], None]:
    """Return the (x, y, direction) of all pixel edges on the outlines of a mask, as an ordered set."""
    inside = np.pad(mask, 1)
    edges: dict[tuple[int, int, int], None] = {}
    for direction, ((dx, dy), (x0, y0)) in enumerate(zip(STEPS, STARTS, strict=True)):
        # In clockwise order, the pixel on the left of an edge is outside.
        rows, columns = np.nonzero(inside & ~np.roll(inside, (dx, -dy), axis=(0, 1)))
        for x, y in zip(columns.tolist(), rows.tolist(), strict=True):
            edges[x + x0 - 1, y + y0 - 1, direction] = None
    return edges


def _polygons(mask: Mask, min_area: float) -> list[list[int]]:
    """Trace the outlines [x0, y0, x1, y1, ...] of a mask's pieces along pixel edges.

    Only pieces of at least `min_area` pixels are kept. The corners are exact: pycocotools decodes a polygon
    to the piece's pixels and those of its holes.
    """
    edges = _outline_edges(mask)
    remaining = dict(edges)
    polygons = []
    while remaining:
        polygon: list[int] = []
        twice_area = 0
        start = edge = next(iter(remaining))
        while edge in remaining:
            del remaining[edge]
            x, y, direction = edge
            dx, dy = STEPS[direction]
            twice_area += x * dy - y * dx
            # Where four edges meet, a right turn stays at the same pixel.
            turns = ((x + dx, y + dy, (direction + turn) % 4) for turn in (1, 0, 3))
            edge = next(turned for turned in turns if turned in edges)
            if edge[2] != direction:
                polygon += edge[:2]
        assert edge == start
        if twice_area >= 2 * min_area:
            polygons.append(polygon)
    return polygons
