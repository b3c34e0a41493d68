"""List public checkpoints by pretraining method, for a table of methods: `methods.json`.

An entry names a checkpoint as `--ckpt` does. The names, sizes and licences of timm's models are those of timm 1.0.31;
published scores are not repeated, but named by the labels of their rows in `leaderboard/reported.json`.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib import resources
from typing import Any

from simmim_bench.errors import UsageError, nearest

# The CKPT that stands for all entries, where several checkpoints are taken.
ALL_METHODS = "list:methods"
# Parts of licence names that forbid commercial use: Creative Commons' NC and Meta's FAIR Noncommercial Research.
NON_COMMERCIAL = ("-nc", "noncommercial")
BYTES_PER_WEIGHT = 4  # float32, as most files are


@dataclass(frozen=True, kw_only=True)
class ListedCheckpoint:
    """A public checkpoint.

    Attributes:
        ckpt: `timm:NAME`, or the path to which a file is to be downloaded.
        method: pretraining method.
        arch: architecture as papers name it, such as ViT-B/16.
        params_m: parameters of the backbone without classifier, in millions.
        img_size: side of the images in pixels.
        data: pretraining data.
        paper: number on arXiv.
        licence: as timm or the weights' repository names it; empty where it is not known.
        url: of a file that is not downloaded by itself; else empty.
        note: what else to know before a download.
        published: labels of the published rows with scores of these weights.
    """

    ckpt: str
    method: str
    arch: str
    params_m: float
    img_size: int
    data: str
    paper: str
    licence: str = ""
    url: str = ""
    note: str = ""
    published: tuple[str, ...] = ()

    @property
    def is_non_commercial(self) -> bool:
        """Whether the licence forbids commercial use; others may have conditions, too."""
        return any(text in self.licence for text in NON_COMMERCIAL)

    @property
    def licence_text(self) -> str:
        """The licence, marked if it forbids commercial use."""
        return (self.licence or "unknown") + (" (non-commercial)" if self.is_non_commercial else "")

    @property
    def download_mb(self) -> float:
        """Expected size of the weights file in megabytes."""
        return self.params_m * BYTES_PER_WEIGHT

    def provenance(self) -> dict[str, Any]:
        """Return what the list adds to the provenance of a checkpoint."""
        licence = {"licence": self.licence} if self.licence else {}
        paper = f"arXiv {self.paper}"
        return {"method": self.method, "data": self.data, **licence, "paper": paper}


@functools.cache
def read_methods() -> tuple[ListedCheckpoint, ...]:
    """Load the list, in its order: masked image modelling, self-distillation, contrastive methods, labels."""
    text = resources.files("simmim_bench").joinpath("methods.json").read_text("utf-8")
    return tuple(
        ListedCheckpoint(**{**entry, "published": tuple(entry.get("published", ()))})
        for entry in json.loads(text)
    )


@functools.cache
def _by_ckpt() -> dict[str, ListedCheckpoint]:
    return {one.ckpt: one for one in read_methods()}


def find_listed(ckpt: str) -> ListedCheckpoint | None:
    """Return the entry of a CKPT, if it has one. `hub:timm/NAME` is `timm:NAME`."""
    return _by_ckpt().get(ckpt.replace("hub:timm/", "timm:", 1))


def select_ckpts(ckpts: Sequence[str], patterns: Iterable[str]) -> list[str]:
    """Return the checkpoints that match any of some patterns, in their order.

    Args:
        patterns: texts with `*` and `?`, or comma-separated lists of them. Each is compared, without regard to case and
            spaces, with the whole CKPT, timm's name, and the method, architecture and licence of a listed checkpoint.
            Empty to select all.

    Raises:
        UsageError: a pattern matches no checkpoint.
    """
    words = [word for text in patterns for word in text.split(",") if word.strip()]
    if not words:
        return list(ckpts)
    chosen = set[str]()
    for word in words:
        found = [c for c in ckpts if any(fnmatchcase(t, _plain(word)) for t in _texts(c))]
        if not found:
            known = sorted({text for ckpt in ckpts for text in _texts(ckpt)})
            raise UsageError(
                f"--only {word.strip()} matches no checkpoint; {nearest(_plain(word), known)[:300]}"
            )
        chosen.update(found)
    return [ckpt for ckpt in ckpts if ckpt in chosen]


def _texts(ckpt: str) -> list[str]:
    """Return the texts of a checkpoint that a pattern is compared with."""
    texts = [ckpt, ckpt.partition(":")[2]]
    if (listed := find_listed(ckpt)) is not None:
        texts += [listed.method, listed.arch, listed.licence]
    return [_plain(text) for text in texts if text]


def _plain(text: str) -> str:
    return "".join(text.split()).lower()
