"""Tensors that the end of a pickle does not show as they are: the same to PyTorch, or refused."""

from __future__ import annotations

import io
import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.support.opcodes import Op, build, call, memoized, name, new, put
from tests.support.oracles import load
from tests.support.run import Ran

RunHere = Callable[..., Ran]

NUMBERS = {"0": struct.pack("<12f", *range(12)), "1": struct.pack("<12f", *range(100, 112))}
HOOKS = call("collections.OrderedDict")
TRUE = Op(pickle.NEWTRUE)
NO_GRADIENT = Op(pickle.NEWFALSE)
V2 = "torch._utils._rebuild_tensor_v2"
V3 = "torch._utils._rebuild_tensor_v3"


def storage(key: str = "0", kind: str = "torch.FloatStorage", count: int = 12) -> Op:
    return Op(put(("storage", name(kind), key, "cpu", count)) + pickle.BINPERSID)


def arguments(key: str = "0") -> tuple[object, ...]:
    return storage(key), 0, (3, 4), (4, 1), NO_GRADIENT, HOOKS


def tensor(key: str = "0") -> Op:
    return call(V2, *arguments(key))


def parameter(key: str = "0") -> Op:
    return call("torch._utils._rebuild_parameter", tensor(key), NO_GRADIENT, HOOKS)


def archive(root: Op, members: Mapping[str, bytes] | None = None) -> bytes:
    """A torch zip with this pickle."""
    file = io.BytesIO()
    content = pickle.PROTO + b"\x02" + root + pickle.STOP
    with zipfile.ZipFile(file, "w") as made:
        for member, data in {
            "data.pkl": content, "byteorder": b"little", "version": b"3\n",
            **{f"data/{key}": data for key, data in NUMBERS.items()}, **(members or {}),
        }.items():  # fmt: skip
            made.writestr(f"archive/{member}", data)
    return file.getvalue()


LIST = memoized(put([12]))
GROWN = Op(pickle.LONG_BINGET + struct.pack("<I", 60_000) + put(1) + pickle.APPEND)
STATE = build(tensor(), (storage("1"), 0, (3, 4), (4, 1)))
FROM_TYPE = "torch._tensor._rebuild_from_type_v2"
ITEM = put("z") + tensor() + pickle.SETITEM


def named(value: Op) -> Op:
    return put({"w": value})


CHANGED: dict[str, Op] = {
    "state for a tensor": named(STATE),
    "state for a Parameter": named(build(parameter(), (storage("1"), 0, (3, 4), (4, 1)))),
    "data in the state of a Parameter": named(
        call("torch._utils._rebuild_parameter_with_state", tensor(), NO_GRADIENT, HOOKS,
             {"data": tensor("1")})
    ),
    "data in the state of a subclass": named(
        call(FROM_TYPE, name(V2), name("torch.Tensor"), arguments(), {"data": tensor("1")})
    ),
    "data in the slots of a subclass": named(
        call(FROM_TYPE, name(V2), name("torch.Tensor"), arguments(), (None, {"data": tensor("1")}))
    ),
    "an element set on a tensor": named(Op(tensor() + put(0) + put(7) + pickle.SETITEM)),
    "an element set on another tensor of its storage": put(
        {"w": tensor(), "x": [Op(tensor() + put(0) + put(7) + pickle.SETITEM)]}
    ),
    "a dtype in place of the hooks": named(
        call(V3, storage("0", "torch.BFloat16Storage", 24), 0, (3, 4), (4, 1), NO_GRADIENT,
             name("torch.float16"), name("torch.bfloat16"))
    ),
    "sizes that grow behind the call": put(
        {"w": call(V2, storage(), 0, LIST, LIST, NO_GRADIENT, HOOKS), "x": GROWN}
    ),
    "metadata that is false": named(call(V2, *arguments(), {"neg": False})),
    "a storage without a type, then with one": put({
        "u": call(V3, storage("0", "torch.UntypedStorage", 48), 0, (3, 4), (4, 1), NO_GRADIENT,
                  HOOKS, name("torch.float32")),
        "w": tensor(),
    }),
    "quantized numbers without a scale": named(
        call(V2, storage("0", "torch.QInt8Storage", 48), 0, (3, 4), (4, 1), NO_GRADIENT, HOOKS)
    ),
    "an OrderedDict of a dict, then an item": Op(
        call("collections.OrderedDict", {"w": tensor("1")}) + ITEM
    ),
    "an OrderedDict of tuples, then an item": Op(
        call("collections.OrderedDict", [("w", tensor("1"))]) + ITEM
    ),
    "an OrderedDict whose __new__ is handed pairs": Op(
        new("collections.OrderedDict", [["w", tensor("1")]]) + ITEM
    ),
    "an OrderedDict with another keys()": build(
        Op(HOOKS + put("w") + tensor() + pickle.SETITEM), {"keys": name("builtins.list")}
    ),
    "a defaultdict of a dict, then an item": Op(
        call("collections.defaultdict", None, {"w": tensor("1")}) + ITEM
    ),
    "a key as text, and as a call of str": Op(
        pickle.EMPTY_DICT + pickle.MARK + put("w") + tensor() + call("builtins.str", "w")
        + tensor("1") + pickle.SETITEMS
    ),
    "keys that are one to Python": put(
        Op(pickle.EMPTY_DICT + pickle.MARK + put(1) + put({"l.w": tensor()}) + TRUE
           + put({"l.w": tensor("1")}) + pickle.SETITEMS)
    ),
    "a number in octal": named(
        call(V2, storage(), Op(b"I010\n"), (2,), (1,), NO_GRADIENT, HOOKS)
    ),
    "a number with an underscore": named(
        call(V2, storage(), Op(b"I1_0\n"), (2,), (1,), NO_GRADIENT, HOOKS)
    ),
}  # fmt: skip


