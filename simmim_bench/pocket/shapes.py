"""Shapes and patterns of synthetic images, as functions of position."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]


Field = Callable[[Array, Array], Array]


def _length(x: Array, y: Array) -> Array:
    """Give the length of a vector, five times faster than the overflow-proof `np.hypot`."""
    length: Array = np.sqrt(x * x + y * y)
    return length


def disc(x: float, y: float, radius: float) -> Field:
    """Give the distance to a disc."""
    return lambda u, v: _length(u - x, v - y) - radius


def ellipse(x: float, y: float, width: float, height: float) -> Field:
    """Give about the distance to an ellipse of half-axes `width` and `height`."""
    scale = min(width, height)
    return lambda u, v: (_length((u - x) / width, (v - y) / height) - 1) * scale


def box(x: float, y: float, width: float, height: float) -> Field:
    """Give about the distance to a rectangle of half-sides `width` and `height`."""
    return lambda u, v: np.maximum(abs(u - x) - width, abs(v - y) - height)


def convex(*corners: tuple[float, float]) -> Field:
    """Give about the distance to a convex polygon, its corners clockwise on the screen."""
    sides = []
    for (x0, y0), (x1, y1) in zip(corners, (*corners[1:], corners[0]), strict=True):
        length = math.hypot(x1 - x0, y1 - y0)
        sides.append((x0, y0, (y1 - y0) / length, (x0 - x1) / length))
    return lambda u, v: reduce(np.maximum, [(u - x) * a + (v - y) * b for x, y, a, b in sides])


def union(*fields: Field) -> Field:
    """Join shapes."""
    return lambda u, v: reduce(np.minimum, [field(u, v) for field in fields])


def minus(field: Field, hole: Field) -> Field:
    """Cut `hole` out of a shape."""
    return lambda u, v: np.maximum(field(u, v), -hole(u, v))


def both_sides(field: Field) -> Field:
    """Mirror the right half of a shape to the left."""
    return lambda u, v: field(abs(u), v)


def plain() -> Field:
    """Paint in the base tone alone."""
    return lambda u, v: np.full(np.broadcast(u, v).shape, -1, np.float32)


def stripes(period_u: float, period_v: float = math.inf) -> Field:
    """Paint parallel stripes with the given periods along the axes."""
    a, b = 2 * math.pi / period_u, 2 * math.pi / period_v
    return lambda u, v: np.cos(a * u + b * v)


def checks(side: float) -> Field:
    """Paint a chessboard, a corner at the origin."""
    return lambda u, v: np.sin(math.pi / side * u) * np.sin(math.pi / side * v)


def dots(period: float) -> Field:
    """Paint round spots on a square lattice, one at the origin."""
    a = 2 * math.pi / period
    return lambda u, v: np.cos(a * u) + np.cos(a * v) - 0.75


def rings(period: float) -> Field:
    """Paint rings around the origin."""
    return lambda u, v: np.cos(2 * math.pi / period * _length(u, v))


def wedges(count: int, x: float, y: float) -> Field:
    """Paint `count` pairs of wedges that meet in one point."""
    return lambda u, v: np.sin(count * np.arctan2(v - y, u - x))


def zigzag(period: float, swing: float) -> Field:
    """Paint level zigzag bands; `swing` is their height and half their length."""
    return lambda u, v: np.cos(
        2 * math.pi / period * (v + swing * abs((u / swing / 2) % 1 * 2 - 1))
    )


def bricks(width: float, height: float, joint: float) -> Field:
    """Paint joints between bricks that are shifted by half in every other row."""

    def field(u: Array, v: Array) -> Array:
        row = np.floor(v / height)
        across = abs((u / width + row / 2) % 1 - 0.5) * width
        along = abs((v / height) % 1 - 0.5) * height
        joints: Array = np.maximum(across - width / 2, along - height / 2) + joint / 2
        return joints

    return field
