"""The texts of scores and p-values that all tables share."""

from __future__ import annotations

from collections.abc import Callable

from simmim_bench.uncertainty.interval import Unit

DEVIATES, PARTIAL, DIRTY = "*", "†", "‡"  # marks after a score
MEANINGS = {
    DEVIATES: "Some settings differ from the named recipe",
    PARTIAL: "Partial: not every image of the split was evaluated",
    DIRTY: "The code had uncommitted changes",
}
SMALLEST_P = 0.001


def describe_uncertainty(
    units: float | None,
    images: float | None,
    unit: Unit = "seed",
    format: Callable[[float], str] = "{:.1f}".format,
) -> dict[str, str]:
    """Return the texts of what is known of a score's uncertainty, by the names `seeds ±` and `images ±`.

    A value that is not 0 but would be rounded to it is written as `<0.1`.

    Args:
        units: sample standard deviation over units.
        images: standard error from the finite number of images.
        unit: what the units are.
    """
    named = {f"{unit}s ±": units, "images ±": images}
    return {
        name: _format_margin(value, format) for name, value in named.items() if value is not None
    }


def _format_margin(value: float, format: Callable[[float], str]) -> str:
    text = format(value)
    return f"<{text[:-1]}1" if value > 0 and not float(text) else text


def format_p(value: float | None) -> str:
    """Format a p-value with three decimals, small ones as `< 0.001`; a dash if it is unknown."""
    if value is None:
        return "–"
    return f"< {SMALLEST_P}" if value < SMALLEST_P else f"{value:.3f}"
