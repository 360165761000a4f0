"""Models from the Hugging Face hub, into its own cache: what is there, and bringing a file.

huggingface_hub knows the API, the login and the layout of the cache; bytes come by
`naiad.models.download`, which, unlike it, goes on in a later run where an earlier one was cut.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from naiad.errors import ModelFileError
from naiad.models.download import OnProgress, Remote, download
from naiad.models.gguf import read_header
from naiad.models.places import hub_cache
from naiad.models.quants import RepoFile

DEFAULT_ENDPOINT = "https://huggingface.co"
_NAME = re.compile(r"hf:([\w.-]+/[\w.-]+)(?::(.+))?")
_PAGE = re.compile(
    r"https://(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)(?:/(?:blob|resolve)/main/(.+?))?/?"
)
_DIGEST = re.compile(r"[0-9a-f]{64}")
_ERRNO = re.compile(r"\[Errno -?\d+\]\s*")


@dataclass(frozen=True, slots=True)
class HubName:
    """OWNER/REPO, and a quantisation or a file of it; "" when it is still to be chosen."""

    repo: str
    wanted: str = ""


@dataclass(frozen=True, slots=True)
class Listing:
    """A repository as it is now."""

    repo: str
    commit: str
    files: tuple[RepoFile, ...]


def hub_name(text: str) -> HubName | None:
    """hf:OWNER/REPO[:QUANT-OR-FILE], or the address of such a page; None for anything else."""
    match = _NAME.fullmatch(text) or _PAGE.fullmatch(text.partition("?")[0])
    return HubName(match[1], match[2] or "") if match else None


def endpoint(env: Mapping[str, str] = os.environ) -> str:
    """The hub's address: HF_ENDPOINT, else huggingface.co."""
    return (env.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")


def look_up(repo: str) -> Listing:
    """What a repository holds. Raises ModelFileError: unknown, closed, or no connection."""
    from huggingface_hub import HfApi

    with _plain_errors(repo):
        info = HfApi(endpoint=endpoint()).model_info(repo, files_metadata=True)
    files = tuple(
        RepoFile(one.rfilename, one.size or 0, one.lfs.sha256 if one.lfs else "")
        for one in info.siblings or ()
    )
    return Listing(repo, info.sha or "main", files)


def cached(repo: str, file: RepoFile) -> Path | None:
    """Where the file lies in the cache already, whole; None when it does not."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo, file.name, cache_dir=hub_cache())
    if not isinstance(found, str) or Path(found).stat().st_size != file.n_bytes:
        return None
    return Path(found)


def fetch(listing: Listing, file: RepoFile, on_progress: OnProgress) -> Path:
    """Bring a file into the cache and return its path there; its digest is that of the listing.

    Raises ModelFileError; see `naiad.models.download.download`.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    repo, where = listing.repo, endpoint()
    with _plain_errors(repo):
        url = hf_hub_url(repo, file.name, revision=listing.commit, endpoint=where)
        facts = get_hf_file_metadata(url, endpoint=where)
    blob = _blob(repo, facts.etag or file.sha256)
    if not blob.exists():
        sha256 = file.sha256 or (blob.name if _DIGEST.fullmatch(blob.name) else "")
        remote = Remote(facts.location, file.n_bytes, sha256, _authorization(facts.location))
        download(remote, blob, on_progress, check=read_header)
    with _plain_errors(repo):  # it finds the blob, and gives it its name in the cache
        return Path(hf_hub_download(repo, file.name, cache_dir=hub_cache(), endpoint=where))


def _blob(repo: str, etag: str) -> Path:
    if not re.fullmatch(r"[\w.-]+", etag):
        raise ModelFileError(f"The hub gave no usable name for a file of {repo}.")
    return hub_cache() / f"models--{repo.replace('/', '--')}" / "blobs" / etag


def _authorization(location: str) -> str:
    """The login's header where the file comes from the hub itself, not from a store beside it."""
    from huggingface_hub import get_token

    token = get_token()
    same = urlsplit(location).netloc == urlsplit(endpoint()).netloc
    return f"Bearer {token}" if token and same else ""


@contextmanager
def _plain_errors(repo: str) -> Iterator[None]:
    """Failures of the hub as sentences about what to do."""
    from huggingface_hub import errors

    where = endpoint()
    try:
        yield
    except errors.GatedRepoError:
        raise ModelFileError(
            f"{repo} is gated: accept its terms at {where}/{repo}, then log in with `hf auth "
            "login` or set HF_TOKEN."
        ) from None
    except errors.RepositoryNotFoundError:
        raise ModelFileError(
            f"There is no repository {repo} at {where}, or it is private; for a private one log in "
            "with `hf auth login` or set HF_TOKEN."
        ) from None
    except errors.LocalEntryNotFoundError as error:
        raise ModelFileError(f"{where} cannot be reached: {_in_words(error)}") from None
    except errors.EntryNotFoundError:
        raise ModelFileError(f"{repo} does not hold this file (any more).") from None
    except errors.HFValidationError as error:
        raise ModelFileError(f"{repo!r} is no name of a repository: {error}") from None
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", "an error")
        raise ModelFileError(f"{where} answered {status} for {repo}; try again later.") from None
    except Exception as error:
        if not _is_of_network(error):
            raise
        raise ModelFileError(f"{where} cannot be reached: {_in_words(error)}") from None


def _in_words(error: Exception) -> str:
    """What a library says of a connection, without the system's number, as a sentence's end."""
    told = _ERRNO.sub("", str(error)).strip().rstrip(".")
    return f"{told or type(error).__name__}. Is this machine connected?"


def _is_of_network(error: Exception) -> Any:
    """Errors of connections; their library is not ours to name, so it is told by the base's."""
    return isinstance(error, OSError) or type(error).__module__.split(".")[0].startswith("httpx")
