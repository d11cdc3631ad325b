"""Servers that fail, lie, stall or send elsewhere: one message, and nothing is written."""

from __future__ import annotations

import io
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import wncli
from tests.support.remote_files import FORMATS, state
from tests.support.run import Ran, environment
from tests.support.servers import Asked, Reply, Server, serving
from wncli.storage.remote import patience
from wncli.storage.remote.ranges import PIECE, WINDOW
from wncli.storage.remote.source import Parts

pytestmark = pytest.mark.usefixtures("nothing_is_said")

RunHere = Callable[..., Ran]
Change = Callable[[Asked, Reply], Reply]


@pytest.fixture
def url(server: Server, tmp_path: Path) -> str:
    torch.save(state(), tmp_path / "a.pt")
    return server.put("a.pt", tmp_path / "a.pt")


def refused(url: str, outputs: Path) -> wncli.WnError:
    """What is said of it, by all commands alike; nothing is written."""
    with pytest.raises(wncli.WnError) as caught:
        wncli.remove(url, outputs / "b.pt")
    assert not list(outputs.iterdir())
    return caught.value


def header(**changed: str) -> Change:
    """Answers to the second request and those after it that say something else."""
    names = {name.replace("_", "-"): value for name, value in changed.items()}
    return lambda _, reply: replace(reply, headers=reply.headers | names)


def after(count: int, change: Change) -> Change:
    """The same once so many requests have been answered as they should be."""
    seen: list[Asked] = []

    def changed(asked: Asked, reply: Reply) -> Reply:
        seen.append(asked)
        return change(asked, reply) if len(seen) > count else reply

    return changed


# -- what passes --------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_server_that_is_busy_is_asked_again(
    status: int, url: str, server: Server, tmp_path: Path, outputs: Path
) -> None:
    failing = [2, 0, 2, 1, 2, 0, 2]

    def change(_: Asked, reply: Reply) -> Reply:
        if failing and failing[0]:
            failing[0] -= 1
            return Reply(status, {"Retry-After": "0"}, b"busy")
        if failing:
            failing.pop(0)
        return reply

    server.change = change
    wncli.remove(url, outputs / "b.pt")
    assert wncli.compare(outputs / "b.pt", tmp_path / "a.pt").equal


