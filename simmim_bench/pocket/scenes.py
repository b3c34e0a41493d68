"""Describe generated pictures and render them.

In: a random generator and the extent of the picture in short sides, from which `object_scene`
(one dominant thing, as in ImageNet) or `open_scene` (several things on stuff, as in COCO and
ADE20K) draw a `Scene`, a complete description in plain numbers.
Out: `render` turns a scene into an image, the class of stuff at each pixel and the item on top.

A thing's class fixes its silhouette, its pattern and its parts; colours, light, pose, size and
surroundings are drawn at random. Classes share silhouettes (ball and target, house and birdhouse,
mushroom and umbrella) and patterns (ball and umbrella, fish and birdhouse, mushroom and butterfly),
so that neither alone tells them apart, and colour tells nothing. That is what makes hidden pixels
worth predicting: they follow from the visible ones for whoever knows the classes.
"""

from __future__ import annotations

import colorsys
import math
from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from simmim_bench.pocket.classes import BASE, CLUTTER, STUFF, STUFF_CLASSES, THINGS, Layer
from simmim_bench.pocket.shapes import (
    Array,
)

"""A function of the plane: below 0 inside a shape, or above 0 where a pattern has its accent."""
Colour = tuple[float, float, float]

SAMPLES_PER_PIXEL = 3
"""Samples along each axis of a pixel; odd, for one at the centre, where labels are read."""

"""Tones: places in an item's palette. Patterns alternate `BASE` and `ACCENT`."""


"""A shape and how it is painted: in one tone, or in a pattern of base and accent."""


"""Classes of things: layers from back to front, in a frame that reaches from -1 to 1."""

"""Shapes of no class, that hide parts of things and lie about; never annotated."""

"""Classes of stuff: a texture from -1 to 1, in short sides of the picture."""


@dataclass(frozen=True, kw_only=True)
class Stuff:
    """Cover the picture below a wavy, tilted line with stuff of one class.

    `top` is the line's height at the left in short sides (minus infinity covers everything),
    `wave` its amplitude, wavelength and phase, `shift` moves the texture.
    """

    kind: str
    colours: tuple[Colour, Colour]
    shift: tuple[float, float]
    top: float = -math.inf
    tilt: float = 0.0
    wave: tuple[float, float, float] = (0.0, 1.0, 0.0)


@dataclass(frozen=True, kw_only=True)
class Item:
    """Place a thing or a piece of clutter.

    `center` (x, y) and `size`, the side of its frame, are in short sides of the picture; `angle`
    is in radians; `palette` has a colour a tone. Members of a `crowd` form one region together.
    """

    kind: str
    center: tuple[float, float]
    size: float
    angle: float
    mirrored: bool
    shear: float
    palette: tuple[Colour, Colour, Colour, Colour, Colour]
    crowd: bool = False

    @property
    def is_thing(self) -> bool:
        """Say whether the item is of one of the classes."""
        return self.kind in THINGS


