"""Define the classes of synthetic images: objects, clutter and stuff, with silhouettes, patterns and parts.

Some classes share a silhouette (ball and target, house and birdhouse, mushroom and umbrella) or a pattern (ball and
umbrella, fish and birdhouse, mushroom and butterfly), so that neither alone determines the class.
"""

from __future__ import annotations

import math

import numpy as np

from simmim_bench.pocket.shapes import (
    Field,
    box,
    bricks,
    checks,
    convex,
    disc,
    dots,
    ellipse,
    mirror,
    plain,
    rings,
    stripes,
    subtract,
    union,
    wedges,
    zigzag,
)

BASE, ACCENT, TRIM, INK, LIGHT = range(5)
"""Tones, as indices of an item's palette. Patterns alternate between `BASE` and `ACCENT`."""

Layer = tuple[Field, int | Field]
"""A shape, and its tone or its pattern of base and accent."""

_ROOF = convex((0, -0.95), (0.92, -0.12), (-0.92, -0.12))
_WALLS = box(0, 0.36, 0.68, 0.54)
_DOME = subtract(ellipse(0, 0.12, 0.95, 0.98), box(0, 1.12, 2, 1))

THINGS: dict[str, tuple[Layer, ...]] = {
    "ball": (
        (disc(0, 0, 0.92), wedges(3, -0.15, -0.2)),
        (disc(-0.15, -0.2, 0.17), LIGHT),
    ),
    "birdhouse": (
        (_WALLS, stripes(math.inf, 0.36)),
        (_ROOF, TRIM),
        (disc(0, 0.3, 0.24), INK),
        (box(0, 0.68, 0.07, 0.09), LIGHT),
    ),
    "butterfly": (
        (
            mirror(union(ellipse(0.5, -0.33, 0.46, 0.5), ellipse(0.4, 0.45, 0.36, 0.42))),
            dots(0.46),
        ),
        (ellipse(0, 0, 0.12, 0.72), INK),
    ),
    "fish": (
        (convex((0.4, 0), (0.98, -0.56), (0.98, 0.56)), TRIM),
        (convex((-0.3, -0.4), (0.25, -0.85), (0.35, -0.3)), TRIM),
        (ellipse(-0.18, 0, 0.78, 0.52), stripes(0.44)),
        (disc(-0.6, -0.1, 0.16), LIGHT),
        (disc(-0.62, -0.1, 0.08), INK),
    ),
    "house": (
        (box(0.5, -0.6, 0.13, 0.3), INK),
        (_WALLS, bricks(0.54, 0.3, 0.09)),
        (_ROOF, TRIM),
        (box(-0.28, 0.6, 0.18, 0.3), INK),
        (box(0.3, 0.3, 0.2, 0.18), LIGHT),
    ),
    "mug": (
        (subtract(disc(0.5, 0.05, 0.46), disc(0.5, 0.05, 0.24)), TRIM),
        (box(-0.2, 0, 0.65, 0.78), zigzag(0.5, 0.26)),
        (box(-0.2, -0.7, 0.65, 0.1), LIGHT),
    ),
    "mushroom": (
        (convex((-0.24, 0.1), (0.24, 0.1), (0.34, 0.92), (-0.34, 0.92)), LIGHT),
        (_DOME, dots(0.46)),
    ),
    "target": (
        (disc(0, 0, 0.92), rings(0.5)),
        (disc(0, 0, 0.13), TRIM),
    ),
    "turtle": (
        (mirror(union(disc(0.42, -0.56, 0.2), disc(0.42, 0.56, 0.2))), TRIM),
        (union(disc(-0.78, 0, 0.22), convex((0.6, -0.12), (0.98, 0), (0.6, 0.12))), TRIM),
        (disc(-0.84, -0.08, 0.07), INK),
        (ellipse(0, 0, 0.68, 0.6), checks(0.3)),
    ),
    "umbrella": (
        (box(0, 0.5, 0.07, 0.42), INK),
        (
            subtract(subtract(disc(0.17, 0.78, 0.24), disc(0.17, 0.78, 0.1)), box(0, 0, 2, 0.78)),
            INK,
        ),
        (_DOME, wedges(9, 0, -1.0)),
    ),
}
"""Layers of every object class from back to front, in a frame from -1 to 1."""

CLUTTER: dict[str, tuple[Layer, ...]] = {
    "pebble": ((ellipse(0, 0, 0.9, 0.65), plain()),),
    "plank": ((box(0, 0, 0.95, 0.2), plain()),),
    "shard": ((convex((0, -0.9), (0.7, 0.6), (-0.8, 0.5)), plain()),),
    "crescent": ((subtract(disc(0, 0, 0.85), disc(0.4, 0, 0.7)), plain()),),
}
"""Layers of shapes without a class, which occlude objects and lie around; they are not annotated."""

STUFF: dict[str, Field] = {
    "sky": lambda x, y: np.sin(5 * x + 2 * np.sin(9 * y)) * np.sin(11 * y),
    "wall": lambda x, y: np.sign(np.maximum(abs(x * 4 % 1 - 0.5), abs(y * 4 % 1 - 0.5)) - 0.38),
    "grass": lambda x, y: np.sin(50 * x + 3 * np.sin(14 * y)),
    "water": lambda x, y: np.sin(44 * y + 1.6 * np.sin(16 * x)),
    "sand": lambda x, y: np.sin(42 * x) * np.sin(42 * y),
    "floor": lambda x, y: np.sign(np.sin(26 * (x + y))),
}
"""Texture of every stuff class, from -1 to 1, as a function of position in short sides of the image."""

THING_CLASSES = tuple(THINGS)
STUFF_CLASSES = tuple(STUFF)
