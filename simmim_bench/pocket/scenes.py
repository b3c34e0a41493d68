"""Sample scenes, complete numeric descriptions of synthetic images, from a random generator.

`object_scene` has one dominant object, as in ImageNet; `open_scene` has several objects on stuff, as in COCO and
ADE20K. An object's class determines its silhouette, pattern and parts; colours, light, pose, size and background are
random. So colour does not predict the class, and hidden pixels can be predicted from visible ones by a model that
knows the classes.

Lengths are in short sides of the image, and an extent is an image's (height, width) in this unit.
"""

from __future__ import annotations

import colorsys
import math
from dataclasses import dataclass

import numpy as np

from simmim_bench.pocket.classes import CLUTTER, STUFF_CLASSES, THINGS, Layer

Colour = tuple[float, float, float]
"""(R, G, B) in [0, 1]."""


@dataclass(frozen=True, kw_only=True)
class Stuff:
    """A region of one stuff class below a wavy, tilted line.

    Attributes:
        kind: stuff class.
        colours: colours of the texture's minimum and maximum.
        shift: (x, y) offset of the texture.
        top: height of the line at the left border; minus infinity covers the whole image.
        tilt: slope of the line.
        wave: amplitude, wavelength and phase of the line.
    """

    kind: str
    colours: tuple[Colour, Colour]
    shift: tuple[float, float]
    top: float = -math.inf
    tilt: float = 0.0
    wave: tuple[float, float, float] = (0.0, 1.0, 0.0)


@dataclass(frozen=True, kw_only=True)
class Item:
    """An object or a piece of clutter.

    Attributes:
        kind: object class, or kind of clutter.
        center: (x, y).
        size: side of the item's frame.
        angle: rotation in radians.
        mirrored: whether the item is mirrored horizontally.
        shear: horizontal shear.
        palette: a colour for every tone.
        crowd: whether the object belongs to the crowd, which is annotated as one region.
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
        """Whether the item is an object of one of the classes, and not clutter."""
        return self.kind in THINGS


@dataclass(frozen=True, kw_only=True)
class Light:
    """Light of a scene.

    Attributes:
        angle: direction in radians.
        gain: factor of the brightness.
        relief: strength of the shading.
    """

    angle: float
    gain: float
    relief: float


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Description of one image.

    Attributes:
        stuff: stuff regions from back to front.
        items: items from back to front.
        light: the light.
        noise: standard deviation of the sensor noise, for pixels in [0, 1].
        noise_seed: seed of the sensor noise.
    """

    stuff: tuple[Stuff, ...]
    items: tuple[Item, ...]
    light: Light
    noise: float
    noise_seed: int


def object_scene(rng: np.random.Generator, kind: str, extent: tuple[float, float]) -> Scene:
    """Sample a scene with one large object of class `kind`."""
    height, width = extent
    size = rng.uniform(0.7, 1.0)
    # The image border may crop the object a little.
    reach = 0.42 * size
    center = (rng.uniform(reach, width - reach), rng.uniform(reach, height - reach))
    main = _sample_item(rng, kind, center, size)
    items = [*_sample_clutter(rng, extent, int(rng.integers(0, 4))), main]
    if rng.random() < 0.25:
        direction = rng.uniform(0, 2 * math.pi)
        rim = (
            center[0] + 0.45 * size * math.cos(direction),
            center[1] + 0.45 * size * math.sin(direction),
        )
        items.append(
            _sample_item(rng, _sample_kind(rng, CLUTTER), rim, rng.uniform(0.2, 0.4) * size)
        )
    return _complete_scene(rng, extent, items, max_stuff=2)


