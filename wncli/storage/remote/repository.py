"""A repository on the Hugging Face Hub: its address, and the pages that browsers show of it."""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import quote, unquote, urlsplit

from wncli.errors import FileError
from wncli.storage.addresses import Address, Meter
from wncli.storage.remote.hub_settings import hub_settings

_KINDS = ("models", "datasets", "spaces")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}")
#: Revisions with a slash in them that need not be escaped.
_REFS = re.compile(r"refs/(convert|pr)/[^/]+")
_PAGES = ("resolve", "blob", "raw", "tree")
MAIN = "main"


class Repository(NamedTuple):
    """A repository at a revision, and a path in it, which is empty for all of it."""

    kind: str
    owner: str
    name: str
    revision: str
    path: str

    @property
    def id(self) -> str:
        """Its owner and its name."""
        return f"{self.owner}/{self.name}"

    @property
    def folder(self) -> str:
        """What the cache calls it."""
        return f"{self.kind}--{self.owner}--{self.name}"

    @property
    def prefix(self) -> str:
        """What stands before it in addresses where it is no model."""
        return "" if self.kind == "models" else f"{self.kind}/"

    def address(self, meter: Meter) -> Address:
        """Return its address, or that of its file."""
        at = "" if self.revision == MAIN else f"@{quote(self.revision, safe='')}"
        path = f"/{self.path}" if self.path else ""
        shown = f"hf://{self.prefix}{self.id}{at}{path}"
        return Address("hf", shown, shown, meter)

    @classmethod
    def of_address(cls, address: Address) -> Repository:
        """Read `hf://[datasets/]OWNER/NAME[@REVISION][/PATH]`.

        Raises:
            FileError: it is none.
        """
        parts = address.given.partition("://")[2].strip("/").split("/")
        kind = parts.pop(0) if parts[0] in _KINDS and len(parts) > 2 else "models"  # noqa: PLR2004
        owner, (name, _, revision) = parts[0], "/".join(parts[1:2]).partition("@")
        rest = "/".join(parts[2:])
        if match := _REFS.match(f"{revision}/{rest}"):
            rest = f"{revision}/{rest}"[match.end() :].lstrip("/")
            revision = match[0]
        found = cls(kind, owner, name, unquote(revision) or MAIN, rest)
        is_path = not {"", ".", ".."} & {*rest.split("/")} if rest else True
        if not (_NAME.fullmatch(owner) and _NAME.fullmatch(name) and is_path):
            raise FileError(
                address.shown,
                "this is no address of a model",
                expected="hf://OWNER/NAME[@REVISION][/FILE]",
            )
        return found

    @classmethod
    def of_page(cls, given: str) -> Repository | None:
        """Read an address of the hub's own pages and files, as browsers show them."""
        try:
            hub, parts = urlsplit(hub_settings().endpoint), urlsplit(given)
            is_there = (parts.scheme, parts.hostname, parts.port) == (
                hub.scheme, hub.hostname, hub.port,
            )  # fmt: skip
        except ValueError:  # one is no address, which whoever asks there will say
            return None
        if not is_there or parts.username is not None:
            return None
        # A slash that is escaped is part of a revision.
        path = [unquote(part) for part in parts.path.removeprefix(hub.path).strip("/").split("/")]
        kind = path.pop(0) if path[0] in _KINDS else "models"
        owner, name, *rest = [*path, "", ""][: max(len(path), 2)]
        page, revision, *file = [*rest, "", ""][: max(len(rest), 2)]
        if not (_NAME.fullmatch(owner) and _NAME.fullmatch(name)):
            return None
        text = "/".join(file)
        if match := _REFS.match(f"{revision}/{text}"):
            text = f"{revision}/{text}"[match.end() :].lstrip("/")
            revision = match[0]
        if {".", ".."} & {*text.split("/")} or (rest and (page not in _PAGES or not revision)):
            return None
        return cls(kind, owner, name, revision or MAIN, text)
