"""Sound checkpoints, broken in small ways: refused, or read as PyTorch and safetensors do."""

from __future__ import annotations

import io
import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import wncli
from tests.support.bounds import bounded
from tests.support.mutations import BYTES, INDEX, LEGACY, SAFETENSORS, Mutation, splice
from tests.support.reference import Likeness, metadata_of, read, same_tensor, state_dict_at, stored
from tests.support.run import ROOT, Wn
from tests.support.zip_mutations import ZIP, unzipped, zipped
from wncli.errors import FormatError, WnError
from wncli.report import Report

pytestmark = pytest.mark.thinned(4)

SEEDS = ROOT / "fuzz" / "seeds"
FILES = {
    reader: {path.name: path.read_bytes() for path in sorted((SEEDS / reader).iterdir())}
    for reader in ("safetensors", "torch-zip", "torch-legacy", "index")
}
MUTATIONS = {"safetensors": SAFETENSORS, "torch-zip": ZIP, "torch-legacy": LEGACY}
SUFFIXES = (".pt", ".safetensors")
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Broken:
    """A seed, and the mutations that it went through, each with the seed of its random numbers."""

    reader: str
    seed: str
    changes: tuple[tuple[str, int], ...]

    @property
    def content(self) -> bytes:
        data = FILES[self.reader][self.seed]
        for name, number in self.changes:
            random = Random(number)  # noqa: S311 - nothing is kept secret
            data = mutations_for(self.reader, self.seed)[name](data, random)
        return data


def knowing(reader: str, seed: str) -> dict[str, Mutation]:
    """The mutations that know what kind of file this is, and those of any bytes."""
    if reader != "index":
        return MUTATIONS[reader]
    return INDEX if seed.endswith(".json") else SAFETENSORS if "safetensors" in seed else ZIP


def mutations_for(reader: str, seed: str) -> dict[str, Mutation]:
    splices = {f"splice {other}": splice(data) for other, data in FILES[reader].items()}
    return knowing(reader, seed) | splices


@st.composite
def broken(draw: st.DrawFn, reader: str) -> Broken:
    seed = draw(st.sampled_from(list(FILES[reader])))
    known = [name for name in knowing(reader, seed) if name not in BYTES]
    # Those that know the format leave more of a file to be read.
    names = st.sampled_from(known) | st.sampled_from(list(mutations_for(reader, seed)))
    changes = st.lists(st.tuples(names, st.integers(0, 2**32 - 1)), min_size=1, max_size=2)
    return Broken(reader, seed, tuple(draw(changes)))


def outcome(call: Callable[[], Answer]) -> Answer | None:
    """What a call gives, within its bounds; None where it refuses, with words that can be shown."""
    try:
        with bounded():
            return call()
    except WnError as error:
        refusal = str(error)
    assert refusal.encode()
    return None


def try_to_read(path: Path) -> Any:  # noqa: ANN401 - whatever is in there
    try:
        return read(path)
    except Exception:  # noqa: BLE001 - the libraries raise many kinds
        return None


# -- what must hold, whatever was broken --------------------------------------------------------


