"""Writing sharded checkpoints: names, index and bytes as Hugging Face's libraries have them."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from conftest import Ran, bits, environment
from test_sharded_reading import KINDS, index_path, save, shard_name, sharded
from torch import Tensor, nn

import wncli
from wncli.errors import FileError, UsageError, WeightNormError, WnError

State = dict[str, Tensor]
Wn = Callable[..., Ran]
both_kinds = pytest.mark.parametrize("kind", KINDS)


def three(dtype: torch.dtype = torch.float32) -> dict[int, State]:
    """Three shards: `a`'s g and v stand apart, `b`'s together, the third has no weight norm."""
    return {
        1: {"a.weight_g": torch.rand(4, 1).to(dtype) + 0.5, "a.bias": torch.arange(5).half()},
        2: {
            "a.weight_v": torch.randn(4, 6).to(dtype),
            "b.weight_g": torch.rand(3, 1, 1) + 0.5,
            "b.weight_v": torch.randn(3, 2, 5),
        },
        3: {"c.table": torch.arange(24).reshape(2, 12), "c.scale": torch.tensor(2.5).bfloat16()},
    }


def merged(shards: dict[int, State]) -> State:
    return {name: tensor for state in shards.values() for name, tensor in state.items()}


def folded(state: State) -> State:
    """What PyTorch folds every pair to, in the place of its v."""
    found: State = {}
    for name, tensor in state.items():
        if name.endswith("_v"):
            found[name[:-2]] = torch._weight_norm(tensor, state[f"{name[:-2]}_g"], 0)
        elif not name.endswith("_g"):
            found[name] = tensor
    return found


def load(path: Path) -> State:
    """One file, as its users read it."""
    if path.suffix == ".safetensors":
        return safetensors.torch.load_file(path)
    found: State = torch.load(path, weights_only=True)
    return found


def is_weights(path: Path) -> bool:
    return path.suffix in {".safetensors", ".bin"}


def read(folder: Path) -> State:
    """All tensors of a folder, the index held against every file that it lists and that is there.

    `total_size` counts each storage once, as huggingface_hub's `split_torch_state_dict_into_shards`
    does.
    """
    indexes = [path for path in folder.iterdir() if path.name.endswith(".index.json")]
    files = {path.name for path in folder.iterdir() if is_weights(path)}
    if not indexes:
        (name,) = files
        assert name in {"model.safetensors", "pytorch_model.bin"}
        return load(folder / name)
    (path,) = indexes
    index = json.loads(path.read_text())
    assert set(index["weight_map"].values()) == files
    assert len(files) > 1
    kind = "safetensors" if path.name.startswith("model.s") else "torch"
    assert path == index_path(folder, kind)
    assert files == {shard_name(n, kind, len(files)) for n in range(1, len(files) + 1)}
    found: State = {}
    total = 0
    for name in files:
        held = load(folder / name)
        assert set(held) == {key for key, file in index["weight_map"].items() if file == name}
        total += sum({t.data_ptr() or key: t.nbytes for key, t in held.items()}.values())
        found |= held
    assert index["metadata"]["total_size"] == total
    return found


def hold_equal(found: State, expected: State) -> None:
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-7)


def hold_bits(found: State, expected: State) -> None:
    assert {k: bits(t) for k, t in found.items()} == {k: bits(t) for k, t in expected.items()}


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder: files with their content, folders with None."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def weight_files(folder: Path) -> list[str]:
    return [name for name in names(folder) if is_weights(Path(name))]


# -- from shards to shards ---------------------------------------------------------------------


@both_kinds
@pytest.mark.parametrize("given", ["folder", "index"])
def test_removal_folds_pairs_inside_and_across_shards(
    kind: str, given: str, tmp_path: Path
) -> None:
    shards = three()
    index = sharded(tmp_path / "in", kind, shards)
    before = snapshot(tmp_path / "in")
    report = wncli.remove(index if given == "index" else index.parent, tmp_path / "out")
    hold_equal(read(tmp_path / "out"), folded(merged(shards)))
    assert snapshot(tmp_path / "in") == before
    assert sorted(layer.module for layer in report.layers) == ["a", "b"]
    assert report.parameters.change == -7
    assert [note for note in report.notes if note.is_warning] == []
    # the tensors stay in their shards, a pair that is spread over two where its v was
    assert set(load(tmp_path / "out" / shard_name(1, kind, 3))) == {"a.bias"}
    assert names(tmp_path / "out") == names(tmp_path / "in")


@both_kinds
def test_a_shard_that_does_not_change_is_the_same_file_byte_for_byte(
    kind: str, tmp_path: Path
) -> None:
    index = sharded(tmp_path / "in", kind, three())
    third = index.with_name(shard_name(3, kind, 3))
    if kind == "torch":  # as torch.load sees no checksums, any writer but a copy would change this
        save(torch.load(third) | {"version": "1.5"}, third)
    for command in (wncli.remove, wncli.apply, wncli.convert):
        out = tmp_path / command.__name__
        options = {"layers": ["a.*", "b.*"]} if command is wncli.remove else {}
        if command is wncli.apply:
            options = {"layers": ["a.bias"]}
        elif command is wncli.convert:
            options = {"naming": "parametrized"}
        command(index, out, **options)  # type: ignore[operator]
        assert (out / third.name).read_bytes() == third.read_bytes()


@both_kinds
def test_apply_then_remove_gives_the_same_bits_in_the_same_shards(
    kind: str, tmp_path: Path
) -> None:
    sharded(tmp_path / "in", kind, three())
    wncli.remove(tmp_path / "in", tmp_path / "plain")
    wncli.apply(tmp_path / "plain", tmp_path / "split")
    wncli.remove(tmp_path / "split", tmp_path / "again")
    hold_bits(read(tmp_path / "again"), read(tmp_path / "plain"))
    for name in weight_files(tmp_path / "plain"):
        assert set(load(tmp_path / "again" / name)) == set(load(tmp_path / "plain" / name))
    split = read(tmp_path / "split")
    assert {"a.weight_g", "a.weight_v", "b.weight_g", "b.weight_v"} < set(split)
    assert bits(split["a.weight_v"]) == bits(read(tmp_path / "plain")["a.weight"])


@both_kinds
def test_respelling_keeps_every_bit_and_brings_a_pair_together(kind: str, tmp_path: Path) -> None:
    shards = three()
    sharded(tmp_path / "in", kind, shards)
    wncli.convert(tmp_path / "in", tmp_path / "out", naming="parametrized")
    halves = {"_g": "original0", "_v": "original1"}
    expected = {
        f"{name[0]}.parametrizations.weight.{halves[name[-2:]]}" if name[-2:] in halves else name: t
        for name, t in merged(shards).items()
    }
    hold_bits(read(tmp_path / "out"), expected)
    wncli.convert(tmp_path / "out", tmp_path / "back", naming="hook")
    hold_bits(read(tmp_path / "back"), merged(shards))


@both_kinds
def test_a_shard_that_loses_its_last_tensor_is_gone_and_the_others_are_numbered_anew(
    kind: str, tmp_path: Path
) -> None:
    shards = three()
    del shards[1]["a.bias"]
    sharded(tmp_path / "in", kind, shards)
    wncli.remove(tmp_path / "in", tmp_path / "out")
    hold_equal(read(tmp_path / "out"), folded(merged(shards)))
    assert weight_files(tmp_path / "out") == [shard_name(n, kind, 2) for n in (1, 2)]


@both_kinds
@pytest.mark.parametrize("format", ["torch", "safetensors"])
def test_shards_become_shards_of_the_other_format_and_back(
    kind: str, format: str, tmp_path: Path  # noqa: A002
) -> None:
    shards = three()
    sharded(tmp_path / "in", kind, shards)
    wncli.convert(tmp_path / "in", tmp_path / "out", format=format)  # type: ignore[arg-type]
    assert index_path(tmp_path / "out", format).is_file()
    hold_bits(read(tmp_path / "out"), merged(shards))


def test_parameters_views_and_what_else_torch_shards_hold_stay_in_shards_that_change(
    tmp_path: Path,
) -> None:
    shards: dict[int, State] = {
        1: {"a.weight_g": nn.Parameter(torch.rand(3, 1)), "a.weight_v": nn.Parameter(torch.ones(3, 2))},
        2: {"b.weight": torch.ones(2)},
    }  # fmt: skip
    shards[1] |= {
        "frozen": nn.Parameter(torch.ones(2), requires_grad=False),
        "grad": torch.ones(2, requires_grad=True),
        "view": torch.arange(6.0).reshape(2, 3).t(),
    }
    shards[1]["tied"] = shards[1]["view"]
    extra = {"a._extra_state": {"scale": 3}}
    sharded(tmp_path / "in", "torch", shards)
    save(shards[1] | extra, tmp_path / "in" / shard_name(1, "torch"))
    report = wncli.remove(tmp_path / "in", tmp_path / "out")
    found = load(tmp_path / "out" / shard_name(1, "torch"))
    assert isinstance(found["a.weight"], nn.Parameter)
    assert isinstance(found["frozen"], nn.Parameter)
    assert not found["frozen"].requires_grad
    assert found["grad"].requires_grad
    assert found["view"].stride() == (1, 3)
    assert found["tied"].data_ptr() == found["view"].data_ptr()
    assert found["a._extra_state"] == {"scale": 3}
    assert [note for note in report.notes if "_extra_state" in note.message] == []


def test_the_names_that_an_index_ties_stay_what_they_are(tmp_path: Path) -> None:
    """huggingface_hub notes shared tensors in the index; here the tie sorts before its tensor."""
    shards = three()
    index = sharded(tmp_path / "in", shards=shards)
    content = json.loads(index.read_text())
    content["metadata"]["a.copy"] = "c.table"
    index.write_text(json.dumps(content))
    for path in index.parent.glob("*.safetensors"):
        path.write_bytes(safetensors.torch.save(load(path)))  # no metadata of their own
    wncli.convert(tmp_path / "in", tmp_path / "out", naming="parametrized")
    assert "c.table" in json.loads(index_path(tmp_path / "out").read_text())["weight_map"]
    assert wncli.inspect(tmp_path / "out").roots == wncli.inspect(tmp_path / "in").roots


# -- one file and shards -----------------------------------------------------------------------


def blocks(count: int = 6) -> State:
    """Layers of 4,000 bytes each, g and v and a bias beside them."""
    state: State = {}
    for n in range(count):
        state |= {f"l{n}.bias": torch.full((25,), float(n)), f"l{n}.weight_g": torch.rand(25, 1)}
        state[f"l{n}.weight_v"] = torch.randn(25, 38)
    return state


@both_kinds
@pytest.mark.parametrize("limit", [1, 100, 4000, 4001, 7999, 8000, "8KB", "0.008MB", "7.9KiB"])
def test_shards_hold_no_more_than_is_asked_for_and_keep_pairs_together(
    kind: str, limit: int | str, tmp_path: Path
) -> None:
    state = blocks()
    save(state, tmp_path / f"in{KINDS[kind][1]}")
    units = {"KB": 1000, "MB": 10**6, "KiB": 1024}
    most = limit if isinstance(limit, int) else next(
        float(limit.removesuffix(unit)) * size for unit, size in units.items() if unit in limit
    )  # fmt: skip
    for command in (wncli.convert, wncli.remove):
        out = tmp_path / command.__name__
        command(tmp_path / f"in{KINDS[kind][1]}", out, max_shard_size=limit)
        hold_equal(read(out), folded(state) if command is wncli.remove else state)
        for name in weight_files(out):
            held = load(out / name)
            layers = {key.rpartition("_")[0] for key in held if key[-2:] in {"_g", "_v"}}
            assert all({f"{layer}_g", f"{layer}_v"} <= set(held) for layer in layers), name
            alone = len(held) == 1 or (len(held) == 2 and len(layers) == 1)
            assert alone or sum(t.nbytes for t in held.values()) <= most
    sizes = [sum(t.nbytes for t in load(out / name).values()) for name in weight_files(out)]
    assert len(sizes) == 1 or all(a + b > most for a, b in zip(sizes, sizes[1:], strict=False))


@both_kinds
def test_a_tensor_above_the_limit_has_a_file_of_its_own(kind: str, tmp_path: Path) -> None:
    state = {"a": torch.ones(10), "big": torch.ones(1000), "z": torch.ones(10)}
    save(state, tmp_path / f"in{KINDS[kind][1]}")
    wncli.convert(tmp_path / f"in{KINDS[kind][1]}", tmp_path / "out", max_shard_size=100)
    hold_bits(read(tmp_path / "out"), state)
    alone = [set(load(tmp_path / "out" / name)) for name in weight_files(tmp_path / "out")]
    assert {"big"} in alone


def test_tied_tensors_stay_in_one_shard_and_tied(tmp_path: Path) -> None:
    shared = torch.randn(30)
    state = {"a": shared, "b": torch.ones(30), "c": torch.ones(30), "d": shared}
    torch.save(state, tmp_path / "in.pt")
    wncli.convert(tmp_path / "in.pt", tmp_path / "out", max_shard_size=120)
    found = read(tmp_path / "out")
    assert found["a"].data_ptr() == found["d"].data_ptr()
    hold_bits(found, state)
    wncli.convert(
        tmp_path / "in.pt", tmp_path / "safe", max_shard_size=120, format="safetensors"
    )
    hold_bits(read(tmp_path / "safe"), {name: state[name] for name in "abc"})
    wncli.convert(tmp_path / "safe", tmp_path / "back.pt")
    back = load(tmp_path / "back.pt")
    assert back["a"].data_ptr() == back["d"].data_ptr()
    hold_bits(back, state)


def test_requires_grad_strides_and_metadata_survive_sharding_or_the_report_says_so(
    tmp_path: Path,
) -> None:
    conv = nn.Conv1d(2, 3, 1)
    state = conv.state_dict(keep_vars=True)
    state["view"] = torch.arange(6.0).reshape(2, 3).t()
    torch.save(state, tmp_path / "in.pt")
    report = wncli.convert(tmp_path / "in.pt", tmp_path / "out", max_shard_size="1GB")
    found = load(tmp_path / "out" / "pytorch_model.bin")
    said = " ".join(note.message for note in report.notes)
    assert isinstance(found["weight"], nn.Parameter) or "Parameter" in said
    assert found["view"].stride() == (1, 3) or "stride" in said
    assert hasattr(found, "_metadata") or "_metadata" in said


@both_kinds
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_shards_become_one_file_and_one_file_shards(
    kind: str, suffix: str, tmp_path: Path
) -> None:
    shards = three()
    sharded(tmp_path / "in", kind, shards)
    one = tmp_path / f"one{suffix}"
    wncli.convert(tmp_path / "in", one)
    hold_bits(load(one), merged(shards))
    wncli.convert(one, tmp_path / "out", max_shard_size=200, format=kind)  # type: ignore[arg-type]
    hold_bits(read(tmp_path / "out"), merged(shards))
    assert index_path(tmp_path / "out", kind).is_file()
    wncli.remove(tmp_path / "in", tmp_path / f"folded{suffix}")
    hold_equal(load(tmp_path / f"folded{suffix}"), folded(merged(shards)))


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["out/"], "pytorch_model.bin"),
        (["out/", "--format", "safetensors"], "model.safetensors"),
        (["out", "--max-shard-size", "5GB"], "pytorch_model.bin"),
        (["v1.5/", "--format", "torch"], "pytorch_model.bin"),
    ],
)
def test_one_file_in_a_folder_has_no_number_and_no_index(
    arguments: list[str], name: str, tmp_path: Path, wn_here: Wn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(blocks(), "in.pt")
    ran = wn_here("remove", "in.pt", *arguments)
    assert (ran.code, ran.stderr) == (0, "")
    assert names(tmp_path / arguments[0]) == [name]
    hold_equal(read(tmp_path / arguments[0]), folded(torch.load("in.pt")))


def test_several_state_dicts_go_into_a_folder_one_at_a_time(tmp_path: Path, wn_here: Wn) -> None:
    states = {"generator": blocks(2), "discriminator": blocks(3)}
    torch.save(states | {"epoch": 3}, tmp_path / "in.pt")
    ran = wn_here("remove", tmp_path / "in.pt", f"{tmp_path}/out/")
    assert ran.code == 2
    assert "--only generator or --only discriminator" in ran.stderr
    assert names(tmp_path) == ["in.pt"]
    ran = wn_here("remove", tmp_path / "in.pt", f"{tmp_path}/out/", "--only", "discriminator")
    assert "epoch" in ran.stderr + ran.stdout  # what is left out
    hold_equal(read(tmp_path / "out"), folded(states["discriminator"]))


@pytest.mark.parametrize("size", ["0", "", "x", "-1", "5XB", "GB", "1e9", "0.1"])
def test_what_is_no_size_is_refused(size: str, tmp_path: Path) -> None:
    torch.save(blocks(), tmp_path / "in.pt")
    with pytest.raises(UsageError, match="max-shard-size"):
        wncli.convert(tmp_path / "in.pt", tmp_path / "out", max_shard_size=size)
    assert names(tmp_path) == ["in.pt"]


# -- the folder --------------------------------------------------------------------------------

COMPANIONS = ("config.json", "tokenizer.json", "README.md", "merges.txt", "modeling.py", "LICENSE")
NO_COMPANIONS = (
    "x.bin", "y.safetensors", "model.gguf", "m.onnx", "tf_model.h5", "flax_model.msgpack", "a.pt",
    "pytorch_model.bin.index.json", "model.safetensors.index.fp16.json", ".cache",
)  # fmt: skip


@both_kinds
@pytest.mark.parametrize("size", [None, 200])
def test_what_is_no_weights_comes_along_byte_for_byte(
    kind: str, size: int | None, tmp_path: Path
) -> None:
    index = sharded(tmp_path / "in", kind, three())
    for name in COMPANIONS + NO_COMPANIONS:
        if not (tmp_path / "in" / name).exists():
            (tmp_path / "in" / name).write_bytes(f"{{{name}\r\n\xff}}".encode("latin-1"))
    (tmp_path / "in" / "link.json").symlink_to("config.json")
    (tmp_path / "in" / "onnx").mkdir()
    wncli.remove(index, tmp_path / "out", max_shard_size=size)
    found = snapshot(tmp_path / "out")
    read(tmp_path / "out")
    for name in (*COMPANIONS, "link.json"):
        assert found.pop(name) == (tmp_path / "in" / name).read_bytes()
    assert set(found) == {index.name, *weight_files(tmp_path / "out")}


OLD = {
    "safetensors": shard_name(7, "safetensors", 9),
    "torch": shard_name(7, "torch", 9),
}


def old_output(folder: Path, kind: str) -> None:
    """A checkpoint of four shards, and what else can stand in a folder."""
    sharded(folder, kind, {n: {f"old{n}": torch.ones(2)} for n in range(1, 5)})
    (folder / "runs" / "one").mkdir(parents=True)
    (folder / "runs" / "one" / "log").write_bytes(b"log")
    for name in ("notes.txt", "config.json", ".gitattributes"):
        (folder / name).write_bytes(name.encode())
    (folder / "link").symlink_to("/nowhere")
    folder.chmod(0o2750)


@both_kinds
@pytest.mark.parametrize("old", KINDS)
@pytest.mark.parametrize("linked", [False, True])
def test_force_replaces_the_checkpoint_in_a_folder_and_nothing_else(
    kind: str, old: str, linked: bool, tmp_path: Path  # noqa: FBT001
) -> None:
    shards = three()
    sharded(tmp_path / "in", kind, shards)
    (tmp_path / "in" / "config.json").write_bytes(b"new")
    old_output(tmp_path / "out", old)
    out = tmp_path / "out"
    if linked:
        out = tmp_path / "link"
        out.symlink_to("out")
    before = snapshot(tmp_path)
    with pytest.raises(FileError, match="not empty"):
        wncli.remove(tmp_path / "in", out)
    wncli.remove(tmp_path / "in", out, force=True, dry_run=True)
    assert snapshot(tmp_path) == before
    wncli.remove(tmp_path / "in", out, force=True)
    hold_equal(read(out), folded(merged(shards)))
    kept = {name: data for name, data in snapshot(out).items() if not is_weights(Path(name))}
    assert kept.pop(index_path(out, kind).name)
    assert kept == {
        "config.json": b"new", "notes.txt": b"notes.txt", ".gitattributes": b".gitattributes",
        "runs": None, "runs/one": None, "runs/one/log": b"log", "link": None,
    }  # fmt: skip
    assert os.readlink(out / "link") == "/nowhere"
    assert stat.S_IMODE(out.stat().st_mode) == 0o2750
    assert out.is_symlink() == linked
    assert names(tmp_path) == sorted({"in", "out", out.name})


@both_kinds
@pytest.mark.parametrize("how", ["path", "link", "index", "here"])
def test_a_sharded_checkpoint_is_replaced_in_place(
    kind: str, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = three()
    index = sharded(tmp_path / "model", kind, shards)
    (tmp_path / "model" / "config.json").write_bytes(b"{}")
    (tmp_path / "link").symlink_to("model")
    monkeypatch.chdir(tmp_path / "model")
    folder = {"link": tmp_path / "link", "here": Path()}.get(how, tmp_path / "model")
    wncli.remove(index if how == "index" else folder, folder, force=True)
    hold_equal(read(tmp_path / "model"), folded(merged(shards)))
    assert (tmp_path / "model" / "config.json").read_bytes() == b"{}"
    assert names(tmp_path) == ["link", "model"]
    assert (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("name", ["assets", "model.safetensors", index_path(Path()).name])
def test_a_subfolder_is_never_lost_to_a_file_of_its_name(name: str, tmp_path: Path) -> None:
    index = sharded(tmp_path / "in", shards=three())
    (index.parent / "assets").write_bytes(b"a file")
    (tmp_path / "out" / name).mkdir(parents=True)
    (tmp_path / "out" / name / "precious").write_bytes(b"work of years")
    try:
        wncli.convert(index, tmp_path / "out", force=True)
    except WnError:
        assert weight_files(tmp_path / "out") in ([], ["model.safetensors"])
        assert names(tmp_path) == ["in", "out"]
    assert b"work of years" in snapshot(tmp_path / "out").values()


def overflowing(folder: Path) -> Callable[..., object]:
    shards = three() | {4: {"z.weight": torch.full((2, 3), 6e4, dtype=torch.float16)}}
    sharded(folder, shards=shards)
    return wncli.apply


def undefined(folder: Path) -> Callable[..., object]:
    shards = three() | {4: {"z.weight_g": torch.ones(2, 1), "z.weight_v": torch.zeros(2, 3)}}
    sharded(folder, "torch", shards)
    return wncli.remove


@pytest.mark.parametrize("defect", [overflowing, undefined])
@pytest.mark.parametrize("out", ["new", "old", "in"])
def test_a_refusal_half_way_changes_nothing(
    defect: Callable[[Path], Callable[..., object]], out: str, tmp_path: Path
) -> None:
    command = defect(tmp_path / "in")
    old_output(tmp_path / "old", "safetensors")
    before, inode = snapshot(tmp_path), (tmp_path / "in").stat().st_ino
    with pytest.raises(WeightNormError, match=r"z\.weight"):
        command(tmp_path / "in", tmp_path / out, force=True)
    assert snapshot(tmp_path) == before
    assert (tmp_path / "in").stat().st_ino == inode


@pytest.mark.parametrize("file", ["../in.safetensors", "/etc/passwd.safetensors", "gone.safetensors"])
def test_from_an_index_that_leads_elsewhere_nothing_is_written(file: str, tmp_path: Path) -> None:
    index = sharded(tmp_path / "in", shards=three())
    (tmp_path / "in.safetensors").write_bytes(index.with_name(shard_name(1, count=3)).read_bytes())
    index.write_text(index.read_text().replace(shard_name(1, count=3), file))
    before = snapshot(tmp_path)
    for out in ("new", "in"):
        with pytest.raises(WnError):
            wncli.convert(index, tmp_path / out, force=True)
    assert snapshot(tmp_path) == before


#: Kills a child of itself at each step that Python takes on files, and prints what is left.
KILLED = """
import json, os, shutil, signal, sys
from pathlib import Path
import wncli
import wncli.output_folder
home, steps, dead = Path(sys.argv[1]), float("-inf"), 0
def look(folder):
    return {str(p.relative_to(folder)): p.read_bytes().hex() if p.is_file() else ""
            for p in sorted(folder.rglob("*"))}
