"""Proxies: what is asked through them, and what is said where they are in the way."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch

import wncli
from tests.support.remote_files import state
from tests.support.servers import Asked, Reply, Server, part_of
from wncli.storage.remote import patience

pytestmark = pytest.mark.usefixtures("nothing_is_said")

FAR = "http://far.invalid/a.pt"


@pytest.fixture
def proxy(server: Server, tmp_path: Path) -> Server:
    """A proxy that knows one file of one host."""
    torch.save(state(), tmp_path / "a.pt")

    def answer(asked: Asked) -> Reply | None:
        return part_of(tmp_path / "a.pt", asked) if asked.path.startswith(FAR[:18]) else Reply(404)

    server.answer = answer
    return server


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_a_proxy_is_asked_with_its_own_password(
    name: str, proxy: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(name, proxy.url.replace("://", "://user:secret@"))
    assert wncli.inspect(FAR).layers == wncli.inspect(tmp_path / "a.pt").layers
    assert all("proxy-authorization" in asked.headers for asked in proxy.asked)
    monkeypatch.setenv("NO_PROXY", "far.invalid")
    with pytest.raises(wncli.FileError, match=r"there is no host far\.invalid"):
        wncli.inspect(FAR)


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize(
    "named",
    ["socks5h://secret:secret@127.0.0.1:1", "https://127.0.0.1:1", "http://secret:x@h:secret",
     "http://[secret", "http://sec ret/"],
)  # fmt: skip
def test_a_proxy_that_cannot_be_used_is_never_passed_by(
    named: str, scheme: str, server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    torch.save(state(), tmp_path / "a.pt")
    url = server.put("a.pt", tmp_path / "a.pt").replace("http", scheme, 1)
    monkeypatch.setenv(f"{scheme}_proxy", named)
    with pytest.raises(wncli.FileError, match="the proxy that the environment names") as refused:
        wncli.inspect(url)
    assert "sec" not in str(refused.value)
    assert not server.asked
    if scheme == "http":
        name, _, value = refused.value.hint.split()[0].partition("=")
        monkeypatch.setenv(name, value)
        assert wncli.inspect(url).layers


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_what_a_proxy_does_not_pass_on_is_said_of_it(
    scheme: str, proxy: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy.answer = lambda _: Reply(407)
    proxy.change = lambda _, reply: reply
    monkeypatch.setenv(f"{scheme}_proxy", proxy.url)
    with pytest.raises(
        wncli.FileError, match=r"the proxy 127\.0\.0\.1 does not pass on"
    ) as refused:
        wncli.inspect(FAR.replace("http", scheme))
    # Which answers CONNECT as servers do that are no proxy.
    assert refused.value.found.startswith("407" if scheme == "http" else "501")
    assert "HTTPS_PROXY" in refused.value.hint


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_is_not_there_is_named_and_not_the_host(
    scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "PATIENCE", patience.PATIENCE._replace(retries=1))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    for host, said in (
        ("127.0.0.1", f"the proxy 127.0.0.1 takes no connection at port {port}"),
        ("nowhere.invalid", "there is no proxy nowhere.invalid"),
    ):
        monkeypatch.setenv(f"{scheme}_proxy", f"http://{host}:{port}")
        with pytest.raises(wncli.FileError, match=said):
            wncli.inspect(FAR.replace("http", scheme))
