"""The checkpoint in a NeMo archive: one member of a plain tar, read where it is.

Source: NeMo `nemo/core/connectors/save_restore_connector.py`: `model_config.yaml` and
`model_weights.ckpt` at the top, unpacked by Python's tarfile.
"""

from __future__ import annotations

import io
import posixpath
import tarfile
from contextlib import suppress
from itertools import islice

from wncli.errors import FormatError
from wncli.formats.registry import LONGEST_START, kinds_of
from wncli.storage.source import FileSource, truncated

WEIGHTS = "model_weights.ckpt"
_MOST_MEMBERS = 1000
#: Bytes of a header, and of the names that it is about.
_LONGEST_HEADER = 1 << 20


class _Headers(io.RawIOBase):
    """A source, of which headers are read and no more; nothing stands outside it."""

    def __init__(self, source: FileSource) -> None:
        self.source = source
        self.place = 0

    def tell(self) -> int:
        return self.place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.place = offset if whence == io.SEEK_SET else self.place + offset
        return self.place

    def read(self, size: int = -1) -> bytes:
        if self.place < 0 or not 0 <= size <= _LONGEST_HEADER:  # sizes are any numbers of 12 bytes
            raise tarfile.ReadError("a header is too long")
        count = max(0, min(size, self.source.nbytes - self.place))
        self.place += count
        return self.source.read_at(self.place - count, count, "an archive") if count else b""


def open_weights(source: FileSource) -> FileSource | None:
    """Return a window on the checkpoint in a tar; None where there is none that can be read so.

    No other member is looked into, and no link is followed.

    Raises:
        FormatError: there are two of them, or the archive is damaged in it or behind it.
    """
    members: list[tarfile.TarInfo] = []
    is_whole = False
    with (
        suppress(tarfile.TarError, OSError, ValueError, RecursionError),
        tarfile.open(fileobj=_Headers(source), mode="r:") as archive,
    ):
        members.extend(islice(archive, _MOST_MEMBERS + 1))
        is_whole = True
    found = [member for member in members if posixpath.normpath(member.name) == WEIGHTS]
    if not found or len(members) > _MOST_MEMBERS:
        return None
    if len(found) > 1:
        raise FormatError(
            source.name,
            f"{WEIGHTS} stands in this archive {len(found)} times",
            expected="one",
            hint="copy or download the file again",
        )
    (member,) = found
    if not member.isreg() or member.issparse() or member.size < 0:
        return None
    end = member.offset_data + member.size
    if end > source.nbytes:
        raise truncated(source, WEIGHTS, end)
    if not is_whole:
        raise FormatError(
            source.name,
            f"the archive is damaged behind {WEIGHTS}",
            expected="members to its end",
            hint="copy or download the file again",
        )
    window = source.window(member.offset_data, member.size)
    start = window.read_at(0, min(LONGEST_START, window.nbytes), WEIGHTS)
    return window if kinds_of(start, window.nbytes) else None
