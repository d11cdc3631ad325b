"""A distributed checkpoint as one file that is nowhere: its tensors, whole, one after another.

Each tensor stands row-major at an address of its own, each storage of a value behind them, and
behind all that the files as they are. A run that is read can span any of these, and parts of them.
What is read is held against the checksums that the items record, whatever the order of reading.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from wncli.arithmetic.tiles import memory
from wncli.checkpoint.parts import Chunk, Item, PartedTensor
from wncli.errors import FormatError
from wncli.formats.dcp.boxes import Grid, Part, make_grid, parts_of
from wncli.formats.dcp.files import Files
from wncli.formats.dcp.items import Run
from wncli.storage.checked_source import damaged
from wncli.storage.source import BLOCK, Stamped, Verified, truncated
from wncli.storage.sums import Sum

#: Bytes that are read ahead of a tensor in columns, where as many are asked for as these.
_BAND, _LARGE = 8 << 20, 1 << 18

#: Finds the bytes of a chunk: its tensor, and the chunk.
Find = Callable[[PartedTensor, Chunk], Run]


@dataclass(slots=True)
class _Piece:
    """The bytes of one item that are a tensor's: where they are, and what is known of them."""

    what: str
    file: int
    run: Run
    sum: Sum | None


@dataclass(slots=True)
class _Whole:
    """A tensor, or a storage of a value, at its address; pieces are found as they are needed."""

    start: int
    nbytes: int
    tensor: PartedTensor | None
    grid: Grid | None
    pieces: dict[int, _Piece]


class _Band(NamedTuple):
    """A run of a tensor that was read ahead: many columns cost less where there are more rows."""

    whole: _Whole
    begin: int
    end: int
    data: memoryview


