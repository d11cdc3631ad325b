"""The commands where the system is no POSIX: what only such a one has is taken away.

Neither Windows nor its console is at hand; what they lack is missing here, and what they refuse (to
rename or remove what is open, to flush what is open for reading) is refused.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.support.faults import leftovers, snapshot
from tests.support.run import Ran, environment, run_wn
from tests.support.shards import sharded
from wncli.storage import temporary
from wncli.storage.source import LocalSink, LocalSource

#: Runs `wn` in a process without what is not there on every system. sys.platform keeps the tool
#: from asking for what Linux has, and comes behind the standard library, which knows where it is.
ELSEWHERE = """
import builtins, importlib.abc, io, json, os, pathlib, platform, signal, stat, sys, tempfile, time
import _signal, concurrent.futures.thread, ctypes, multiprocessing, select, shutil, subprocess
import zipfile
shutil._use_fd_functions = False  # as it finds where os lacks what it needs for that
for module, names in {
    os: "O_CLOEXEC O_DIRECTORY O_NOFOLLOW O_NONBLOCK SEEK_DATA SEEK_HOLE chown fchdir fchmod fchown"
        " fork forkpty geteuid getegid getgid getuid getxattr lchown listxattr memfd_create"
        " posix_fadvise posix_fallocate pread preadv process_cpu_count pwrite pwritev"
        " register_at_fork removexattr sched_getaffinity sendfile setxattr copy_file_range",
    signal: "SIGHUP SIGCHLD pthread_sigmask", _signal: "SIGHUP SIGCHLD",
}.items():
    for name in names.split():
        if hasattr(module, name):
            delattr(module, name)
sys.platform = "elsewhere"

class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in {"fcntl", "grp", "pty", "pwd", "resource", "termios", "tty"}:
            raise ModuleNotFoundError(name)

for name in ("fcntl", "grp", "pty", "pwd", "resource", "termios", "tty"):
    sys.modules.pop(name, None)
sys.meta_path.insert(0, Missing())

def open_here():
    found = set()
    for number in os.listdir("/proc/self/fd"):
        try:
            found.add(os.readlink(f"/proc/self/fd/{number}"))
        except OSError:
            pass
    return found

def refusing(real):
    def call(*paths, **keywords):
        held = open_here()
        for path in map(os.path.realpath, map(os.fspath, paths)):
            if any(name == path or name.startswith(path + os.sep) for name in held):
                raise PermissionError(13, "the file is open", path)
        return real(*paths, **keywords)
    return call

def fsync(descriptor, real=os.fsync):
    flags = open(f"/proc/self/fdinfo/{descriptor}").read().partition("flags:")[2].split()[0]
    if int(flags, 8) & 3 == 0:
        raise OSError(9, "only what can be written is flushed")
    real(descriptor)

os.fsync = fsync
for name in ("rename", "replace", "remove", "unlink", "rmdir"):
    setattr(os, name, refusing(getattr(os, name)))
