"""Servers on this machine, and an environment that says nothing of others."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.servers import Server, serving
from wncli.storage.remote import patience

_SAID = ("HF_", "HUGGING", "TRANSFORMERS_OFFLINE", "AWS_", "GOOGLE_", "AZURE_", "SSL_CERT", "XDG_C")


@pytest.fixture(autouse=True)
def nothing_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """No token, cache or proxy of who runs the tests; and little patience."""
    for name in os.environ:
        if name.startswith(_SAID) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hf")))
    brief = patience.Patience(first=0.01, longest=0.02, timeout=1.0)
    monkeypatch.setattr(patience, "PATIENCE", brief)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture
def other() -> Iterator[Server]:
    """Another host, to which no secret may go."""
    with serving("127.0.0.2") as server:
        yield server
        for asked in server.asked:
            assert "authorization" not in asked.headers
            assert "cookie" not in asked.headers


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A place for outputs."""
    made = tmp_path / "out"
    made.mkdir()
    return made
