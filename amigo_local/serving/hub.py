"""The Hugging Face hub: what a model or data set has at one commit, pieces of its files, and whole ones that resume."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Literal

import msgspec

from amigo_local.domain.errors import AmigoError, InputError

_HASHED_AT_ONCE = 4 << 20
_TIMEOUT_SECONDS = 30.0  # without a byte
_ATTEMPTS, _WAIT_SECONDS = 5, 1.0  # after a connection that brought nothing; each wait is longer by as much

RepoType = Literal["model", "dataset"]


class NotShown(InputError):
    """The hub doesn't show that repository: it isn't there, or is private or gated."""


class HubUnreachable(InputError):
    """No hub answers, or the client was told not to ask: no other repository will fare better."""


class HubFile(msgspec.Struct, frozen=True):
    path: str
    """In the repository, with `/`."""
    size_bytes: int
    sha256: str | None = None
    """Of files in large-file storage, which weights are."""


class HubSnapshot(msgspec.Struct, frozen=True):
    """A repository at one commit: what `revision` names never changes."""

    repo: str
    revision: str
    """The commit's 40 hex digits."""
    gated: bool
    files: tuple[HubFile, ...]
    repo_type: RepoType = "model"
    license: str = ""
    """As its card says; empty where it doesn't."""

    def sizes(self) -> dict[str, int]:
        return {file.path: file.size_bytes for file in self.files}