class Examination:
    """A broken file in a folder, and what it came to."""

    def __init__(self, folder: Path, reader: str, seed: str, content: bytes) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        self.folder = folder
        self.reader = reader
        self.seed = SEEDS / reader / seed
        self.path = folder / f"broken{self.seed.suffix}"
        if reader == "index":
            for name, data in FILES["index"].items():
                (folder / name).write_bytes(data)
            kind = "model.safetensors" if "safetensors" in seed else "pytorch_model.bin"
            self.path = folder / f"{kind}.index.json"
            self.seed = self.seed.with_name(self.path.name)
            (folder / seed).write_bytes(content)
        else:
            self.path.write_bytes(content)

    def run(self) -> Counter[str]:
        """Hold everything; count what was refused, converted, and held against the library."""
        report = outcome(lambda: wncli.inspect(self.path))
        if report is None:
            return Counter(refused=1)
        assert json.loads(json.dumps(report.to_json()))["command"] == "inspect"
        converted = [suffix for suffix in SUFFIXES if self.converts(suffix)]
        found = Counter(opened=1, converted=len(converted))
        reference = try_to_read(self.path) if converted else None
        for suffix in converted:
            output = self.folder / f"output{suffix}"
            if suffix == ".safetensors":
                self.hold_safetensors(output, reference, report)
            else:
                self.hold_torch(output, reference)
            found["held"] += reference is not None
            self.hold_comparison(output)
        self.hold_comparison(self.path)
        found["compared"] += self.compare_with_seed(reference)
        return found

    def converts(self, suffix: str) -> bool:
        """Whether it can be converted; where not, nothing is left behind."""
        output = self.folder / f"output{suffix}"
        before = sorted(self.folder.iterdir())
        done = outcome(lambda: wncli.convert(self.path, output))
        after = sorted(self.folder.iterdir())
        assert after == (sorted([*before, output]) if done else before)
        return done is not None

    @property
    def is_safetensors(self) -> bool:
        return self.reader == "safetensors"

    def hold_torch(self, output: Path, reference: Any) -> None:  # noqa: ANN401
        """What the library accepts, it accepts converted, and reads the same."""
        if reference is None and not self.is_safetensors:
            return
        found = read(output)
        if not isinstance(reference, dict) or self.reader in {"torch-zip", "torch-legacy"}:
            assert reference is None or Likeness().same(reference, found)
            return
        for name, tensor in reference.items():
            assert same_tensor(found[name], tensor, strided=False), name

    def hold_safetensors(self, output: Path, reference: Any, report: Report) -> None:  # noqa: ANN401
        """The library reads every output, and in it what it reads in the input."""
        if self.is_safetensors:
            assert stored(output) == stored(self.path)
            assert metadata_of(output) == metadata_of(self.path)
            return
        found, metadata = read(output), metadata_of(output)
        roots = {root.root for root in report.roots}
        at_root = state_dict_at(reference, roots.pop()) if len(roots) == 1 else None
        for name, tensor in (at_root or {}).items():
            kept = name if name in found else metadata[name]
            assert same_tensor(found[kept], tensor, strided=False), name

    def hold_comparison(self, other: Path) -> None:
        """A file is equal to itself, and to what was made of it."""
        found = outcome(lambda: wncli.compare(self.path, other))
        assert found is None or found.equal
        assert found is None or json.dumps(found.to_json())

    def compare_with_seed(self, reference: Any) -> bool:  # noqa: ANN401
        """Comparing tells what has changed as the libraries do."""
        found = outcome(lambda: wncli.compare(self.path, self.seed))
        sound = try_to_read(self.seed)
        ours, theirs = state_dict_at(reference, ""), state_dict_at(sound, "")
        if found is None or not ours or not theirs or ours.keys() != theirs.keys():
            return False
        if all(same_tensor(ours[name], theirs[name], strided=False) for name in ours):
            assert not found.misshapen  # but there can be more names, in the metadata
            assert all(tensor.within for tensor in found.tensors)
        elif found.equal:
            assert all(are_close(ours[name], theirs[name]) for name in ours if is_plain(name))
        return True


def is_plain(name: str) -> bool:
    """Whether this is no half of a pair, of which only the product counts."""
    return not name.endswith(("_g", "_v", "original0", "original1"))


def are_close(one: Tensor, other: Tensor) -> bool:
    """Within the two units of the last place that are allowed."""
    limits = [
        torch.finfo(part.dtype)
        for part in (one, other)
        if part.is_floating_point() or part.is_complex()
    ]
    relative = 2 * max((found.eps for found in limits), default=0.0)
    smallest = relative * max((found.smallest_normal for found in limits), default=0.0)
    one, other = (part if part.is_complex() else part.double() for part in (one, other))
    allowed = (relative * torch.maximum(one.abs(), other.abs())).clamp(min=smallest)
    near = (one == other) | ((one - other).abs() <= allowed) | (one.isnan() & other.isnan())
    return bool(near.all())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reader", "count", "least"),
    [
        ("safetensors", 700, 50),
        ("torch-zip", 1000, 25),
        ("torch-legacy", 700, 15),
        ("index", 500, 25),
    ],
    ids=["safetensors", "torch zip", "torch legacy", "sharded"],
)
def test_a_broken_file_is_refused_or_read_as_its_own_library_reads_it(
    reader: str, count: int, least: int, tmp_path: Path
) -> None:
    came_to: Counter[str] = Counter()

    @settings(max_examples=count, derandomize=True, deadline=None, database=None)
    @given(broken(reader))
    def holds(case: Broken) -> None:
        came_to.update(Examination(tmp_path / "work", reader, case.seed, case.content).run())

    holds()
    assert min(came_to[what] for what in ("refused", "held", "compared")) >= least, came_to


@pytest.mark.parametrize("reader", list(FILES))
def test_the_seeds_themselves_are_read_as_their_own_library_reads_them(
    reader: str, tmp_path: Path
) -> None:
    for seed, content in FILES[reader].items():
        assert Examination(tmp_path / "work", reader, seed, content).run()["opened"], seed


# -- what the fuzzer and these tests have found -------------------------------------------------


def with_pickle(seed: str, change: Callable[[bytes], bytes]) -> bytes:
    """A torch zip whose pickle has been changed."""
    members = unzipped(FILES["torch-zip"][seed])
    changed = {name: change(content) for name, content in members if name.endswith("data.pkl")}
    return zipped([(name, changed.get(name, content)) for name, content in members])


