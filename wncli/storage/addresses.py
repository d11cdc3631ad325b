"""Tells addresses of the web, of hubs and of object stores from paths, and how they are shown.

An address can have a password or a signature in it. So what is shown of it is made once, here, and
what it was given as is kept from every message.
"""

from __future__ import annotations

import os
import re
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from wncli.errors import FileError
from wncli.hints import (
    Text,
    free_path,
    is_address,
    never_type,
    parameter,
    path_text,
    path_word,
    phrase,
    then_inspecting,
    word,
)

_WEB = ("https", "http")
_STORES = ("s3", "gs", "az")
#: What can be read.
SCHEMES = (*_WEB, "hf", *_STORES)
_INDEX = ".index.json"
#: A host, as a name or a number, and a port.
_HOST = re.compile(r"([\w.-]+|\[[0-9A-Fa-f:.]+\])(:\d{1,5})?")
#: Characters of the name that a file gets here.
_LONGEST = 60
#: A model of the Hugging Face Hub, as its owner and its name.
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
#: A place on the hub: the kind of repository, its owner and name, the revision, and the file.
_HUB_FILE = re.compile(
    r"(?:(models|datasets|spaces)/(?=[^/]+/[^/]+))?([^/]+/[^/@]+)"
    r"(?:@(refs/(?:pr|convert)/[^/]+|[^/]*))?(?:/(.+))?"
)
_FETCH = {"s3": "aws s3 cp", "gs": "gcloud storage cp"}


class Traffic(NamedTuple):
    """What reading at a distance took: requests, and bytes of files that came."""

    requests: int = 0
    bytes: int = 0

    @classmethod
    def sum(cls, *parts: Traffic | None) -> Traffic | None:
        """Add these up; None where there is none."""
        known = [part for part in parts if part is not None]
        return cls(*map(sum, zip(*known, strict=True))) if known else None

    def to_json(self) -> dict[str, int]:
        """Return both numbers."""
        return self._asdict()


class Meter:
    """Counts requests and bytes, in any thread."""

    def __init__(self) -> None:
        self.traffic = Traffic()
        self.lock = threading.Lock()

    def count(self, *, requests: int = 0, nbytes: int = 0) -> None:
        """Add to what has been counted so far."""
        with self.lock:
            before = self.traffic
            self.traffic = Traffic(before.requests + requests, before.bytes + nbytes)

    def __reduce__(self) -> tuple[type[Meter], tuple[()]]:
        """Begin anew elsewhere."""
        return Meter, ()


@dataclass(frozen=True, slots=True)
class Address:
    """Where a checkpoint is that is not on this machine; its text is what may be shown of it.

    Attributes:
        scheme: one of `SCHEMES`.
        shown: without user, password and query.
        given: as it was typed, with all of them.
        meter: counts what reading it takes.
    """

    scheme: str
    shown: str
    given: str = field(repr=False)
    meter: Meter = field(default_factory=Meter, repr=False, compare=False)

    def __str__(self) -> str:
        return self.shown

    def __reduce__(self) -> tuple[type[Address], tuple[str, str, str]]:
        """Leave out what is not shown, wherever it is saved."""
        return Address, (self.scheme, self.shown, self.shown)

    def __deepcopy__(self, _: object) -> Address:
        """Return itself, as nothing of it changes but the count."""
        return self

    @property
    def name(self) -> str:
        """What the file, or the folder, is called."""
        from urllib.parse import unquote

        name = self._parts[-1]
        if self.scheme not in _WEB:
            return name
        return re.sub(r"[\x00-\x1f\x7f]", "_", unquote(name).rpartition("/")[2]) or name

    @property
    def is_folder(self) -> bool:
        """Whether it can only be a folder's, or that of an index."""
        is_repository = self.scheme == "hf" and len(self._parts) <= 2  # noqa: PLR2004
        return is_repository or self.shown.endswith(("/", _INDEX))

    @property
    def folder_name(self) -> str:
        """What the folder is called that it is of."""
        return self._parts[-2] if self.shown.endswith(_INDEX) else self.name

    @property
    def _parts(self) -> list[str]:
        """The parts of the path, the host first; without a revision, or a kind of repository."""
        path = self.shown.partition("://")[2].strip("/")
        if self.scheme == "hf":
            path = re.sub(r"@(refs/(pr|convert)/)?[^/]*", "", path)
            path = re.sub(r"^(models|datasets|spaces)/(?=[^/]+/)", "", path)
        return path.split("/")

    def beside(self, name: str) -> Address:
        """Return the address of a file of another name in the same folder."""
        folder = self.shown.rpartition("/")[0]
        return Address(self.scheme, f"{folder}/{name}", "", self.meter)


#: Where a checkpoint is.
Place = Path | Address


def traffic_of(place: Place) -> Traffic | None:
    """Return what reading at a place has taken so far; None on this machine."""
    return place.meter.traffic if isinstance(place, Address) else None


