"""Object stores: S3 as it is spoken to on this machine, and what is made of each address."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import pytest
import torch

import wncli
from tests.support.remote_files import FORMATS, shards, state
from tests.support.run import Ran
from tests.support.servers import Asked, Reply, Server, etag_of, part_of
from wncli.storage.remote.object_store import _apart
from wncli.storage.remote.patience import Stop

pytestmark = pytest.mark.usefixtures("nothing_is_said")

RunHere = Callable[..., Ran]
_XML = {"Content-Type": "application/xml"}
_DATE = "2024-01-01T00:00:00.000Z"


class Bucket:
    """Answers as a bucket of S3 does that is named in the path: objects by ranges, and lists."""

    def __init__(self, server: Server, name: str) -> None:
        self.server = server
        self.name = name
        self.objects: dict[str, bytes | Path] = {}
        server.answer = self.answer

    def answer(self, asked: Asked) -> Reply:
        parts = urlsplit(asked.path)
        bucket, _, key = unquote(parts.path).strip("/").partition("/")
        if bucket != self.name:
            return self._error(404, "NoSuchBucket")
        if not asked.headers.get("authorization", "").startswith("AWS4-HMAC-SHA256"):
            return self._error(403, "AccessDenied")
        query = parse_qs(parts.query)
        if "list-type" in query:
            return self._list(query.get("prefix", [""])[0])
        content = self.objects.get(key)
        if content is None:
            return self._error(404, "NoSuchKey")
        reply = part_of(content, asked)
        reply.headers["Last-Modified"] = "Mon, 01 Jan 2024 00:00:00 GMT"
        return reply

    def _list(self, prefix: str) -> Reply:
        keys = [key for key in self.objects if key.startswith(prefix)]
        inside = [key for key in keys if "/" not in key.removeprefix(prefix)]
        folders = {prefix + key.removeprefix(prefix).split("/")[0] + "/"
                   for key in keys if key not in inside}  # fmt: skip
        listed = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>1</Size><LastModified>{_DATE}</LastModified>"
            f"<ETag>{escape(etag_of(self.objects[key]))}</ETag></Contents>"
            for key in inside
        )
        listed += "".join(
            f"<CommonPrefixes><Prefix>{escape(one)}</Prefix></CommonPrefixes>"
            for one in sorted(folders)
        )
        text = f"<ListBucketResult><IsTruncated>false</IsTruncated>{listed}</ListBucketResult>"
        return Reply(200, _XML, text.encode())

    @staticmethod
    def _error(status: int, code: str) -> Reply:
        text = f"<Error><Code>{code}</Code><AWSAccessKeyId>AKSECRET</AWSAccessKeyId></Error>"
        return Reply(status, _XML, text.encode())


@pytest.fixture
def bucket(server: Server, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKSECRET")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    return Bucket(server, "bucket")


@pytest.mark.parametrize("name", ["zip.pt", "model.safetensors", "legacy.pt", "stored.npz"])
def test_an_object_is_read_as_the_file_here(
    name: str, bucket: Bucket, tmp_path: Path, outputs: Path
) -> None:
    FORMATS[name](tmp_path / name)
    bucket.objects[f"some/{name}"] = tmp_path / name
    address = f"s3://bucket/some/{name}"
    report = wncli.inspect(address)
    assert report.layers == wncli.inspect(tmp_path / name).layers
    if name != "stored.npz":
        assert bucket.server.requests <= (2 if name == "zip.pt" else 1)
    assert report.remote is not None
    assert report.remote.requests == bucket.server.requests
    for given, output in ((address, outputs / "a.npz"), (tmp_path / name, outputs / "b.npz")):
        wncli.convert(given, output, flatten=True)
    assert (outputs / "a.npz").read_bytes() == (outputs / "b.npz").read_bytes()


def test_all_below_a_prefix_is_a_folder(bucket: Bucket, tmp_path: Path, outputs: Path) -> None:
    made = shards(tmp_path / "sharded")
    for path in made.iterdir():
        bucket.objects[f"models/vocoder/{path.name}"] = path
    for address in ("s3://bucket/models/vocoder", "s3://bucket/models/vocoder/",
                    "s3://bucket/models/vocoder/model.safetensors.index.json"):  # fmt: skip
        assert len(wncli.inspect(address).checkpoint_files) > 2
    wncli.remove("s3://bucket/models/vocoder/", outputs / "there")
    wncli.remove(made, outputs / "here")
    there, here = (
        {path.name: path.read_bytes() for path in (outputs / name).iterdir()}
        for name in ("there", "here")
    )
    assert there == here


def test_what_a_store_refuses_is_named_without_its_secrets(
    bucket: Bucket, tmp_path: Path, outputs: Path, wn_here: RunHere,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    torch.save(state(), tmp_path / "a.pt")
    bucket.objects["some/g_1.pt"] = tmp_path / "a.pt"
    ran = wn_here("remove", "s3://bucket/some/g_2.pt", outputs / "a.pt")
    assert "no such file" in ran.stderr
    assert "s3://bucket/some/g_1.pt" in ran.stderr
    bucket.server.answer = lambda _: Bucket._error(403, "AccessDenied")
    ran = wn_here("remove", "s3://bucket/some/g_1.pt", outputs / "a.pt")
    assert "does not let it be read" in ran.stderr
    assert "who AWS_ACCESS_KEY_ID says" in ran.stderr
    assert "AKSECRET" not in ran.stderr
    bucket.server.answer = lambda _: Bucket._error(503, "SlowDown")
    ran = wn_here("remove", "s3://bucket/some/g_1.pt", outputs / "a.pt")
    assert ran.code == 2
    assert "status 503" in ran.stderr
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    ran = wn_here("remove", "s3://bucket/some/g_1.pt", outputs / "a.pt")
    assert "the store does not give it" in ran.stderr
    assert not list(outputs.iterdir())


def test_an_object_that_changes_or_is_cut_is_refused(
    bucket: Bucket, tmp_path: Path, outputs: Path
) -> None:
    torch.save(state(), tmp_path / "a.pt")
    bucket.objects["a.pt"] = tmp_path / "a.pt"
    torch.save(state(4), tmp_path / "b.pt")

    def change(asked: Asked, reply: Reply) -> Reply:
        bucket.objects["a.pt"] = tmp_path / "b.pt"
        assert asked.range
        return reply

    bucket.server.change = change
    with pytest.raises(wncli.FileError, match="has changed meanwhile"):
        wncli.remove("s3://bucket/a.pt", outputs / "a.pt")
    assert bucket.server.asked[-1].headers["if-match"]
    assert not list(outputs.iterdir())


def test_without_obstore_it_is_named(
    monkeypatch: pytest.MonkeyPatch, wn_here: RunHere, server: Server, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    for scheme in ("s3", "gs", "az"):
        ran = wn_here("inspect", f"{scheme}://bucket/a.pt")
        assert ran.code == 2
        assert "pip install 'wncli[remote]'" in ran.stderr
    torch.save(state(), tmp_path / "a.pt")  # of the web nothing else is needed
    assert wn_here("inspect", server.put("a.pt", tmp_path / "a.pt")).code == 0


def test_googles_store_is_asked_for_the_bucket_and_the_object(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    torch.save(state(), tmp_path / "a.pt")
    monkeypatch.setenv("GOOGLE_BASE_URL", server.url)
    monkeypatch.setenv("GOOGLE_SKIP_SIGNATURE", "true")
    server.answer = lambda asked: dated(tmp_path / "a.pt", asked, "/bucket/some/a.pt")
    assert wncli.inspect("gs://bucket/some/a.pt").layers
    assert server.requests == 2


def test_microsofts_store_is_asked_for_the_container_and_the_object(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    torch.save(state(), tmp_path / "a.pt")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "c2VjcmV0")
    monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", server.url)
    server.answer = lambda asked: dated(tmp_path / "a.pt", asked, "/container/some/a.pt")
    assert wncli.inspect("az://container/some/a.pt").layers
    assert server.requests == 2


def dated(file: Path, asked: Asked, path: str) -> Reply:
    if unquote(asked.path.partition("?")[0]) != path:
        return Reply(404)
    reply = part_of(file, asked)
    reply.headers["Last-Modified"] = "Mon, 01 Jan 2024 00:00:00 GMT"
    return reply


def test_an_interruption_does_not_wait_for_rust() -> None:
    stop = Stop(lambda: None)
    ended = threading.Event()
    threading.Timer(0.2, stop).start()
    answers: list[Any] = []
    with pytest.raises(wncli.FileError, match="was ended"):
        answers.append(_apart(ended.wait, stop))
    ended.set()
    stop.close()
    assert not answers


@pytest.mark.parametrize("key", ["a//g.pt", "../g.pt", "./g.pt", "a/.."])
def test_keys_that_no_object_can_have_are_refused(key: str, bucket: Bucket) -> None:
    with pytest.raises(wncli.FileError, match="no object can have this key") as refused:
        wncli.inspect(f"s3://bucket/{key}")
    assert refused.value.where == f"s3://bucket/{key}"
    assert not bucket.server.asked


def test_an_answer_without_end_is_not_waited_for(bucket: Bucket, tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "a.pt")
    bucket.objects["a.pt"] = tmp_path / "a.pt"

    def longer(_: Asked, reply: Reply) -> Reply:
        headers = reply.headers | {"Content-Length": str(1 << 40)}
        return Reply(reply.status, headers, bytes(8 << 20), pause=20)

    bucket.server.change = longer
    with pytest.raises(wncli.FileError, match="sends more of the object"):
        wncli.inspect("s3://bucket/a.pt")
    assert bucket.server.requests == 1


@pytest.mark.parametrize(
    ("scheme", "name", "value"),
    [
        ("az", "AZURE_STORAGE_ENDPOINT", "ht tp://user:secret@host"),
        ("gs", "GOOGLE_SERVICE_ACCOUNT_KEY", '"secret"'),
        ("s3", "AWS_SKIP_SIGNATURE", "secret"),
    ],
)
def test_what_the_environment_says_is_not_shown(
    scheme: str, name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "name")
    monkeypatch.setenv(name, value)
    with pytest.raises(wncli.FileError, match="does not say how") as refused:
        wncli.inspect(f"{scheme}://bucket/a.pt")
    assert "secret" not in str(refused.value).replace("SECRET", "")