def with_item(opcodes: bytes) -> bytes:
    """A torch zip with one item more at its top, whose key and value these opcodes push."""
    return with_pickle("pairs.pt", lambda pickle: pickle.removesuffix(b".") + opcodes + b"s.")


def exchanged(old: bytes, new: bytes) -> bytes:
    """The legacy file of a tensor and a view of its storage, with one run of bytes exchanged."""
    found = FILES["torch-legacy"]["view.pt"]
    assert found.count(old) == 1
    return found.replace(old, new)


def saved(value: dict[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


_TIED = torch.ones(2, 2)
FOUND: dict[str, bytes] = {
    "a storage has two dtypes": with_pickle(
        "dtypes.pt", lambda pickle: pickle.replace(b"X\1\0\0\0005", b"X\1\0\0\0004")
    ),
    "a legacy storage has two dtypes": exchanged(b"(h\3h\4", b"(h\3ctorch\nIntStorage\n"),
    "a view has the key of its storage": exchanged(b"K\6X\1\0\0\0001", b"K\6X\1\0\0\0000"),
    "two views have one key": exchanged(b"K\6Nt", b"K\6X\1\0\0\0001K\0K\6\x87t"),
    "a list is a key": with_item(b"]N"),
    "a bytearray is a key": with_item(b"\x96" + bytes(8) + b"N"),
    "a list is in a key": with_item(b"]\x85\x85N"),
    "a class's name is half a surrogate pair": with_item(
        b"X\1\0\0\0kX\3\0\0\0\xed\xa0\x80X\1\0\0\0n\x93"
    ),
    "a tied name is half a surrogate pair": saved({"a.weight": _TIED, "\ud800": _TIED}),
    "a tied name is format": saved({"a.weight": _TIED, "format": _TIED}),
}


@pytest.mark.parametrize("content", FOUND.values(), ids=FOUND)
def test_a_file_is_refused_or_read_as_its_library_reads_it_where(
    content: bytes, tmp_path: Path
) -> None:
    reader, seed = ("torch-zip", "pairs.pt")
    if content.startswith(b"\x80"):
        reader, seed = ("torch-legacy", "view.pt")
    Examination(tmp_path / "work", reader, seed, content).run()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_key_of_tuples_in_tuples_ends_no_process(suffix: str, wn: Wn, tmp_path: Path) -> None:
    path = tmp_path / "deep.pt"
    path.write_bytes(with_item(b")" + 500_000 * b"\x85" + b"N"))
    ran = wn("convert", path, tmp_path / f"output{suffix}")
    assert ran.code in {0, 2}, ran.code
    assert "Traceback" not in ran.stderr


def test_an_entry_can_be_dropped_beside_a_key_of_thousands_of_digits(tmp_path: Path) -> None:
    path, output = tmp_path / "long.pt", tmp_path / "output.pt"
    path.write_bytes(saved({"model": {"a.weight": _TIED}, "optimizer": 3, 10**5000: 1}))
    done = outcome(lambda: wncli.convert(path, output, drop=["optimizer"]))
    assert not done or b"optimizer" not in output.read_bytes()


@pytest.mark.parametrize("name", ["attribute", "slash"])
def test_a_storage_that_is_marked_as_a_folder_is_refused(name: str, tmp_path: Path) -> None:
    """Of such a member, PyTorch reads nothing, and leaves in memory what stood there before."""
    path = tmp_path / "folder.pt"
    if name == "slash":
        members = unzipped(FILES["torch-zip"]["pairs.pt"])
        renamed = [(n + "/" if n.endswith("data/0") else n, content) for n, content in members]
        content = bytearray(zipped(renamed))
        content = bytearray(content.replace(b"X\1\0\0\0000", b"X\2\0\0\0000/"))
    else:
        content = bytearray(FILES["torch-zip"]["pairs.pt"])
        content[content.rindex(b"archive/data/0") - 8] |= 0x10  # external attributes
    path.write_bytes(content)
    with pytest.raises(FormatError):
        wncli.convert(path, tmp_path / "output.safetensors")


def test_true_is_no_two_whatever_byte_stands_for_it(tmp_path: Path) -> None:
    paths = []
    for dtype in ("BOOL", "I8"):
        header = {"a.weight": {"dtype": dtype, "shape": [1, 1], "data_offsets": [0, 1]}}
        text = json.dumps(header).encode()
        paths.append(tmp_path / f"{dtype}.safetensors")
        paths[-1].write_bytes(len(text).to_bytes(8, "little") + text + b"\2")
    one, other = (safetensors.torch.load_file(path)["a.weight"] for path in paths)
    same = bool(one.double() == other.double())
    assert wncli.compare(*paths).equal == same