class Hub:
    """A hub by its address; None: HF_ENDPOINT, else the public one. The token is the client's: `hf auth login`."""

    def __init__(self, endpoint: str | None = None) -> None:
        try:
            from huggingface_hub import constants
        except ImportError as error:
            raise InputError("the hub needs its client", "pip install 'amigo-local[train]'") from error
        self.endpoint = (endpoint or constants.ENDPOINT).rstrip("/")

    def snapshot(self, repo: str, revision: str | None = None, repo_type: RepoType = "model") -> HubSnapshot:
        """The newest commit of a branch, tag or commit; None: of the main branch.

        Raises InputError when there is none of that name, or the hub can't be reached.
        """
        from huggingface_hub import HfApi

        api = HfApi(self.endpoint)
        with self._explained(repo, repo_type):
            info = api.dataset_info if repo_type == "dataset" else api.model_info
            found = info(repo, revision=revision, files_metadata=True, timeout=_TIMEOUT_SECONDS)
        files = tuple(
            HubFile(file.rfilename, file.size or 0, file.lfs.sha256 if file.lfs else None)
            for file in found.siblings or ()
        )
        if found.sha is None:
            raise InputError(f"{self.endpoint} doesn't say which commit of {repo} it has", "check HF_ENDPOINT")
        return HubSnapshot(repo, found.sha, bool(found.gated), files, repo_type, _license(found.card_data))

    def read(self, snapshot: HubSnapshot, path: str, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of a file. Raises InputError as `snapshot` does, and for a gate that isn't open."""
        from huggingface_hub import get_session, hf_raise_for_status

        if start >= stop:
            return b""
        wanted = {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
        with self._explained(snapshot.repo, snapshot.repo_type):
            url = self._url(snapshot, path)
            # Streamed, so that a server which ignores the range doesn't send gigabytes.
            with get_session().stream(
                "GET", url, headers=_authorization() | wanted, timeout=_TIMEOUT_SECONDS
            ) as answer:
                hf_raise_for_status(answer)
                if answer.status_code != 206 and start > 0:
                    raise AmigoError(f"{self.endpoint} doesn't send parts of files", "check HF_ENDPOINT")
                data = bytearray()
                for piece in answer.iter_bytes():
                    data += piece
                    if len(data) >= stop - start:
                        break
        data = data[: stop - start]
        if len(data) != stop - start:
            raise AmigoError(f"{url}: ended after {len(data)} of {stop - start} bytes", "run the same command again")
        return bytes(data)

    def download(self, snapshot: HubSnapshot, file: HubFile, directory: Path, on_bytes: Callable[[int], None]) -> None:
        """Brings a whole file into `directory`, going on where a cut download ended, even by a kill.

        huggingface_hub 2.4 itself begins a file anew after its process ended, and holds ten megabytes back while it
        receives (`_download_to_tmp_and_move` and `http_get` in file_download.py): so only its session is used.
        on_bytes is told of every piece, what was there already first; what it raises passes through, and what has
        come is kept. Raises InputError as `read` does, AmigoError when the connection breaks off too often or the
        file isn't what the hub announced.
        """
        target = directory / file.path
        if target.exists():
            on_bytes(file.size_bytes)
            return
        partial = target.with_name(f"{target.name}.partial")
        with self._explained(snapshot.repo, snapshot.repo_type), partial.open("ab") as out:
            on_bytes(out.tell())
            self._receive(self._url(snapshot, file.path), out, file.size_bytes, on_bytes)
            os.fsync(out.fileno())
        found = _sha256(partial) if file.sha256 else None
        if partial.stat().st_size != file.size_bytes or found != file.sha256:
            partial.unlink()
            raise AmigoError(f"{snapshot.repo}: {file.path} arrived damaged", "run the same command again")
        partial.replace(target)

    def _receive(self, url: str, out: BinaryIO, size_bytes: int, on_bytes: Callable[[int], None]) -> None:
        """Appends the rest of a file. A connection that brought nothing is tried again a few times."""
        import httpx2
        from huggingface_hub import get_session, hf_raise_for_status

        failures = 0
        while (have := out.tell()) < size_bytes:
            wanted = _authorization() | {"Range": f"bytes={have}-", "Accept-Encoding": "identity"}
            try:
                with get_session().stream("GET", url, headers=wanted, timeout=_TIMEOUT_SECONDS) as answer:
                    hf_raise_for_status(answer)
                    if answer.status_code != 206:  # sent from its beginning all the same
                        out.truncate(0)
                        on_bytes(-have)
                    for piece in answer.iter_bytes():
                        out.write(piece)
                        on_bytes(len(piece))
            except httpx2.TransportError:
                if failures == _ATTEMPTS:
                    raise
            out.flush()
            failures = failures + 1 if out.tell() <= have else 0
            if failures > _ATTEMPTS:
                return  # its size tells
            time.sleep(failures * _WAIT_SECONDS)

    def _url(self, snapshot: HubSnapshot, path: str) -> str:
        from huggingface_hub import hf_hub_url

        return hf_hub_url(
            snapshot.repo, path, repo_type=snapshot.repo_type, revision=snapshot.revision, endpoint=self.endpoint
        )

    @contextlib.contextmanager
    def _explained(self, repo: str, repo_type: RepoType) -> Iterator[None]:
        """What the client raises, as a person can act on it."""
        import httpx2
        from huggingface_hub.errors import (
            GatedRepoError,
            HfHubHTTPError,
            HFValidationError,
            OfflineModeIsEnabled,
            RemoteEntryNotFoundError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        page = f"{self.endpoint}/{'datasets/' * (repo_type == 'dataset')}{repo}"
        try:
            yield
        except HFValidationError as error:
            raise InputError(f"{repo!r} names no repository", "give it as ORG/NAME") from error
        except OfflineModeIsEnabled as error:
            raise HubUnreachable(
                f"{self.endpoint} isn't asked for {repo}: HF_HUB_OFFLINE is set", "unset HF_HUB_OFFLINE"
            ) from error
        except GatedRepoError as error:
            raise NotShown(
                f"{repo} is gated: its licence has to be accepted before it can be fetched",
                f"accept it at {page}, then: hf auth login",
            ) from error
        except RepositoryNotFoundError as error:
            what = "data set" if repo_type == "dataset" else "repository"
            raise NotShown(
                f"{self.endpoint} shows no {what} {repo}",
                f"check its name; if it is private or gated: {page}, then: hf auth login",
            ) from error
        except RevisionNotFoundError as error:
            raise InputError(f"{repo} has no such revision", "give a branch, a tag or a commit of it") from error
        except RemoteEntryNotFoundError as error:
            raise InputError(f"{repo} has lost a file since it was listed", "run the same command again") from error
        except HfHubHTTPError as error:
            status = error.response.status_code
            if status >= 500:
                raise HubUnreachable(f"{self.endpoint} answers {status} for {repo}", "try again later") from error
            hint = "hf auth login" if status in (401, 403) else "try again later"
            raise InputError(f"{self.endpoint} answers {status} for {repo}", hint) from error
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.ProxyError) as error:
            raise HubUnreachable(
                f"the hub at {self.endpoint} can't be reached: {error}",
                "check the network, or give a checkpoint that is here: model.base: PATH"
                if repo_type == "model"
                else "check the network, or give files that are here, as jsonl, json or parquet",
            ) from error
        except httpx2.HTTPError as error:
            raise AmigoError(
                f"the connection to {self.endpoint} broke off: {error}", "run the same command again: it goes on"
            ) from error
        except OSError as error:
            raise AmigoError(
                f"{repo} can't be fetched: {error}", "check the disk, then run the same command again: it goes on"
            ) from error


def _authorization() -> dict[str, str]:
    from huggingface_hub import get_token

    token = get_token()
    return {"Authorization": f"Bearer {token}"} if token else {}


def _license(card: object) -> str:
    """A card's `license`, and `license_name` where that is \"other\"."""
    said = getattr(card, "license", None)
    if said == "other":
        said = getattr(card, "license_name", None) or said
    return said if isinstance(said, str) else ""


def _sha256(path: Path) -> str:
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_HASHED_AT_ONCE):
            sha.update(piece)
    return sha.hexdigest()