def shown_address(text: str) -> str:
    """Return what may be shown of a text that may be an address: no user, password or query."""
    if not is_address(text):
        return text
    scheme, _, place = text.partition("://")
    is_web = scheme.lower() not in {"hf", *_STORES}
    # Names on the hub and keys of objects may have a # in them.
    cut = re.split("[?#]" if is_web else "[?]", place, maxsplit=1)
    authority, slash, path = cut[0].partition("/")
    authority = authority.rpartition("@")[2]
    is_host = _HOST.fullmatch(authority) or scheme.lower() == "file"
    if is_web and (not is_host or (not slash and "@" in cut[-1] and len(cut) > 1)):
        return f"{scheme}://…"  # a slash, or what else ends a host, may be part of the password
    return f"{scheme}://{authority}{slash}{path}"


def parse_address(text: str) -> Address:
    """Take an address apart as far as it is shown.

    Raises:
        FileError: nothing can be read there.
    """
    shown = shown_address(text)
    scheme = text.partition("://")[0].lower()
    if scheme not in SCHEMES:
        raise FileError(
            shown,
            phrase("{} has to be a file here, or an address that can be read", "a checkpoint"),
            expected=f"a path, or {', '.join(f'{known}://' for known in SCHEMES)}",
            found=f"{scheme}://",
            hint=_local_path(text) if scheme == "file" else "download it first, and give the file",
        )
    rest = shown.partition("://")[2]
    has_user = scheme not in _WEB and "@" in text.partition("://")[2].partition("/")[0]
    has_query = scheme == "hf" and "?" in text  # no other's can be told from a part of a name
    is_none = not rest.strip("/") or rest.startswith("…") or not text.isprintable()
    if is_none or has_user or has_query:
        raise FileError(
            shown,
            "this is no address",
            expected=f"{scheme}://{_FORM[scheme]}",
            found="a user in it" if has_user else "a query in it" if has_query else "",
        )
    if shown != text:
        never_type(shown)
    return Address(scheme, shown, text)


_FORM = {
    "https": "HOST/PATH", "http": "HOST/PATH", "hf": "OWNER/NAME[@REVISION][/FILE]",
    "s3": "BUCKET/KEY", "gs": "BUCKET/KEY", "az": "CONTAINER/KEY",
}  # fmt: skip


def place_of(given: str | os.PathLike[str]) -> Place:
    """Return the place that is meant: an address, or a path, which may be of anything.

    Raises:
        FileError: it is an address at which nothing can be read.
    """
    text = os.fspath(given)
    return parse_address(text) if is_address(text) else Path(given)


def name_path(shown: str) -> Path:
    """Return a checkpoint's path, or what its file is called that is at an address."""
    if not is_address(shown):
        return Path(shown)
    return Path(Address(shown.partition("://")[0].lower(), shown, shown).name)


def refuse_address(text: str) -> None:
    """Refuse an output at a distance.

    Raises:
        FileError: `text` is an address.
    """
    if is_address(text):
        raise FileError(
            shown_address(text),
            phrase("{} has to be a file here", parameter("output")),
            expected="a path",
            found="an address",
            hint="write a file, and upload that",
        )


def repository_hint(path: Path) -> str:
    """Return the address of a model of the Hub, where a path that leads nowhere may name one."""
    text = path.as_posix()
    if not _REPOSITORY.fullmatch(text) or path.parent.exists():
        return ""
    return phrase("{} of the Hugging Face Hub, if that is meant", path_text(f"hf://{text}"))


def download_hint(address: str) -> str:
    """Return what brings the file here; nothing is overwritten by it."""
    from urllib.parse import unquote

    scheme, _, place = address.partition("://")
    path = place.partition("/")[2]
    if not path or path.endswith("/"):
        return "download it first, and give the file"
    if scheme.lower() == "hf":
        return _hub_download(place)
    is_web = scheme.lower() in _WEB
    name = Path(unquote(path) if is_web else path).name
    name = name.replace("\0", "_")[-_LONGEST:] or "checkpoint"
    target = free_path(Path(name))
    if scheme in _FETCH:
        return then_inspecting(f"{_FETCH[scheme]} {word(address)} {path_word(target)}", target)
    if is_web:
        return then_inspecting(f"curl -fgL {word(address)} -o {path_word(target)}", target)
    return "download it first, and give the file"


def _hub_download(place: str) -> str:
    from urllib.parse import unquote

    match = _HUB_FILE.fullmatch(place)
    if not match:
        return "download it first, and give the file"
    kind, repository, revision, file = match.groups("")
    typed = ["hf download", word(repository), word(file) if file else ""]
    typed += [f"--repo-type {kind.removesuffix('s')}"] if kind not in {"", "models"} else []
    typed += [f"--revision {word(unquote(revision))}"] if revision else []
    return " ".join(filter(None, typed))


def _local_path(text: str) -> Text:
    from urllib.parse import unquote

    place = text.partition("://")[2]
    return path_text(f"/{unquote(place.partition('/')[2])}")
