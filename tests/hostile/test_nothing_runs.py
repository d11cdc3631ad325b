"""Pickles that run something as they are loaded: here they are read, listed, refused, never run."""

from __future__ import annotations

import json
import os
import pickle
import pickletools
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.corpus.harmless_pickles import HARMLESS
from tests.corpus.hostile_names import DORMANT
from tests.corpus.hostile_pickles import CALLS, EXACT, MALFORMED, ODD
from tests.corpus.hostile_places import HERE, PLACES, TORCHSCRIPT, state_dict, zipped
from tests.support.opcodes import RECALLED, Op, call, memoized, name, put, text
from tests.support.oracles import load
from tests.support.run import Ran
from tests.support.watch import Corpus, Watched, make_corpus

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # torch 2.13 calls TorchScript deprecated
    pytest.mark.thinned(23),
]

#: All that the pickle of a state dict names.
SOUND = {
    "collections OrderedDict",
    "torch FloatStorage",
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_tensor_v2",
}
#: Opcodes that PyTorch's `weights_only` reader does not know.
BEYOND = {"STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4"}

#: Places without a state dict to write; each command says that first.
WITHOUT_STATE_DICT = {"root"}

DROPPABLE = [place for place, found in PLACES.items() if found.is_droppable]
SEPARABLE = [place for place, found in PLACES.items() if found.only is not None]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return make_corpus(tmp_path_factory.mktemp("n"))


@pytest.fixture(scope="module")
def wn(corpus: Corpus) -> Iterator[Watched]:
    with Watched(corpus) as running:
        yield running


def would_run(wn: Watched, path: Path) -> list[dict[str, str]]:
    """What `inspect` lists in its JSON."""
    ran = wn("inspect", path, "--json")
    assert (ran.code, ran.stderr) == (0, "")
    found: list[dict[str, str]] = json.loads(ran.stdout)["would_run"]
    assert all(item.keys() == {"call", "where"} for item in found)
    return found


def listed(wn: Watched, path: Path) -> list[str]:
    """What `inspect` lists for people."""
    ran = wn("inspect", path)
    assert ran.code == 0, ran.stderr
    assert all(char.isprintable() for char in ran.stdout.replace("\n", ""))
    lines = [line.partition("would run: ") for line in ran.stdout.splitlines()]
    return [found for _, sign, found in lines if sign]


def hold_refused(ran: Ran, out: Path, says: str = "") -> None:
    assert ran.code == 2, ran.stdout
    assert ran.stdout == ""
    assert ran.stderr.startswith("error: ")
    assert ran.stderr.count("error: ") == 1
    assert all(char.isprintable() for char in ran.stderr.replace("\n", ""))
    assert says in ran.stderr
    assert os.listdir(out.parent) == []  # noqa: PTH208


def hold_clean(ran: Ran, out: Path) -> Any:  # noqa: ANN401
    """Hold what was written to name nothing but tensors; the loaded file."""
    assert ran.code == 0, ran.stderr
    if out.suffix == ".safetensors":
        return load_file(out)
    with zipfile.ZipFile(out) as archive:
        (member,) = (found for found in archive.namelist() if found.endswith("/data.pkl"))
        opcodes = [(op.name, arg) for op, arg, _ in pickletools.genops(archive.read(member))]
    assert {arg for op, arg in opcodes if op == "GLOBAL"} <= SOUND
    assert not BEYOND & {op for op, _ in opcodes}
    assert not any("touch" in arg for _, arg in opcodes if isinstance(arg, str))
    return load(out)


def hold_state_dict(found: Any) -> None:  # noqa: ANN401
    for key, tensor in state_dict().items():
        assert torch.equal(found[key], torch.as_tensor(tensor))


# -- what is called ----------------------------------------------------------------------------


@pytest.mark.parametrize("called", CALLS)
def test_a_call_is_listed_with_its_entry(called: str, corpus: Corpus, wn: Watched) -> None:
    says = CALLS[called].says
    path = corpus.path("call", called)
    found = would_run(wn, path)
    assert any(says in item["call"] for item in found), found
    assert {item["where"] for item in found} == {"extra"}
    shown = listed(wn, path)
    assert len(shown) == len(found)
    assert any(says in line for line in shown), shown


