"""Find out what reading `timm:NAME` or `hub:ORG/NAME` would download, and whether the server can be reached.

Without a network the clients of model hubs try again for most of a minute per file, before they fail.
"""

from __future__ import annotations

import functools
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from simmim_bench.errors import DataError

# As timm names the files of its repositories (timm/models/_hub.py).
HUB_FILES = ("model.safetensors", "pytorch_model.bin")
TIMEOUT_S = 10.0


def find_download(ckpt: str) -> str | None:
    """Return the address that the weights of a CKPT would be downloaded from.

    Returns:
        None if the weights are in the cache, or the CKPT names no download.
    """
    kind, _, name = ckpt.partition(":")
    if kind == "hub":
        return _find_in_hub(name)
    if kind != "timm":
        return None
    import timm
    from torch.hub import get_dir

    cfg = timm.get_pretrained_cfg(name)
    if cfg is None:
        return None  # the reader refuses the name
    if cfg.hf_hub_id:
        files = (cfg.hf_hub_filename,) if cfg.hf_hub_filename else HUB_FILES
        return _find_in_hub(cfg.hf_hub_id, files)
    cached = Path(get_dir()) / "checkpoints" / Path(urlsplit(cfg.url or "").path).name
    return cfg.url if cfg.url and not cached.is_file() else None


def _find_in_hub(name: str, files: tuple[str, ...] = HUB_FILES) -> str | None:
    """Return the address of a repository ORG/NAME[@REVISION] of which no weights file is in the cache."""
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    repository, _, revision = name.partition("@")
    try:
        found = (try_to_load_from_cache(repository, f, revision=revision or None) for f in files)
        if any(isinstance(path, str) for path in found):
            return None
    except HFValidationError:
        return None  # the reader refuses the name
    return f"{constants.ENDPOINT}/{repository}"


def check_download(ckpt: str) -> None:
    """Check, where the weights of a CKPT have to be downloaded, that their server can be reached.

    Raises:
        DataError: it cannot.
    """
    address = find_download(ckpt)
    if address is None:
        return
    server = "{0.scheme}://{0.netloc}".format(urlsplit(address))
    if problem := _reach(server):
        raise DataError(
            f"{ckpt} cannot be downloaded: {server} cannot be reached ({problem}); download it on a machine with a "
            "network and copy the cache, or pass the file."
        )


@functools.cache
def _reach(server: str) -> str:
    """Return why a server cannot be reached, once in a process; empty if it answers."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE and server == constants.ENDPOINT:
        return "HF_HUB_OFFLINE is set"
    try:
        # Through the proxies of the environment, as the download itself.
        urlopen(Request(server, method="HEAD"), timeout=TIMEOUT_S).close()
    except HTTPError:
        return ""  # it answers
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        return " ".join(str(reason).split())[:100] or type(error).__name__
    return ""
