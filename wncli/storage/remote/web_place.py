"""A file at an address of the web, and those beside it."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from urllib.parse import quote, unquote, urlsplit

from wncli.errors import FileError, printable
from wncli.storage.addresses import Address
from wncli.storage.remote.places import MissingError, read_all
from wncli.storage.remote.source import Parts, RemoteSource
from wncli.storage.remote.web import Answer, Url, Web
from wncli.storage.remote.web_file import WebFile

NOT_THERE = frozenset({404, 410})
NOT_ALLOWED = frozenset({401, 403, 407})


class WebPlace:
    """An address of the web: a file, as servers list no folders in a way that all share."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.url = Url.parse(address.given)
        self.web = Web(address.shown, address.meter)
        self.secret = _basic(address.given)
        self.has_query = bool(urlsplit(address.given).query)

    def file(self) -> RemoteSource:
        """Open the file."""
        return self._open(self.url, self.address.shown, 0)

    def names(self) -> Sequence[str] | None:
        """Return None: it is no folder."""
        return None

    def open(self, name: str, number: int = 0) -> RemoteSource:
        """Open a file beside the one that the address is of, with the same query."""
        path, mark, query = self.url.target.partition("?")
        target = f"{path.rpartition('/')[0]}/{quote(name)}{mark}{query}"
        shown = self.address.beside(quote(name)).shown
        return self._open(self.url._replace(target=target), shown, number)

    def near(self) -> Sequence[str]:
        """No server says what else it has."""
        return ()

    def companions(self) -> Sequence[str]:
        """No server says what else it has."""
        return ()

    def read(self, name: str) -> bytes:
        """Return all that is in a file beside the one that the address is of."""
        return read_all(self.open(name))

    def close(self) -> None:
        """Let go of all connections."""
        self.web.close()

    def _open(self, url: Url, shown: str, number: int) -> RemoteSource:
        def explain(answer: Answer, _: list[Answer]) -> FileError:
            return self._refusal(answer, shown)

        return RemoteSource(Parts(WebFile(self.web, shown, url, self.secret, explain)), number)

    def _refusal(self, answer: Answer, shown: str) -> FileError:
        found = status_of(answer)
        if answer.status in NOT_THERE:
            return MissingError(shown, "no such file", expected="a checkpoint", found=found)
        if answer.status not in NOT_ALLOWED:
            return FileError(shown, "the server does not give it", found=found)
        if self.has_query:
            hint = "get a new link where this one is from: they run out"
        elif self.secret:
            hint = "check the user and the password in the address"
        else:
            hint = "give user and password in the address, or download it and give the file"
        return FileError(
            shown,
            "the server does not let it be read",
            expected="an address that may be read",
            found=f"{found}, to {'a password' if self.secret else 'no password'}",
            hint=hint,
        )


def status_of(answer: Answer) -> str:
    """Return the number and the words of an answer."""
    reason = re.sub(r"[^ -~]", "", answer.found.reason or "")
    return printable(f"{answer.status} {reason}".strip()[:100])


def _basic(given: str) -> str:
    """Return what says who asks, from an address with a user in it."""
    parts = urlsplit(given)
    if parts.username is None:
        return ""
    user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return f"Basic {base64.b64encode(user.encode()).decode()}"
