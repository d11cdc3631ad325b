"""Reads plain pickles of NumPy arrays: Paddle's .pdparams, and dumps of JAX and the like."""

from __future__ import annotations

from typing import NoReturn

from wncli.checkpoint.checkpoint import Checkpoint
from wncli.errors import FormatError
from wncli.formats.distributed import refuse_distributed_file
from wncli.formats.pickles.reader import read_pickle
from wncli.formats.torch.calls import find_calls
from wncli.formats.torch.state_dicts import read_tree
from wncli.formats.torch.tensors import StorageId
from wncli.storage.source import Source

#: Bytes in which a pickle names the class of what it is.
_START = 512


def read_pickled_arrays(source: Source) -> Checkpoint:
    """Open a pickle of names and NumPy arrays.

    Raises:
        FormatError: there are none in it, or it is damaged.
    """
    start = source.read_at(0, min(_START, source.nbytes), "the first bytes")
    refuse_distributed_file(source.name, start)
    pickled = read_pickle(source, source.name)
    if pickled.nbytes != source.nbytes:
        raise FormatError(
            source.name,
            "bytes follow the pickle",
            expected=f"{pickled.nbytes:,} bytes",
            found=f"{source.nbytes:,} bytes",
            hint="load it with NumPy and save it again",
        )

    def locate(_identity: StorageId) -> NoReturn:
        raise FormatError(
            source.name,
            "the pickle refers to tensors that are not in it",
            expected="a pickle of NumPy arrays, or a file that torch.save wrote",
            hint="copy or download the file again",
        )

    found = read_tree(pickled, pickled.nbytes, locate, source)
    if not found.has_arrays:
        raise FormatError(
            source.name,
            "not a checkpoint",
            expected="a safetensors, torch or npz file",
            found="a plain pickle, without names of NumPy arrays",
            hint="save its state dict with torch.save",
        )
    return Checkpoint(
        source.name,
        "pickle of NumPy arrays",
        source.nbytes,
        found.state_dicts,
        found.entries,
        tree=found.tree,
        refused_names=found.refused_names,
        would_run=find_calls([pickled], found.tree, found.entries),
        notes=found.notes,
    )