@pytest.mark.parametrize("called", CALLS)
def test_a_call_keeps_its_file_from_being_converted(
    called: str, corpus: Corpus, wn: Watched
) -> None:
    out = corpus.out()
    ran = wn("convert", corpus.path("call", called), out)
    hold_refused(ran, out, "would run: ")
    assert "--drop extra" in ran.stderr


@pytest.mark.parametrize("called", CALLS)
def test_without_the_entry_of_a_call_its_file_is_converted(
    called: str, corpus: Corpus, wn: Watched
) -> None:
    out = corpus.out()
    ran = wn("convert", corpus.path("call", called), out, "--drop", "extra")
    found = hold_clean(ran, out)
    assert found.keys() == {"model", "epoch"}
    hold_state_dict(found["model"])


@pytest.fixture(scope="module")
def dormant(corpus: Corpus, wn: Watched) -> dict[str, list[str]]:
    """What is listed for each entry of the file with all dormant calls."""
    found: dict[str, list[str]] = {}
    for item in would_run(wn, corpus.dormant):
        found.setdefault(item["where"], []).append(item["call"])
    return found


@pytest.mark.parametrize("place", range(len(DORMANT)), ids=DORMANT)
def test_a_call_of_what_is_no_plain_value_is_listed(
    place: int, dormant: dict[str, list[str]]
) -> None:
    assert dormant.get(f"x{place}") == [f"{DORMANT[place]}('x')"]


@pytest.mark.parametrize("place", range(0, len(DORMANT), 15), ids=DORMANT[::15])
def test_dropping_all_other_calls_does_not_let_one_pass(
    place: int, corpus: Corpus, wn: Watched
) -> None:
    out = corpus.out()
    others = [f"--drop=x{other}" for other in range(len(DORMANT)) if other != place]
    hold_refused(wn("convert", corpus.dormant, out, *others), out, f"would run: {DORMANT[place]}")


def test_a_file_of_many_calls_is_converted_without_all_of_them(corpus: Corpus, wn: Watched) -> None:
    out = corpus.out()
    drops = [f"--drop=x{place}" for place in range(len(DORMANT))]
    found = hold_clean(wn("convert", corpus.dormant, out, *drops), out)
    assert found.keys() == {"model"}


@pytest.mark.parametrize("called", EXACT)
def test_a_call_is_written_as_python_writes_it(called: str, corpus: Corpus, wn: Watched) -> None:
    path = corpus.folder / "in" / "exact.pt"
    path.write_bytes(zipped({"model": state_dict(), "extra": HERE}, EXACT[called]))
    assert called in [item["call"] for item in would_run(wn, path)]
    assert f"{called}  (extra)" in listed(wn, path)
    out = corpus.out()
    hold_refused(wn("convert", path, out), out, called)


@pytest.mark.parametrize("called", ODD)
def test_what_is_listed_is_short(called: str, corpus: Corpus, wn: Watched) -> None:
    found = would_run(wn, corpus.path("call", called))
    assert sum(len(item["call"]) for item in found) < 1000


def test_several_calls_are_all_listed_and_all_to_be_dropped(corpus: Corpus, wn: Watched) -> None:
    path, out = corpus.folder / "in" / "several.pt", corpus.out()
    opcodes = call("os.system", "id")
    for entry in ("b", "c"):
        opcodes = Op(opcodes + text(entry) + call("builtins.eval", "1+1"))
    path.write_bytes(zipped({"model": state_dict(), "a": HERE}, opcodes))
    assert [(item["where"], item["call"]) for item in would_run(wn, path)] == [
        ("a", "os.system('id')"), ("b", "builtins.eval('1+1')"), ("c", "builtins.eval('1+1')"),
    ]  # fmt: skip
    drops: list[str] = []
    for entry in ("b", "c", "a"):
        hold_refused(wn("convert", path, out, *drops), out, "would run: ")
        drops += ["--drop", entry]
    hold_state_dict(hold_clean(wn("convert", path, out, *drops), out)["model"])


# -- where it stands ---------------------------------------------------------------------------


