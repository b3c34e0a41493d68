"""Download `hub:ORG/NAME[@REVISION]`, a repository of the Hugging Face Hub.

The Hub's own client downloads the configuration and the weights into its cache; they are read like a local folder. A
repository that `simmim-bench push` wrote has a checkpoint directory in `NATIVE`, whose weights alone are
downloaded. Others are in timm's or transformers' form.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from simmim_bench.checkpoints.checkpoint import Checkpoint
from simmim_bench.checkpoints.hub_names import split_name
from simmim_bench.checkpoints.third_party.folder import INDEX
from simmim_bench.checkpoints.third_party.hints import NO_HINTS
from simmim_bench.checkpoints.third_party.read import read_third_party
from simmim_bench.errors import DataError, UsageError

if TYPE_CHECKING:
    from simmim_bench.checkpoints.third_party.hints import Hints

CONFIGURATION = ("config.json", "preprocessor_config.json")
SAFE = ("model.safetensors", f"model.safetensors{INDEX}", "model-*.safetensors")
NATIVE = "simmim-bench"  # folder of the checkpoint directory in a repository of `simmim-bench push`
NATIVE_FILES = (f"{NATIVE}/meta.json", f"{NATIVE}/model.safetensors")
PICKLED = ("pytorch_model.bin", f"pytorch_model.bin{INDEX}", "pytorch_model-*.bin")


def download(ckpt: str) -> Path:
    """Download a repository of the Hub, once, and return its folder in the cache, whose name is the commit.

    Raises:
        UsageError: The name has another form.
        DataError: The repository cannot be downloaded.
    """
    name = split_name(ckpt.removeprefix("hub:"))
    if name is None:
        raise UsageError(
            f"{ckpt} names no repository of the Hub; use hub:ORG/NAME or hub:ORG/NAME@REVISION."
        )
    return _download(ckpt, *name)


def read_downloaded(ckpt: str, folder: Path, hints: Hints | None = None) -> Checkpoint:
    """Read a downloaded repository in timm's or transformers' form.

    Raises:
        DataError: It does not hold a backbone that can be read.
    """
    checkpoint = read_third_party(folder, hints or NO_HINTS)
    label = ckpt.removeprefix("hub:").partition("@")[0].partition("/")[2]
    provenance = {**checkpoint.provenance, "label": label, "revision": folder.name}
    return replace(checkpoint, name=ckpt, provenance=provenance)


def _download(ckpt: str, repository: str, revision: str | None) -> Path:
    """Return the folder of a repository's weights: those of simmim-bench if it has them, else safetensors with the
    configuration, else pickles.

    Raises:
        DataError: see `download`.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        for weights in (NATIVE_FILES, SAFE, PICKLED):
            found = snapshot_download(
                repository, revision=revision, allow_patterns=[*CONFIGURATION, *weights]
            )
            folder = Path(found)
            if any(any(folder.glob(pattern)) for pattern in weights):
                break
    except GatedRepoError as error:
        raise DataError(
            f"{ckpt} is gated: accept its terms on its page, then log in with `hf auth login`."
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise DataError(
            f"{ckpt} does not exist on the Hub, or is private; check its name, or log in with `hf auth login`."
        ) from error
    except Exception as error:  # the client raises many types without a network
        raise DataError(
            f"{ckpt} cannot be downloaded ({type(error).__name__}); download the repository on a machine with a "
            "network and pass the folder."
        ) from error
    return folder
