"""Web servers: connections that are kept, one request at a time, and redirects.

Why this is not the HTTP store of obstore, which moves the bytes of object stores: it does not show
what a redirect says (the commit of a model on the Hub, and the link that later parts can come
from), takes a query for a part of the path, and gives back fewer bytes than it was promised. And
why not httpx: it takes 200 ms to import, http.client 60.
"""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import threading
from collections.abc import Callable, Mapping
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from time import monotonic
from typing import NamedTuple
from urllib.parse import quote, urljoin, urlsplit

import wncli
from wncli.errors import FileError
from wncli.storage.addresses import Meter, shown_address
from wncli.storage.remote import patience
from wncli.storage.remote.patience import AgainError, Stop
from wncli.storage.remote.proxies import Proxy, proxy_for
from wncli.storage.remote.unreachable import ProxyError, broken, unreachable

_MOST_REDIRECTS = 10
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
#: Bytes of an answer without use that are read so that its connection can be kept.
_LEFT = 8 << 10
#: Bytes that are taken from a connection at a time.
_STEP = 256 << 10
#: A host as it is asked for, in ASCII by now.
_HOST = re.compile(r"[A-Za-z0-9._:-]+")
#: What stays as it is in a path and in a query, escapes among them.
_SAFE = "%/:=&?~#+!$,;'@()*[]"


