"""Claims about what is written beside a record."""

from __future__ import annotations

import pytest

from simmim_bench.runs.after import warn_only


def test_an_error_is_one_line_of_warning_and_a_signal_is_not_caught() -> None:
    lines: list[str] = []
    with warn_only(lines.append, "a.png"):
        raise KeyError("first\nsecond")
    with warn_only(lines.append, "a.png"):
        pass
    assert lines == ["warning: a.png was not written: KeyError: 'first\\nsecond'"]
    with pytest.raises(KeyboardInterrupt), warn_only(lines.append, "a.png"):
        raise KeyboardInterrupt
