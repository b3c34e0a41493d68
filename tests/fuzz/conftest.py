"""The length of a fuzzing run."""

from __future__ import annotations

import os

import pytest

SECONDS = 60.0  # of all targets together in the long run, unless FUZZ_SECONDS says otherwise


@pytest.fixture(params=["quick", pytest.param("long", marks=pytest.mark.slow)])
def seconds(request: pytest.FixtureRequest) -> float | None:
    """Return the seconds of a target in the long run, an equal part of FUZZ_SECONDS; None for the quick run."""
    if request.param == "quick":
        return None
    targets = sum("[long" in item.name for item in request.session.items)
    return float(os.environ.get("FUZZ_SECONDS", SECONDS)) / targets
