"""Upload a folder to a repository of the Hugging Face Hub, as one commit.

An upload changes nothing that it does not know: a repository that holds files of another origin, or another checkpoint,
is refused without `overwrite`. Its earlier commits stay.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simmim_bench.checkpoints.download import why_unreachable
from simmim_bench.checkpoints.hub import NATIVE, NATIVE_FILES
from simmim_bench.errors import BenchError, UsageError
from simmim_bench.publish.folder import CARD, TIMM_FILES, list_files
from simmim_bench.untrusted.json_text import read_json
from simmim_bench.untrusted.text import shorten, visible

if TYPE_CHECKING:
    from huggingface_hub import HfApi

MAIN = "main"
OWN_FILES = (CARD, *TIMM_FILES, *NATIVE_FILES)
UNCOUNTED = (".gitattributes",)  # which the Hub writes into a new repository
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN to a token with write access"


@dataclass(frozen=True, kw_only=True)
class Destination:
    """Where a checkpoint is uploaded to.

    Attributes:
        repository: ORG/NAME.
        private: whether the repository has to be private; a new one is created so.
        branch: branch to commit to, which is created if it does not exist.
        overwrite: whether files of another origin or checkpoint may be replaced.
    """

    repository: str
    private: bool = False
    branch: str = MAIN
    overwrite: bool = False


@dataclass(frozen=True)
class _Existing:
    """What a repository holds.

    Attributes:
        exists: whether the repository exists.
        has_branch: whether the branch does.
        commit: last commit of the branch; None for an empty or a new one.
        files: paths in the branch.
    """

    exists: bool
    has_branch: bool
    commit: str | None = None
    files: frozenset[str] = frozenset()


def upload(folder: Path, destination: Destination, sha256: str, message: str) -> str:
    """Upload a folder as one commit, and create repository and branch where they do not exist.

    Args:
        sha256: of the weights of the checkpoint.
        message: of the commit.

    Returns:
        The commit.

    Raises:
        UsageError: the repository holds something else, or its model card is refused.
        BenchError: the Hub cannot be reached or refuses the upload.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api, repository = HfApi(), destination.repository
    with _explained(repository):
        before = check_destination(destination, sha256)
        if not before.exists:
            api.create_repo(repository, private=destination.private or None)
            if destination.private and not api.model_info(repository).private:
                raise BenchError(
                    f"the Hub created {repository} as a public repository; nothing was uploaded. Delete it, or make it "
                    "private in its settings."
                )
        if not before.has_branch:
            api.create_branch(repository, branch=destination.branch, exist_ok=True)
        ours = list_files(folder)
        operations: list[Any] = [
            CommitOperationAdd(path_in_repo=name, path_or_fileobj=folder / name) for name in ours
        ]
        stale = sorted(before.files & {*OWN_FILES} - {*ours})
        operations += [CommitOperationDelete(path_in_repo=name) for name in stale]
        try:
            commit = api.create_commit(
                repository,
                operations,
                commit_message=message,
                revision=destination.branch,
                parent_commit=before.commit,
            )
        except ValueError as error:
            if CARD not in str(error):
                raise
            raise UsageError(
                f"the Hub refuses the model card of {repository}: {_one_line(error)}; correct --license or --dataset."
            ) from error
    return str(commit.oid)


def check_access() -> None:
    """Check, before files are written, that there is a token and that the Hub can be reached.

    Raises:
        UsageError: the client is offline, or there is no token.
        BenchError: the Hub cannot be reached.
    """
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise UsageError(
            "HF_HUB_OFFLINE is set; unset it, or write the files alone with --dry-run."
        )
    if get_token() is None:
        raise UsageError(f"there is no token of the Hub; {LOG_IN}.")
    problem = why_unreachable(constants.ENDPOINT)
    if problem:
        raise BenchError(f"{problem}; try again with a network, or write the files with --dry-run.")


