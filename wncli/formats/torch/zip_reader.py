"""Reads the zip that `torch.save` writes since PyTorch 1.6, and tells its look-alikes apart.

Every member is stored, never compressed, so each storage is one run of bytes in the file.
"""

from __future__ import annotations

from wncli.checkpoint.checkpoint import Checkpoint
from wncli.errors import FormatError
from wncli.formats.pickles.reader import LONGEST_HELD, read_pickle
from wncli.formats.torch.archive import TorchArchive, no_checkpoint
from wncli.formats.torch.calls import find_calls
from wncli.formats.torch.state_dicts import read_tree
from wncli.storage.source import Source


def read_torch_zip(source: Source) -> Checkpoint:
    """Open a torch zip checkpoint, or a TorchScript archive.

    Raises:
        FormatError: no readable archive, or one that breaks the rules of the format.
    """
    archive = TorchArchive(source)
    _refuse_lookalikes(archive)
    if archive.has("constants.pkl") or any(name.startswith("code/") for name in archive.members):
        from wncli.formats.torch.torchscript import read_torchscript

        return read_torchscript(archive)
    if not archive.has("data.pkl"):
        raise no_checkpoint(source, list(archive.members))
    for member in archive.members.values():
        archive.refuse_packed(member)
    archive.refuse_version()
    archive.refuse_big_endian()
    where, member = f"{source.name}: data.pkl", archive.members["data.pkl"]
    if member.nbytes <= LONGEST_HELD:
        pickled = read_pickle(archive.read("data.pkl"), where)
    else:
        place = archive.look_over("data.pkl")
        pickled = read_pickle(source, where, place, member.nbytes)
    found = read_tree(pickled, member.nbytes, archive.locate, source)
    return Checkpoint(
        source.name,
        "torch, of NumPy arrays" if found.has_arrays else "torch",
        source.nbytes,
        found.state_dicts,
        found.entries,
        tree=found.tree,
        refused_names=found.refused_names,
        would_run=find_calls([pickled], found.tree, found.entries),
        notes=archive.notes() + found.notes,
        mark=archive.mark,
    )


def _refuse_lookalikes(archive: TorchArchive) -> None:
    where = archive.source.name
    if archive.has(".data/extern_modules"):
        raise FormatError(
            where,
            "this is a torch.package archive, code and objects, not a checkpoint",
            expected="a file that torch.save wrote",
            hint="load the object with torch.package.PackageImporter and save its state_dict()",
        )
    if archive.has("model.json"):
        raise FormatError(
            where,
            "this is a TorchScript archive as PyTorch wrote it before version 1.4",
            expected="a TorchScript archive with a data.pkl",
            hint="load it with torch.jit.load, and save it under a new name with torch.jit.save",
        )
