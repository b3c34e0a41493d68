"""Render a scene to an image, with the stuff class and the topmost item of every pixel."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from simmim_bench.pocket.classes import BASE, CLUTTER, STUFF, STUFF_CLASSES, THINGS
from simmim_bench.pocket.scenes import Item, Light, Scene, Stuff
from simmim_bench.pocket.shapes import Array

SAMPLES_PER_PIXEL = 3
"""Samples along each axis of a pixel; odd, so that one is at the centre, where labels are read."""


@dataclass(frozen=True, kw_only=True)
class Rendering:
    """A rendered image and the labels at its pixel centres.

    Attributes:
        image: (H, W, 3) uint8.
        stuff: (H, W) index into `STUFF_CLASSES`, also below items.
        item: (H, W) index into the scene's items; -1 without an item.
    """

    image: NDArray[np.uint8]
    stuff: NDArray[np.int16]
    item: NDArray[np.int16]


def render(scene: Scene, img_size: tuple[int, int]) -> Rendering:
    """Render a scene at `img_size` (H, W)."""
    height, width = img_size
    n = SAMPLES_PER_PIXEL
    step = 1 / (n * min(img_size))
    x = ((np.arange(n * width) + 0.5) * step).astype(np.float32)
    y = ((np.arange(n * height) + 0.5) * step).astype(np.float32)[:, None]
    canvas = np.zeros((3, len(y), len(x)), np.float32)
    stuff_at = np.zeros(canvas.shape[1:], np.int16)
    item_at = np.full(canvas.shape[1:], -1, np.int16)
    for stuff in scene.stuff:
        _paint_stuff(canvas, stuff_at, stuff, x, y)
    for index, item in enumerate(scene.items):
        _paint_item(canvas, item_at, item, index, scene.light, x, y)
    image = reduce(np.add, [canvas[:, i::n, j::n] for i in range(n) for j in range(n)]) / n**2
    towards = math.cos(scene.light.angle), math.sin(scene.light.angle)
    slope = towards[0] * (x[n // 2 :: n] - x.mean()) + towards[1] * (y[n // 2 :: n] - y.mean())
    image *= scene.light.gain * (1 + 0.5 * scene.light.relief * slope)
    noise = np.random.default_rng(scene.noise_seed).standard_normal(image.shape, np.float32)
    image += scene.noise * noise
    return Rendering(
        image=(image.clip(0, 1) * 255 + 0.5).astype(np.uint8).transpose(1, 2, 0),
        stuff=stuff_at[n // 2 :: n, n // 2 :: n],
        item=item_at[n // 2 :: n, n // 2 :: n],
    )


def _paint_stuff(
    canvas: Array, stuff_at: NDArray[np.int16], stuff: Stuff, x: Array, y: Array
) -> None:
    """Paint stuff on the region of the canvas that it covers, and store its class in `stuff_at`."""
    amplitude, wavelength, phase = stuff.wave
    edge = stuff.top + stuff.tilt * x + amplitude * np.sin(x * (2 * math.pi / wavelength) + phase)
    covered = y > edge
    texture = STUFF[stuff.kind](x + stuff.shift[0], y + stuff.shift[1])
    for channel, low, high in zip(canvas, *stuff.colours, strict=True):
        np.copyto(channel, (low + high) / 2 + (high - low) / 2 * texture, where=covered)
    stuff_at[covered] = STUFF_CLASSES.index(stuff.kind)


def _paint_item(
    canvas: Array,
    item_at: NDArray[np.int16],
    item: Item,
    index: int,
    light: Light,
    x: Array,
    y: Array,
) -> None:
    """Paint an item's soft shadow and the item, and store its index in `item_at`."""
    reach = 0.85 * item.size
    columns = slice(*np.searchsorted(x, (item.center[0] - reach, item.center[0] + reach)))
    rows = slice(*np.searchsorted(y[:, 0], (item.center[1] - reach, item.center[1] + reach)))
    dx = (x[columns] - item.center[0]) * (2 / item.size)
    dy = (y[rows] - item.center[1]) * (2 / item.size)
    to_light = math.cos(light.angle), math.sin(light.angle)

    layers = (THINGS | CLUTTER)[item.kind]
    u, v = _to_frame(item, dx, dy)
    distances = [shape(u, v) for shape, _ in layers]
    distance = reduce(np.minimum, distances)
    shifted = _to_frame(item, dx + 0.12 * to_light[0], dy + 0.12 * to_light[1])
    shadow = reduce(np.minimum, [shape(*shifted) for shape, _ in layers])
    canvas[:, rows, columns] *= 1 - (0.25 - 1.5 * shadow).clip(0, 0.45)

    tone = np.full(u.shape, BASE, np.int8)
    for (_, paint), layer_distance in zip(layers, distances, strict=True):
        painted = paint if isinstance(paint, int) else (paint(u, v) > 0).astype(np.int8)
        tone = np.where(layer_distance < 0, painted, tone)
    shade = 1 + light.relief * (to_light[0] * dx + to_light[1] * dy)
    shade *= 1 - 0.55 * (1 + distance * 9).clip(0, 1)
    inside = distance < 0
    for channel, tones in zip(canvas, np.asarray(item.palette, np.float32).T, strict=True):
        np.copyto(channel[rows, columns], tones.take(tone) * shade, where=inside)
    item_at[rows, columns][inside] = index


def _to_frame(item: Item, dx: Array, dy: Array) -> tuple[Array, Array]:
    """Transform offsets from an item's centre to coordinates in its frame: rotate, shear and mirror."""
    cos, sin = math.cos(item.angle), math.sin(item.angle)
    flip = -1 if item.mirrored else 1
    v = cos * dy - sin * dx
    return flip * (cos * dx + sin * dy + item.shear * v), v
