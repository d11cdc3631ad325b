"""Addresses of all kinds: what is shown of them, kept of them, and made of them."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import wncli
from tests.support.remote_files import COMMIT, Hub, state
from tests.support.run import Ran
from tests.support.servers import Reply, Server
from wncli.storage.addresses import download_hint

pytestmark = pytest.mark.usefixtures("nothing_is_said")

RunHere = Callable[..., Ran]


@pytest.fixture
def url(server: Server, tmp_path: Path) -> str:
    torch.save(state(), tmp_path / "a.pt")
    return server.put("a.pt", tmp_path / "a.pt")


# -- secrets ------------------------------------------------------------------------------------

SECRET = [
    "s3://KEY:secret@bucket/x.pt", "gs://secret@bucket/x.pt", "hf://user:secret@owner/name/x.pt",
    "hf://owner/name/x.pt?token=secret", "https://user:123?secret@host/a", "https://u:1#secret@h/a",
    "https://us\u2100er:secret@host/a.pt", "https://[::::]/secret",
    "https://h:99999/a?secret", "https://h:0/?secret",
]  # fmt: skip


@pytest.mark.parametrize("address", SECRET)
def test_what_is_no_address_is_refused_without_its_secrets(
    address: str, wn_here: RunHere, outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for ran in (
        wn_here("inspect", address), wn_here("inspect", address, address, "--json"),
        wn_here("remove", address, outputs / "a.pt"),
    ):  # fmt: skip
        assert ran.code == 2
        assert "this is no address" in ran.stdout + ran.stderr
        assert "secret" not in (ran.stdout + ran.stderr).replace("[::::]/secret", "")


def test_the_query_of_an_object_is_not_shown(
    server: Server, wn_here: RunHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("obstore")
    server.answer = lambda _: Reply(403)
    monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", server.url)
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "name")
    monkeypatch.setenv("AZURE_SKIP_SIGNATURE", "true")
    ran = wn_here("inspect", "az://container/a.pt?sv=1&sig=secret")
    assert ran.code == 2
    assert "az://container/a.pt: the store" in ran.stderr
    assert "secret" not in ran.stderr


LOCATIONS = [
    "s3://b/k?sig=secret", "hf://a/b?secret", "mailto:secret", "data:secret", "file:///secret",
    "ftp://host:80/secret", "http://ho st/secret", "http://[secret/", "http://h:99999/?secret",
    f"http://{'a' * 80}/secret",
]  # fmt: skip


@pytest.mark.parametrize("location", LOCATIONS)
def test_a_redirect_to_what_is_no_address_is_refused_without_showing_it(
    location: str, url: str, server: Server
) -> None:
    server.answer = lambda _: Reply(302, {"Location": location})
    with pytest.raises(wncli.FileError, match="sends on to what is no address") as refused:
        wncli.inspect(url)
    assert refused.value.where == url
    assert "secret" not in str(refused.value)


def test_reports_are_copied_and_saved_without_secrets(url: str, server: Server) -> None:
    report = wncli.inspect(url.replace("://", "://user:secret@") + "?key=secret")
    assert copy.deepcopy(report).checkpoint == url
    saved = pickle.dumps(report)
    assert b"secret" not in saved
    assert pickle.loads(saved).remote == report.remote  # noqa: S301 - made above
    server.forget()
    assert copy.deepcopy(report).layers[0].g is not None
    assert all("authorization" in asked.headers for asked in server.asked)


# -- names --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "named"),
    [("a%20b.pt", "a b.pt"), ("%C3%BC.pt", "ü.pt"), ("..%2f..%2fx.pt", "x.pt"),
     ("a%0Ab%00.pt", "a_b_.pt"), ("%5c..%5cx.pt", "\\..\\x.pt")],
)  # fmt: skip
def test_a_file_gets_the_name_that_the_address_means(  # noqa: PLR0913, PLR0917 - fixtures
    typed: str, named: str, server: Server, url: str, wn_here: RunHere, outputs: Path
) -> None:
    content = server.files["/a.pt"]
    server.answer = lambda asked: server.reply_to(type(asked)("", "/a.pt", asked.headers))
    assert content
    address = f"{server.url}/{typed}?download"
    into, several, folder = (outputs / name for name in ("into", "several", "folder"))
    into.mkdir()
    assert wn_here("remove", address, into).code == 0
    assert wn_here("remove", address, url, "--output-dir", several).code == 0
    assert wn_here("remove", address, f"{folder}/").code == 0
    assert [path.name for path in into.iterdir()] == [named]
    assert {path.name for path in several.iterdir()} == {named, "a.pt"}
    assert named in {path.name for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("address", "command"),
    [
        ("hf://o/n/d/x.pt", "hf download o/n d/x.pt"),
        ("hf://o/n", "hf download o/n"),
        ("hf://datasets/o/n@v1/x.pt", "hf download o/n x.pt --repo-type dataset --revision v1"),
        ("hf://models/o/n/x.pt", "hf download o/n x.pt"),
        ("hf://o/n@refs/pr/3/d/x.pt", "hf download o/n d/x.pt --revision refs/pr/3"),
        ("hf://o/n@a%2Fb/x.pt", "hf download o/n x.pt --revision a/b"),
    ],
)
def test_what_is_on_the_hub_is_downloaded_as_its_own_command_has_it(
    address: str, command: str
) -> None:
    assert download_hint(address) == command


# -- the hub ------------------------------------------------------------------------------------


@pytest.mark.parametrize("revision", ["refs%2Fpr%2F1", "refs/pr/1", "feat%2Fx"])
def test_pages_of_revisions_with_slashes_are_read(
    revision: str, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    server.answer = lambda _: Reply(404, {"X-Error-Code": "EntryNotFound"})
    for page in ("blob", "resolve"):
        with pytest.raises(wncli.FileError):
            wncli.inspect(f"{server.url}/owner/name/{page}/{revision}/sub/g.pt")
    escaped = revision.replace("/", "%2F")
    assert {asked.path for asked in server.asked} == {
        f"/owner/name/resolve/{escaped}/sub/g.pt", f"/api/models/owner/name/revision/{escaped}",
    }  # fmt: skip


@pytest.mark.parametrize(
    "endpoint", ["user:secret@hub", "http://[secret", "ftp://secret", "https://h:secret"]
)
def test_an_endpoint_that_is_none_is_named_where_the_hub_is_meant(
    endpoint: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    with pytest.raises(wncli.FileError, match="HF_ENDPOINT is no address") as refused:
        wncli.inspect("hf://owner/name/a.pt")
    assert "secret" not in str(refused.value)
    assert wncli.inspect(url).layers


def test_hints_about_a_data_set_are_about_that(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", server.url.replace("://", "://user:secret@"))
    hints = []
    for code in ("GatedRepo", "RevisionNotFound"):
        server.answer = lambda _, code=code: Reply(403, {"X-Error-Code": code})  # type: ignore[misc]
        with pytest.raises(wncli.FileError) as refused:
            wncli.inspect("hf://datasets/owner/name/a.pt")
        assert "secret" not in str(refused.value)
        hints.append(str(refused.value.hint))
    assert hints == [
        f"agree at {server.url}/datasets/owner/name, and set HF_TOKEN",
        "wncli.inspect('hf://datasets/owner/name')",
    ]


def test_names_that_are_no_text_make_no_list(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    listed = f'{{"sha": "{COMMIT}", "siblings": [{{"rfilename": "\\ud800.pt"}}]}}'
    Hub(server, None)
    server.answer = lambda asked: Reply(200, {}, listed.encode()) if "/api/" in asked.path else None
    with pytest.raises(wncli.FileError, match="list of its files is none"):
        wncli.inspect("hf://owner/name")


def test_names_that_no_file_can_have_are_not_found(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"hf://owner/name@{COMMIT}/{'x' * 300}.pt"
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    with pytest.raises(wncli.FileError, match="no such file in this repository"):
        wncli.inspect(address)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(wncli.FileError, match="is not in the cache"):
        wncli.inspect(address)
