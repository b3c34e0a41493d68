"""A page of Markdown, and texts of the code in it."""

from __future__ import annotations

# (title, path below docs/, Markdown)
Page = tuple[str, str, str]


def escape(text: str) -> str:
    """Return a text of the code as MkDocs shows it unchanged; line breaks and links of GitHub do not matter there."""
    for sign in "\\*_[]`|":
        text = text.replace(sign, f"\\{sign}")
    return text.replace("&", "&amp;").replace("<", "&lt;")
