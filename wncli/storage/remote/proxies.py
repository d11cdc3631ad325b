"""The proxies that the environment, or the system, names for web servers."""

from __future__ import annotations

import base64
import os
import re
import sys
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from wncli.errors import FileError, printable


class Proxy(NamedTuple):
    """A machine that passes requests on, and what it wants to be told."""

    host: str
    port: int
    headers: dict[str, str]


_HOST = re.compile(r"[A-Za-z0-9._:-]+")


def proxy_for(where: str, scheme: str, host: str, port: int) -> Proxy | None:
    """Return the proxy for a host; None where it is asked directly.

    Raises:
        FileError: one is named that cannot be used, which is not passed by.
    """
    names = {name.lower() for name in os.environ}
    if sys.platform not in {"darwin", "win32"} and not names & {f"{scheme}_proxy", "all_proxy"}:
        return None
    from urllib.request import getproxies, proxy_bypass

    proxies = getproxies()
    named = proxies.get(scheme) or proxies.get("all")
    if not named or proxy_bypass(f"{host}:{port}"):
        return None
    try:
        parts = urlsplit(named if "://" in named else f"http://{named}")
        place, number = parts.hostname or "", parts.port or 80
    except ValueError:
        parts, place, number = urlsplit("http:"), "", 0
    if parts.scheme != "http" or not _HOST.fullmatch(place):
        raise FileError(
            where,
            f"the proxy that the environment names for {scheme} is of no kind that can be used",
            expected="http://HOST:PORT",
            found=printable(f"{parts.scheme}://") if place else "no address",
            hint=f"NO_PROXY={host} asks it directly",
        )
    headers = {}
    if parts.username is not None:
        user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["Proxy-Authorization"] = f"Basic {base64.b64encode(user.encode()).decode()}"
    return Proxy(place, number, headers)
