"""The files of a distributed checkpoint: found at once, opened when something is read from them."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from wncli.checkpoint.parts import Item
from wncli.errors import FileError, few
from wncli.formats.huggingface.shard_files import resolve
from wncli.storage.file_limit import raise_file_limit
from wncli.storage.source import LocalSource, OnDisk, truncated, unreadable

#: Files that are open at once, where the system lets them be; there can be one for each item.
_MOST_OPEN = 2000
#: Bytes of an item that is kept whole, and of the ends of another one.
_SHORT, _END = 1 << 16, 1 << 12


class Files:
    """Files of one folder, by their numbers; read from any thread."""

    def __init__(
        self, folder: Path, names: Sequence[str], open_file: Callable[[Path], FileIO]
    ) -> None:
        self.folder = folder
        self.names = tuple(names)
        self.open_file = open_file
        self.targets, found = _locate(folder, self.names)
        self.sizes = tuple(stat.st_size for stat in found)
        self.known = [_identity(stat) for stat in found]
        self.lock = threading.Lock()
        #: Those that are open, the one that was used last at the end, and how many use each.
        self.open: OrderedDict[int, LocalSource] = OrderedDict()
        self.users: dict[int, int] = {}
        self.most = min(_MOST_OPEN, raise_file_limit(len(self.names)))

    @contextmanager
    def use(self, number: int) -> Iterator[LocalSource]:
        """Give a file that stays open meanwhile.

        Raises:
            FileError: it cannot be read, or is not what it was.
        """
        with self.lock:
            source = self.open.get(number)
            if source is None:
                self._close_idle()
                source = self.open[number] = self._opened(number)
            self.open.move_to_end(number)
            self.users[number] = self.users.get(number, 0) + 1
        try:
            yield source
        finally:
            with self.lock:
                self.users[number] -= 1

    def close(self) -> None:
        """Close all that are open."""
        with self.lock:
            for source in self.open.values():
                source.close()
            self.open.clear()

    def _opened(self, number: int) -> LocalSource:
        shown = str(self.folder / self.names[number])
        file = self.open_file(self.targets[number])
        if _identity(os.fstat(file.fileno())) != self.known[number]:
            file.close()
            raise FileError(
                shown, "it has changed since the checkpoint was opened", hint="run it once more"
            )
        return LocalSource(shown, file)

    def _close_idle(self) -> None:
        while len(self.open) >= self.most:
            idle = next((one for one in self.open if not self.users.get(one)), None)
            if idle is None:
                return
            self.open.pop(idle).close()


def _resolved(path: Path) -> Path | None:
    try:
        return resolve(path)
    except UnicodeEncodeError:  # no file has such a name
        return None


class ItemSource(OnDisk):
    """An item as a file of its own; refusals name what it holds.

    Its ends, where a zip has all but the numbers of tensors, are read once and kept.
    """

    number = 0

    def __init__(self, files: Files, item: Item, name: str) -> None:
        self.name = f"{files.folder / files.names[item.file]}: {name}"
        self.nbytes = item.nbytes
        self.files = files
        self.item = item
        self.start = self.end = b""

    def hold(self) -> bytes:
        """Keep all of it where it is short, else its ends; return what it begins with."""
        count = self.nbytes if self.nbytes <= _SHORT else _END
        self.start = self.read_at(0, count, "an item")
        if count < self.nbytes:
            self.end = self.read_at(self.nbytes - count, count, "an item")
        return self.start

    def read_at(self, offset: int, nbytes: int, what: str) -> bytes:
        """Read exactly `nbytes` at `offset`."""
        if offset < 0 or nbytes < 0 or offset + nbytes > self.nbytes:
            raise truncated(self, what, offset + nbytes)
        if offset + nbytes <= len(self.start):
            return self.start[offset : offset + nbytes]
        behind = offset - self.nbytes + len(self.end)
        if self.end and behind >= 0:
            return self.end[behind : behind + nbytes]
        with self.files.use(self.item.file) as file:
            return file.read_at(self.item.offset + offset, nbytes, what)

    def read_into(self, offset: int, buffer: memoryview, what: str) -> None:
        """Fill `buffer` from `offset` on."""
        if offset < 0 or offset + len(buffer) > self.nbytes:
            raise truncated(self, what, offset + len(buffer))
        with self.files.use(self.item.file) as file:
            file.read_into(self.item.offset + offset, buffer, what)

    def count_stored(self, offset: int, nbytes: int) -> int:
        """Count the bytes of a run that are stored, and no hole in the file."""
        with self.files.use(self.item.file) as file:
            return file.count_stored(self.item.offset + offset, nbytes)

    def close(self) -> None:
        """Leave the file open, which others read from."""


def _identity(found: os.stat_result) -> tuple[int, int, int, int]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _locate(folder: Path, names: Sequence[str]) -> tuple[list[Path], list[os.stat_result]]:
    """Return the files of these names, which are in the folder, and what the system says of them.

    Raises:
        FileError: some are missing, or no regular files.
        FormatError: one is a link that leaves the folder.
    """
    try:
        with os.scandir(folder) as entries:
            plain = {entry.name for entry in entries if entry.is_file(follow_symlinks=False)}
    except OSError as error:
        raise unreadable(str(folder), error) from None
    targets: list[Path] = []
    stats: list[os.stat_result] = []
    missing: list[str] = []
    for name in names:
        target = folder / name if name in plain else _resolved(folder / name)
        if target is None:
            missing.append(name)
            continue
        try:
            stats.append(target.stat())
        except OSError as error:
            raise unreadable(str(folder / name), error) from None
        targets.append(target)
    if missing:
        raise FileError(
            str(folder),
            f"{len(missing)} of {len(names)} files of this distributed checkpoint are missing:"
            f" {few(missing)}",
            expected="every file that its metadata lists",
            found=f"{len(names) - len(missing)} of {len(names)}",
            hint="copy or download the rest into this directory",
        )
    return targets, stats
