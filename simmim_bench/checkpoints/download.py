"""Find out what reading `timm:NAME` or `hub:ORG/NAME` would download, and whether the server can be reached.

Without a network the clients of model hubs try again for most of a minute per file, before they fail.
"""

from __future__ import annotations

import functools
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from simmim_bench.checkpoints.hub import NATIVE_FILES
from simmim_bench.checkpoints.hub_names import split_name
from simmim_bench.checkpoints.third_party.folder import WEIGHTS
from simmim_bench.errors import DataError

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

    try:
        cfg = timm.get_pretrained_cfg(name)
    except RuntimeError:  # an unknown tag
        cfg = None
    if cfg is None:
        return None  # the reader refuses the name
    if cfg.hf_hub_id:
        return _find_in_hub(cfg.hf_hub_id, cfg.hf_hub_filename)
    cached = Path(get_dir()) / "checkpoints" / Path(urlsplit(cfg.url or "").path).name
    return cfg.url if cfg.url and not cached.is_file() else None


def _find_in_hub(repository: str, file: str | None = None) -> str | None:
    """Return the address of a repository ORG/NAME[@REVISION] of which no weights are in the cache.

    Args:
        file: the only file to look for; None for those that `third_party.folder` reads, and that `push` writes.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    name = split_name(repository)
    if name is None:
        return None  # the reader refuses the name
    repo, revision = name
    for weights in (file,) if file else (NATIVE_FILES[-1], *WEIGHTS):
        found = try_to_load_from_cache(repo, weights, revision=revision)
        if isinstance(found, str):
            return None
    return f"{constants.ENDPOINT}/{repo}"


def check_download(ckpt: str) -> None:
    """Check, where the weights of a CKPT have to be downloaded, that their server can be reached.

    Raises:
        DataError: it cannot.
    """
    address = find_download(ckpt)
    if address is None:
        return
    from huggingface_hub import constants

    offline = constants.HF_HUB_OFFLINE and address.startswith(constants.ENDPOINT)
    problem = "HF_HUB_OFFLINE is set" if offline else why_unreachable(address)
    if problem:
        raise DataError(
            f"{ckpt} cannot be downloaded: {problem}; download it on a machine with a network and copy the cache, or "
            "pass the file."
        )


def why_unreachable(address: str) -> str:
    """Return why the server of an address cannot be reached; empty if it answers."""
    return _reach("{0.scheme}://{0.netloc}".format(urlsplit(address)))


@functools.cache
def _reach(server: str) -> str:
    """Return why a server cannot be reached, once in a process; empty if it answers."""
    try:
        # Through the proxies of the environment, as the download itself.
        urlopen(Request(server, method="HEAD"), timeout=TIMEOUT_S).close()
    except HTTPError:
        return ""  # it answers
    except (OSError, ValueError) as error:
        reason = " ".join(str(getattr(error, "reason", error)).split())[:100]
        return f"{server} cannot be reached ({reason or type(error).__name__})"
    return ""
