"""The proxies that the environment, or the system, names for web servers."""

from __future__ import annotations

import base64
import os
import sys
from typing import NamedTuple
from urllib.parse import unquote, urlsplit


class Proxy(NamedTuple):
    """A machine that passes requests on, and what it wants to be told."""

    host: str
    port: int
    headers: dict[str, str]


def proxy_for(scheme: str, host: str, port: int) -> Proxy | None:
    """Return the proxy for a host; None where it is asked directly."""
    names = {name.lower() for name in os.environ}
    if sys.platform not in {"darwin", "win32"} and not names & {f"{scheme}_proxy", "all_proxy"}:
        return None
    from urllib.request import getproxies, proxy_bypass

    proxies = getproxies()
    named = proxies.get(scheme) or proxies.get("all")
    if not named or proxy_bypass(f"{host}:{port}"):
        return None
    parts = urlsplit(named if "://" in named else f"http://{named}")
    if parts.scheme != "http":  # SOCKS is another protocol
        return None
    headers = {}
    if parts.username is not None:
        user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["Proxy-Authorization"] = f"Basic {base64.b64encode(user.encode()).decode()}"
    return Proxy(parts.hostname or "", parts.port or 80, headers) if parts.hostname else None