@dataclass(frozen=True, kw_only=True)
class Light:
    """Light a scene from `angle` (radians); `relief` is how strongly it models, `gain` a factor."""

    angle: float
    gain: float
    relief: float


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Describe one picture: stuff and items from back to front, light, and sensor noise."""

    stuff: tuple[Stuff, ...]
    items: tuple[Item, ...]
    light: Light
    noise: float
    noise_seed: int


@dataclass(frozen=True, kw_only=True)
class Rendering:
    """Hold a picture and what is seen at each pixel's centre.

    `image` is (H, W, 3) uint8; `stuff` (H, W) indexes `STUFF_CLASSES`, under the items too;
    `item` (H, W) indexes the scene's items and is -1 where none is.
    """

    image: NDArray[np.uint8]
    stuff: NDArray[np.int16]
    item: NDArray[np.int16]


def object_scene(rng: np.random.Generator, kind: str, extent: tuple[float, float]) -> Scene:
    """Draw a scene around one large thing of class `kind`.

    `extent` is the picture's (height, width) in short sides.
    """
    height, width = extent
    size = rng.uniform(0.7, 1.0)
    # Anywhere, if need be cut a little by the border.
    reach = 0.42 * size
    center = (rng.uniform(reach, width - reach), rng.uniform(reach, height - reach))
    thing = _item(rng, kind, center, size)
    items = [*_litter(rng, extent, int(rng.integers(0, 4))), thing]
    if rng.random() < 0.25:
        direction = rng.uniform(0, 2 * math.pi)
        rim = (
            center[0] + 0.45 * size * math.cos(direction),
            center[1] + 0.45 * size * math.sin(direction),
        )
        items.append(_item(rng, _pick(rng, CLUTTER), rim, rng.uniform(0.2, 0.4) * size))
    return _scene(rng, extent, items, max_stuff=2)


def open_scene(
    rng: np.random.Generator, extent: tuple[float, float], *, things: int, crowd: bool = False
) -> Scene:
    """Draw a scene of up to `things` things that hide each other at most in part.

    `extent` is the picture's (height, width) in short sides. With `crowd`, a heap of small things
    of one class comes first.
    """
    height, width = extent
    items = _litter(rng, extent, int(rng.integers(0, 4)))
    taken: list[tuple[float, float, float]] = []
    if crowd:
        x, y = rng.uniform(0.3, width - 0.3), rng.uniform(0.3, height - 0.3)
        taken.append((x, y, 0.6))
        kind = _pick(rng, THINGS)
        for _ in range(int(rng.integers(8, 13))):
            spot = (x + rng.uniform(-0.22, 0.22), y + rng.uniform(-0.18, 0.18))
            items.append(_item(rng, kind, spot, rng.uniform(0.17, 0.22), crowd=True))
    for _ in range(12 * things):
        if len(taken) == things + crowd:
            break
        size = rng.uniform(0.26, 0.58)
        reach = 0.42 * size
        x, y = rng.uniform(reach, width - reach), rng.uniform(reach, height - reach)
        if all(math.hypot(x - a, y - b) > 0.36 * (size + s) for a, b, s in taken):
            taken.append((x, y, size))
            items.append(_item(rng, _pick(rng, THINGS), (x, y), size))
    if rng.random() < 0.3:
        items += _litter(rng, extent, 1)
    return _scene(rng, extent, items, max_stuff=3)


def render(scene: Scene, img_size: tuple[int, int]) -> Rendering:
    """Render a scene at `img_size` (H, W)."""
    height, width = img_size
    step = 1 / (SAMPLES_PER_PIXEL * min(img_size))
    x = ((np.arange(SAMPLES_PER_PIXEL * width) + 0.5) * step).astype(np.float32)
    y = ((np.arange(SAMPLES_PER_PIXEL * height) + 0.5) * step).astype(np.float32)[:, None]
    canvas = np.zeros((3, len(y), len(x)), np.float32)
    stuff_at = np.zeros(canvas.shape[1:], np.int16)
    item_at = np.full(canvas.shape[1:], -1, np.int16)
    for stuff in scene.stuff:
        _lay(canvas, stuff_at, stuff, x, y)
    for index, item in enumerate(scene.items):
        _draw(canvas, item_at, item, index, scene.light, x, y)
    n = SAMPLES_PER_PIXEL
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


def _lay(canvas: Array, stuff_at: NDArray[np.int16], stuff: Stuff, x: Array, y: Array) -> None:
    """Paint stuff over the part of the canvas that it covers."""
    amplitude, wavelength, phase = stuff.wave
    edge = stuff.top + stuff.tilt * x + amplitude * np.sin(x * (2 * math.pi / wavelength) + phase)
    covered = y > edge
    texture = STUFF[stuff.kind](x + stuff.shift[0], y + stuff.shift[1])
    for channel, low, high in zip(canvas, *stuff.colours, strict=True):
        np.copyto(channel, (low + high) / 2 + (high - low) / 2 * texture, where=covered)
    stuff_at[covered] = STUFF_CLASSES.index(stuff.kind)


def _draw(
    canvas: Array,
    item_at: NDArray[np.int16],
    item: Item,
    index: int,
    light: Light,
    x: Array,
    y: Array,
) -> None:
    """Paint an item, its soft shadow first, and note its index where it is seen."""
    reach = 0.85 * item.size
    columns = slice(*np.searchsorted(x, (item.center[0] - reach, item.center[0] + reach)))
    rows = slice(*np.searchsorted(y[:, 0], (item.center[1] - reach, item.center[1] + reach)))
    dx = (x[columns] - item.center[0]) * (2 / item.size)
    dy = (y[rows] - item.center[1]) * (2 / item.size)
    cos, sin = math.cos(item.angle), math.sin(item.angle)
    flip = -1 if item.mirrored else 1
    to_light = math.cos(light.angle), math.sin(light.angle)

    def frame(dx: Array, dy: Array) -> tuple[Array, Array]:
        v = cos * dy - sin * dx
        return flip * (cos * dx + sin * dy + item.shear * v), v

    layers = (THINGS | CLUTTER)[item.kind]
    u, v = frame(dx, dy)
    distances = [shape(u, v) for shape, _ in layers]
    distance = reduce(np.minimum, distances)
    shifted = frame(dx + 0.12 * to_light[0], dy + 0.12 * to_light[1])
    shadow = reduce(np.minimum, [shape(*shifted) for shape, _ in layers])
    canvas[:, rows, columns] *= 1 - (0.25 - 1.5 * shadow).clip(0, 0.45)

    tone = np.full(u.shape, BASE, np.int8)
    for (_, paint), part in zip(layers, distances, strict=True):
        painted = paint if isinstance(paint, int) else (paint(u, v) > 0).astype(np.int8)
        tone = np.where(part < 0, painted, tone)
    shade = 1 + light.relief * (to_light[0] * dx + to_light[1] * dy)
    shade *= 1 - 0.55 * (1 + distance * 9).clip(0, 1)
    inside = distance < 0
    for channel, tones in zip(canvas, np.asarray(item.palette, np.float32).T, strict=True):
        np.copyto(channel[rows, columns], tones.take(tone) * shade, where=inside)
    item_at[rows, columns][inside] = index


def _scene(
    rng: np.random.Generator, extent: tuple[float, float], items: list[Item], *, max_stuff: int
) -> Scene:
    """Put stuff behind items, the first kind above, and light them."""
    height = extent[0]
    count = int(rng.integers(1, max_stuff + 1))
    kinds = rng.permutation(STUFF_CLASSES)[:count]
    tops = -math.inf, *np.sort(rng.uniform(0.25, 0.85, count - 1) * height)
    stuff = tuple(
        Stuff(
            kind=str(kind),
            colours=_stuff_colours(rng),
            shift=(rng.uniform(0, 9), rng.uniform(0, 9)),
            top=float(top),
            tilt=rng.uniform(-0.2, 0.2),
            wave=(rng.uniform(0, 0.06), rng.uniform(0.4, 1.2), rng.uniform(0, 2 * math.pi)),
        )
        for kind, top in zip(kinds, tops, strict=True)
    )
    light = Light(
        angle=rng.uniform(-math.pi, 0), gain=rng.uniform(0.85, 1.2), relief=rng.uniform(0.1, 0.35)
    )
    seed = int(rng.integers(2**32))
    return Scene(
        stuff=stuff, items=tuple(items), light=light, noise=rng.uniform(0, 0.008), noise_seed=seed
    )


def _item(
    rng: np.random.Generator,
    kind: str,
    center: tuple[float, float],
    size: float,
    *,
    crowd: bool = False,
) -> Item:
    """Draw an item's pose and colours; things contrast in themselves, clutter is subdued."""
    if kind in THINGS:
        pair = _colour(rng, (0.15, 0.6), (0.9, 1.0)), _colour(rng, (0.5, 1.0), (0.1, 0.5))
        trim = _colour(rng, (0.5, 1.0), (0.35, 0.9))
        angle = rng.uniform(-0.45, 0.45)
    else:
        trim = _colour(rng, (0.0, 0.4), (0.3, 0.7))
        pair = trim, trim
        angle = rng.uniform(-math.pi, math.pi)
    details = (0.08, 0.07, 0.1), (0.95, 0.94, 0.9)
    # Which of two tones is the dark one is chance, or brightness would give the class away.
    base, accent = pair if rng.random() < 0.5 else pair[::-1]
    ink, light = details if rng.random() < 0.5 else details[::-1]
    return Item(
        kind=kind,
        center=center,
        size=size,
        angle=angle,
        mirrored=bool(rng.random() < 0.5),
        shear=rng.uniform(-0.15, 0.15),
        palette=(base, accent, trim, ink, light),
        crowd=crowd,
    )


