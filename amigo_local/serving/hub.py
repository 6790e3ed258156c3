"""The Hugging Face hub: which files a repository has at one commit, pieces of them, and whole ones that resume."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import msgspec

from amigo_local.domain.errors import AmigoError, InputError

_HASHED_AT_ONCE = 4 << 20
_TIMEOUT_SECONDS = 30.0  # for a header or a few rows; downloads have the client's own


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

    def snapshot(self, repo: str, revision: str | None = None) -> HubSnapshot:
        """The newest commit of a branch, tag or commit; None: of the main branch.

        Raises InputError when there is none of that name, or the hub can't be reached.
        """
        from huggingface_hub import HfApi

        with self._explained(repo):
            found = HfApi(self.endpoint).model_info(
                repo, revision=revision, files_metadata=True, timeout=_TIMEOUT_SECONDS
            )
        files = tuple(
            HubFile(file.rfilename, file.size or 0, file.lfs.sha256 if file.lfs else None)
            for file in found.siblings or ()
        )
        if found.sha is None:
            raise InputError(f"{self.endpoint} doesn't say which commit of {repo} it has", "check HF_ENDPOINT")
        return HubSnapshot(repo, found.sha, bool(found.gated), files)

    def read(self, snapshot: HubSnapshot, path: str, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of a file. Raises InputError as `snapshot` does, and for a gate that isn't open."""
        from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

        if start >= stop:
            return b""
        wanted = {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
        with self._explained(snapshot.repo):
            url = self._url(snapshot, path)
            # Streamed, so that a server which ignores the range doesn't send gigabytes.
            with get_session().stream(
                "GET", url, headers={**build_hf_headers(), **wanted}, timeout=_TIMEOUT_SECONDS
            ) as answer:
                hf_raise_for_status(answer)
                skip, data = start if answer.status_code == 200 else 0, bytearray()
                for piece in answer.iter_bytes():
                    data += piece
                    if len(data) >= skip + stop - start:
                        break
        data = data[skip : skip + stop - start]
        if len(data) != stop - start:
            raise AmigoError(f"{url}: ended after {len(data)} of {stop - start} bytes", "run the same command again")
        return bytes(data)

    def download(self, snapshot: HubSnapshot, file: HubFile, directory: Path, on_bytes: Callable[[int], None]) -> None:
        """Brings a whole file into `directory`, going on where a cut download ended, even by a kill.

        huggingface_hub 2.4 itself starts a file anew after its process ended (`_download_to_tmp_and_move` in
        file_download.py), so only its transfer is used. on_bytes is told of every piece, what was there already
        first; what it raises passes through, and the piece is kept. Raises InputError as `read` does, AmigoError
        when the file breaks off too often or isn't what the hub announced.
        """
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import build_hf_headers, disable_progress_bars

        target = directory / file.path
        if target.exists():
            on_bytes(file.size_bytes)
            return
        disable_progress_bars()  # they would fill the worker's log
        partial = target.with_name(f"{target.name}.partial")
        have = partial.stat().st_size if partial.exists() else 0
        if have > file.size_bytes:
            partial.unlink()
            have = 0
        on_bytes(have)
        with partial.open("ab") as out, self._explained(snapshot.repo):
            http_get(
                self._url(snapshot, file.path),
                _Counted(out, on_bytes),  # type: ignore[arg-type]  # the four methods that are called
                resume_size=have,
                headers=build_hf_headers(),
                expected_size=file.size_bytes,
            )
            out.flush()
            os.fsync(out.fileno())
        if file.sha256 is not None and (found := _sha256(partial)) != file.sha256:
            partial.unlink()
            raise AmigoError(
                f"{snapshot.repo}: {file.path} arrived damaged: sha256 {found[:12]}…, expected {file.sha256[:12]}…",
                "run the same command again: it is fetched anew",
            )
        partial.replace(target)

    def _url(self, snapshot: HubSnapshot, path: str) -> str:
        from huggingface_hub import hf_hub_url

        return hf_hub_url(snapshot.repo, path, revision=snapshot.revision, endpoint=self.endpoint)

    @contextlib.contextmanager
    def _explained(self, repo: str) -> Iterator[None]:
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

        try:
            yield
        except HFValidationError as error:
            raise InputError(f"{repo!r} names no repository", "give it as ORG/NAME") from error
        except OfflineModeIsEnabled as error:
            raise InputError(
                f"{self.endpoint} isn't asked for {repo}: HF_HUB_OFFLINE is set", "unset HF_HUB_OFFLINE"
            ) from error
        except GatedRepoError as error:
            raise InputError(
                f"{repo} is gated: its licence has to be accepted before it can be fetched",
                f"accept it at {self.endpoint}/{repo}, then: hf auth login",
            ) from error
        except RepositoryNotFoundError as error:
            raise InputError(
                f"{self.endpoint} shows no repository {repo}",
                f"check its name; if it is private or gated: {self.endpoint}/{repo}, then: hf auth login",
            ) from error
        except RevisionNotFoundError as error:
            raise InputError(f"{repo} has no such revision", "give a branch, a tag or a commit of it") from error
        except RemoteEntryNotFoundError as error:
            raise InputError(f"{repo} has lost a file since it was listed", "run the same command again") from error
        except HfHubHTTPError as error:
            status = error.response.status_code
            hint = "hf auth login" if status in (401, 403) else "try again later"
            raise InputError(f"{self.endpoint} answers {status} for {repo}", hint) from error
        except httpx2.ConnectError as error:
            raise InputError(
                f"the hub at {self.endpoint} can't be reached: {error}",
                "check the network, or give a checkpoint that is here: model.base: PATH",
            ) from error
        except httpx2.HTTPError as error:
            raise AmigoError(
                f"the connection to {self.endpoint} broke off: {error}", "run the same command again: it goes on"
            ) from error


class _Counted:
    """A file that tells how much was written to it; negative when it is cut for a new beginning."""

    def __init__(self, file: IO[bytes], on_bytes: Callable[[int], None]) -> None:
        self._file, self._on_bytes = file, on_bytes

    def write(self, data: bytes) -> int:
        written = self._file.write(data)
        self._on_bytes(written)
        return written

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int, whence: int = 0) -> int:
        self._on_bytes(offset - self._file.tell())
        return self._file.seek(offset, whence)

    def truncate(self, size: Any = None) -> int:
        return self._file.truncate(size)


def _sha256(path: Path) -> str:
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_HASHED_AT_ONCE):
            sha.update(piece)
    return sha.hexdigest()
