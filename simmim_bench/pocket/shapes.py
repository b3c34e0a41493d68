"""Define shapes and patterns as functions of position, the building blocks of synthetic images.

A shape is a field of approximate signed distances: negative inside. A pattern is positive at its accent tone
and negative at its base tone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]
Field = Callable[[Array, Array], Array]
"""Function of the coordinates (u, v)."""


def _length(x: Array, y: Array) -> Array:
    """Compute the length of vectors, five times faster than `np.hypot`, which avoids overflow."""
    length: Array = np.sqrt(x * x + y * y)
    return length


def disc(x: float, y: float, radius: float) -> Field:
    """Return the distance to a disc."""
    return lambda u, v: _length(u - x, v - y) - radius


def ellipse(x: float, y: float, width: float, height: float) -> Field:
    """Return the approximate distance to an ellipse with half-axes `width` and `height`."""
    scale = min(width, height)
    return lambda u, v: (_length((u - x) / width, (v - y) / height) - 1) * scale


def box(x: float, y: float, width: float, height: float) -> Field:
    """Return the approximate distance to a rectangle with half-sides `width` and `height`."""
    return lambda u, v: np.maximum(abs(u - x) - width, abs(v - y) - height)


def convex(*corners: tuple[float, float]) -> Field:
    """Return the approximate distance to a convex polygon with its corners in clockwise order on the screen."""
    sides = []
    for (x0, y0), (x1, y1) in zip(corners, (*corners[1:], corners[0]), strict=True):
        length = math.hypot(x1 - x0, y1 - y0)
        sides.append((x0, y0, (y1 - y0) / length, (x0 - x1) / length))
    return lambda u, v: reduce(np.maximum, [(u - x) * a + (v - y) * b for x, y, a, b in sides])


def union(*fields: Field) -> Field:
    """Return the union of shapes."""
    return lambda u, v: reduce(np.minimum, [field(u, v) for field in fields])


def subtract(field: Field, hole: Field) -> Field:
    """Return a shape without `hole`."""
    return lambda u, v: np.maximum(field(u, v), -hole(u, v))


def mirror(field: Field) -> Field:
    """Return the right half of a shape and its mirror image on the left."""
    return lambda u, v: field(abs(u), v)


def plain() -> Field:
    """Return a pattern of the base tone only."""
    return lambda u, v: np.full(np.broadcast(u, v).shape, -1, np.float32)


def stripes(period_u: float, period_v: float = math.inf) -> Field:
    """Return parallel stripes with the given periods along the axes."""
    a, b = 2 * math.pi / period_u, 2 * math.pi / period_v
    return lambda u, v: np.cos(a * u + b * v)


def checks(side: float) -> Field:
    """Return a chessboard with a corner at the origin."""
    return lambda u, v: np.sin(math.pi / side * u) * np.sin(math.pi / side * v)


def dots(period: float) -> Field:
    """Return round spots on a square lattice, one of them at the origin."""
    a = 2 * math.pi / period
    return lambda u, v: np.cos(a * u) + np.cos(a * v) - 0.75


def rings(period: float) -> Field:
    """Return concentric rings around the origin."""
    return lambda u, v: np.cos(2 * math.pi / period * _length(u, v))


def wedges(count: int, x: float, y: float) -> Field:
    """Return `count` pairs of wedges that meet at the point (x, y)."""
    return lambda u, v: np.sin(count * np.arctan2(v - y, u - x))


def zigzag(period: float, swing: float) -> Field:
    """Return horizontal zigzag bands; `swing` is their amplitude and half of their wavelength."""
    return lambda u, v: np.cos(
        2 * math.pi / period * (v + swing * abs((u / swing / 2) % 1 * 2 - 1))
    )


def bricks(width: float, height: float, joint: float) -> Field:
    """Return the joints between bricks; every other row is shifted by half a brick."""

    def field(u: Array, v: Array) -> Array:
        row = np.floor(v / height)
        across = abs((u / width + row / 2) % 1 - 0.5) * width
        along = abs((v / height) % 1 - 0.5) * height
        joints: Array = np.maximum(across - width / 2, along - height / 2) + joint / 2
        return joints

    return field
