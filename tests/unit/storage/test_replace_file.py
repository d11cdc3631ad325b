"""The output file: complete or not there, its permissions and links kept."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import wncli
from tests.support.run import ROOT, refused_for_anybody
from wncli.errors import FileError, UsageError, WeightNormError, WnError
from wncli.storage.replace_file import replacing

pytestmark = pytest.mark.thinned(3)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.pt"
    torch.save({"conv.weight": torch.arange(6.0).reshape(2, 3) + 1, "step": 3}, path)
    return path


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    """A checkpoint that can be planned, and is refused while it is written: a norm overflows."""
    path = tmp_path / "bad.pt"
    weights = {f"l{n}.weight": torch.ones(64, 64) for n in range(20)}
    weights["z.weight"] = torch.full((2, 3), 6e4, dtype=torch.float16)
    torch.save(weights, path)
    return path


@pytest.fixture(autouse=True)
def usual_umask() -> Iterator[None]:
    old = os.umask(0o022)
    yield
    os.umask(old)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def is_written(path: Path) -> bool:
    found = torch.load(path, weights_only=True)
    return set(found) == {"conv.weight_g", "conv.weight_v", "step"}


SUFFIXES = [".pt", ".safetensors"]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o000])
def test_a_new_file_has_the_permissions_that_the_umask_leaves(model: Path, umask: int) -> None:
    os.umask(umask)
    wncli.apply(model, model.with_name("out.pt"))
    assert mode(model.with_name("out.pt")) == 0o666 & ~umask
    assert names(model.parent) == ["model.pt", "out.pt"]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("permissions", [0o600, 0o640, 0o664, 0o755])
def test_a_replaced_file_keeps_its_permissions(model: Path, permissions: int, suffix: str) -> None:
    out = model.with_name(f"out{suffix}")
    out.write_bytes(b"old")
    out.chmod(permissions)
    wncli.apply(model, out, force=True, drop=["step"] * (suffix != ".pt"))
    assert mode(out) == permissions
    assert out.stat().st_size > 3


def test_without_force_an_existing_file_stays_as_it_is(model: Path) -> None:
    out = model.with_name("out.pt")
    out.write_bytes(b"old")
    with pytest.raises(FileError, match="exists already"):
        wncli.apply(model, out)
    assert out.read_bytes() == b"old"
    assert names(model.parent) == ["model.pt", "out.pt"]


def test_in_place_the_checkpoint_is_replaced_as_a_whole(model: Path) -> None:
    original = torch.load(model, weights_only=True)
    with pytest.raises(FileError, match="exists already"):
        wncli.apply(model, model)
    wncli.apply(model, model, force=True)
    assert is_written(model)
    wncli.remove(model, model, force=True)
    found = torch.load(model, weights_only=True)
    assert torch.equal(found["conv.weight"], original["conv.weight"])
    assert names(model.parent) == ["model.pt"]


@pytest.mark.parametrize("relative", [False, True])
def test_a_symbolic_link_stays_and_its_target_is_replaced(model: Path, relative: bool) -> None:  # noqa: FBT001
    folder = model.parent / "elsewhere"
    folder.mkdir()
    target = folder / "target.pt"
    target.write_bytes(b"old")
    target.chmod(0o640)
    link = model.with_name("out.pt")
    link.symlink_to(Path("elsewhere/target.pt") if relative else target)
    wncli.apply(model, link, force=True)
    assert link.is_symlink()
    assert not target.is_symlink()
    assert is_written(target)
    assert mode(target) == 0o640
    assert names(folder) == ["target.pt"]


def test_in_place_through_a_symbolic_link_the_link_stays(model: Path) -> None:
    link = model.with_name("link.pt")
    link.symlink_to("model.pt")
    wncli.apply(link, link, force=True)
    assert link.readlink() == Path("model.pt")
    assert not model.is_symlink()
    assert is_written(model)


def test_a_chain_of_links_leads_to_the_last_target(model: Path) -> None:
    first, second = model.with_name("first.pt"), model.with_name("second.pt")
    second.symlink_to("model.pt")
    first.symlink_to("second.pt")
    wncli.apply(first, first, force=True)
    assert first.is_symlink()
    assert second.is_symlink()
    assert is_written(model)


def test_a_dangling_link_is_given_its_target(model: Path) -> None:
    link = model.with_name("out.pt")
    link.symlink_to("new.pt")
    wncli.apply(model, link)
    assert link.is_symlink()
    assert is_written(model.with_name("new.pt"))


def test_a_link_in_a_circle_is_refused_and_stays(model: Path) -> None:
    link = model.with_name("out.pt")
    link.symlink_to("out.pt")
    with pytest.raises(FileError):
        wncli.apply(model, link, force=True)
    assert link.is_symlink()
    with pytest.raises(FileError):
        wncli.inspect(link)


def test_the_other_names_of_a_hard_linked_file_keep_the_old_content(model: Path) -> None:
    other = model.with_name("other.pt")
    other.hardlink_to(model)
    content = other.read_bytes()
    wncli.apply(model, other, force=True)
    assert model.read_bytes() == content
    assert is_written(other)
    wncli.apply(model, model, force=True)
    assert is_written(model)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("exists", [False, True])
def test_after_a_refusal_while_writing_nothing_has_changed(
    bad: Path,
    suffix: str,
    exists: bool,  # noqa: FBT001
) -> None:
    out = bad.with_name(f"out{suffix}")
    if exists:
        out.write_bytes(b"old")
    before = names(bad.parent)
    with pytest.raises(WeightNormError, match=r"z\.weight"):
        wncli.apply(bad, out, force=True)
    assert names(bad.parent) == before
    assert not exists or out.read_bytes() == b"old"


def test_after_a_refusal_in_place_the_checkpoint_is_what_it_was(bad: Path) -> None:
    content, inode = bad.read_bytes(), bad.stat().st_ino
    with pytest.raises(WeightNormError):
        wncli.apply(bad, bad, force=True)
    assert (bad.read_bytes(), bad.stat().st_ino) == (content, inode)
    assert names(bad.parent) == ["bad.pt"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError("from a callback")])
def test_an_interruption_while_writing_leaves_nothing(model: Path, error: BaseException) -> None:
    def interrupt(_done: int, _total: int) -> None:
        raise error

    content = model.read_bytes()
    with pytest.raises((KeyboardInterrupt, ValueError)):
        wncli.apply(model, model, force=True, progress=interrupt)
    assert model.read_bytes() == content
    assert names(model.parent) == ["model.pt"]


def test_a_dry_run_writes_nothing(model: Path) -> None:
    content = model.read_bytes()
    wncli.apply(model, model, force=True, dry_run=True)
    wncli.apply(model, model.with_name("out.pt"), dry_run=True)
    assert model.read_bytes() == content
    assert names(model.parent) == ["model.pt"]


def refused(call: Callable[[], object], kind: type[WnError] = FileError) -> str:
    with pytest.raises(kind) as caught:
        call()
    return str(caught.value)


def test_a_directory_in_place_of_the_output_is_refused(model: Path) -> None:
    (model.parent / "out.pt" / model.name).mkdir(parents=True)
    assert "directory" in refused(lambda: wncli.apply(model, model.parent / "out.pt", force=True))
    assert names(model.parent / "out.pt") == [model.name]
    assert names(model.parent / "out.pt" / model.name) == []


def test_an_output_in_no_directory_is_refused(model: Path) -> None:
    assert "mkdir" in refused(lambda: wncli.apply(model, model.parent / "no" / "out.pt"))
    assert refused(lambda: wncli.apply(model, model / "out.pt"))
    assert names(model.parent) == ["model.pt"]


def test_a_device_or_pipe_as_output_is_refused(model: Path) -> None:
    os.mkfifo(model.with_name("out.pt"))
    assert "not a regular file" in refused(
        lambda: wncli.apply(model, model.with_name("out.pt"), force=True)
    )
    out = Path(os.devnull)
    assert refused(lambda: wncli.apply(model, out, force=True, format="torch"))
    assert stat.S_ISCHR(out.stat().st_mode)


def test_a_pipe_or_a_directory_of_several_files_as_input_is_refused(model: Path) -> None:
    os.mkfifo(model.with_name("in.pt"))
    assert "not a regular file" in refused(lambda: wncli.inspect(model.with_name("in.pt")))
    assert "directory" in refused(lambda: wncli.inspect(model.parent))
    assert "no such file" in refused(lambda: wncli.inspect(model.with_name("mode.pt")))


def test_an_unknown_suffix_is_refused_before_anything_is_written(model: Path) -> None:
    refused(lambda: wncli.apply(model, model.with_name("out.xyz")), UsageError)
    assert names(model.parent) == ["model.pt"]


@pytest.mark.parametrize("length", [230, 240, 255])
def test_a_file_name_of_any_length_that_the_system_takes_is_written(
    model: Path, length: int
) -> None:
    out = model.with_name("x" * (length - 3) + ".pt")
    out.write_bytes(b"")
    out.unlink()
    wncli.apply(model, out)
    assert is_written(out)


def test_a_file_name_that_is_too_long_is_refused(model: Path) -> None:
    refused(lambda: wncli.apply(model, model.with_name("x" * 300 + ".pt")), WnError)
    assert names(model.parent) == ["model.pt"]


def test_odd_file_names_are_written(model: Path) -> None:
    for name in ("a b.pt", "é.pt", "-x.pt", "a\nb.pt", "%s.pt", ".pt.pt", "a.b.c.pt"):
        wncli.apply(model, model.with_name(name))
        assert is_written(model.with_name(name))


PROGRAM = """
import sys, resource, signal
from pathlib import Path
import wncli
limit = int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    wncli.apply(sys.argv[1], sys.argv[2], force=True)
except wncli.FileError as error:
    print(error)
    sys.exit(7)
