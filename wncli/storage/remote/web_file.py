"""A file on a web server, read by ranges: one version of it, of one size, to the last byte.

Source: RFC 9110, 13.1 (preconditions), 14 (ranges), 15.3.7 (206).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from wncli.errors import FileError, printable
from wncli.storage.addresses import download_hint
from wncli.storage.remote.patience import BUSY, AgainError, patiently
from wncli.storage.remote.ranges import WINDOW
from wncli.storage.remote.web import Answer, Url, Web

_PARTIAL = 206
_WHOLE = 200
_CHANGED = 412
_UNSATISFIABLE = 416
#: What a signed link may say once it has run out.
_RUN_OUT = frozenset({400, 401, 403, 404, 410})
_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")
_EMPTY = re.compile(r"bytes \*/0")

#: Characters of a header that are shown.
_LONGEST = 80

#: Makes the refusal of an answer that is an error, from the answer and the redirects before it.
Explain = Callable[[Answer, list[Answer]], FileError]


def _number(text: str) -> int | None:
    """Return the number that a header is; None where it is none that can be meant."""
    return int(text) if re.fullmatch("[0-9]{1,18}", text) else None


class _Version(NamedTuple):
    """What tells one version of a file from another."""

    nbytes: int
    etag: str
    modified: str


class WebFile:
    """A file at an address of the web.

    Args:
        web: the connections.
        name: what to call the file in refusals.
        url: where to ask first.
        secret: what to say there about who asks.
        explain: makes the refusal of an error.
        seen: called with every answer from the first address on, before anything is made of it.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - what is asked for, where, and by whom
        self,
        web: Web,
        name: str,
        url: Url,
        secret: str,
        explain: Explain,
        seen: Callable[[Answer], None] = lambda _: None,
    ) -> None:
        self.web = web
        self.name = name
        self.first = url
        self.secret = secret
        self.explain = explain
        self.seen = seen
        #: Where the first address has led; the next parts come from there.
        self.last: Url | None = None
        self.version: _Version | None = None

    @property
    def mark(self) -> str:
        """The ETag, or else the date."""
        return (self.version.etag or self.version.modified) if self.version else ""

    def begin(self) -> tuple[int, bytes]:
        """Ask for the first bytes, and return the size of the file with them."""
        return patiently(self._begin, self.name, self.web.stop)

    def _begin(self) -> tuple[int, bytes]:
        answer, passed = self._ask(0, WINDOW)
        try:
            size = _number(answer.header("Content-Length"))
            if answer.status == _UNSATISFIABLE and _EMPTY.fullmatch(answer.header("Content-Range")):
                self.version = _Version(0, "", "")
                return 0, b""
            if answer.status == _WHOLE and size is not None and size <= WINDOW:
                self._refuse_packed(answer)
                return size, self._body(answer, size)  # nothing is left to be asked for
            self._accept(answer, passed, 0, WINDOW)
            self.last = answer.url
            assert self.version is not None  # noqa: S101 - which has been accepted
            return self.version.nbytes, self._body(answer, min(WINDOW, self.version.nbytes))
        finally:
            answer.close()

    def fetch(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with what is at `offset`."""
        done = 0

        def attempt() -> None:
            nonlocal done
            rest = buffer[done:]
            answer, passed = self._ask(offset + done, len(rest))
            try:
                self._accept(answer, passed, offset + done, len(rest))
                self.last = answer.url
                done += answer.read_into(rest)
                if done < len(buffer):
                    raise AgainError(self._cut(len(buffer), done))
            finally:
                answer.close()

        patiently(attempt, self.name, self.web.stop)

    def download(self) -> Path | None:
        """Return None: it is read part by part."""
        return None

    def _ask(self, offset: int, count: int) -> tuple[Answer, list[Answer]]:
        headers = {"Range": f"bytes={offset}-{offset + count - 1}"}
        if self.last is not None:
            pinned = dict(headers)
            if self.version and self.version.etag.startswith('"'):  # a weak one matches nothing
                pinned["If-Match"] = self.version.etag
            secret = self.secret if self.last.origin == self.first.origin else ""
            answer, passed = self.web.follow(self.last, pinned, secret)
            if answer.status not in _RUN_OUT or self.last == self.first:
                return answer, passed
            answer.close()  # a link for some minutes: the first address gives a new one
        return self.web.follow(self.first, headers, self.secret, self.seen)

    def _accept(self, answer: Answer, passed: list[Answer], offset: int, count: int) -> None:
        """Refuse an answer that is not the part which was asked for, of the same file as before.

        Raises:
            FileError: it is something else.
            AgainError: the server is busy.
        """
        if answer.status in {_CHANGED, _UNSATISFIABLE} and self.version:
            raise self._changed()
        if answer.status == _WHOLE:
            raise FileError(
                self.name,
                "this server gives no parts of files",
                expected="206 Partial Content",
                found="200 OK",
                hint=download_hint(self.name),
            )
        if answer.status != _PARTIAL:
            refusal = self.explain(answer, passed)
            if answer.status in BUSY:
                raise AgainError(refusal, float(_number(answer.header("Retry-After")) or 0))
            raise refusal
        self._refuse_packed(answer)
        said = answer.header("Content-Range")
        match = _RANGE.fullmatch(said.strip())
        begin, end, nbytes = map(int, match.groups()) if match else (-1, -1, -1)
        known = self.version.nbytes if self.version else nbytes if match else offset + count
        expected = (offset, min(offset + count, known) - 1)
        length = answer.header("Content-Length")
        if (begin, end) != expected or (length and _number(length) != end - begin + 1):
            found = f"Content-Range: {said[:_LONGEST] or 'none'}"
            raise FileError(
                self.name,
                "the server sends another part of the file than it was asked for",
                expected=f"bytes {expected[0]:,} to {expected[1]:,}",
                found=printable(
                    f"{found}, Content-Length: {length[:_LONGEST]}" if length else found
                ),
                hint=download_hint(self.name),
            )
        version = _Version(nbytes, answer.header("ETag"), answer.header("Last-Modified"))
        if self.version is None:
            self.version = version
        elif self._differs(version):
            raise self._changed()

    def _differs(self, other: _Version) -> bool:
        """Whether another version is meant; what one answer says, the next need not repeat."""
        assert self.version is not None  # noqa: S101 - with which it is compared
        known = self.version
        if known.etag and other.etag:
            return (known.nbytes, known.etag) != (other.nbytes, other.etag)
        if known.modified and other.modified and known.modified != other.modified:
            return True
        return known.nbytes != other.nbytes

    def _refuse_packed(self, answer: Answer) -> None:
        packed = answer.header("Content-Encoding").strip().lower()
        if packed not in {"", "identity"}:
            raise FileError(
                self.name,
                "this server packs what it sends, so that no part of it is one of the file",
                expected="no Content-Encoding",
                found=printable(packed[:60]),
                hint=download_hint(self.name),
            )

    def _body(self, answer: Answer, count: int) -> bytes:
        body = answer.read(count)
        if len(body) < count:
            raise AgainError(self._cut(count, len(body)))
        return body

    def _cut(self, expected: int, found: int) -> FileError:
        return FileError(
            self.name,
            "the answer breaks off before its end",
            expected=f"{expected:,} bytes",
            found=f"{found:,}",
            hint="try again later",
        )

    def _changed(self) -> FileError:
        return FileError(
            self.name,
            "it has changed meanwhile",
            expected="one version of it until all is read",
            hint="run it again",
        )
