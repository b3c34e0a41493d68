"""Tests of the text of other people's files in messages."""

from __future__ import annotations

import pytest

from simmim_bench.untrusted.text import describe_error


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("two\n lines."), "ValueError: two lines"),
        (AssertionError(), "AssertionError"),
        (SystemExit("\x1b[1m"), r"SystemExit: \x1b[1m"),
    ],
)
def test_an_error_is_one_line_within_a_sentence(error: BaseException, line: str) -> None:
    assert describe_error(error) == line
