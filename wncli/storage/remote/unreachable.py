"""What is said of a server, or of a proxy before it, that does not answer, or not to the end."""

from __future__ import annotations

import re
import socket
import ssl
from http.client import HTTPConnection, HTTPException

from wncli.errors import FileError, printable
from wncli.storage.remote import patience
from wncli.storage.remote.patience import BUSY, AgainError

_LATER = "try again later"
_WAY = "check the address, and the connection of this machine"
_PROXIES = "HTTPS_PROXY and HTTP_PROXY name it, with USER:PASSWORD@ before the host if it asks"
#: How the standard library says that a proxy leads nowhere; its status follows.
_NO_TUNNEL = "Tunnel connection failed: "


class ProxyError(OSError):
    """A proxy does not pass on a request over http, said as the library does of a tunnel."""

    def __init__(self, status: str) -> None:
        super().__init__(f"{_NO_TUNNEL}{status}")


def broken(where: str, host: str, error: Exception) -> FileError:
    """Make the refusal of an answer that breaks off."""
    host = printable(host)
    if isinstance(error, TimeoutError):
        return FileError(
            where,
            f"{host} has stopped sending",
            expected="bytes of the file",
            found=f"none, or hardly any, in {patience.PATIENCE.timeout:g} s",
            hint=_LATER,
        )
    return FileError(where, f"the connection to {host} breaks off", hint=_LATER)


def unreachable(
    where: str, host: str, port: int, connection: HTTPConnection, error: Exception
) -> FileError | AgainError:
    """Make the refusal where there is no answer of `host`, by a connection to it or to a proxy."""
    is_proxy = (connection.host, connection.port) != (host, port)
    named = f"{'the proxy ' if is_proxy else ''}{printable(connection.host)}"
    if is_proxy and str(error).startswith(_NO_TUNNEL):
        return _passed_on_nothing(where, host, named, str(error).removeprefix(_NO_TUNNEL))
    if isinstance(error, socket.gaierror):
        kind = "proxy" if is_proxy else "host"
        return FileError(
            where,
            f"there is no {kind} {printable(connection.host)}, or no way to it",
            expected="a host that this machine can reach",
            hint=_PROXIES if is_proxy else _WAY,
        )
    if isinstance(error, ssl.SSLCertVerificationError):
        return FileError(
            where,
            f"{printable(host)} does not prove who it is",
            expected="a certificate that this machine trusts",
            found=printable(error.verify_message),
            hint="SSL_CERT_FILE names a file of certificates to trust",
        )
    return AgainError(_for_now(where, named, connection.port, error, is_proxy=is_proxy))


def _for_now(where: str, named: str, port: int, error: Exception, *, is_proxy: bool) -> FileError:
    """Make the refusal of what may be otherwise the next time."""
    if isinstance(error, TimeoutError):
        found = f"nothing in {patience.PATIENCE.timeout:g} s"
        return FileError(where, f"{named} does not answer", found=found, hint=_LATER)
    if isinstance(error, HTTPException) and not isinstance(error, ConnectionError):
        return FileError(where, f"{named} does not answer as web servers do")
    if isinstance(error, ConnectionRefusedError):
        hint = _PROXIES if is_proxy else _LATER
        return FileError(where, f"{named} takes no connection at port {port}", hint=hint)
    return broken(where, named, error)


def _passed_on_nothing(where: str, host: str, named: str, found: str) -> FileError | AgainError:
    status = re.sub(r"[^ -~]", "", found)[:100]
    refusal = FileError(
        where,
        f"{named} does not pass on what is asked of {printable(host)}",
        found=status,
        hint=_PROXIES,
    )
    is_busy = status[:3] in map(str, BUSY)
    return AgainError(refusal) if is_busy else refusal
