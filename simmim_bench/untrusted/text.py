"""Display text of other people's files: one line, without characters that change how it is displayed."""

from __future__ import annotations

import re

# Control characters (terminals execute escape sequences), line and paragraph separators, and characters that reverse
# the direction of what follows or are invisible (Unicode's bidirectional controls, UAX 9, table 2); halves of surrogate
# pairs, which stand for bytes of a file name that are not UTF-8 and cannot be encoded.
HIDDEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028\u2029\u202a-\u202e\u2060\u2066-\u2069\ufeff\ud800-\udfff]"
)


def visible(text: str) -> str:
    r"""Return a text as one line: control characters and direction marks as escapes, such as `\n` or `\x1b`."""
    return HIDDEN.sub(lambda match: repr(match[0])[1:-1], text)


def visible_lines(text: str) -> str:
    """Return a message of several lines with each line visible; see `visible`."""
    return "\n".join(map(visible, text.split("\n")))


def shorten(text: str, length: int = 200) -> str:
    """Return at most the first characters of a text, with an ellipsis where it was longer."""
    return text if len(text) <= length else f"{text[: length - 3]}..."


def describe_error(error: BaseException) -> str:
    """Return the type and the start of the message of an error, as one line without a full stop."""
    message = shorten(visible(" ".join(str(error).split())).rstrip("."))
    return f"{type(error).__name__}: {message}" if message else type(error).__name__
