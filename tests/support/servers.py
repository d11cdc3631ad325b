"""Web servers on this machine that count what is asked of them, and misbehave on request."""

from __future__ import annotations

import hashlib
import re
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote


@dataclass
class Reply:
    """What a server says; `send` is how much of the body is sent, None for all."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | memoryview = b""
    send: int | None = None
    pause: float = 0.0
    hangs_up: bool = False


@dataclass(frozen=True)
class Asked:
    """One request."""

    host: str
    path: str
    headers: Mapping[str, str]
    sent: int = 0

    @property
    def range(self) -> tuple[int, int] | None:
        """The first byte, and the last."""
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("range", ""))
        return (int(found[1]), int(found[2])) if found else None


class Server(ThreadingHTTPServer):
    """Serves files by ranges, each by its path; counts requests and bytes.

    `change` may change any reply, or make another: it gets the request and the usual reply.
    """

    daemon_threads = True
    block_on_close = False  # a handler may be waiting for who has gone
    request_queue_size = 64

    def __init__(self, host: str = "127.0.0.1", *, delay: float = 0.0) -> None:
        super().__init__((host, 0), _Handler)
        self.files: dict[str, bytes | Path] = {}
        self.asked: list[Asked] = []
        self.delay = delay
        self.change: Callable[[Asked, Reply], Reply] = lambda _, reply: reply
        self.answer: Callable[[Asked], Reply | None] = lambda _: None
        self.lock = threading.Lock()
        self.scheme = "http"

    @property
    def url(self) -> str:
        """The address of the top, without a slash at its end."""
        return f"{self.scheme}://{self.server_address[0]!s}:{self.server_port}"

    def put(self, name: str, content: bytes | Path) -> str:
        """Serve a file, and return its address."""
        self.files[f"/{name}"] = content
        return f"{self.url}/{name}"

    @property
    def requests(self) -> int:
        return len(self.asked)

    @property
    def sent(self) -> int:
        return sum(asked.sent for asked in self.asked)

    def forget(self) -> None:
        """Count from nought."""
        self.asked.clear()

    def reply_to(self, asked: Asked) -> Reply:
        """Return a file, or the part of it that is asked for."""
        content = self.files.get(unquote(asked.path.partition("?")[0]))
        if content is None:
            return Reply(404)
        return part_of(content, asked)

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: who asked has gone, as tests have it."""


def part_of(content: bytes | Path, asked: Asked) -> Reply:
    """Return the part of a file that is asked for, as RFC 9110 has it."""
    nbytes = content.stat().st_size if isinstance(content, Path) else len(content)
    etag = etag_of(content)
    headers = {"ETag": etag, "Accept-Ranges": "bytes"}
    wanted = asked.headers.get("if-match")
    if wanted is not None and wanted != etag:
        return Reply(412, headers)
    if asked.range is None:
        return Reply(200, headers, _read(content, 0, nbytes))
    begin, last = asked.range
    last = min(last, nbytes - 1)
    if begin > last:
        return Reply(416, headers | {"Content-Range": f"bytes */{nbytes}"})
    headers["Content-Range"] = f"bytes {begin}-{last}/{nbytes}"
    return Reply(206, headers, _read(content, begin, last - begin + 1))


def etag_of(content: bytes | Path) -> str:
    if isinstance(content, Path):
        return f'"{content.stat().st_mtime_ns:x}-{content.stat().st_size:x}"'
    return f'"{hashlib.sha256(content).hexdigest()[:20]}"'


def _read(content: bytes | Path, begin: int, count: int) -> bytes:
    if isinstance(content, bytes):
        return content[begin : begin + count]
    with content.open("rb") as file:
        file.seek(begin)
        return file.read(count)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server
    timeout = 20
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self._serve(has_body=True)

    def do_HEAD(self) -> None:
        self._serve(has_body=False)

    def _serve(self, *, has_body: bool) -> None:
        server = self.server
        headers = {name.lower(): value for name, value in self.headers.items()}
        asked = Asked(self.headers.get("Host", ""), self.path, headers)
        if server.delay:
            time.sleep(server.delay)
        reply = server.answer(asked) or server.reply_to(asked)
        reply = server.change(asked, reply)
        sent = len(reply.body) if reply.send is None else reply.send
        with server.lock:
            server.asked.append(Asked(asked.host, asked.path, headers, sent if has_body else 0))
        self.send_response(reply.status)
        lengths = {name.lower() for name in reply.headers}
        if not lengths & {"content-length", "transfer-encoding"}:
            self.send_header("Content-Length", str(len(reply.body)))
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.end_headers()
        if not has_body:
            return
        self.wfile.write(reply.body[:sent])
        if reply.pause:
            self.wfile.flush()
            time.sleep(reply.pause)
        if sent < len(reply.body) or reply.hangs_up:
            self.close_connection = True


@contextmanager
def serving(
    host: str = "127.0.0.1", *, delay: float = 0.0, tls: tuple[Path, Path] | None = None
) -> Iterator[Server]:
    """Run a server; `tls` are the files of a certificate and its key."""
    with Server(host, delay=delay) as server:
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)
            server.socket = context.wrap_socket(server.socket, server_side=True)
            server.scheme = "https"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
