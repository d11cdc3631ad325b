"""Reading bytes at places of a file that is taken as hostile: short reads are refused, not padded."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO

from wncli.errors import FormatError


class Source:
    """An input file that is open for reading.

    `file` is for reading headers in turn; `read_at` reads anywhere and from any thread.
    """

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self.path = path
        self.file = file
        self.nbytes = os.fstat(file.fileno()).st_size

    @property
    def where(self) -> str:
        """The file's name as it is shown in refusals."""
        return str(self.path)

    def read_at(self, offset: int, count: int, what: str) -> bytes:
        """Exactly `count` bytes at `offset`.

        Raises:
            FormatError: the file ends before; `what` says what was to be read.
        """
        if offset < 0 or count < 0 or offset + count > self.nbytes:
            raise self.truncated(what, offset + count)
        data = os.pread(self.file.fileno(), count, offset)
        if len(data) != count:
            raise self.truncated(what, offset + count)
        return data

    def truncated(self, what: str, needed: int) -> FormatError:
        """The refusal of a file that ends inside `what`."""
        return FormatError(
            self.where,
            f"the file ends inside {what}",
            expected=f"at least {needed:,} bytes",
            found=f"{self.nbytes:,} bytes",
            hint="copy or download it again: it is truncated",
        )