def check_destination(destination: Destination, sha256: str) -> _Existing:
    """Check that an upload replaces no files of another origin, and return what the repository holds.

    Raises:
        UsageError: it would, or a private repository is wanted and exists as a public one.
        BenchError: the Hub cannot be reached or refuses.
    """
    from huggingface_hub import HfApi

    api, repository = HfApi(), destination.repository
    with _explained(repository):
        before, is_private = _inspect(api, destination)
        if destination.private and is_private is False:
            raise UsageError(
                f"{repository} exists and is public; make it private in its settings, choose another name, or remove "
                "--private."
            )
        if destination.overwrite or not before.files:
            return before
        if NATIVE_FILES[0] not in before.files:
            some = ", ".join(sorted(before.files)[:3])
            raise UsageError(
                f"{repository} exists and was not written by simmim-bench: it holds {visible(shorten(some))}; choose "
                "another name, or add --overwrite to replace files of the same names."
            )
        path = api.hf_hub_download(repository, NATIVE_FILES[0], revision=before.commit)
        found = _stored_sha256(Path(path))
        if found != sha256:
            raise UsageError(
                f"{repository} holds another checkpoint (SHA-256 {visible(found[:12])}, not {sha256[:12]}); choose "
                "another name or --branch, or add --overwrite to replace it."
            )
    return before


def _stored_sha256(path: Path) -> str:
    meta = read_json(path, f"checkpoint file {NATIVE}/meta.json of the repository", finite=False)
    return str(meta.get("sha256")) if isinstance(meta, dict) else ""


def _inspect(api: HfApi, destination: Destination) -> tuple[_Existing, bool | None]:
    """Return what a repository holds, and whether it is private; None for a new one."""
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        info = api.model_info(destination.repository, revision=destination.branch)
    except RepositoryNotFoundError:
        return _Existing(exists=False, has_branch=destination.branch == MAIN), None
    except RevisionNotFoundError:
        if destination.branch == MAIN:  # no commit yet
            return _Existing(exists=True, has_branch=True), None
        # A new branch starts with the files of the main one.
        info = api.model_info(destination.repository)
        return _existing(info, has_branch=False), info.private
    return _existing(info, has_branch=True), info.private


def _existing(info: Any, *, has_branch: bool) -> _Existing:
    files = frozenset(one.rfilename for one in info.siblings or ()) - {*UNCOUNTED}
    return _Existing(True, has_branch, info.sha, files)


@contextmanager
def _explained(repository: str) -> Iterator[None]:
    """Raise the errors of the Hub's client in the block as ones that say what to do.

    Raises:
        BenchError: the Hub refuses or cannot be reached.
    """
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except HfHubHTTPError as error:
        code = error.response.status_code
        if code == 401:
            raise BenchError(f"the Hub does not accept the token; {LOG_IN}.") from error
        if code == 403:
            raise BenchError(
                f"the token may not write to {repository}; use a token with write access, or a name of an organisation "
                "that you belong to."
            ) from error
        if code in (409, 412):
            raise BenchError(
                f"{repository} was changed by someone else in the meantime; run the command again."
            ) from error
        reason = _one_line(error.server_message or f"status {code}")
        if code >= 500:
            raise _failed(repository, reason) from error
        raise BenchError(
            f"the Hub refused the upload to {repository}: {reason}; nothing was committed."
        ) from error
    except _faults() as error:
        raise _failed(repository, _one_line(error)) from error


def _failed(repository: str, reason: str) -> BenchError:
    """Return the error of a connection that fails, perhaps after the Hub has committed the files."""
    return BenchError(
        f"the upload to {repository} failed: {reason}; the files may not have been committed. Run the command again."
    )


def _faults() -> tuple[type[Exception], ...]:
    """Return the errors of a connection that fails: the base of those of whichever HTTP client the Hub's library uses,
    and those of its uploads."""
    from huggingface_hub.errors import HfHubHTTPError

    bases = (base for base in HfHubHTTPError.__bases__ if issubclass(base, Exception))
    return (OSError, RuntimeError, *bases)


def _one_line(error: object) -> str:
    return shorten(visible(" ".join(str(error).split())).rstrip(".")) or type(error).__name__
