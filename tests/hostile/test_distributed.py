"""Distributed checkpoints that contradict themselves, lead elsewhere, or would run something."""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import (
    FileSystemWriter,
    SerializationFormat,
    _StorageInfo,
)
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.state_dict_saver import save

import wncli
from tests.support.mutations import BYTES, PICKLE
from tests.support.oracles import bits, load
from tests.support.parted import along, at_random, item, put_parts
from tests.support.refusals import hold_refused, snapshot
from tests.support.run import Ran
from wncli.errors import WnError
from wncli.formats.dcp.glance import MetadataGlance
from wncli.formats.dcp.metadata import Metadata as Found
from wncli.formats.dcp.metadata import read_metadata
from wncli.formats.pickles.reader import read_pickle

RunHere = Callable[..., Ran]

WEIGHT = torch.arange(24, dtype=torch.float32).reshape(6, 4) + 1
STATE: dict[str, Any] = {
    "model.a.weight_g": torch.arange(6.0).reshape(6, 1) + 1,
    "model.a.weight_v": WEIGHT,
    "model.a.bias": torch.ones(6),
    "epoch": 3,
}
CUTS = {
    "model.a.weight_v": along(WEIGHT, 0, (2, 3, 1)),
    "model.a.bias": along(WEIGHT[:, 0], 0, (4, 2)),
}
V = "model.a.weight_v"


def hold_refused_by_both(
    wn_here: RunHere, folder: Path, says: str, where: Path | str | None = None
) -> None:
    """Refused by `inspect` and by `remove`, and nothing is written."""
    before = snapshot(folder.parent)
    hold_refused(wn_here("inspect", folder), where or folder, says)
    hold_refused(wn_here("remove", folder, folder.parent / "out.pt"), where or folder, says)
    assert snapshot(folder.parent) == before


def chunks(made: Metadata) -> list[ChunkStorageMetadata]:
    found = made.state_dict_metadata[V]
    assert isinstance(found, TensorStorageMetadata)
    return found.chunks


def info(made: Metadata, name: str = V, place: int = 0) -> _StorageInfo:
    found = [stored for index, stored in made.storage_data.items() if index.fqn == name]
    stored: _StorageInfo = found[place]
    return stored


def resized(number: int, begin: list[int], shape: list[int]) -> Callable[[Metadata], None]:
    """Give a chunk of v another box, and its item the same place."""

    def edit(made: Metadata) -> None:
        old = chunks(made)[number]
        chunks(made)[number] = ChunkStorageMetadata(torch.Size(begin), torch.Size(shape))
        key = MetadataIndex(V, old.offsets)
        made.storage_data[MetadataIndex(V, begin)] = made.storage_data.pop(key)

    return edit


def set_size(*shape: int) -> Callable[[Metadata], None]:
    def edit(made: Metadata) -> None:
        made.state_dict_metadata[V].size = torch.Size(shape)  # type: ignore[union-attr]

    return edit


def stored(**values: object) -> Callable[[Metadata], None]:
    def edit(made: Metadata) -> None:
        vars(info(made)).update(values)

    return edit


def path(name: str, keys: object) -> Callable[[Metadata], None]:
    return lambda made: made.planner_data.update({name: keys})