def test_what_is_cut_goes_on_where_it_ended(
    url: str, server: Server, tmp_path: Path, outputs: Path
) -> None:
    def change(_: Asked, reply: Reply) -> Reply:
        is_odd = len(server.asked) % 2 == 0
        return replace(reply, send=len(reply.body) // 2) if is_odd else reply

    server.change = change
    wncli.remove(url, outputs / "b.pt")
    assert wncli.compare(outputs / "b.pt", tmp_path / "a.pt").equal
    # Each part that was cut is asked for from its middle on, but for the first of all.
    assert server.sent < 1.2 * (tmp_path / "a.pt").stat().st_size + (128 << 10)


def test_a_connection_that_the_server_has_closed_meanwhile_is_made_anew(
    url: str, server: Server, outputs: Path
) -> None:
    server.change = header(Connection="close")
    wncli.remove(url, outputs / "b.pt")
    (outputs / "b.pt").unlink()
    # As a server does that says nothing of it: what is asked next finds it closed.
    server.change = lambda _, reply: replace(reply, hangs_up=True)
    wncli.remove(url, outputs / "b.pt")


def test_a_small_file_of_a_server_without_ranges_is_read_all_the_same(server: Server) -> None:
    content = io.BytesIO()
    torch.save({"a.weight": torch.ones(2, 2)}, content)
    url = server.put("small.pt", content.getvalue())
    server.answer = lambda _: Reply(200, {}, content.getvalue())
    assert wncli.inspect(url).normalizable == 1
    assert server.requests == 1


# -- what does not ------------------------------------------------------------------------------


def test_a_server_that_stays_busy_is_refused_after_five_more_times(
    url: str, server: Server, outputs: Path
) -> None:
    server.change = lambda *_: Reply(503)
    refusal = refused(url, outputs)
    assert "503 Service Unavailable" in refusal.found
    assert server.requests == 6


LIES: dict[str, tuple[Change, str]] = {
    "another part": (header(Content_Range="bytes 5-65540/999999"), "another part"),
    "no Content-Range": (header(Content_Range=""), "another part"),
    "no size": (header(Content_Range="bytes 0-65535/*"), "another part"),
    "a size beyond all": (header(Content_Range=f"bytes 0-65535/{10**20}"), "another part"),
    "a length that is no number": (header(Content_Length="\xb2"), "another part"),
    "a length of many digits": (header(Content_Length="9" * 5000), "another part"),
    "a whole length of many digits": (
        lambda *_: Reply(200, {"Content-Length": "9" * 5000}, b"", 0), "no parts",
    ),
    "a time that is no number": (lambda *_: Reply(503, {"Retry-After": "\xb2"}), "not give it"),
    "many bytes": (header(Content_Range="bytes 0-65535/" + "9" * 5000), "another part"),
    "too many bytes": (
        lambda _, reply: replace(reply, body=bytes(reply.body) + b"x"), "another part",
    ),
    "packed": (header(Content_Encoding="gzip"), "packs what it sends"),
    "no parts": (lambda *_: Reply(200, {}, bytes(200_000)), "gives no parts of files"),
    "a page": (lambda *_: Reply(200, {"Content-Length": "999999"}, b"<html>", 6), "no parts"),
    "an odd status": (lambda *_: Reply(418), "does not give it"),
    "a redirect to nowhere": (lambda *_: Reply(302), "does not give it"),
    "cut each time": (lambda _, reply: replace(reply, send=100), "breaks off"),
    "nothing": (lambda _, reply: replace(reply, send=0), "breaks off"),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("count", [0, 2], ids=["at first", "later"])
def test_answers_that_lie_are_refused_in_one_message(
    lie: str, count: int, url: str, server: Server, outputs: Path
) -> None:
    change, says = LIES[lie]
    server.change = after(count, change)
    refusal = refused(url, outputs)
    assert says in refusal.problem, str(refusal)
    assert refusal.where == url
    assert len(str(refusal)) < 600
    assert " to -" not in refusal.expected


def test_a_lying_size_is_not_believed_before_bytes_have_come(server: Server, outputs: Path) -> None:
    # A header of 90 MB in a file of a terabyte, of which 64 KiB are there.
    head = (90_000_000).to_bytes(8, "little") + b'{"a":'
    content = head + bytes((64 << 10) - len(head))

    def answer(asked: Asked) -> Reply:
        begin, last = asked.range or (0, 0)
        headers = {"Content-Range": f"bytes {begin}-{last}/{1 << 40}"}
        if not begin:
            return Reply(206, headers, content)
        return Reply(206, headers | {"Content-Length": str(last - begin + 1)}, b"x", 0)

    server.answer = answer
    begin = time.monotonic()
    assert "breaks off" in refused(f"{server.url}/x", outputs).problem
    assert time.monotonic() - begin < 10


def test_what_a_lying_size_has_read_takes_no_memory_before_it_comes() -> None:
    nbytes = 10**17

    class Said:
        name, mark = "x", ""

        def begin(self) -> tuple[int, bytes]:
            return nbytes, bytes(WINDOW)

        def fetch(self, offset: int, buffer: memoryview) -> None:
            buffer[:8] = offset.to_bytes(8, "little")

        def download(self) -> None:
            return None

    tracemalloc.start()
    try:
        parts = Parts(Said())
        parts.expect([(WINDOW, nbytes // 2), (nbytes // 2 + PIECE, nbytes)])
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    for begin in (WINDOW, nbytes // 2 + PIECE):
        for number in (3, 4, 1_000_000_000):
            found = bytearray(8)
            parts.fill(begin + number * PIECE, memoryview(found))
            assert int.from_bytes(found, "little") == begin + number * PIECE


@pytest.mark.parametrize("changed", ["the file", "the tag alone", "the size"])
def test_a_file_that_changes_meanwhile_is_refused(
    changed: str, url: str, server: Server, tmp_path: Path, outputs: Path
) -> None:
    new = tmp_path / "new.pt"
    torch.save(state(4), new)

    def change(_: Asked, reply: Reply) -> Reply:
        if changed == "the file":
            server.files["/a.pt"] = new  # from now on: If-Match has no match
            return reply
        if changed == "the tag alone":
            return replace(reply, headers=reply.headers | {"ETag": '"other"'})
        size = reply.headers["Content-Range"].partition("/")[0]
        return replace(reply, headers=reply.headers | {"Content-Range": f"{size}/{10**7}"})

    server.change = after(1, change)
    refusal = refused(url, outputs)
    assert refusal.problem == "it has changed meanwhile"
    assert server.asked[-1].headers["if-match"]


def test_a_weak_tag_is_compared_and_not_sent(url: str, server: Server, outputs: Path) -> None:
    server.change = header(ETag='W/"1"')
    wncli.remove(url, outputs / "b.pt")
    assert not any("if-match" in asked.headers for asked in server.asked)
    (outputs / "b.pt").unlink()
    server.change = after(1, header(ETag='W/"2"'))
    seen = [0]

    def change(_: Asked, reply: Reply) -> Reply:
        seen[0] += 1
        return replace(reply, headers=reply.headers | {"ETag": f'W/"{seen[0]}"'})

    server.change = change
    assert refused(url, outputs).problem == "it has changed meanwhile"


def test_a_server_that_stops_sending_is_refused(url: str, server: Server, outputs: Path) -> None:
    server.change = after(1, lambda _, reply: replace(reply, send=len(reply.body) // 2, pause=1.2))
    patience.PATIENCE = patience.PATIENCE._replace(timeout=0.2, retries=1)
    assert "has stopped sending" in refused(url, outputs).problem


def test_a_server_that_sends_a_byte_at_a_time_is_refused(outputs: Path) -> None:
    patience.PATIENCE = patience.PATIENCE._replace(timeout=0.3, retries=0)
    ended = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def trickle() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(
                    b"HTTP/1.1 206 Partial\r\nContent-Range: bytes 0-65535/999999\r\n"
                    b"Content-Length: 65536\r\n\r\n"
                )
                while not ended.wait(0.05):
                    try:
                        connection.sendall(b"x")
                    except OSError:
                        return

        thread = threading.Thread(target=trickle)
        thread.start()
        begin = time.monotonic()
        try:
            refusal = refused(f"http://127.0.0.1:{listening.getsockname()[1]}/a.pt", outputs)
        finally:
            ended.set()
            thread.join()
    assert "has stopped sending" in refusal.problem
    assert time.monotonic() - begin < 5


NO_ANSWERS = {
    "nothing": b"",
    "no HTTP": b"SSH-2.0-OpenSSH\r\n",
    "half a header": b"HTTP/1.1 206 Partial\r\nContent-",
    "headers without end": b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 200,
    "a long line": b"HTTP/1.1 200 " + b"x" * 70_000,
}


@pytest.mark.parametrize("name", NO_ANSWERS)
def test_what_is_no_answer_is_refused(name: str, outputs: Path) -> None:
    patience.PATIENCE = patience.PATIENCE._replace(retries=1)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.1)
        ended = threading.Event()

        def answer() -> None:
            while not ended.is_set():
                with suppress(OSError):
                    connection, _address = listening.accept()
                    with connection:
                        connection.recv(4096)
                        connection.sendall(NO_ANSWERS[name])

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            refusal = refused(f"http://127.0.0.1:{listening.getsockname()[1]}/a.pt", outputs)
        finally:
            ended.set()
            thread.join()
    assert "127.0.0.1" in refusal.problem or "another part" in refusal.problem


def test_hosts_that_are_not_there_are_named(outputs: Path) -> None:
    refusal = refused("http://nowhere.invalid/a.pt", outputs)
    assert "there is no host nowhere.invalid" in refusal.problem
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    patience.PATIENCE = patience.PATIENCE._replace(retries=1)
    refusal = refused(f"http://127.0.0.1:{port}/a.pt", outputs)
    assert f"takes no connection at port {port}" in refusal.problem


def test_what_is_not_found_or_not_allowed_is_named(url: str, server: Server, outputs: Path) -> None:
    refusal = refused(f"{server.url}/b.pt", outputs)
    assert refusal.problem == "no such file"
    assert refusal.found == "404 Not Found"
    for status in (401, 403):
        server.change = lambda *_, status=status: Reply(status)
        refusal = refused(url, outputs)
        assert "does not let it be read" in refusal.problem
        assert "to no password" in refusal.found
    assert server.requests == 3


@pytest.mark.parametrize("name", ["zip.pt", "legacy.pt"])
def test_a_damaged_header_before_data_is_refused_when_that_is_read(
    name: str, server: Server, tmp_path: Path, outputs: Path
) -> None:
    FORMATS[name](tmp_path / name)
    content = bytearray((tmp_path / name).read_bytes())
    weight = state_of(tmp_path / name)["ups.1.weight_v"].numpy().tobytes()
    place = content.index(weight[:1000])
    if name == "zip.pt":
        place = content.rindex(b"PK\x03\x04", 0, place)
    else:
        place -= 8
    content[place] ^= 1
    url = server.put("damaged.pt", bytes(content))
    assert wncli.inspect(url).layers
    assert "damaged" in str(refused(url, outputs)) or "wrong size" in str(refused(url, outputs))
    (tmp_path / "here.pt").write_bytes(content)
    with pytest.raises(wncli.FormatError) as here:
        wncli.inspect(tmp_path / "here.pt")
    assert here.value.problem == refused(url, outputs).problem
    wncli.remove(url, outputs / "rest.pt", drop=["generator.ups.1*"])  # which needs none of it


def state_of(path: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(path)["generator"]
    return found


def test_a_damaged_tensor_is_refused_by_its_checksum(
    server: Server, tmp_path: Path, outputs: Path
) -> None:
    torch.save(state(), tmp_path / "a.pt")
    content = bytearray((tmp_path / "a.pt").read_bytes())
    content[len(content) // 2] ^= 1
    url = server.put("a.pt", bytes(content))
    assert "is damaged" in refused(url, outputs).problem
    assert [note.code for note in wncli.inspect(url, check=True).findings or ()] == ["checksum"]


def test_how_to_download_works_as_typed(
    url: str, server: Server, outputs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server.change = lambda _, reply: replace(reply, status=200) if reply.status == 206 else reply
    server.files["/a.pt"] = (tmp_path / "a.pt").read_bytes()
    server.answer = lambda asked: Reply(200, {}, server.files[asked.path])  # type: ignore[arg-type]
    refusal = refused(url, outputs)
    assert "gives no parts of files" in refusal.problem
    monkeypatch.chdir(outputs)
    command, _, then = refusal.hint.partition(", then ")
    assert then == "wncli.inspect('a.pt')"
    if not shutil.which("curl"):
        pytest.skip("no curl is installed")
    subprocess.run(shlex.split(command), check=True, capture_output=True, timeout=60)
    assert wncli.inspect("a.pt").layers


# -- redirects ----------------------------------------------------------------------------------


def test_redirects_are_followed_once_and_no_password_goes_along(
    server: Server, other: Server, tmp_path: Path, outputs: Path
) -> None:
    torch.save(state(), tmp_path / "a.pt")
    other.put("there.pt", tmp_path / "a.pt")
    server.answer = lambda asked: (
        Reply(302, {"Location": f"{other.url}/there.pt?signature=1"})
        if asked.path.startswith("/first")
        else None
    )
    first = f"{server.url}/first.pt?key=secret".replace("://", "://user:secret@")
    report = wncli.remove(first, outputs / "b.pt")
    assert wncli.compare(outputs / "b.pt", tmp_path / "a.pt").equal
    assert "secret" not in report.checkpoint
    assert server.requests == 1
    assert server.asked[0].headers["authorization"].startswith("Basic ")
    assert other.requests == 3  # where the `other` server sees to it that no secret has come


def test_a_redirect_to_another_port_gets_no_password(
    url: str, server: Server, tmp_path: Path
) -> None:
    with serving() as second:
        second.put("a.pt", tmp_path / "a.pt")
        server.answer = lambda _: Reply(307, {"Location": f"{second.url}/a.pt"})
        wncli.inspect(url.replace("://", "://user:secret@"))
        assert second.requests
        assert not any("authorization" in asked.headers for asked in second.asked)


def test_a_redirect_on_the_same_host_keeps_the_password(server: Server, tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "a.pt")
    server.put("a.pt", tmp_path / "a.pt")
    server.answer = lambda asked: (
        Reply(301, {"Location": "/a.pt"}) if asked.path == "/old" else None
    )
    wncli.inspect(f"{server.url}/old".replace("://", "://user:secret@"))
    assert all("authorization" in asked.headers for asked in server.asked)


def test_links_that_run_out_are_asked_for_again(
    url: str, server: Server, other: Server, tmp_path: Path, outputs: Path
) -> None:
    other.put("a.pt", tmp_path / "a.pt")
    numbers = iter(range(100))
    server.answer = lambda _: Reply(
        302, {"Location": f"{other.url}/a.pt?signature={next(numbers)}"}
    )
    used: dict[str, int] = {}

    def once(asked: Asked, reply: Reply) -> Reply:
        used[asked.path] = used.get(asked.path, 0) + 1
        return reply if used[asked.path] == 1 else Reply(403, {}, b"expired")

    other.change = once
    wncli.remove(url, outputs / "b.pt")
    assert wncli.compare(outputs / "b.pt", tmp_path / "a.pt").equal
    assert server.requests > 1
    (outputs / "b.pt").unlink()
    other.change = lambda *_: Reply(403)
    assert "does not let it be read" in refused(url, outputs).problem


def test_a_redirect_may_have_letters_as_they_are(url: str, server: Server, tmp_path: Path) -> None:
    server.put("ü b.pt", tmp_path / "a.pt")
    location = "/ü b.pt".encode().decode("latin-1")
    server.answer = lambda asked: (
        Reply(302, {"Location": location}) if asked.path == "/a.pt" else None
    )
    assert wncli.inspect(url).layers
    assert {asked.path for asked in server.asked} == {"/a.pt", "/%C3%BC%20b.pt"}


def test_redirects_in_a_circle_are_refused(url: str, server: Server, outputs: Path) -> None:
    server.answer = lambda _: Reply(302, {"Location": "/a.pt"})
    assert "from one address to the next" in refused(url, outputs).problem
    assert server.requests == 11


# -- what is shown ------------------------------------------------------------------------------


def test_passwords_and_queries_are_never_shown(
    url: str, server: Server, wn_here: RunHere, outputs: Path, tmp_path: Path
) -> None:
    secret = url.replace("://", "://user:secret@") + "?key=secret&sig=secret#secret"
    sound = [
        wn_here("inspect", secret, "--json", "--tensors"),
        wn_here("inspect", secret, secret),
        wn_here("remove", secret, outputs / "a.pt", "-v"),
        wn_here("compare", secret, tmp_path / "a.pt"),
        wn_here("inspect", secret, "--csv", "-"),
    ]
    assert [ran.code for ran in sound] == [0] * 5, [ran.stderr for ran in sound]
    server.change = lambda *_: Reply(403)
    failed = [
        wn_here("inspect", secret, "--json"),
        wn_here("inspect", secret, secret),
        wn_here("remove", secret, outputs / "b.pt"),
        wn_here("remove", secret, secret, "--output-dir", outputs),
        wn_here("remove", secret, outputs / "c.pt", secret),
        wn_here("remove", tmp_path / "a.pt", secret),
        wn_here("inspect", "https://user:se/secret@example.org/a"),
        wn_here("inspect", "ftp://user:secret@example.org/a?secret"),
        wn_here("convert", tmp_path / "a.pt", outputs / "d.pt", "--like", secret),
        wn_here("compare", secret, secret),
    ]
    server.change = lambda *_: Reply(200, {"Content-Length": "999999"}, b"", 0)
    failed.append(wn_here("inspect", secret))
    assert [ran.code for ran in failed] == [2] * len(failed)
    for ran in (*sound, *failed):
        assert "secret" not in ran.stdout + ran.stderr
        assert "user" not in (ran.stdout + ran.stderr).replace("the user and the password", "")
    for ran in failed:  # what is shown of the address could not be typed
        assert "try:      curl" not in ran.stderr


def test_a_file_that_is_no_checkpoint_is_named_without_touching_this_machine(
    server: Server, outputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    contents = {
        "page.html": b"<!DOCTYPE html><html>",
        "text.json": b'{"a": 1}',
        "latest": b"global_step5",
        "x.metadata": b"\x80\x02}q\x00.",
        "__0_0.distcp": b"PK\x03\x04" + bytes(100),
        "empty.pt": b"",
        "random.bin": bytes(range(256)) * 1000,
        "index.index.json": b"{",
        "zip.pt": b"PK\x03\x04" + bytes(100_000),
        "odd.tar": bytes(1024),
    }
    for name, content in contents.items():
        url = server.put(name, content)
        refusal = refused(url, outputs)
        assert refusal.where.startswith(url), name
        assert "defect" not in str(refusal)


@pytest.mark.slow
def test_an_interruption_ends_at_once_what_waits_for_a_server(
    url: str, server: Server, tmp_path: Path
) -> None:
    server.change = after(2, lambda _, reply: replace(reply, send=1000, pause=15.0))
    with subprocess.Popen(
        [sys.executable, "-m", "wncli", "remove", url, str(tmp_path / "out.pt")],
        env=environment(), stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        deadline = time.monotonic() + 20
        while len(server.asked) < 3 and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.3)
        begin = time.monotonic()
        os.kill(process.pid, signal.SIGINT)
        code = process.wait(20)
        seconds = time.monotonic() - begin
    assert code == 130
    assert seconds < 3
    assert not (tmp_path / "out.pt").exists()
    assert not list(tmp_path.glob(".*"))