def tensors_in(value: Any, path: str = "") -> dict[str, Tensor]:  # noqa: ANN401
    """All tensors in mappings, by the keys that lead to them."""
    if isinstance(value, Tensor):
        return {path: value.detach()}
    found: dict[str, Tensor] = {}
    for key, inner in value.items() if isinstance(value, Mapping) else ():
        found |= tensors_in(inner, f"{path}.{key}" if path else str(key))
    return found


def read_by_torch(path: Path) -> dict[str, Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return tensors_in(load(path))
        except pickle.UnpicklingError:
            return tensors_in(load(path, weights_only=False))


@pytest.mark.parametrize("kind", CHANGED)
def test_what_is_changed_on_the_way_means_the_same_or_is_refused(
    kind: str, wn_here: RunHere, tmp_path: Path
) -> None:
    source, out = tmp_path / "a.pt", tmp_path / "o.pt"
    source.write_bytes(archive(CHANGED[kind]))
    ran = wn_here("convert", source, tmp_path / "o.safetensors", "--verify")
    assert ran.code in {0, 2}, ran.stderr
    assert "defect" not in ran.stderr
    if ran.code == 0:
        found = load_file(tmp_path / "o.safetensors")
        wanted = read_by_torch(source)
        root = next(iter(wanted)).removesuffix(next(iter(found)))
        assert {f"{root}{key}" for key in found} == wanted.keys()
        assert all(torch.equal(found[key.removeprefix(root)], wanted[key]) for key in wanted)
    same = wn_here("convert", source, out)
    if same.code == 0:  # nothing of it was read as a tensor, or all rightly
        wanted, found = read_by_torch(source), read_by_torch(out)
        assert wanted.keys() == found.keys()
        assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    assert wn_here("compare", source, source).code in {0, 2}


def test_metadata_that_says_nothing_leaves_a_tensor_as_it_is(
    wn_here: RunHere, tmp_path: Path
) -> None:
    source, out = tmp_path / "a.pt", tmp_path / "o.safetensors"
    source.write_bytes(archive(named(call(V2, *arguments(), Op(pickle.EMPTY_DICT)))))
    assert wn_here("convert", source, out).code == 0
    assert torch.equal(load_file(out)["w"], load(source)["w"])


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


@pytest.mark.parametrize("member", ["BYTEORDER", "ByteOrder", "Version", ".DATA/version"])
def test_members_in_other_letters_are_found_as_pytorch_finds_them(
    member: str, wn_here: RunHere, tmp_path: Path
) -> None:
    data = archive(named(tensor()))
    changed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as before, zipfile.ZipFile(changed, "w") as after:
        for info in before.infolist():
            if info.filename.lower() != f"archive/{member.lower()}":
                after.writestr(info.filename, before.read(info))
        after.writestr(f"archive/{member}", b"big" if "order" in member.lower() else b"3\n")
    (tmp_path / "a.pt").write_bytes(changed.getvalue())
    ran = wn_here("convert", tmp_path / "a.pt", tmp_path / "o.safetensors")
    if ran.code == 0:
        assert torch.equal(load_file(tmp_path / "o.safetensors")["w"], load(tmp_path / "a.pt")["w"])
    else:
        assert ran.code == 2


def test_a_file_that_two_formats_claim_is_refused(wn_here: RunHere, tmp_path: Path) -> None:
    header = b'{"w":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}'
    header += b" " * (0x04034B50 - len(header))  # a length that reads PK 3 4
    path = tmp_path / "both.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"data")
    assert list(load_file(path)) == ["w"]
    ran = wn_here("inspect", path)
    assert ran.code == 2
    assert "two formats claim this file" in ran.stderr


def test_what_torch_save_writes_is_read(wn_here: RunHere, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    view = torch.arange(24.0).reshape(4, 6)
    marked = nn.Parameter(torch.ones(2, 3))
    marked.partition_dim = 0  # type: ignore[attr-defined]
    state: dict[str, Any] = {
        **state_of(model), "view": view[1:, ::2], "tied": view, "empty": torch.empty(0, 3),
        "scalar": torch.tensor(2.0), "half": torch.ones(2).half(),
        "brain": torch.ones(2).bfloat16(),
        "byte": torch.ones(3, dtype=torch.float8_e4m3fn), "parameter": nn.Parameter(torch.ones(2)),
        "marked": marked,
    }  # fmt: skip
    for legacy in (False, True):
        path, out = tmp_path / "a.pt", tmp_path / "o.safetensors"
        torch.save({"model": state}, path, _use_new_zipfile_serialization=not legacy)
        ran = wn_here("convert", path, out, "--force", "--verify")
        assert ran.code == 0, ran.stderr
        found = load_file(out)
        assert found.keys() == state.keys()
        for key, value in state.items():
            assert found[key].dtype == value.dtype
            assert torch.equal(found[key].float(), value.detach().float())