class Url(NamedTuple):
    """An address of the web, taken apart; `target` is the path and the query."""

    scheme: str
    host: str
    port: int
    target: str

    @property
    def origin(self) -> tuple[str, str, int]:
        """Whom a secret can be for."""
        return self.scheme, self.host, self.port

    @classmethod
    def parse(cls, text: str) -> Url:
        """Take an address apart.

        Raises:
            FileError: it is none.
        """
        try:
            parts = urlsplit(text)
            host = (parts.hostname or "").encode("idna" if parts.hostname else "ascii").decode()
            usual = {"https": 443, "http": 80}[parts.scheme]
            port = usual if parts.port is None else parts.port
        except (ValueError, KeyError):
            host, port = "", 0
        if not (_HOST.fullmatch(host) and port):
            raise FileError(shown_address(text), "this is no address", expected="https://HOST/PATH")
        target = quote(parts.path or "/", safe=_SAFE)
        if parts.query:
            target += f"?{quote(parts.query, safe=_SAFE)}"
        return cls(parts.scheme, host, port, target)

    def join(self, location: str) -> Url:
        """Return what a redirect from here leads to.

        Raises:
            ValueError: no address of the web; its text may have a secret in it.
        """
        with contextlib.suppress(UnicodeError):  # headers are read as Latin-1, and sent as UTF-8
            location = location.encode("latin-1").decode()
        try:
            return Url.parse(urljoin(f"{self.scheme}://{self.authority}{self.target}", location))
        except FileError:
            raise ValueError from None

    @property
    def authority(self) -> str:
        """The host and the port."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


class _Proxied(HTTPConnection):
    """A connection to what passes requests on."""

    def __init__(self, proxy: Proxy, timeout: float) -> None:
        super().__init__(proxy.host, proxy.port, timeout=timeout)
        self.headers = proxy.headers


class Answer:
    """What a server says, and the bytes that follow; to be closed."""

    def __init__(self, web: Web, url: Url, connection: HTTPConnection, found: HTTPResponse) -> None:
        self.web = web
        self.url = url
        self.connection = connection
        self.found = found
        self.status = found.status
        self.headers = found.headers
        self.begin = monotonic()
        self.done = 0
        self.is_broken = False

    def header(self, name: str) -> str:
        """Return a header; empty where there is none."""
        return str(self.headers.get(name, ""))

    def read_into(self, buffer: memoryview) -> int:
        """Fill as much of `buffer` as comes, and count it.

        Raises:
            AgainError: the connection breaks, or nothing comes for too long.
        """
        filled = 0
        try:
            while filled < len(buffer):
                # What has come, and not as much as fits: else who sends little is never noticed.
                part = self.found.read1(min(len(buffer) - filled, _STEP))
                if not part:
                    self.is_broken = True
                    break
                buffer[filled : filled + len(part)] = part
                filled += len(part)
                self.done += len(part)
                self._refuse_slowness()
        except (OSError, HTTPException) as error:
            self.is_broken = True
            raise AgainError(self.web.broken(self.url, error)) from None
        finally:
            self.web.meter.count(nbytes=filled)
        return filled

    def read(self, most: int) -> bytes:
        """Return all that follows, and no more than `most` bytes.

        Raises:
            AgainError: as `read_into`.
        """
        found = bytearray()
        while len(found) < most:  # memory follows what comes, not what may
            buffer = bytearray(min(most - len(found), _STEP))
            count = self.read_into(memoryview(buffer))
            found += buffer[:count]
            if count < len(buffer):
                break
        return bytes(found)

    def _refuse_slowness(self) -> None:
        seconds = monotonic() - self.begin
        known = patience.PATIENCE
        if seconds > known.timeout and self.done < known.slowest * (seconds - known.timeout):
            raise TimeoutError

    def close(self) -> None:
        """Keep the connection if nothing is left in it, else close it."""
        found = self.found
        if not self.is_broken and found.length is not None and 0 < found.length <= _LEFT:
            with contextlib.suppress(AgainError):
                self.read(found.length)
        is_reusable = (found.isclosed() or found.length == 0) and not found.will_close
        found.close()
        self.web.put_back(self.url, self.connection, is_reusable=is_reusable)


class Web:
    """The connections of one command to web servers.

    Args:
        where: what to call in refusals what is read.
        meter: counts requests and bytes.
    """

    def __init__(self, where: str, meter: Meter) -> None:
        self.where = where
        self.meter = meter
        self.idle: dict[tuple[str, str, int], list[HTTPConnection]] = {}
        self.busy: set[HTTPConnection] = set()
        self.lock = threading.Lock()
        self.stop = Stop(self._wake)
        self.context: ssl.SSLContext | None = None

    @property
    def is_stopped(self) -> bool:
        """Whether something else has failed."""
        return self.stop.event.is_set()

    def follow(
        self,
        url: Url,
        headers: Mapping[str, str],
        secret: str,
        seen: Callable[[Answer], None] = lambda _: None,
    ) -> tuple[Answer, list[Answer]]:
        """Ask for `url`, and go where that leads.

        Args:
            url: where to begin.
            headers: what to say.
            secret: what to say about who asks; to the first host alone, in the way it was named:
                not to another port of it, and not over http where it was https.
            seen: called with every answer on the way.

        Returns:
            The answer, which is to be closed, and the redirects before it, which are.

        Raises:
            AgainError: there is no answer, which may be otherwise the next time.
            FileError: it leads in a circle, or nowhere.
        """
        first, passed = url.origin, list[Answer]()
        while True:
            own = {"Authorization": secret} if secret and url.origin == first else {}
            answer = self.ask(url, {**headers, **own})
            try:
                seen(answer)
            except BaseException:
                answer.close()
                raise
            location = answer.header("Location")
            if answer.status not in _REDIRECTS or not location:
                return answer, passed
            answer.close()
            passed.append(answer)
            if len(passed) > _MOST_REDIRECTS:
                raise FileError(self.where, "the server sends from one address to the next")
            try:
                url = url.join(location)
            except ValueError:
                problem = "the server sends on to what is no address of the web"
                raise FileError(self.where, problem, expected="https://HOST/PATH") from None

    def ask(self, url: Url, headers: Mapping[str, str]) -> Answer:
        """Make one request.

        Raises:
            AgainError: there is no answer, which may be otherwise the next time.
            FileError: there is no such host, or it is not who it should be.
        """
        while True:
            connection, is_kept = self._connection(url)
            self.meter.count(requests=1)
            try:
                target, more = url.target, dict[str, str]()
                if isinstance(connection, _Proxied):
                    target, more = f"http://{url.authority}{target}", connection.headers
                connection.request("GET", target, headers={**_ALWAYS, **headers, **more})
                found = connection.getresponse()
                if found.status == _PROXY_ASKS and isinstance(connection, _Proxied):
                    raise ProxyError(f"{found.status} {found.reason}")  # noqa: TRY301
                return Answer(self, url, connection, found)
            except (OSError, HTTPException) as error:
                self.put_back(url, connection, is_reusable=False)
                if is_kept and not self.is_stopped and not isinstance(error, TimeoutError):
                    continue  # the server has closed it meanwhile, which costs nothing
                raise unreachable(self.where, url.host, url.port, connection, error) from None
            except BaseException:
                self.put_back(url, connection, is_reusable=False)
                raise

    def put_back(self, url: Url, connection: HTTPConnection, *, is_reusable: bool) -> None:
        """Keep a connection for the next request, or close it."""
        with self.lock:
            self.busy.discard(connection)
            if is_reusable and not self.is_stopped:
                self.idle.setdefault(url.origin, []).append(connection)
                return
        connection.close()

    def broken(self, url: Url, error: Exception) -> FileError:
        """Make the refusal of an answer that breaks off."""
        return broken(self.where, url.host, error)

    def _connection(self, url: Url) -> tuple[HTTPConnection, bool]:
        """Return a connection, and whether it has been used before."""
        with self.lock:
            kept = self.idle.get(url.origin)
            connection = kept.pop() if kept else None
            if connection is not None:
                self.busy.add(connection)
                return connection, True
        connection = self._new(url)
        with self.lock:
            self.busy.add(connection)
        return connection, False

    def _new(self, url: Url) -> HTTPConnection:
        timeout = patience.PATIENCE.timeout
        proxy = proxy_for(self.where, url.scheme, url.host, url.port)
        host, port = (proxy.host, proxy.port) if proxy else (url.host, url.port)
        if url.scheme == "http":
            if proxy:
                return _Proxied(proxy, timeout)
            return HTTPConnection(host, port, timeout=timeout)
        if self.context is None:
            self.context = ssl.create_default_context()
        secure = HTTPSConnection(host, port, timeout=timeout, context=self.context)
        if proxy:
            secure.set_tunnel(url.host, url.port, headers=proxy.headers)
        return secure

    def _wake(self) -> None:
        """Have no thread wait for a server any more."""
        with self.lock:
            busy = list(self.busy)
        for connection in busy:
            with contextlib.suppress(OSError, AttributeError):
                connection.sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close all connections, those too that something is awaited from."""
        self.stop.event.set()
        self.stop.close()
        self._wake()
        with self.lock:
            kept = [connection for found in self.idle.values() for connection in found]
            kept += self.busy
            self.idle.clear()
        for connection in kept:
            connection.close()


_PROXY_ASKS = 407
_ALWAYS = {"Accept-Encoding": "identity", "User-Agent": f"wncli/{wncli.__version__}"}