def count(event, _):
    global steps
    if event == "open" or event.startswith(("os.", "shutil.", "ctypes.dlsym")):
        steps += 1
        if steps == dead:
            os.kill(os.getpid(), signal.SIGKILL)
def run():
    wncli.remove(home / "in", home / "out", force=True)
shutil.copytree(home, home.with_name("spare"), symlinks=True)
run()
new, found = look(home), []
sys.addaudithook(count)
for dead in range(1, 1000):
    shutil.rmtree(home)
    shutil.copytree(home.with_name("spare"), home, symlinks=True)
    old = look(home)
    child = os.fork()
    if not child:
        steps = 0
        run()
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        break
    found.append(look(home))
print(json.dumps([old, new, found]))
"""


@pytest.mark.parametrize("exists", [False, True])
def test_whenever_a_run_is_killed_the_folder_is_the_old_or_the_new_one(
    exists: bool, tmp_path: Path  # noqa: FBT001
) -> None:
    home = tmp_path / "home"
    sharded(home / "in", shards=three())
    (home / "in" / "config.json").write_bytes(b"new")
    if exists:
        old_output(home / "out", "torch")
    ran = subprocess.run(
        [sys.executable, "-c", KILLED, home], check=True, capture_output=True, env=environment(), timeout=60
    )  # fmt: skip
    old, new, states = json.loads(ran.stdout)
    assert len(states) > 20
    seen = set()
    for state in states:
        left = {name for name in state if name.split("/")[0] not in {"in", "out"}}
        assert all(name.split("/")[0].endswith(".wn-partial") for name in left)
        rest = {name: data for name, data in state.items() if name not in left}
        log = b"log".hex()
        assert not exists or log in state.values()  # a subfolder is never lost
        outs = [{k: d for k, d in s.items() if "runs" not in k} for s in (rest, old, new)]
        assert outs[0] in outs[1:]
        seen.add(outs[0] == outs[1])
    assert seen == ({True, False} if exists else {True})