sys.argv[0] = "wn"
from wncli.cli import main
main()
"""


def elsewhere(*arguments: str | Path, cwd: Path) -> Ran:
    ran = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, *map(str, arguments)],
        cwd=cwd,
        env=environment(PYTHONIOENCODING="cp1252"),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        timeout=60,
    )
    return Ran(ran.returncode, ran.stdout.decode("cp1252"), ran.stderr.decode("cp1252"))


def here(*arguments: str | Path, cwd: Path) -> Ran:
    ran = subprocess.run(
        [sys.executable, "-m", "wncli", *map(str, arguments)],
        cwd=cwd,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        timeout=60,
    )
    return Ran(ran.returncode, ran.stdout.decode(), ran.stderr.decode())


def prepare(home: Path) -> None:
    """A checkpoint in each format, with a layer that is worth several threads, and in shards."""
    home.mkdir()
    torch.manual_seed(0)
    pairs = {
        "a.weight_g": torch.rand(900, 1, 1) + 0.5,
        "a.weight_v": torch.randn(900, 700, 9),
        "a.bias": torch.randn(900),
        "b.weight_g": torch.rand(3, 1),
        "b.weight_v": torch.randn(3, 4),
    }
    save_file(pairs, home / "in.safetensors")
    small = {name: tensor[:30].clone() for name, tensor in pairs.items()}
    torch.save({"generator": small, "step": 7}, home / "in.pt")
    torch.save(small, home / "legacy.pth", _use_new_zipfile_serialization=False)
    sharded(home / "in", "torch", {1: {"a.weight": small["a.weight_v"]}, 2: {"c": torch.ones(3)}})
    (home / "in" / "config.json").write_bytes(b"{}")


#: The main job of each command: files and folders, new and in place, with and without `--verify`.
RUNS = (
    ("inspect", "in.safetensors", "--tensors"),
    ("inspect", "--check", "in.pt"),
    ("inspect", "--json", "in"),
    ("remove", "in.safetensors", "out.safetensors"),
    ("remove", "in.safetensors", "out.safetensors", "--force", "--verify"),
    ("apply", "out.safetensors", "again.safetensors", "-l", "a", "--verify"),
    ("compare", "in.safetensors", "again.safetensors"),
    ("compare", "in.pt", "legacy.pth"),
    ("convert", "legacy.pth", "legacy.safetensors"),
    ("convert", "legacy.pth", "new.pth", "--naming", "parametrized"),
    ("convert", "in.safetensors", "shards/", "--max-shard-size", "10MB"),
    ("remove", "shards", "shards", "--force"),
    ("apply", "in", "in", "-l", "a", "--force", "--verify"),
    ("remove", "in", "in", "--force", "--max-shard-size", "20KB"),
    ("remove", "in.pt", "in.pt", "--force"),
    ("remove", "in.safetensors", "in.safetensors", "--force"),
    ("inspect", "in.safetensors"),
)  # fmt: skip


TIME = re.compile(r"  \d+\.\d s$", re.MULTILINE)
IN_ASCII = str.maketrans(
    {"─": "-", "→": "->", "✓": "+"} | dict(zip("▁▂▃▄▅▆▇█", ".:-=+*%#", strict=True))
)


def test_all_commands_do_the_same_where_the_system_is_no_posix(tmp_path: Path) -> None:
    homes = tmp_path / "here", tmp_path / "elsewhere"
    prepare(homes[0])
    shutil.copytree(*homes)
    for arguments in RUNS:
        usual, ran = here(*arguments, cwd=homes[0]), elsewhere(*arguments, cwd=homes[1])
        assert (ran.code, usual.code) == (0, 0), (arguments, ran)
        assert snapshot(homes[1]) == snapshot(homes[0]), arguments
        assert leftovers(snapshot(homes[1])) == []
        if "--json" in arguments:
            ours, theirs = json.loads(ran.stdout), json.loads(usual.stdout)
            assert ours | {"seconds": 0} == theirs | {"seconds": 0}
        else:
            said = zip((ran.stdout, usual.stdout), reversed(homes), strict=True)
            ours, theirs = (TIME.sub("", text.replace(str(home), "")) for text, home in said)
            assert ours == theirs.translate(IN_ASCII)


def test_refusals_are_the_same_where_the_system_is_no_posix(tmp_path: Path) -> None:
    prepare(tmp_path / "home")
    before = snapshot(tmp_path / "home")
    for arguments in (
        ("remove", "in.pt", "legacy.pth"),
        ("remove", "in", "in"),
        ("remove", "nothing.pt", "out.pt"),
        ("remove", "in.pt", "no folder/out.pt"),
        ("inspect", "in/config.json"),
    ):
        ran = elsewhere(*arguments, cwd=tmp_path / "home")
        assert ran == here(*arguments, cwd=tmp_path / "home")
        assert ran.code == 2
    assert snapshot(tmp_path / "home") == before


def test_a_console_without_our_characters_shows_others_in_their_place(tmp_path: Path) -> None:
    save_file({"\u0142\u2500\U0001f600.weight": torch.ones(3, 4)}, tmp_path / "in.safetensors")
    command = ("apply", tmp_path / "in.safetensors", tmp_path / "out.pt", "--dry-run", "-v")
    for encoding in ("cp1252", "ascii"):
        ran = run_wn(*command, PYTHONIOENCODING=encoding)
        assert (ran.code, ran.stderr) == (0, "")
        assert r"\u0142-\U0001f600" in ran.stdout
        assert " -> " in ran.stdout
        assert "----" in ran.stdout
        assert ran.stdout.replace("×", "x").isascii()


@pytest.mark.parametrize("days", [0, 2])
def test_where_nothing_tells_whether_a_run_lives_what_is_a_day_old_is_cleared_away(
    days: int, tmp_path: Path
) -> None:
    prepare(tmp_path / "home")
    partial = tmp_path / "home" / ".out.0123abcd.wn-partial"
    partial.mkdir()
    (partial / "model.safetensors").write_bytes(b"part")
    then = time.time() - days * 86400
    os.utime(partial, (then, then))
    assert elsewhere("remove", "in.pt", "out", cwd=tmp_path / "home").code == 0
    assert partial.exists() == (days == 0)


def test_without_locks_one_run_waits_for_another_that_moves_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Windows, where nobody can remove what somebody has open."""
    real, seen = os.unlink, []

    def unlink(path: Path) -> None:
        held = [os.path.realpath(number) for number in Path("/proc/self/fd").iterdir()]
        if str(path) in held:
            seen.append("in use")
            raise PermissionError
        real(path)

    def second() -> None:
        with temporary.locked(tmp_path):
            seen.append("second")

    monkeypatch.setattr(temporary, "fcntl", None)
    monkeypatch.setattr(os, "unlink", unlink)
    waiting = threading.Thread(target=second)
    with temporary.locked(tmp_path):
        waiting.start()
        while "in use" not in seen:
            time.sleep(0.01)
        seen.append("first")
    waiting.join(10)
    assert [what for what in seen if what != "in use"] == ["first", "second"]
    assert list(tmp_path.iterdir()) == []


class SlowFile(io.FileIO):
    """A file in which another thread has the time to come between."""

    def seek(self, offset: int, whence: int = 0) -> int:
        place = super().seek(offset, whence)
        time.sleep(0.001)
        return place


def test_threads_take_turns_at_a_file_that_has_one_position(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wncli.storage.source._HAS_PLACES", False)
    path, places = tmp_path / "file", range(0, 4000, 100)
    path.write_bytes(bytes(4000))
    with SlowFile(path, "r+") as file, ThreadPoolExecutor(4) as threads:
        source, sink = LocalSource("file", file), LocalSink(file)
        content = [bytes([place // 100]) * 100 for place in places]
        list(threads.map(sink.write_at, places, map(memoryview, content)))
        assert path.read_bytes() == b"".join(content)
        assert list(threads.map(lambda place: source.read_at(place, 100, ""), places)) == content
        assert list(threads.map(lambda place: sink.read_at(place, 100), places)) == content
