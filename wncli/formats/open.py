"""Opens a checkpoint by its content, whatever its name ends with."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from io import FileIO
from pathlib import Path

from wncli.checkpoint.checkpoint import DISTRIBUTED, Checkpoint
from wncli.errors import FileError, FormatError, WnError
from wncli.formats.registry import LONGEST_START, SUFFIXES, kinds_of
from wncli.hints import either, path_text
from wncli.notes import Note
from wncli.storage.addresses import Address, Place, repository_hint
from wncli.storage.source import FileSource, LocalSource, Source, Sources, unreadable


@contextmanager
def open_checkpoint(
    place: Place, *, for_weights: bool = False
) -> Iterator[tuple[Checkpoint, Sources]]:
    """Open the checkpoint at `place`; the sources stay open for reading tensor data.

    A directory means the checkpoint in it. An index means all the files that it lists:
    there is one source for each, at the place that its number says.

    Args:
        place: the checkpoint, a path or an address.
        for_weights: only the state dicts are wanted: what they were read from, which can be larger
            than all that is made of it, is forgotten.

    Raises:
        FileError: there is no readable file, or a directory in which none or several can be meant;
            or this machine is big-endian.
        FormatError: it is no checkpoint, or a damaged one.
    """
    _refuse_big_endian_machine(place)
    with ExitStack() as stack:
        # No name here keeps the checkpoint: who has it may want to forget what is no more needed.
        if isinstance(place, Address):
            from wncli.formats.remote import open_at

            yield _opened(*open_at(place, stack, _read_all, _read), for_weights=for_weights)
        else:
            yield _opened(*_open_local(place, stack), for_weights=for_weights)


def _open_local(path: Path, stack: ExitStack) -> tuple[Checkpoint, Sources]:
    file = path
    notes: tuple[Note, ...] = ()
    with _reading(path):
        is_folder = stat.S_ISDIR(path.stat().st_mode)
    if is_folder:
        from wncli.formats.huggingface.folder import find_in_folder

        file, notes = find_in_folder(path)
    if is_folder and file == path:
        found, sources = _read_distributed(path, stack)
        return replace(found, notes=notes + found.notes), sources
    source = LocalSource(str(file), stack.enter_context(_open(file)))

    def open_index(index: Source) -> tuple[Checkpoint, Sources]:
        from wncli.formats.huggingface.index import read_index
        from wncli.formats.huggingface.shards import local_files, open_shards

        listed = read_index(index)
        index.close()
        files = local_files(Path(index.name), listed.file_names, stack)
        return open_shards(path, listed, files, _read)

    found, sources = _read_all(source, open_index)
    return replace(found, notes=notes + found.notes), sources


def _refuse_big_endian_machine(path: Place) -> None:
    """Files have their elements little-endian, and the arithmetic takes them as they are."""
    if sys.byteorder != "little":
        raise FileError(
            str(path),
            "this machine is big-endian, and checkpoints are little-endian",
            expected="a little-endian machine",
            found=f"byte order {sys.byteorder}",
            hint="run wn where the byte order is little: on x86-64 or arm64",
        )


def _opened(
    checkpoint: Checkpoint, sources: Sources, *, for_weights: bool
) -> tuple[Checkpoint, Sources]:
    if for_weights:
        checkpoint = replace(checkpoint, tree=None, would_run=(), shards=())
    return checkpoint, sources


def _open(path: Path) -> FileIO:
    with _reading(path):
        _refuse_irregular(path, path.stat())
        file = FileIO(path, opener=_without_waiting)
        try:
            _refuse_irregular(path, os.fstat(file.fileno()))
        except FileError:
            file.close()
            raise
        return file


def _without_waiting(path: str, flags: int) -> int:
    """Open what may have become a FIFO by now."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _refuse_irregular(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise FileError(str(path), "not a regular file", expected="a checkpoint file")


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what the system says about `path` into refusals."""
    try:
        yield
    except WnError:
        raise
    except FileNotFoundError:
        raise FileError(
            str(path),
            "no such file",
            expected="a checkpoint",
            hint=_near_files(path) or _near_repository(path),
        ) from None
    except OSError as error:
        raise unreadable(str(path), error) from None
    except ValueError:
        raise FileError(str(path), "no file can have this name") from None


def _read_all(
    source: FileSource, open_index: Callable[[Source], tuple[Checkpoint, Sources]]
) -> tuple[Checkpoint, Sources]:
    """Return what a file holds, or the files that it is the index of."""
    start = source.read_at(0, min(LONGEST_START, source.nbytes), "the first bytes")
    if start.lstrip().startswith(b"{") and b"\0" not in start[:8]:  # no safetensors' length
        from wncli.formats.huggingface.index import is_index

        if is_index(source):
            return open_index(source)
    if start[_TAR_MAGIC] == b"ustar" and not kinds_of(start, source.nbytes):
        from wncli.formats.nemo import WEIGHTS, open_weights

        window = open_weights(source)
        if window:
            message = f"it is {WEIGHTS} of a NeMo archive; the rest of that stays there"
            found = _read(window)
            notes = (Note("archive", message), *found.notes)
            return replace(found, format=f"NeMo, {found.format}", notes=notes), (window,)
    return _read(source), (source,)


def _read_distributed(folder: Path, stack: ExitStack) -> tuple[Checkpoint, Sources]:
    """Return what a folder of `torch.distributed.checkpoint` holds."""
    from wncli.formats.distributed import metadata_files, shards_of_ranks

    with _reading(folder):
        names = os.listdir(folder)  # noqa: PTH208 - for the names alone
    if found := metadata_files(names):
        from wncli.formats.dcp.reader import open_distributed

        return open_distributed(folder, found, stack, _open)
    from wncli.formats.dcp.shards import open_shards_of_ranks

    return open_shards_of_ranks(folder, shards_of_ranks(names), stack, _open)


def _read(source: Source) -> Checkpoint:
    start = source.read_at(0, min(LONGEST_START, source.nbytes), "the first bytes")
    kinds = kinds_of(start, source.nbytes)
    _refuse_two_formats(source, [kind.label for kind in kinds], start)
    # A part may look whole, and the metadata is a pickle.
    if source.name.endswith((".distcp", ".metadata")) or DISTRIBUTED in start:
        from wncli.formats.distributed import refuse_distributed_file

        refuse_distributed_file(source.name, start)
    if kinds:
        return kinds[0].read(source)
    from wncli.formats.foreign import refuse_file

    raise refuse_file(source, start)


def _refuse_two_formats(source: Source, claims: list[str], start: bytes) -> None:
    """Refuse a file that is one thing to one reader, and another to the next.

    PyTorch tries zip, then tar, then its legacy format; safetensors' reader takes what is its own.

    Raises:
        FormatError: it can be read in two formats.
    """
    if claims and _is_tar(start):
        claims = [*claims, "a tar archive"]
    if len(claims) > 1:
        raise FormatError(
            source.name,
            "two formats claim this file, and it is another in each",
            expected="one format",
            found=" and ".join(claims),
            hint="load it in the way that it was meant, and save it again",
        )


#: Bytes of a tar's header, where its checksum is in it, and what that is spelled with.
_TAR_BLOCK = 512
_TAR_MAGIC = slice(257, 262)
_TAR_CHECKSUM = slice(148, 156)
_OCTAL = b"01234567 \0"


def _is_tar(start: bytes) -> bool:
    """Whether a file begins with a header that Python's tarfile takes, which PyTorch asks."""
    checksum = start[_TAR_CHECKSUM]
    is_spelled = not checksum.strip(_OCTAL) or checksum[:1] in {b"\x80", b"\xff"}
    if len(start) < _TAR_BLOCK or not is_spelled:
        return False
    import tarfile

    try:
        tarfile.TarInfo.frombuf(start[:_TAR_BLOCK], "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def _near_repository(path: Path) -> str:
    return "" if path.suffix.lower() in SUFFIXES else repository_hint(path)


def _near_files(path: Path) -> str:
    import difflib

    try:
        names = [entry.name for entry in path.parent.iterdir() if entry.is_file()]
    except OSError:
        return ""
    near = difflib.get_close_matches(path.name, names, n=3)
    return either(path_text(path.parent / name) for name in near)
