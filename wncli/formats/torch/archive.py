"""The zip archives that PyTorch writes: members below one folder, storages never compressed.

Layout: PyTorch `caffe2/serialize/inline_container.cc`.
"""

from __future__ import annotations

from wncli.checkpoint.tensors import Storage
from wncli.errors import FormatError
from wncli.formats.torch.tensors import StorageId
from wncli.formats.torch.zip_archive import ZipArchive
from wncli.formats.torch.zip_records import LOCAL_MAGIC, begins_npz, read_mark
from wncli.notes import Note
from wncli.storage.source import Source, truncated

#: Bytes from which an .npz file is known.
_FIRST = 512
#: `kMaxSupportedFileFormatVersion` of caffe2/serialize/versions.h.
_LATEST_VERSION = 10
#: Bytes of the members that say the byte order and the version.
_LONGEST_WORD = 1000
#: What PyTorch looks for by name (`inline_container.cc`, `torch/serialization.py`).
_KNOWN = frozenset(
    {"data.pkl", "byteorder", "version", ".data/version", ".format_version", ".storage_alignment",
     ".data/serialization_id", "constants.pkl", "model.json", ".data/extern_modules"}
)  # fmt: skip


def no_checkpoint(source: Source, members: list[str]) -> FormatError:
    """Make the refusal of a zip that PyTorch did not write, which has these members."""
    return FormatError(
        source.name,
        "this zip is not a torch checkpoint",
        expected="a folder with a member data.pkl, as torch.save writes",
        found=", ".join(members[:5]) or "an empty archive",
    )


class TorchArchive(ZipArchive):
    """An archive of PyTorch's: its members by their names below the one folder."""

    def __init__(self, source: Source) -> None:
        self.storages: dict[str, Storage] = {}
        self.folder: str | None = None
        self.folded: set[str] = set()
        super().__init__(source)

    def inner_name(self, name: str) -> str:
        """Return a member's name below the folder."""
        top, slash, inner = name.partition("/")
        if self.folder is None:
            if not slash:
                raise no_checkpoint(self.source, [name])
            self.folder = top
        if not slash or top != self.folder:
            raise self.broken(
                f"member {name!r} stands outside the archive's folder", f"{self.folder}/…", name
            )
        lower = inner.lower()  # PyTorch's own reader does not tell upper case from lower
        if lower in self.folded:
            raise self.broken(f"member {name!r} stands there twice", "one of each name", "two")
        self.folded.add(lower)
        if inner != lower and lower in _KNOWN:  # it would be found there, and not here
            raise self.broken(f"member {name!r} is spelled otherwise", lower, inner)
        return inner

    def read_short(self, name: str) -> bytes:
        """Return the content of a member that is a word or a number.

        Raises:
            FormatError: it is longer.
        """
        if self.members[name].nbytes > _LONGEST_WORD:
            raise self.broken(
                f"member {name!r} is too long",
                f"up to {_LONGEST_WORD} bytes",
                f"{self.members[name].nbytes:,}",
            )
        return self.read(name)

    def refuse_big_endian(self) -> None:
        """Hold the byte order against this machine's; older archives without one are little-endian.

        Raises:
            FormatError: the tensors are stored in another order.
        """
        byteorder = self.read_short("byteorder") if self.has("byteorder") else b"little"
        if byteorder not in {b"little", b"big"}:
            raise FormatError(
                self.source.name,
                "the member byteorder names no byte order",
                expected="little",
                found=repr(byteorder[:20]),
                hint="copy or download the file again",
            )
        if byteorder != b"little":
            raise FormatError(
                self.source.name,
                "the tensors are stored big-endian",
                expected="byteorder little",
                found="byteorder big",
                hint="load it with torch.load and save it again on a little-endian machine",
            )

    def notes(self) -> tuple[Note, ...]:
        """Warn of each member that has been read and is damaged, and tell of a version mark."""
        damage = [damage_note(name) for name in self.damaged]
        if not self.mark:
            return tuple(damage)
        message = f"it begins with GPT-SoVITS' version mark {self.mark.decode()} in place of PK"
        return (*damage, Note("version-mark", f"{message}; torch.load alone does not read it"))

    def locate(self, identity: StorageId) -> Storage:
        """Return the place of a storage's bytes, which are as many as the pickle says.

        Raises:
            FormatError: there is no such member, or it has another size.
        """
        storage = self.storages.get(identity.key)
        if storage is None:
            storage = self.storages[identity.key] = self._storage(identity)
        if identity.view is not None:
            raise self.broken(
                f"storage data/{identity.key} is referred to as a view", "a whole storage", "a view"
            )
        if identity.nbytes != storage.nbytes:
            raise self.broken(
                f"storage data/{identity.key} has the wrong size",
                f"{identity.nbytes} bytes, as data.pkl says",
                f"{storage.nbytes} bytes",
            )
        return storage

    def _storage(self, identity: StorageId) -> Storage:
        member = self.members.get(f"data/{identity.key}")
        if member is None:
            raise self.broken(
                f"storage data/{identity.key} is missing", "a member for every storage", "none"
            )
        self.refuse_packed(member)
        offset = self.data_offset(member)
        if offset + member.nbytes > self.source.nbytes:
            raise truncated(self.source, f"storage data/{identity.key}", offset + member.nbytes)
        # PyTorch can be told to compute no checksums (set_crc32_options), and then records 0.
        crc = member.crc or None
        return Storage(
            identity.key, offset, member.nbytes, crc, identity.location, self.source.number
        )

    def refuse_version(self) -> None:
        """Hold the version of the layout against those that PyTorch has written (1 to 10).

        Raises:
            FormatError: there is none, or another.
        """
        member = ".data/version" if self.has(".data/version") else "version"
        version = self.read_short(member) if self.has(member) else b""
        if not (version.strip().isdigit() and 1 <= int(version[:20]) <= _LATEST_VERSION):
            raise self.broken(
                "the version is none that PyTorch knows",
                f"a member version that says 1 to {_LATEST_VERSION}",
                repr(version[:20]) if self.has(member) else "no such member",
            )


def damage_note(member: str, file: str = "") -> Note:
    """Return the warning of a damaged member; `file` is the one of several that it is in."""
    what = f"{file}: {member}" if file else member
    message = f"{what} is damaged: its bytes do not have the checksum that the zip records"
    return Note("checksum", message, member, is_warning=True)


def archive_of(source: Source) -> ZipArchive | None:
    """Return the archive that a file is, of tensors or of arrays; None where it is no zip."""
    start = source.read_at(0, min(_FIRST, source.nbytes), "the first bytes")
    if not start.startswith(LOCAL_MAGIC) and not read_mark(start):
        return None
    return ZipArchive(source) if begins_npz(start) else TorchArchive(source)
