"""Where every byte of an output file goes, and what it is made from, before any data is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from wncli.checkpoint.pairs import Pair
from wncli.checkpoint.tensors import Storage, TensorSpec
from wncli.notes import Note

#: Bytes and the place in the file where they go.
Written = tuple[int, bytes]


class Whole(NamedTuple):
    """A storage of the input, byte for byte."""

    storage: Storage


class Elements(NamedTuple):
    """A tensor of the input in row-major order."""

    tensor: TensorSpec


class Magnitude(NamedTuple):
    """The g of `weight` along `dim`, `numel` elements.

    `direction` is the place of the slot that receives its v, and `strides` (elements) are those of
    v in there: where a slice is all zero, v is given a direction. With `of_output` the weight is
    what has been written there, and `weight` only tells its name, dtype and shape.
    """

    weight: TensorSpec
    dim: int | None
    numel: int
    direction: int
    strides: tuple[int, ...]
    of_output: bool = False


class Product(NamedTuple):
    """The weight that a pair is, in row-major order or in the order v has in memory."""

    pair: Pair
    row_major: bool = True


Content = Whole | Elements | Magnitude | Product


class Slot(NamedTuple):
    """A run of bytes of the output and what fills it.

    `is_summed` tells whether the format records a checksum of it, where it records any.
    """

    offset: int
    nbytes: int
    content: Content
    is_summed: bool = True


class Layout(NamedTuple):
    """An output file, and the `names` of the tensors that stand in it.

    `fixed` are the bytes that are known already; `seal` makes the last ones from the checksums
    of the slots, where the format records any.
    """

    nbytes: int
    names: tuple[str, ...]
    slots: tuple[Slot, ...]
    fixed: tuple[Written, ...]
    seal: Callable[[Sequence[int]], list[Written]] | None = None


class FolderLayout(NamedTuple):
    """Every file of an output that is a folder by its format.

    `listing` is the name and content of what lists the files, `notes` is what the format has no
    place for. `stored` are the runs of the input that the files hold, as often as they do, each
    with the path of what is made of it.
    """

    files: tuple[tuple[str, Layout], ...]
    listing: tuple[str, bytes]
    notes: tuple[Note, ...]
    stored: tuple[tuple[TensorSpec, str], ...]
