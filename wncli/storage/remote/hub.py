"""The Hugging Face Hub: models, their files at one commit, and the cache that its library keeps.

Source: huggingface_hub `file_download.py` (the cache), `hf_api.py` (`model_info`), `errors.py`,
`utils/_http.py` (`hf_raise_for_status`, which goes by the header X-Error-Code).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Sequence
from difflib import get_close_matches
from io import FileIO
from pathlib import Path
from urllib.parse import quote

from wncli.errors import FileError, printable
from wncli.hints import inspecting, phrase
from wncli.storage.addresses import Address, shown_address
from wncli.storage.remote.hub_file import HubFile
from wncli.storage.remote.hub_settings import hub_settings
from wncli.storage.remote.patience import BUSY, AgainError, patiently
from wncli.storage.remote.places import MissingError, read_all
from wncli.storage.remote.repository import Repository
from wncli.storage.remote.source import Parts, RemoteSource
from wncli.storage.remote.web import Answer, Url, Web
from wncli.storage.remote.web_place import NOT_ALLOWED, NOT_THERE, status_of
from wncli.storage.source import FileSource, LocalSource

_COMMIT = re.compile(r"[0-9a-f]{40}")
#: Bytes of a list of files.
_LONGEST_LIST = 64 << 20
_OK = 200


class _CachedError(Exception):
    """The file is on this machine."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self.path = path


