"""What would run is listed: by an exact table, held against PyTorch's classes and its loading."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

import pytest
from torch import nn

from tests.support.opcodes import Op, build, call, memoized, name, new, put
from tests.support.unlisted import look_at
from wncli.formats.pickles.reader import read_pickle
from wncli.formats.torch.code_execution import find_running
from wncli.formats.torch.safe_globals import USES, Handed

pytestmark = pytest.mark.filterwarnings("ignore")  # torch calls some of its names deprecated

FILES = 300
#: The classes of torch whose `__setstate__` was read, and only keeps what it is handed.
KEEPING = {
    "Module", "AvgPool3d", "LogSoftmax", "MultiheadAttention", "Softmax", "Softmin",
    "TransformerDecoderLayer", "TransformerEncoderLayer", "Upsample", "_ConvNd",
}  # fmt: skip
MODULES = {full: use for full, use in USES.items() if use.state is Handed.MODULE}
ATTRIBUTES = {
    full: use for full, use in USES.items() if use.state is Handed.KEPT and "torch." in full
}
#: Names of other versions of torch.
GONE = {"torch.nn.modules.linear._LinearWithBias"}


def found(full: str) -> type:
    """The class of a name."""
    module, _, attribute = full.rpartition(".")
    kind = getattr(importlib.import_module(module), attribute)
    assert inspect.isclass(kind)
    return kind


def owner(kind: type, method: str) -> type:
    return next(base for base in kind.__mro__ if method in vars(base))


@pytest.mark.slow
def test_random_files_of_which_something_runs_are_listed(tmp_path: Path) -> None:
    count = look_at(range(FILES), tmp_path)
    assert count.unlisted == ()
    assert count.ran > FILES // 50
    assert count.files - count.listed > FILES // 20


@pytest.mark.parametrize("full", sorted(MODULES.keys() - GONE))
def test_a_module_that_is_safe_keeps_its_state(full: str) -> None:
    kind = found(full)
    assert issubclass(kind, nn.Module)
    assert owner(kind, "__setstate__").__name__ in KEEPING
    for method in ("__setattr__", "__getattr__"):
        assert owner(kind, method) is nn.Module
    if full not in ("torch.nn.modules.container.Container", "torch.nn.modules.loss.NLLLoss2d"):
        assert kind.__new__ is object.__new__  # these two warn


def test_every_module_that_torch_exports_is_safe_to_make() -> None:
    exported = {
        f"{kind.__module__}.{kind.__name__}"
        for kind in vars(nn).values()
        if inspect.isclass(kind) and issubclass(kind, nn.Module)
    }
    assert {full for full in exported if full not in USES} == set()


@pytest.mark.parametrize("full", sorted(ATTRIBUTES))
def test_attributes_are_kept_by_classes_that_do_not_look_at_them(full: str) -> None:
    kind = found(full)
    own = next((base for base in kind.__mro__ if "__setstate__" in vars(base)), None)
    assert own is None or inspect.getsource(own.__setstate__).endswith(  # type: ignore[attr-defined]
        "self.__dict__.update(state)\n"
    )
    assert owner(kind, "__hash__") is object or kind.__hash__ is None  # which is no key
    assert not hasattr(kind, "__getattr__")


@pytest.mark.parametrize("full", ["torch.hub.load", "torch.jit.load", "torch.package.x", "os.x"])
def test_what_is_not_in_the_table_runs_even_where_it_is_named(full: str) -> None:
    pickled = read_pickle(put([name(full)]) + b".", "x")
    assert [str(node) for node in find_running(pickled)] == [full]


def running(opcodes: bytes) -> int:
    return len(list(find_running(read_pickle(opcodes + b".", "x"))))


def test_what_is_handed_to_itself_is_listed_and_does_not_recurse() -> None:
    function = memoized(name("copyreg.__newobj__"))
    again = b"j" + (60_000).to_bytes(4, "little")
    assert running(function + b"(" + again * 5000 + b"tR") >= 1


def test_what_is_nested_deeply_is_listed_and_does_not_recurse() -> None:
    function = memoized(name("torch._tensor._rebuild_from_type_v2"))
    again = b"j" + (60_000).to_bytes(4, "little")
    inner = b")"
    for _ in range(3000):
        inner = again + b"N" + inner + b"\x87"
    assert running(function + inner + b"R") >= 1
    state = name("wn_stranger.run")
    for _ in range(3000):
        state = Op(state + b"N\x86")
    assert running(Op(new("argparse.Namespace") + state + b"b")) >= 1


def test_objects_of_other_packages_are_kept_unless_they_are_looked_into() -> None:
    config = new("my.pkg.Config")
    assert running(put({"a": config, "b": [name("my.pkg.collate")]})) == 0
    assert running(call("builtins.list", [config])) == 0
    assert running(call("builtins.list", config)) == 1
    assert running(call("torch.Size", config)) == 1
    assert running(Op(call("builtins.list") + config + put(1) + b"s")) == 1
    optimizer = call(
        "copyreg._reconstructor", name("torch.optim.sgd.SGD"), name("builtins.object"), None
    )
    assert running(build(optimizer, {"param_groups": []})) == 0
    assert running(build(optimizer, {"param_groups": config})) == 1