class PartedSource(Verified, Stamped):
    """A source of all that a distributed checkpoint has. Files are opened as they are needed.

    Every reading method raises FormatError where an item is not what the metadata says, or its
    bytes are not those that were written.
    """

    number = 0

    def __init__(self, name: str, files: Files, find: Find) -> None:
        self.name = name
        self.files = files
        self.find = find
        self.nbytes = 0
        self.wholes: list[_Whole] = []
        self.starts: list[int] = []
        self.raw: list[int] = []
        self.summed: list[_Piece] | None = None
        self.local = threading.local()

    def append(self, tensor: PartedTensor, nbytes: int) -> int:
        """Have a tensor stand behind all that stands here already, and return where."""
        return self._append(_Whole(self.nbytes, nbytes, tensor, None, {}))

    def append_run(self, what: str, file: int, run: Run) -> int:
        """Have bytes of a file stand there, such as a storage of a value."""
        whole = Chunk((0,), (run.nbytes,), Item(file, run.offset, run.nbytes))
        grid = make_grid((run.nbytes,), 1, [whole])
        return self._append(
            _Whole(self.nbytes, run.nbytes, None, grid, {0: _piece(what, file, run)})
        )

    def append_files(self) -> tuple[int, ...]:
        """Have the files stand there, as they are, and return where each begins."""
        for nbytes in self.files.sizes:
            self.raw.append(self.nbytes)
            self.nbytes += nbytes
        return tuple(self.raw)

    def _append(self, whole: _Whole) -> int:
        if whole.nbytes:
            self.wholes.append(whole)
            self.starts.append(whole.start)
            self.nbytes += whole.nbytes
        return whole.start

    def read_at(self, offset: int, nbytes: int, what: str) -> bytes:
        """Read exactly `nbytes` at `offset`."""
        if offset < 0 or nbytes < 0 or offset + nbytes > self.nbytes:
            raise truncated(self, what, offset + nbytes)
        data = bytearray(nbytes)
        self.read_into(offset, memoryview(data), what)
        return bytes(data)

    def read_into(self, offset: int, buffer: memoryview, what: str) -> None:
        """Fill `buffer` from `offset` on."""
        if offset < 0 or offset + len(buffer) > self.nbytes:
            raise truncated(self, what, offset + len(buffer))
        place = max(0, bisect_right(self.starts, offset) - 1)  # there may be no tensors
        done = 0
        while done < len(buffer) and place < len(self.wholes):
            whole = self.wholes[place]
            begin = offset + done - whole.start
            count = min(len(buffer) - done, whole.nbytes - begin)
            if count > 0:
                self._read_whole(whole, begin, buffer[done : done + count])
                done += count
            place += 1
        if done < len(buffer):
            self._read_files(offset + done, buffer[done:], what)

    def stamps(self) -> list[tuple[str, tuple[int, ...]]]:
        """Tell each file from others of its name by its size, and when it was changed."""
        names = [str(self.files.folder / name) for name in self.files.names]
        return [(name, known[-2:]) for name, known in zip(names, self.files.known, strict=True)]

    def close(self) -> None:
        """Close the files."""
        self.files.close()

    def finish(self) -> None:
        """Read what is left of the items of which a part has been read."""
        for whole in self.wholes:
            for piece in whole.pieces.values():
                if piece.sum and 0 < piece.sum.left < piece.run.nbytes:
                    self._read_rest(piece)

    def checked(self) -> list[tuple[str, int]]:
        """Name all that has a checksum, each with its bytes; what is no such is left to reading."""
        if self.summed is None:
            self.summed = [piece for piece in self._pieces() if piece.sum]
        return [(piece.what, piece.run.nbytes) for piece in self.summed]

    def is_damaged(self, number: int) -> bool:
        """Whether one of these is not what was written; what has not been read of it is read.

        What cannot be read is passed over: whoever reads it is told.
        """
        assert self.summed is not None  # noqa: S101 - for the type checker
        piece = self.summed[number]
        try:
            self._read_rest(piece, judge=False)
        except FormatError:
            return False
        return piece.sum is not None and piece.sum.crc != piece.run.crc

    def excuse(self, number: int) -> None:
        """Refuse one of these no more."""
        assert self.summed is not None  # noqa: S101 - for the type checker
        self.summed[number].sum = None

    def _pieces(self) -> Iterator[_Piece]:
        for whole in self.wholes:
            for box in self._grid(whole).boxes:
                try:
                    piece = self._piece(whole, box.chunk)
                except FormatError:
                    continue
                yield piece

    def _grid(self, whole: _Whole) -> Grid:
        if whole.grid is None:
            assert whole.tensor is not None  # noqa: S101 - for the type checker
            itemsize = whole.tensor.dtype.itemsize
            whole.grid = make_grid(whole.tensor.shape, itemsize, whole.tensor.chunks)
        return whole.grid

    def _piece(self, whole: _Whole, number: int) -> _Piece:
        found = whole.pieces.get(number)
        if found is None:
            assert whole.tensor is not None  # noqa: S101 - for the type checker
            chunk = whole.tensor.chunks[number]
            made = _piece(whole.tensor.name, chunk.item.file, self.find(whole.tensor, chunk))
            found = whole.pieces.setdefault(number, made)  # another thread may have been faster
        return found

    def _read_whole(self, whole: _Whole, begin: int, buffer: memoryview) -> None:
        """Fill `buffer` with the bytes of a tensor from `begin` on."""
        grid = self._grid(whole)
        if len(grid.shape) == 1 or len(grid.boxes) == 1 or len(buffer) < _LARGE:
            self._gather(whole, begin, buffer)
            return
        end = begin + len(buffer)
        band: _Band | None = getattr(self.local, "band", None)
        if band is None or band.whole is not whole or not band.begin <= begin <= end <= band.end:
            count = min(max(len(buffer), _BAND), whole.nbytes - begin)
            data = band.data if band and len(band.data) >= count else memoryview(bytearray(count))
            self.local.band = None  # should reading fail
            self._gather(whole, begin, data[:count])
            self.local.band = band = _Band(whole, begin, begin + count, data)
        buffer[:] = band.data[begin - band.begin : end - band.begin]

    def _gather(self, whole: _Whole, begin: int, buffer: memoryview) -> None:
        for part in parts_of(self._grid(whole), begin, begin + len(buffer)):
            piece = self._piece(whole, part.chunk)
            count = part.nbytes
            if part.is_run:
                self._read_piece(piece, part.place, buffer[part.start : part.start + count])
                continue
            data = memory("gathered", count)
            self._read_piece(piece, part.place, data)
            _put(part, data, buffer)

    def _read_piece(self, piece: _Piece, place: int, buffer: memoryview) -> None:
        """Fill `buffer` with the bytes of a piece, row-major, from `place` on."""
        if piece.run.turned is None:
            self._read_stored(piece, place, buffer)
            return
        held, data = getattr(self.local, "turned", (None, None))
        if held is not piece or data is None:
            self.local.turned = None, None  # one of them at a time
            stored = memoryview(bytearray(piece.run.nbytes))
            self._read_stored(piece, 0, stored)
            data = piece.run.turned.row_major(stored)
            self.local.turned = piece, data
        buffer[:] = data[place : place + len(buffer)]

    def _read_stored(
        self, piece: _Piece, place: int, buffer: memoryview, *, judge: bool = True
    ) -> None:
        """Fill `buffer` with the bytes of a piece, as they are stored, from `place` on."""
        with self.files.use(piece.file) as file:
            file.read_into(piece.run.offset + place, buffer, piece.what)
            is_done = piece.sum and piece.sum.add(place, buffer)
            if is_done and judge and piece.sum and piece.sum.crc != piece.run.crc:
                what = f"the item of {piece.what!r}"
                raise damaged(file, what, piece.run.crc or 0, piece.sum.crc)

    def _read_rest(self, piece: _Piece, *, judge: bool = True) -> None:
        for begin, end in piece.sum.missing(0, piece.run.nbytes) if piece.sum else ():
            for place in range(begin, end, BLOCK):
                buffer = memory("gathered", min(BLOCK, end - place))
                self._read_stored(piece, place, buffer, judge=judge)

    def _read_files(self, offset: int, buffer: memoryview, what: str) -> None:
        number = bisect_right(self.raw, offset) - 1
        done = 0
        while done < len(buffer):
            place = offset + done - self.raw[number]
            count = min(len(buffer) - done, self.files.sizes[number] - place)
            if count > 0:
                with self.files.use(number) as file:
                    file.read_into(place, buffer[done : done + count], what)
                done += count
            number += 1


def _piece(what: str, file: int, run: Run) -> _Piece:
    return _Piece(what, file, run, None if run.crc is None else Sum(run.nbytes))


def _put(part: Part, data: memoryview, buffer: memoryview) -> None:
    """Put a box of bytes in its place among others."""
    import numpy as np

    block = np.frombuffer(buffer[part.target : part.target + part.block_nbytes], np.uint8)
    box = tuple(
        slice(begin, begin + size) for begin, size in zip(part.within, part.size, strict=True)
    )
    block.reshape(part.block)[box] = np.frombuffer(data, np.uint8).reshape(part.size)