class HubPlace:
    """A repository, or a file or folder of it, at one commit from the first answer on."""

    def __init__(self, address: Address, repository: Repository) -> None:
        self.address = address
        self.repository = repository
        self.settings = hub_settings()
        self._refuse_endpoint()
        self.web = Web(address.shown, address.meter)
        self.secret = f"Bearer {self.settings.token}" if self.settings.token else ""
        revision = repository.revision
        self.commit = revision if _COMMIT.fullmatch(revision) else ""
        #: Where the files are that `open` opens.
        self.folder = repository.path.rpartition("/")[0]
        self.listed: list[str] | None = None

    # -- what there is --------------------------------------------------------------------------

    def file(self) -> FileSource:
        """Open the file that the address is of."""
        path = self.repository.path
        snapshot = self._snapshot()
        # Which takes names that are too long, too.
        if not path or (snapshot is not None and os.path.isdir(snapshot / path)):  # noqa: PTH112
            raise MissingError(self.address.shown, "this is a folder")
        return self._open(path, self.address.shown, 0)

    def names(self) -> Sequence[str] | None:
        """List the files of the folder that the address is of."""
        folder = self.repository.path
        if folder and not any(name.startswith(f"{folder}/") for name in self._all()):
            return None
        self.folder = folder
        return self._inside(folder)

    def companions(self) -> Sequence[str]:
        """List the files of the folder that `open` opens files of."""
        return self._inside(self.folder)

    def read(self, name: str) -> bytes:
        """Return all that is in a file of that folder."""
        return read_all(self.open(name))

    def open(self, name: str, number: int = 0) -> FileSource:
        """Open a file of the folder, or beside the file that the address is of."""
        path = f"{self.folder}/{name}" if self.folder else name
        is_folder = self.folder == self.repository.path
        address = self.address.shown.rstrip("/")
        shown = f"{address}/{name}" if is_folder else self.address.beside(name).shown
        return self._open(path, shown, number)

    def near(self) -> Sequence[str]:
        """List addresses of files of this repository that may be meant."""
        with contextlib.suppress(FileError):
            names = self._all()
            path = self.repository.path
            same = [name for name in names if name.rpartition("/")[2] == path.rpartition("/")[2]]
            near = dict.fromkeys((*same, *get_close_matches(path, names, n=3)))
            return [
                self.repository._replace(path=name).address(self.web.meter).shown for name in near
            ][:3]
        return ()

    def close(self) -> None:
        """Let go of all connections."""
        self.web.close()

    # -- how it is asked ------------------------------------------------------------------------

    def _url(self, *parts: str) -> Url:
        repository = f"{self.repository.prefix}{self.repository.id}"
        return Url.parse("/".join((self.settings.endpoint, repository, *parts)))

    def _refuse_endpoint(self) -> None:
        """Refuse what HF_ENDPOINT says where it is no address; its text may have a password."""
        try:
            self._url()
        except FileError:
            raise FileError(
                self.address.shown,
                "HF_ENDPOINT is no address of the web",
                expected="https://HOST",
                hint="export HF_ENDPOINT=https://huggingface.co",
            ) from None

    def _inside(self, folder: str) -> list[str]:
        """List the files directly in a folder."""
        prefix = f"{folder}/" if folder else ""
        inside = [name.removeprefix(prefix) for name in self._all() if name.startswith(prefix)]
        return [name for name in inside if "/" not in name]

    def _all(self) -> Sequence[str]:
        """List the paths of all files of the repository, which is asked for once."""
        if self.listed is None:
            self.listed = self._list()
        return self.listed

    def _list(self) -> list[str]:
        if self.settings.is_offline:
            snapshot = self._snapshot()
            if snapshot is None or not snapshot.is_dir():
                raise self._offline(self.address.shown)
            found = filter(Path.is_file, snapshot.rglob("*"))
            return sorted(path.relative_to(snapshot).as_posix() for path in found)
        revision = quote(self.commit or self.repository.revision, safe="")
        url = Url.parse(
            f"{self.settings.endpoint}/api/{self.repository.kind}/{self.repository.id}"
            f"/revision/{revision}"
        )
        text = patiently(lambda: self._text(url), self.address.shown, self.web.stop)
        try:
            found = json.loads(text)
            commit, names = found["sha"], [str(one["rfilename"]) for one in found["siblings"]]
            "".join(names).encode()  # what is no text can be no name
        except (ValueError, LookupError, TypeError, RecursionError):
            commit, names = "", []
        if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
            raise FileError(
                self.address.shown,
                "the hub's list of its files is none",
                expected="JSON with sha and siblings",
            )
        self.commit = self.commit or commit
        return names

    def _text(self, url: Url) -> bytes:
        answer, passed = self.web.follow(url, {}, self.secret)
        try:
            if answer.status != _OK:
                refusal = self._refusal(answer, passed, self.address.shown)
                if answer.status in BUSY:
                    raise AgainError(refusal)
                raise refusal
            length = answer.found.length
            text = answer.read(_LONGEST_LIST if length is None else min(length, _LONGEST_LIST))
            if length is not None and len(text) < length:
                raise AgainError(self.web.broken(url, ConnectionError()))
            return text
        finally:
            answer.close()

    def _open(self, path: str, shown: str, number: int) -> FileSource:
        cached = self._cached(path)
        if cached is None and self.settings.is_offline:
            raise self._offline(shown)
        if cached is None:
            revision = quote(self.commit or self.repository.revision, safe="")
            url = self._url("resolve", revision, quote(path))
            place = self.repository._replace(path=path)

            def seen(answer: Answer) -> None:
                self._see(answer, path)
                if self.commit:
                    file.first = self._url("resolve", self.commit, quote(path))
                    file.place = place._replace(revision=self.commit)

            def explain(answer: Answer, passed: list[Answer]) -> FileError:
                return self._refusal(answer, passed, shown)

            file = HubFile(self.web, shown, url, self.secret, explain, seen)
            file.settings, file.place = self.settings, place
            try:
                return RemoteSource(Parts(file), number)
            except _CachedError as found:
                cached = found.path
        try:
            return LocalSource(shown, FileIO(cached), number)
        except OSError as error:
            raise FileError(shown, f"cannot be read in the cache: {error.strerror}") from None

    def _see(self, answer: Answer, path: str) -> None:
        """Take the commit from the hub's own answer, and look into the cache for the file."""
        if answer.url.origin != self._url().origin:
            return
        commit = answer.header("X-Repo-Commit")
        if _COMMIT.fullmatch(commit) and not self.commit:
            self.commit = commit
            cached = self._cached(path)
            if cached is not None:
                raise _CachedError(cached)

    # -- the cache ------------------------------------------------------------------------------

    def _snapshot(self) -> Path | None:
        """Return where the cache has the files of this commit."""
        folder = self.settings.cache / self.repository.folder
        commit = self.commit
        if not commit:
            if not self.settings.is_offline:
                return None
            try:
                commit = (folder / "refs" / self.repository.revision).read_text("utf-8").strip()
            except (OSError, ValueError):
                return None
            if not _COMMIT.fullmatch(commit):
                return None
            self.commit = commit
        return folder / "snapshots" / commit

    def _cached(self, path: str) -> Path | None:
        snapshot = self._snapshot()
        if snapshot is None or {"", ".", ".."} & {*path.split("/")}:
            return None
        found = snapshot / path
        try:
            return found if found.is_file() else None
        except (OSError, ValueError):
            return None

    # -- what is refused ------------------------------------------------------------------------

    def _offline(self, shown: str) -> FileError:
        return FileError(
            shown,
            "it is not in the cache, and HF_HUB_OFFLINE says to ask nobody",
            expected=f"it in {self.settings.cache / self.repository.folder}",
            hint="unset HF_HUB_OFFLINE TRANSFORMERS_OFFLINE",
        )

    def _refusal(self, answer: Answer, passed: list[Answer], shown: str) -> FileError:
        is_hub = answer.url.origin == self._url().origin
        code = answer.header("X-Error-Code") if is_hub else ""
        found = f"{status_of(answer)}, to {self.settings.looked_for}"
        name = f"{self.repository.prefix}{self.repository.id}"
        page = f"{shown_address(self.settings.endpoint)}/{name}"
        if code == "GatedRepo":
            return FileError(
                shown,
                "its owners let only those read it who have agreed to their terms",
                expected="the token of somebody who has",
                found=found,
                hint=f"agree at {printable(page)}, and set HF_TOKEN",
            )
        if code == "RevisionNotFound":
            return FileError(
                shown,
                f"there is no revision {printable(self.repository.revision)}",
                expected="a branch, a tag, or a commit",
                hint=inspecting(f"hf://{name}"),
            )
        if code == "EntryNotFound" or (answer.status in NOT_THERE and code != "RepoNotFound"):
            return MissingError(shown, "no such file in this repository", expected="a checkpoint")
        if code == "RepoNotFound" or answer.status in NOT_ALLOWED:
            return FileError(
                shown,
                f"there is no {self.repository.id} on the hub, or it is private",
                expected="a repository that may be read",
                found=found,
                hint=_AS_SOMEBODY,
            )
        if not is_hub and passed:
            found = f"{status_of(answer)} from {printable(answer.url.host)}"
        return FileError(shown, "the hub does not give it", found=found, hint="try again later")


_AS_SOMEBODY = phrase("{} keeps a token for what is private", "hf auth login")
