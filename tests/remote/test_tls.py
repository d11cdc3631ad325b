"""Over https: who a server is, and that nothing secret leaves it for http."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import wncli
from tests.support.remote_files import state
from tests.support.servers import Reply, Server, serving

pytestmark = pytest.mark.usefixtures("nothing_is_said")

CONFIG = """
[req]
distinguished_name = name
x509_extensions = extensions
prompt = no
[name]
CN = 127.0.0.1
[extensions]
subjectAltName = IP:127.0.0.1, IP:127.0.0.2
basicConstraints = CA:TRUE
"""


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate that nobody has signed, and its key."""
    if not shutil.which("openssl"):
        pytest.skip("openssl makes the certificate")
    folder = tmp_path_factory.mktemp("tls")
    (folder / "made.conf").write_text(CONFIG)
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-days", "2", "-keyout", "key.pem", "-out", "cert.pem", "-config", "made.conf"],
        cwd=folder, check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    return folder / "cert.pem", folder / "key.pem"


@pytest.fixture
def secure(certificate: tuple[Path, Path], tmp_path: Path) -> Iterator[Server]:
    torch.save(state(), tmp_path / "a.pt")
    with serving(tls=certificate) as server:
        server.put("a.pt", tmp_path / "a.pt")
        yield server


def test_a_server_that_proves_who_it_is_is_read(
    secure: Server, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path, outputs: Path,
) -> None:  # fmt: skip
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    wncli.remove(f"{secure.url}/a.pt", outputs / "b.pt")
    assert wncli.compare(outputs / "b.pt", tmp_path / "a.pt").equal


def test_a_server_that_does_not_is_refused(secure: Server) -> None:
    with pytest.raises(wncli.FileError, match="does not prove who it is") as refused:
        wncli.inspect(f"{secure.url}/a.pt")
    assert "SSL_CERT_FILE" in refused.value.hint
    assert not secure.asked


def test_no_secret_goes_from_https_to_http(
    secure: Server, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    with serving() as plain:
        plain.put("a.pt", tmp_path / "a.pt")
        secure.answer = lambda _: Reply(302, {"Location": f"{plain.url}/a.pt"})
        given = f"{secure.url}/a.pt".replace("://", "://user:secret@")
        assert wncli.inspect(given).layers
        assert "authorization" in secure.asked[0].headers
        assert plain.asked
        assert not any("authorization" in asked.headers for asked in plain.asked)