@pytest.mark.parametrize("place", PLACES)
def test_a_call_is_listed_wherever_it_stands(place: str, corpus: Corpus, wn: Watched) -> None:
    path, expected = corpus.path("place", place), PLACES[place].where
    found = would_run(wn, path)
    assert any("os.system('touch " in item["call"] for item in found), found
    for item in found:
        where = item["where"]
        inside = (f"{expected}.", f"{expected}(")  # an entry goes by its key, should that be a call
        assert where == expected or (expected and where.startswith(inside)), where
    assert any("os.system('touch " in line for line in listed(wn, path))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "options",
    [
        ("convert", ".pt"),
        ("convert", ".safetensors", "--naming", "parametrized"),
        ("remove", ".pt"),
        ("apply", ".pt", "--dry-run"),
    ],
    ids=" ".join,
)
def test_a_call_keeps_its_file_from_being_written_again(
    place: str, options: tuple[str, ...], corpus: Corpus, wn: Watched
) -> None:
    command, suffix, *more = options
    out = corpus.out(suffix)
    ran = wn(command, corpus.path("place", place), out, *more)
    if place in WITHOUT_STATE_DICT:
        hold_refused(ran, out, "os.system")
        return
    if command == "apply" and "module" in place:
        hold_refused(ran, out, "a whole module")
        return
    hold_refused(ran, out, "would run: os.system('touch ")
    if PLACES[place].is_droppable:
        assert "--drop " in ran.stderr
    elif PLACES[place].only:
        assert f"--only {PLACES[place].only}" in ran.stderr


@pytest.mark.parametrize("command", ["convert", "remove", "apply"])
@pytest.mark.parametrize("place", DROPPABLE)
def test_without_the_entry_nothing_is_left_of_the_call(
    place: str, command: str, corpus: Corpus, wn: Watched
) -> None:
    path, out = corpus.path("place", place), corpus.out()
    wheres = {item["where"] for item in would_run(wn, path)}
    drops = [f"--drop={where}" for where in wheres]
    assert hold_clean(wn(command, path, out, "--verify", *drops), out)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    "place", [place for place, found in PLACES.items() if found.only is not None]
)
def test_a_state_dict_that_is_free_of_the_call_can_be_had_by_itself(
    place: str, suffix: str, corpus: Corpus, wn: Watched
) -> None:
    out = corpus.out(suffix)
    only = PLACES[place].only
    found = hold_clean(wn("convert", corpus.path("place", place), out, f"--only={only}"), out)
    for key, tensor in state_dict().items():
        if key in found:
            assert torch.equal(found[key], torch.as_tensor(tensor))
    assert len(found) >= 4


@pytest.mark.parametrize(
    "place", [place for place, found in PLACES.items() if found.where.startswith("model")]
)
def test_a_state_dict_with_the_call_in_it_cannot(place: str, corpus: Corpus, wn: Watched) -> None:
    out = corpus.out()
    ran = wn("convert", corpus.path("place", place), out, "--only", "model")
    if "module" in place:  # its tensors are read off it
        hold_clean(ran, out)
    else:
        hold_refused(ran, out, "would run: os.system('touch ")


@pytest.mark.parametrize("place", [place for place in PLACES if place not in WITHOUT_STATE_DICT])
def test_a_file_with_a_call_is_compared_and_taken_as_a_reference(
    place: str, corpus: Corpus, wn: Watched
) -> None:
    path = corpus.path("place", place)
    ran = wn("compare", path, path)
    assert (ran.code, ran.stderr) == (0, "")
    assert wn("inspect", path, "--check").code == 1
    out = corpus.out()
    ran = wn("convert", corpus.sound, out, "--like", path, "--partial", "--only", "ema")
    if ran.code == 0:
        hold_clean(ran, out)
    else:
        assert "would run" not in ran.stderr


@pytest.mark.parametrize(
    "place",
    ["entry", "popped at the start", "left on the stack", "legacy: popped in pickle 5 of 5"],
)
def test_dropping_another_entry_does_not_let_the_call_pass(
    place: str, corpus: Corpus, wn: Watched
) -> None:
    out = corpus.out()
    ran = wn("convert", corpus.path("place", place), out, "--drop", "epoch")
    hold_refused(ran, out, "would run: os.system('touch ")