def open_scene(
    rng: np.random.Generator, extent: tuple[float, float], *, things: int, crowd: bool = False
) -> Scene:
    """Sample a scene of up to `things` objects that occlude each other at most in part.

    Args:
        things: maximum number of objects outside of the crowd.
        crowd: add a group of 8 to 12 small objects of one class behind the other objects.
    """
    height, width = extent
    items = _sample_clutter(rng, extent, int(rng.integers(0, 4)))
    taken: list[tuple[float, float, float]] = []
    if crowd:
        x, y = rng.uniform(0.3, width - 0.3), rng.uniform(0.3, height - 0.3)
        taken.append((x, y, 0.6))
        items += _sample_crowd(rng, x, y)
    for _ in range(12 * things):
        if len(taken) == things + crowd:
            break
        size = rng.uniform(0.26, 0.58)
        reach = 0.42 * size
        x, y = rng.uniform(reach, width - reach), rng.uniform(reach, height - reach)
        if all(math.hypot(x - a, y - b) > 0.36 * (size + s) for a, b, s in taken):
            taken.append((x, y, size))
            items.append(_sample_item(rng, _sample_kind(rng, THINGS), (x, y), size))
    if rng.random() < 0.3:
        items += _sample_clutter(rng, extent, 1)
    return _complete_scene(rng, extent, items, max_stuff=3)


def _sample_crowd(rng: np.random.Generator, x: float, y: float) -> list[Item]:
    """Sample a group of small objects of one class around (x, y)."""
    kind = _sample_kind(rng, THINGS)
    items = []
    for _ in range(int(rng.integers(8, 13))):
        center = (x + rng.uniform(-0.22, 0.22), y + rng.uniform(-0.18, 0.18))
        items.append(_sample_item(rng, kind, center, rng.uniform(0.17, 0.22), crowd=True))
    return items


def _complete_scene(
    rng: np.random.Generator, extent: tuple[float, float], items: list[Item], *, max_stuff: int
) -> Scene:
    """Sample the stuff behind the items, from top to bottom, and the light."""
    height = extent[0]
    count = int(rng.integers(1, max_stuff + 1))
    kinds = rng.permutation(STUFF_CLASSES)[:count]
    tops = -math.inf, *np.sort(rng.uniform(0.25, 0.85, count - 1) * height)
    stuff = tuple(
        Stuff(
            kind=str(kind),
            colours=_sample_stuff_colours(rng),
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


def _sample_item(
    rng: np.random.Generator,
    kind: str,
    center: tuple[float, float],
    size: float,
    *,
    crowd: bool = False,
) -> Item:
    """Sample an item's pose and colours: high contrast within objects, subdued colours for clutter."""
    if kind in THINGS:
        pair = (
            _sample_colour(rng, (0.15, 0.6), (0.9, 1.0)),
            _sample_colour(rng, (0.5, 1.0), (0.1, 0.5)),
        )
        trim = _sample_colour(rng, (0.5, 1.0), (0.35, 0.9))
        angle = rng.uniform(-0.45, 0.45)
    else:
        trim = _sample_colour(rng, (0.0, 0.4), (0.3, 0.7))
        pair = trim, trim
        angle = rng.uniform(-math.pi, math.pi)
    details = (0.08, 0.07, 0.1), (0.95, 0.94, 0.9)
    # The darker of two tones is random, so that brightness does not predict the class.
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


def _sample_clutter(
    rng: np.random.Generator, extent: tuple[float, float], count: int
) -> list[Item]:
    """Sample small pieces of clutter anywhere in the image."""
    height, width = extent
    return [
        _sample_item(
            rng,
            _sample_kind(rng, CLUTTER),
            (rng.uniform(0, width), rng.uniform(0, height)),
            rng.uniform(0.1, 0.24),
        )
        for _ in range(count)
    ]


def _sample_stuff_colours(rng: np.random.Generator) -> tuple[Colour, Colour]:
    """Sample two similar colours of medium brightness; the tones of objects are brighter and darker."""
    hue, saturation, value = rng.random(), rng.uniform(0.1, 0.5), rng.uniform(0.42, 0.8)
    low = colorsys.hsv_to_rgb(hue, saturation, value - 0.04)
    high = colorsys.hsv_to_rgb(hue + rng.uniform(-0.06, 0.06), saturation, value + 0.04)
    return low, high


def _sample_colour(
    rng: np.random.Generator, saturation: tuple[float, float], value: tuple[float, float]
) -> Colour:
    """Sample a colour of any hue, with saturation and value from the given ranges."""
    return colorsys.hsv_to_rgb(rng.random(), rng.uniform(*saturation), rng.uniform(*value))


def _sample_kind(rng: np.random.Generator, kinds: dict[str, tuple[Layer, ...]]) -> str:
    """Sample one of the kinds uniformly."""
    return list(kinds)[int(rng.integers(len(kinds)))]
