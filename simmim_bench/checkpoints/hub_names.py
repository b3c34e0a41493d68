"""Split `ORG/NAME[@REVISION]`, the name of a repository of the Hugging Face Hub. Nothing here loads torch."""

from __future__ import annotations

import re
from importlib import import_module

REVISION = re.compile(r"[\w./-]+")


def is_repository(name: str) -> bool:
    """Return whether a text is ORG/NAME by the rules of the Hub's own client."""
    validate = import_module("huggingface_hub.utils").validate_repo_id  # is not typed as exported
    try:
        validate(name)
    except ValueError:
        return False
    # Older clients accept letters that the Hub refuses; NAME alone is of the Hub itself.
    return name.isascii() and name.count("/") == 1


def split_name(name: str) -> tuple[str, str | None] | None:
    """Return repository and revision, None for the last commit; None for a text of another form."""
    repository, at, revision = name.partition("@")
    if not is_repository(repository) or (at and not REVISION.fullmatch(revision)):
        return None
    return repository, revision if at else None