#: An entry `a`, and what entry `b` holds of it as well.
SHARED = {
    "the call": Op(memoized(call("os.system", "id")) + text("b") + RECALLED),
    "the function": Op(call(memoized(name("os.system")), "id") + text("b") + RECALLED),
    "the call that gives the function": Op(
        call(memoized(call("operator.attrgetter", "real")), 1) + text("b") + RECALLED
    ),
    "an argument of the call": Op(
        call("os.system", memoized(call("builtins.eval", "1+1"))) + text("b") + RECALLED
    ),
}


@pytest.mark.parametrize("what", SHARED)
def test_what_two_entries_share_goes_with_both(what: str, corpus: Corpus, wn: Watched) -> None:
    path, out = corpus.folder / "in" / "shared.pt", corpus.out()
    path.write_bytes(zipped({"model": state_dict(), "a": HERE}, SHARED[what]))
    hold_refused(wn("convert", path, out, "--drop", "a"), out, "would run: ")
    hold_refused(wn("convert", path, out, "--drop", "b"), out, "would run: ")
    found = hold_clean(wn("convert", path, out, "--drop", "a", "--drop", "b"), out)
    assert found.keys() == {"model"}


@pytest.mark.parametrize("how", ["popped", "kept"])
def test_a_call_in_one_of_several_shards_is_found(how: str, corpus: Corpus, wn: Watched) -> None:
    folder, out = corpus.folder / "in" / how, corpus.out(".safetensors")
    folder.mkdir()
    opcodes = call("os.system", "id") + (b"0N" if how == "popped" else b"")
    ones = torch.ones(2, 2)
    shards = {
        "pytorch_model-00001-of-00002.bin": zipped({"a.weight": ones, "x": HERE}, put(1)),
        "pytorch_model-00002-of-00002.bin": zipped({"b.weight": ones, "x": HERE}, opcodes),
    }
    for shard, content in shards.items():
        (folder / shard).write_bytes(content)
    index = {"weight_map": dict(zip(("a.weight", "b.weight"), shards, strict=True))}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert [item["call"] for item in would_run(wn, folder)] == ["os.system('id')"]
    hold_refused(wn("convert", folder, out), out, "would run: os.system('id')")
    assert wn("compare", folder, folder).code == 0


@pytest.mark.parametrize("member", TORCHSCRIPT)
def test_nothing_in_a_program_runs(member: str, corpus: Corpus, wn: Watched) -> None:
    path, out = corpus.path("script", member), corpus.out()
    assert wn("inspect", path).code == 0
    assert wn("compare", path, path).code == 0
    hold_refused(wn("convert", path, out), out)
    found = hold_clean(wn("convert", path, out, "--only="), out)
    assert found.keys() == {"weight", "bias"}


# -- what is refused, and what is not ----------------------------------------------------------


@pytest.mark.parametrize("kind", MALFORMED)
def test_what_no_unpickler_takes_is_refused_and_does_not_run(
    kind: str, corpus: Corpus, wn: Watched
) -> None:
    path, out = corpus.path("bad", kind), corpus.out()
    for command in (("inspect", path), ("convert", path, out), ("compare", corpus.sound, path)):
        hold_refused(wn(*command), out, str(path))


@pytest.mark.parametrize("kind", HARMLESS)
def test_what_makes_values_alone_is_kept(kind: str, corpus: Corpus, wn: Watched) -> None:
    path, out, kept = corpus.folder / "in" / "harmless.pt", corpus.out(), HARMLESS[kind]
    content = {"model": state_dict(), "extra": HERE if isinstance(kept, Op) else kept}
    if isinstance(kept, Op):
        path.write_bytes(zipped(content, kept, 4 if kept.count(pickle.STACK_GLOBAL) else 2))
    else:
        torch.save(content, path)
    assert would_run(wn, path) == []
    assert listed(wn, path) == []
    ran = wn("convert", path, out)
    if isinstance(kept, nn.Module):  # what is in it is refused for another reason
        assert "would run" not in ran.stderr
    else:
        assert ran.code == 0, ran.stderr
        assert out.exists()