#: What is changed in sound metadata, and what is said of it.
LIES: dict[str, tuple[Callable[[Any], object], str]] = {
    "a gap": (lambda made: chunks(made).pop(), "leave gaps"),
    "a gap inside": (lambda made: chunks(made).pop(1), "leave gaps"),
    "no chunks": (lambda made: chunks(made).clear(), "leave gaps"),
    "an overlap": (resized(1, [1, 0], [3, 4]), "overlap"),
    "an overlap and a gap": (resized(2, [4, 0], [1, 4]), "overlap, or leave gaps"),
    "a box beyond": (resized(2, [6, 0], [1, 4]), "reaches beyond it"),
    "a box of another rank": (resized(2, [5], [1]), "reaches beyond it"),
    "a tensor that is larger": (set_size(7, 4), "leave gaps"),
    "a vast tensor": (set_size(1 << 40, 1 << 40), "more than any memory"),
    "a vast empty tensor": (set_size(1 << 62, 0), "reaches beyond it|leave gaps"),
    "a chunk twice": (lambda made: chunks(made).append(chunks(made)[0]), "overlap"),
    "a missing item": (
        lambda made: made.storage_data.pop(MetadataIndex(V, [2, 0])), "no item is listed"
    ),
    "a missing value": (
        lambda made: made.storage_data.pop(MetadataIndex("epoch")), "no item is listed"
    ),
    "a negative offset": (stored(offset=-1), "impossible place"),
    "a negative length": (stored(length=-1), "impossible place"),
    "an offset that overflows": (stored(offset=1 << 64), "impossible place"),
    "an offset that is a number": (stored(offset=0.0), "impossible place"),
    "an item beyond the file": (stored(offset=1 << 40), "ends before the item"),
    "an item longer than the file": (stored(length=1 << 40), "ends before the item|overlap"),
    "an item that is too short": (stored(length=20), "too short"),
    "an item without a file": (stored(relative_path="__9_9.distcp"), "missing: __9_9.distcp"),
    "a path below": (stored(relative_path="a/__0_0.distcp"), "does not stand beside it"),
    "a path above": (stored(relative_path="../x.distcp"), "does not stand beside it"),
    "an absolute path": (stored(relative_path="/etc/passwd"), "does not stand beside it"),
    "a path of Windows": (stored(relative_path="..\\x.distcp"), "does not stand beside it"),
    "a drive": (stored(relative_path="c:x.distcp"), "does not stand beside it"),
    "a path that is no UTF-8": (stored(relative_path="\ud800.distcp"), "missing|no file can"),
    "a long path": (stored(relative_path="x" * 5000), "cannot be read|missing"),
    "a path with NUL": (stored(relative_path="a\0b"), "does not stand beside it"),
    "a path that is no text": (stored(relative_path=None), "no place"),
    "an empty path": (stored(relative_path=""), "does not stand beside it"),
    "compression": (stored(transform_descriptors=["zstd"]), "compressed"),
    "items that overlap": (
        lambda made: vars(info(made)).update(vars(info(made, "model.a.bias"))), "overlap"
    ),
    "an item for two": (
        lambda made: vars(info(made, "model.a.bias")).update(vars(info(made, "epoch"))), "overlap"
    ),
    "another class": (
        lambda made: made.state_dict_metadata.update({V: SimpleNamespace(size=3)}),
        "neither a tensor nor a value",
    ),
    "a dtype that is none": (
        lambda made: setattr(made.state_dict_metadata[V], "properties", 3), "dtype"
    ),
    "a quantized dtype": (
        lambda made: setattr(
            made.state_dict_metadata[V], "properties", TensorProperties(dtype=torch.qint8)
        ),
        "dtype",
    ),
    "a name that is no text": (
        lambda made: made.state_dict_metadata.update({3: made.state_dict_metadata[V]}), "no text"
    ),
    "no storage": (lambda made: setattr(made, "storage_data", None), "not the metadata"),
    "no tensors": (lambda made: setattr(made, "state_dict_metadata", []), "not the metadata"),
    "a planner of its own": (lambda made: setattr(made, "planner_data", 3), "planner_data"),
    "a path of a set": (path(V, frozenset()), "a path in its planner_data"),
    "an empty path of keys": (path(V, ()), "a path in its planner_data"),
    "a negative place": (path(V, ("model", -1)), "a path in its planner_data"),
    "a deep path": (path(V, ("a",) * 1000), "a path in its planner_data"),
    "a path of another": (path(V, ("model", "a.bias")), "is another's"),
    "an index of two": (
        lambda made: made.storage_data.update({("x", 1): info(made)}), "index in its storage_data"
    ),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_metadata_that_cannot_be_is_refused(lie: str, wn_here: RunHere, tmp_path: Path) -> None:
    edit, says = LIES[lie]
    folder = put_parts(tmp_path / "dcp", STATE, CUTS, edit=edit)
    hold_refused_by_both(wn_here, folder, says)


@pytest.mark.parametrize(
    ("name", "keys", "says"),
    [
        ("model", ("model",), "have one place"),
        ("epoch.x", ("epoch", "x"), "have one place"),
        ("model.a.bias.x", ("model", "a.bias", "x"), "have one place"),
        ("model.3", ("model", 3), "have one place"),
        ("epoch.3.x", ("epoch", 3, "x"), "have one place"),
        ("3", (3,), "have one place"),
        ("list.1099511627776", ("list", 1 << 40), "nearly empty"),
    ],
)
def test_two_entries_in_one_place_are_refused(
    name: str, keys: tuple[object, ...], says: str, wn_here: RunHere, tmp_path: Path
) -> None:
    folder = put_parts(tmp_path / "dcp", STATE | {name: 1}, CUTS, edit=path(name, keys))
    hold_refused_by_both(wn_here, folder, says)


def test_what_the_lies_begin_with_is_sound(tmp_path: Path) -> None:
    folder = put_parts(tmp_path / "dcp", STATE, CUTS)
    wncli.convert(folder, tmp_path / "out.pt")
    found = load(tmp_path / "out.pt")
    assert {f"model.{name}": bits(tensor) for name, tensor in found["model"].items()} == {
        name: bits(tensor) for name, tensor in STATE.items() if isinstance(tensor, Tensor)
    }


#: What an item is in place of the first chunk of v, and what is said of it.
ITEMS: dict[str, tuple[bytes, str]] = {
    "another shape": (item(torch.ones(4, 2)), "not what the metadata"),
    "another dtype": (item(torch.ones(2, 4, dtype=torch.int32)), "not what the metadata"),
    "a value": (item({"a": 1}), "not what the metadata"),
    "another order": (item(torch.ones(4, 2).t()), "another order"),
    "no zip": (b"x" * 900, "not as torch.save writes"),
    "zeros": (bytes(900), "not as torch.save writes"),
    "half of a zip": (item(torch.ones(2, 4))[:700], "truncated"),
    "two zips": (item(torch.ones(2, 4)) * 2, "several zip archives|damaged"),
    "what would run": (item(torch.ones(2, 4).to_sparse()), "not what the metadata|changed"),
}


@pytest.mark.parametrize("lie", ITEMS)
def test_items_that_are_not_what_the_metadata_says_are_refused_when_they_are_read(
    lie: str, wn_here: RunHere, tmp_path: Path
) -> None:
    data, says = ITEMS[lie]
    cuts = {V: along(WEIGHT, 0, (2, 4))}
    folder = put_parts(tmp_path / "dcp", STATE, cuts, files=1, items={V: data})
    assert wn_here("inspect", folder).code == 0
    for output in ("out.pt", "out.safetensors"):
        ran = wn_here("convert", folder, tmp_path / output)
        hold_refused(ran, folder / "__0_0.distcp", says)
        assert V in ran.stderr
    assert not list(tmp_path.glob("out*"))
    checked = wn_here("inspect", "--check", folder)
    assert checked.code == 1
    assert f"unreadable: {V.removeprefix('model.')} cannot be read" in checked.stdout


def test_many_that_share_what_is_long_take_no_longer(tmp_path: Path) -> None:
    shared = [ChunkStorageMetadata(torch.Size([n]), torch.Size([1])) for n in range(3000)]

    def edit(made: Metadata) -> None:
        about = made.state_dict_metadata["m.w"]
        assert isinstance(about, TensorStorageMetadata)
        about.size, about.chunks = torch.Size([3000]), shared
        made.state_dict_metadata.update({
            f"m.{n}": TensorStorageMetadata(about.properties, about.size, shared)
            for n in range(3000)
        })  # fmt: skip

    folder = put_parts(tmp_path / "dcp", {"m.w": torch.ones(3)}, edit=edit)
    with pytest.raises(WnError, match="are those of others"):
        wncli.inspect(folder)


# -- the folder ------------------------------------------------------------------------------------


def test_links_that_leave_the_folder_are_refused(wn_here: RunHere, tmp_path: Path) -> None:
    folder = put_parts(tmp_path / "dcp", STATE, CUTS)
    (folder / "__1_0.distcp").rename(tmp_path / "elsewhere")
    (folder / "__1_0.distcp").symlink_to(tmp_path / "elsewhere")
    hold_refused_by_both(wn_here, folder, "leaves its folder")
    (folder / "inside").write_bytes((tmp_path / "elsewhere").read_bytes())
    (folder / "__1_0.distcp").unlink()
    (folder / "__1_0.distcp").symlink_to("inside")
    assert wn_here("inspect", folder).code == 0
    (folder / ".metadata").rename(tmp_path / "metadata")
    (folder / ".metadata").symlink_to(tmp_path / "metadata")
    hold_refused_by_both(wn_here, folder, "leaves its folder")


def test_a_pipe_in_place_of_a_file_is_refused_at_once(wn_here: RunHere, tmp_path: Path) -> None:
    folder = put_parts(tmp_path / "dcp", STATE, CUTS)
    (folder / "__1_0.distcp").unlink()
    os.mkfifo(folder / "__1_0.distcp")
    hold_refused_by_both(wn_here, folder, "not a regular file")
    (folder / ".metadata").unlink()
    os.mkfifo(folder / ".metadata")
    hold_refused_by_both(wn_here, folder, "not a regular file")


def test_files_that_change_meanwhile_are_refused(tmp_path: Path) -> None:
    from wncli.formats.open import open_checkpoint

    folder = put_parts(tmp_path / "dcp", {"a.x": torch.ones(3)}, files=1)
    with open_checkpoint(folder) as (opened, (source,)):
        (spec,) = opened.state_dicts[0].tensors
        data = (folder / "__0_0.distcp").read_bytes()
        (folder / "__0_0.distcp").unlink()
        (folder / "__0_0.distcp").write_bytes(data)
        with pytest.raises(WnError, match="has changed"):
            source.read_at(spec.storage.offset, 4, "it")


def test_safetensors_items_below_metadata_are_named(wn_here: RunHere, tmp_path: Path) -> None:
    writer = FileSystemWriter(
        tmp_path / "dcp", serialization_format=SerializationFormat.SAFETENSORS
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save({"model": {"a": torch.ones(3, 4), "b": torch.ones(5)}}, storage_writer=writer)
    hold_refused_by_both(wn_here, tmp_path / "dcp", "items .* are safetensors")


def test_items_without_metadata_are_refused(wn_here: RunHere, tmp_path: Path) -> None:
    folder = put_parts(tmp_path / "dcp", STATE, CUTS)
    (folder / ".metadata").unlink()
    hold_refused_by_both(wn_here, folder, "its .metadata is missing")


@pytest.mark.parametrize("kept", [0, 100, -1])
def test_metadata_that_is_cut_says_what_to_copy(
    kept: int, wn_here: RunHere, tmp_path: Path
) -> None:
    folder = put_parts(tmp_path / "dcp", STATE, CUTS)
    path = folder / ".metadata"
    path.write_bytes(path.read_bytes()[:kept])
    hold_refused_by_both(wn_here, folder, "the pickle cannot be read")
    assert "copy or download the whole directory again" in wn_here("inspect", folder).stderr


def test_bytes_behind_the_metadata_are_refused(wn_here: RunHere, tmp_path: Path) -> None:
    folder = put_parts(tmp_path / "dcp", STATE, CUTS)
    with (folder / ".metadata").open("ab") as file:
        file.write(b"more")
    hold_refused_by_both(wn_here, folder, "bytes follow its metadata")


def test_metadata_of_ranks_that_contradict_each_other_is_refused(
    wn_here: RunHere, tmp_path: Path
) -> None:
    folder = put_parts(tmp_path / "dcp", STATE, CUTS)
    (folder / ".metadata").rename(folder / "__0.metadata")
    made = pickle.loads((folder / "__0.metadata").read_bytes())  # noqa: S301 - our own
    assert wn_here("inspect", folder).code == 0
    set_size(7, 4)(made)
    (folder / "__1.metadata").write_bytes(pickle.dumps(made, protocol=4))
    hold_refused_by_both(wn_here, folder, "is another than in the first metadata file")


# -- what would run --------------------------------------------------------------------------------


class Runs:
    """What makes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("where", ["a value", "the metadata", "an attribute"])
def test_what_would_run_is_listed_and_refused_and_does_not_run(
    where: str, wn_here: RunHere, tmp_path: Path
) -> None:
    state = dict(STATE)
    runs = Runs(tmp_path / "made")
    edits: dict[str, Callable[[Metadata], object]] = {
        "the metadata": lambda made: setattr(made, "version", runs),
        "an attribute": lambda made: setattr(info(made), "note", runs),
    }
    if where == "a value":
        state["args"] = runs
    folder = put_parts(tmp_path / "dcp", state, CUTS, edit=edits.get(where))
    listed = wn_here("inspect", folder)
    assert listed.code == 0
    assert "posix.mkdir" in listed.stdout
    hold_refused(wn_here("convert", folder, tmp_path / "out.pt"), folder, "posix.mkdir")
    assert wn_here("convert", folder, tmp_path / "out.pt", "--only", "model").code == 0
    assert not (tmp_path / "made").exists()


def test_a_subclass_of_the_metadata_is_read_by_its_attributes(tmp_path: Path) -> None:
    folder = put_parts(tmp_path / "dcp", STATE, CUTS)
    raw = (folder / ".metadata").read_bytes()
    name = b"\x8c\x25torch.distributed.checkpoint.metadata\x94\x8c\x08Metadata\x94\x93"
    assert name in raw
    ours = (
        b"\x8c\x25torch.distributed.checkpoint.metadata\x94\x8c\x08Megatron\x94"
        b"\x8c\x09megatron1\x8c\x08Metadata\x93"
    )
    # The same, but for the class of the whole: no frame says how long it is.
    changed = raw.replace(name, ours)
    changed = (
        changed[:3] + (len(changed) - 11).to_bytes(8, "little") + changed[11:]
        if changed[2:3] == b"\x95"
        else changed
    )
    (folder / ".metadata").write_bytes(changed)
    assert [layer.module for layer in wncli.inspect(folder).layers] == ["a"]


# -- sizes and mutations ---------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(60))
def test_tensors_in_any_boxes_are_read_whole(seed: int, tmp_path: Path) -> None:
    random = Random(seed)  # noqa: S311
    state: dict[str, Tensor] = {}
    for number in range(6):
        shape = [random.randrange(1, 7) for _ in range(random.randrange(5))]
        tensor = torch.randint(0, 200, shape)
        kind = random.choice((torch.float32, torch.uint8, torch.bfloat16, torch.int16))
        state[f"m.{number}.weight"] = tensor.to(kind)
    cuts = {name: at_random(tensor, random) for name, tensor in state.items()}
    folder = put_parts(tmp_path / "dcp", state | {"m.w.weight": WEIGHT}, cuts, files=3)
    wncli.convert(folder, tmp_path / "out.pt", only="m")
    found = load(tmp_path / "out.pt")
    del found["w.weight"]
    assert {f"m.{name}": bits(tensor) for name, tensor in found.items()} == {
        name: bits(tensor) for name, tensor in state.items()
    }


def test_boxes_that_no_cuts_make_cover_a_tensor_too(tmp_path: Path) -> None:
    """Four boxes around a fifth, as blades around a hub."""
    tensor = torch.arange(9.0).reshape(3, 3)
    cuts = [
        ((0, 0), (1, 2)),
        ((0, 2), (2, 1)),
        ((2, 1), (1, 2)),
        ((1, 0), (2, 1)),
        ((1, 1), (1, 1)),
    ]
    folder = put_parts(tmp_path / "dcp", {"m.weight": tensor}, {"m.weight": cuts})
    wncli.convert(folder, tmp_path / "out.pt")
    assert torch.equal(load(tmp_path / "out.pt")["m"]["weight"], tensor)


def sound_metadata(tmp_path: Path) -> list[bytes]:
    """Metadata as PyTorch pickles it, small and large."""
    state = dict(STATE) | {f"model.{n}.weight": torch.ones(4, n + 1) for n in range(8)}
    cuts = {name: along(tensor, 0, [1] * len(tensor)) for name, tensor in state.items()
            if isinstance(tensor, Tensor)}  # fmt: skip
    return [
        (put_parts(tmp_path / "a", STATE, CUTS) / ".metadata").read_bytes(),
        (put_parts(tmp_path / "b", state, cuts) / ".metadata").read_bytes(),
    ]


@pytest.mark.parametrize("mutation", PICKLE)
def test_a_change_to_the_metadata_is_refused_or_another_checkpoint(
    mutation: str, tmp_path: Path
) -> None:
    folder = put_parts(tmp_path / "dcp", STATE, CUTS)
    raw = (folder / ".metadata").read_bytes()
    random = Random(mutation)  # noqa: S311
    for _ in range(150):
        (folder / ".metadata").write_bytes(PICKLE[mutation](raw, random))
        with contextlib.suppress(WnError):
            wncli.inspect(folder, check=True)
            wncli.convert(folder, tmp_path / "out.pt", force=True)


def names_in(raw: bytes) -> set[str]:
    return set(map(str, read_pickle(raw, "x").globals))


@pytest.mark.slow
@pytest.mark.parametrize("mutation", PICKLE)
def test_changed_metadata_is_what_it_is_to_pytorch_or_refused(
    mutation: str, tmp_path: Path
) -> None:
    folder = put_parts(tmp_path / "dcp", STATE, CUTS)
    raw = (folder / ".metadata").read_bytes()
    known = names_in(raw)
    random = Random(mutation)  # noqa: S311
    compared = 0
    for _ in range(400):
        changed = PICKLE[mutation](raw, random)
        (folder / ".metadata").write_bytes(changed)
        try:
            wncli.convert(folder, tmp_path / "out.pt", force=True)
        except WnError:
            continue
        if not names_in(changed) <= known:  # PyTorch would import it
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                dcp_to_torch_save(folder, tmp_path / "gathered.pt")
        except (Exception, CheckpointException):  # noqa: BLE001, S112 - of many kinds
            continue
        found, wanted = load(tmp_path / "out.pt"), load(tmp_path / "gathered.pt")
        assert flat(found) == flat(wanted)
        compared += 1
    assert compared or mutation in {"truncate", "insert", "delete", "duplicate"}


def flat(value: Any, place: tuple[object, ...] = ()) -> object:  # noqa: ANN401
    """All that is in a checkpoint, tensors by their bits."""
    if isinstance(value, dict):
        return [flat(item, (*place, key)) for key, item in value.items()]
    return place, bits(value) if isinstance(value, Tensor) else value


def said(made: Found) -> object:
    """All that counts of a metadata file."""
    tensors = {name: about and about[:3] for name, about in made.tensors.items()}
    return tensors, made.paths, made.stored


@pytest.mark.parametrize("mutation", PICKLE)
def test_what_is_read_at_a_glance_is_what_the_opcodes_say(mutation: str, tmp_path: Path) -> None:
    random = Random(mutation)  # noqa: S311
    glances = 0
    for raw in sound_metadata(tmp_path):
        for number in range(200):
            data = PICKLE[mutation](raw, random) if number else raw
            try:
                fast = read_metadata(read_pickle(data, "x", glance=MetadataGlance()), "x")
            except WnError:
                continue
            slow = read_metadata(read_pickle(data, "x"), "x")
            assert said(fast) == said(slow)
            glances += 1
    assert glances


def test_all_chunks_and_items_of_pytorch_are_read_at_a_glance(tmp_path: Path) -> None:
    raw = sound_metadata(tmp_path)[1]
    calls = read_pickle(raw, "x", glance=MetadataGlance()).calls
    names = [str(call.function) for call in calls]
    for kind in (
        "metadata.ChunkStorageMetadata",
        "metadata.MetadataIndex",
        "filesystem._StorageInfo",
    ):
        # The first spells the names of the attributes.
        assert names.count(f"torch.distributed.checkpoint.{kind}") <= 2


@pytest.mark.parametrize("mutation", BYTES)
def test_a_change_to_the_items_is_refused_or_found(mutation: str, tmp_path: Path) -> None:
    folder = put_parts(tmp_path / "dcp", STATE, CUTS, files=1)
    raw = (folder / "__0_0.distcp").read_bytes()
    random = Random(mutation)  # noqa: S311
    for _ in range(60):
        (folder / "__0_0.distcp").write_bytes(BYTES[mutation](raw, random))
        with contextlib.suppress(WnError):
            wncli.inspect(folder, check=True)
            wncli.convert(folder, tmp_path / "out.pt", force=True)


def test_shards_that_contradict_each_other_are_refused(wn_here: RunHere, tmp_path: Path) -> None:
    import json

    from safetensors.torch import save_file

    def put(rank: int, tensor: Tensor, about: object) -> None:
        text = about if isinstance(about, str) else json.dumps({"w": {"saved_offsets": about}})
        name = f"shard-{rank:05}-model-00001-of-00001.safetensors"
        save_file({"w": tensor}, tmp_path / "s" / name, {"DCP_SHARDING_INFO": text})

    lies: dict[str, tuple[Tensor, object]] = {
        "overlap, or leave gaps": (torch.ones(2, 3), [1, 0]),
        "is another than": (torch.ones(2, 3, dtype=torch.int32), [2, 0]),
        "says no place of": (torch.ones(2, 3), [2]),
        "says no place": (torch.ones(2, 3), [2, -1]),
        "no place of": (torch.ones(2, 3), "{}"),
        "is not JSON": (torch.ones(2, 3), "{"),
        "leave gaps": (torch.ones(2, 3), [1 << 61, 0]),
    }
    (tmp_path / "s").mkdir()
    put(1, torch.ones(2, 3), [0, 0])
    for says, (tensor, about) in lies.items():
        put(2, tensor, about)
        hold_refused_by_both(wn_here, tmp_path / "s", says)
    put(2, torch.ones(1, 3), [2, 0])
    (listed,) = wncli.inspect(tmp_path / "s", tensors=True).tensors or ()
    assert listed.shape == (3, 3)
    shutil.copy(
        tmp_path / "s" / "shard-00002-model-00001-of-00001.safetensors",
        tmp_path / "s" / "shard-00004-model-00001-of-00001.safetensors",
    )
    hold_refused_by_both(wn_here, tmp_path / "s", "missing: those of rank 3")