def _litter(rng: np.random.Generator, extent: tuple[float, float], count: int) -> list[Item]:
    """Scatter small clutter over the picture."""
    height, width = extent
    return [
        _item(
            rng,
            _pick(rng, CLUTTER),
            (rng.uniform(0, width), rng.uniform(0, height)),
            rng.uniform(0.1, 0.24),
        )
        for _ in range(count)
    ]


def _stuff_colours(rng: np.random.Generator) -> tuple[Colour, Colour]:
    """Draw two close colours of one hue, of middle brightness: things are brighter and darker."""
    hue, saturation, value = rng.random(), rng.uniform(0.1, 0.5), rng.uniform(0.42, 0.8)
    low = colorsys.hsv_to_rgb(hue, saturation, value - 0.04)
    high = colorsys.hsv_to_rgb(hue + rng.uniform(-0.06, 0.06), saturation, value + 0.04)
    return low, high


def _colour(
    rng: np.random.Generator, saturation: tuple[float, float], value: tuple[float, float]
) -> Colour:
    """Draw a colour of any hue, its saturation and value from ranges."""
    return colorsys.hsv_to_rgb(rng.random(), rng.uniform(*saturation), rng.uniform(*value))


def _pick(rng: np.random.Generator, kinds: dict[str, tuple[Layer, ...]]) -> str:
    """Draw one of the kinds, all equally likely."""
    return list(kinds)[int(rng.integers(len(kinds)))]