"""


@pytest.mark.parametrize("limit", [0, 1, 1000, 200_000])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_full_disk_is_refused_and_leaves_the_old_file(
    tmp_path: Path, suffix: str, limit: int
) -> None:
    model, out = tmp_path / "model.pt", tmp_path / f"out{suffix}"
    torch.save({"a.weight": torch.ones(256, 256)}, model)
    out.write_bytes(b"old")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(model), str(out), str(limit)],
        check=False, capture_output=True, text=True, cwd=ROOT, timeout=60,
    )  # fmt: skip
    assert done.returncode == 7, done.stderr
    assert "cannot be written" in done.stdout
    assert out.read_bytes() == b"old"
    assert names(tmp_path) == ["model.pt", out.name]


def test_a_read_only_directory_is_refused(model: Path) -> None:
    out = model.parent / "locked"
    out.mkdir(mode=0o500)
    assert "Permission denied" in refused_for_anybody("apply", model, out / "out.pt")
    assert not list(out.iterdir())


def test_an_unreadable_input_is_refused(model: Path) -> None:
    model.chmod(0)
    assert "cannot be read (Permission denied)" in refused_for_anybody("inspect", model)


def test_two_runs_on_one_output_leave_one_complete_result(model: Path) -> None:
    out = model.with_name("out.pt")
    failures: list[BaseException] = []

    def run() -> None:
        try:
            for _ in range(5):
                wncli.apply(model, out, force=True)
        except BaseException as error:  # noqa: BLE001 - handed to the test
            failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert is_written(out)
    assert names(model.parent) == ["model.pt", "out.pt"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_that_shrinks_while_it_is_read_is_refused(tmp_path: Path, suffix: str) -> None:
    model = tmp_path / "model.pt"
    torch.save({f"l{n}.weight": torch.ones(600, 600) for n in range(8)}, model)

    def shrink(_done: int, _total: int) -> None:
        os.truncate(model, 100_000)

    with pytest.raises(WnError):
        wncli.apply(model, tmp_path / f"out{suffix}", progress=shrink)
    assert names(tmp_path) == ["model.pt"]


def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    torch.save({"a.weight": torch.ones(2, 2)}, tmp_path / "model.pt")
    out = tmp_path / "out.pt"

    def appear(_done: int, _total: int) -> None:
        out.write_bytes(b"of another process")

    with pytest.raises(FileError, match="File exists"):
        wncli.apply(tmp_path / "model.pt", out, progress=appear)
    assert out.read_bytes() == b"of another process"
    assert names(tmp_path) == ["model.pt", "out.pt"]


def test_an_interruption_while_it_begins_to_clear_away_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a rank that is refused because another one ends, of the signal that it gets as well."""
    lookup = signal.getsignal
    left = [1]

    def interrupted(number: int) -> object:
        if left.pop() if left else 0:
            raise KeyboardInterrupt
        return lookup(number)

    def write_and_fail() -> None:
        with replacing(tmp_path / "out", 4, force=False):
            monkeypatch.setattr(signal, "getsignal", interrupted)
            raise RuntimeError

    with pytest.raises(KeyboardInterrupt):
        write_and_fail()
    assert not left
    assert not list(tmp_path.iterdir())
