"""TorchScript archives, read as the state dicts that torch.jit.load gives; hostile ones refused."""

from __future__ import annotations

import io
import re
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import wncli
from tests.support.layers import KINDS, KINDS_AND_DIMS, Spelling, normalize, pair_of
from tests.support.modules import expected, found_in, module, opened, refusal, weight
from wncli.errors import FormatError
from wncli.formats.open import open_checkpoint
from wncli.formats.pickles.nodes import Built, Call, Dict, Global, Node
from wncli.formats.pickles.writer import write_pickle

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # torch 2.13 calls TorchScript deprecated
    pytest.mark.thinned(9),
]


class Net(nn.Module):
    """A model with one of everything that a scripted module can hold."""

    mean: Tensor
    cache: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.zeta = nn.Parameter(torch.randn(3))
        self.register_buffer("mean", torch.randn(3))
        self.register_buffer("cache", torch.randn(3).double(), persistent=False)
        self.register_buffer("nothing", None)
        self.register_parameter("missing", None)
        self.alpha = nn.Parameter(torch.randn(3))
        self.plain = torch.randn(3)
        self.optional = torch.randn(3)
        self.tensors = [torch.randn(3)]
        self.stack = nn.Sequential(nn.Linear(3, 3, bias=False), nn.BatchNorm1d(3), nn.ReLU())
        self.parts = nn.ModuleDict({"b": nn.Linear(3, 3), "a": nn.Linear(3, 3)})
        self.shared = self.parts["b"]
        self.parts["a"].bias = self.parts["b"].bias
        self.scale = 2.0
        self.view = nn.Parameter(torch.randn(3, 3).t())

    def forward(self, value: Tensor) -> Tensor:
        value = self.stack(value * self.zeta + self.mean + self.cache.float()) * self.alpha
        for part in self.parts.values():
            value = part(value)
        value = self.shared(value) @ self.view * self.scale
        return torch.add(value, self.plain)


Net.__annotations__ = {"optional": Tensor | None}  # as TorchScript reads it


def made(how: str, model: nn.Module, value: Tensor) -> torch.jit.ScriptModule:
    model.eval()
    made: torch.jit.ScriptModule
    made = torch.jit.script(model) if how == "script" else torch.jit.trace(model, value)
    return made


def saved(made: torch.jit.ScriptModule, path: Path) -> Path:
    torch.jit.save(made, str(path))
    return path


def loaded(path: Path) -> dict[str, Tensor]:
    return dict(torch.jit.load(str(path)).state_dict())


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(torch.jit.script(Net().eval()), tmp_path_factory.mktemp("net") / "a.pt")


def members_of(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def put_together(path: Path, members: dict[str, bytes], *deflated: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            method = zipfile.ZIP_DEFLATED if name in deflated else zipfile.ZIP_STORED
            archive.writestr(name, content, method)
    return path


# -- as torch.jit.load -------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["script", "trace"])
def test_an_archive_is_read_as_torch_reads_it(how: str, tmp_path: Path) -> None:
    path = saved(made(how, Net(), torch.randn(2, 3)), tmp_path / "a.pt")
    checkpoint, found = opened(path)
    assert found == {"": expected(loaded(path))}
    assert len(found[""]) > 10
    assert (checkpoint.format, checkpoint.tree, checkpoint.refused_names) == (
        "TorchScript", None, (),
    )  # fmt: skip
    name = f"__torch__.{__name__}.Net"
    assert checkpoint.state_dicts[0].holder == f"{name}, a TorchScript module"


@pytest.mark.parametrize("spelling", ["hook", "parametrized"])
@pytest.mark.parametrize(("kind", "dim"), KINDS_AND_DIMS)
def test_pairs_of_traced_layers_are_found(
    kind: str, dim: int | None, spelling: Spelling, tmp_path: Path
) -> None:
    layer, parameter = KINDS[kind].make(), KINDS[kind].parameter
    normalize(layer, parameter, dim, spelling)
    if isinstance(layer, nn.LSTM):
        layer = nn.ModuleDict({"lstm": layer})
        layer.forward = lambda value: value
    path = saved(made("trace", layer, KINDS[kind].feed()), tmp_path / "a.pt")
    state = loaded(path)
    assert opened(path)[1] == {"": expected(state)}
    (found,) = wncli.inspect(path).layers
    assert {found.g_name, found.v_name} <= state.keys()
    assert found.g_name.endswith(pair_of(parameter, spelling)[0])


def test_pairs_of_scripted_layers_are_found(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv1d(3, 4, 2))
    model[0].weight_g, model[0].weight_v = nn.Parameter(torch.ones(4, 1, 1)), model[0].weight
    path = saved(made("script", model, torch.ones(1, 3, 2)), tmp_path / "a.pt")
    assert opened(path)[1] == {"": expected(loaded(path))}
    (layer,) = wncli.inspect(path).layers
    assert (layer.g_name, layer.v_name) == ("0.weight_g", "0.weight_v")


def test_many_classes_of_one_name_are_told_apart(tmp_path: Path) -> None:
    model = nn.Sequential(*(nn.Linear(2, 2, bias=bool(n % 2)) for n in range(6)))
    path = saved(made("trace", model, torch.ones(1, 2)), tmp_path / "a.pt")
    assert opened(path)[1] == {"": expected(loaded(path))}


def test_archives_for_phones_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.ptl"
    torch.jit.script(Net().eval())._save_for_lite_interpreter(str(path))
    assert opened(path)[1] == {"": expected(loaded(path))}


@pytest.mark.parametrize("folders", [("/code/", "/extra/"), ()], ids=["packed", "stored"])
def test_code_and_other_files_may_be_packed_or_not(
    folders: tuple[str, ...], net: Path, tmp_path: Path
) -> None:
    members = members_of(net) | {"a/extra/notes.txt": b"x" * 999}
    names = [name for name in members if any(folder in name for folder in folders)]
    path = put_together(tmp_path / "a.pt", members, *names)
    assert opened(path)[1] == {"": expected(loaded(net))}


def test_a_tensor_that_is_still_to_be_conjugated_is_named_beside_the_others(
    tmp_path: Path,
) -> None:
    model = nn.Linear(2, 2)
    model.register_buffer("phase", torch.randn(3, dtype=torch.cfloat).conj())
    path = saved(torch.jit.script(model), tmp_path / "a.pt")
    assert loaded(path)["phase"].is_conj()
    (found,) = found_in(path)
    assert [spec.name for spec in found.tensors] == ["weight", "bias"]
    assert found.others == ("phase",)


def test_tensors_without_plain_storage_are_named_beside_the_others(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    model.register_buffer("sparse", torch.eye(3).to_sparse())
    (found,) = found_in(saved(torch.jit.script(model), tmp_path / "a.pt"))
    assert [spec.name for spec in found.tensors] == ["weight", "bias"]
    assert found.others == ("sparse",)


def test_packed_weights_of_quantized_layers_are_left_out_as_in_torch(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Conv1d(2, 2, 1))
    model = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    path = saved(torch.jit.script(model), tmp_path / "a.pt")
    assert opened(path)[1] == {"": expected(loaded(path))}


@pytest.mark.parametrize("make", [torch.jit.freeze, torch.jit.optimize_for_inference])
def test_a_frozen_module_is_called_frozen(
    make: Callable[[torch.jit.ScriptModule], torch.jit.ScriptModule], tmp_path: Path
) -> None:
    model = made("script", nn.Sequential(nn.Conv1d(2, 2, 1)), torch.ones(1, 2, 2))
    assert "frozen" in refusal(saved(make(model), tmp_path / "a.pt"))


def test_a_module_without_tensors_is_said_to_have_none(tmp_path: Path) -> None:
    path = saved(torch.jit.script(nn.ReLU()), tmp_path / "a.pt")
    assert "no parameters and no buffers" in refusal(path)


def without(text: str, *parts: str) -> bytes:
    lines = text.split("\n")
    return "\n".join(line for line in lines if not any(part in line for part in parts)).encode()


def test_in_code_that_lists_no_buffers_the_other_tensors_are_buffers(
    net: Path, tmp_path: Path
) -> None:
    members = members_of(net)
    for name in members:
        if name.endswith(".py"):
            members[name] = without(members[name].decode(), "__buffers__")
    (found,) = found_in(put_together(tmp_path / "a.pt", members))
    names = [spec.name for spec in found.tensors]
    assert [name for name in names if name != "plain"] == list(loaded(net))
    assert "plain" in names


def test_without_the_code_every_tensor_is_taken(net: Path, tmp_path: Path) -> None:
    members = {n: data for n, data in members_of(net).items() if "/code/" not in n}
    (found,) = found_in(put_together(tmp_path / "a.pt", members))
    names = [spec.name for spec in found.tensors]
    assert {name for name in names if name not in ("plain", "optional")} == set(loaded(net))


# -- refused -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["data.pkl", "data/0"])
def test_storages_and_the_pickle_must_not_be_packed(name: str, net: Path, tmp_path: Path) -> None:
    members = members_of(net)
    folder = next(iter(members)).split("/")[0]
    members[f"{folder}/{name}"] += bytes(4000)
    path = put_together(tmp_path / "a.pt", members, f"{folder}/{name}")
    assert "compressed" in refusal(path)


@pytest.mark.parametrize("order", [b"big", b"middle"])
def test_another_byte_order_is_refused(order: bytes, net: Path, tmp_path: Path) -> None:
    members = members_of(net)
    folder = next(iter(members)).split("/")[0]
    path = put_together(tmp_path / "a.pt", members | {f"{folder}/byteorder": order})
    assert "byteorder" in refusal(path)


@pytest.mark.parametrize("missing", ["data.pkl", "data/0"])
def test_a_missing_member_is_refused(missing: str, net: Path, tmp_path: Path) -> None:
    members = {n: data for n, data in members_of(net).items() if not n.endswith(f"/{missing}")}
    refusal(put_together(tmp_path / "a.pt", members))


def test_the_older_layout_is_named(tmp_path: Path) -> None:
    members = {"a/model.json": b"{}", "a/tensors/0": b"", "a/code/a.py": b""}
    assert "before version 1.4" in refusal(put_together(tmp_path / "a.pt", members))


CODE = b"""class M(Module):
  __parameters__ = ["w", ]
  __buffers__ = []
  w : Tensor
  a : __torch__.M
  b : __torch__.M
  m : __torch__.M
"""


def written(root: Node, path: Path, code: bytes = CODE, *deflated: str) -> Path:
    pickled = write_pickle(root, 2, {}, lambda node: node.pid)
    members = {"a/data.pkl": pickled, "a/data/0": bytes(16), "a/code/__torch__.py": code}
    return put_together(path, members, *deflated)


def scripted(*attributes: tuple[str, Node], name: str = "M") -> Call:
    state = Built(Dict(list(attributes)))
    return Call("NEWOBJ", Global("__torch__", name), (), effects=[state])


def test_what_is_written_by_hand_is_a_module(tmp_path: Path) -> None:
    root = scripted(("m", scripted(("w", weight()))), ("x", weight()), ("w", None))
    (found,) = found_in(written(root, tmp_path / "a.pt"))
    assert [spec.name for spec in found.tensors] == ["m.w"]


def test_a_module_inside_itself_is_refused(tmp_path: Path) -> None:
    root = scripted()
    effect = root.effects[0]
    assert isinstance(effect, Built)
    effect.state.entries.append(("m", root))
    assert "stands inside itself" in refusal(written(root, tmp_path / "a.pt"))


@pytest.mark.slow
def test_modules_nested_beyond_reason_are_refused(tmp_path: Path) -> None:
    node = scripted(("w", weight()))
    for _ in range(20_000):
        node = scripted(("m", node))
    assert "too deeply" in refusal(written(node, tmp_path / "a.pt"))


def test_modules_that_are_shared_without_bound_are_refused(tmp_path: Path) -> None:
    node = scripted(("w", weight()))
    for _ in range(60):
        node = scripted(("a", node), ("b", node))
    assert "too many names" in refusal(written(node, tmp_path / "a.pt"))


@pytest.mark.parametrize(
    "root",
    [3, None, [], "x", Dict(), module([], [("w", weight())]), weight()],
    ids=["int", "None", "list", "text", "dict", "pickled module", "tensor"],
)
def test_content_that_is_no_module_is_refused(root: Node, tmp_path: Path) -> None:
    assert "no module" in refusal(written(root, tmp_path / "a.pt"))


@pytest.mark.parametrize(
    "code",
    [
        b"", b"\0\xff", b"class", b"class M", b"class M(Module):", b"  w : Tensor\n",
        b"((((" * 9999,
        b"class M(Module):\n  __parameters__ = [\n  w", b'class M(Module):\n  __annotations__["',
        b"class M(NamedTuple):\n  w : Tensor\n", b"import os\nos.mkdir('ran')\n",
    ],
)  # fmt: skip
def test_any_code_is_read_without_running_it(
    code: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = written(scripted(("w", weight())), tmp_path / "a.pt", code)
    try:
        with open_checkpoint(path):
            pass
    except FormatError:
        pass
    assert not Path("ran").exists()


def test_code_that_is_too_long_is_refused(tmp_path: Path) -> None:
    code = CODE + b" " * (65 << 20)
    root = scripted(("w", weight()))
    path = written(root, tmp_path / "a.pt", code, "a/code/__torch__.py")
    assert "too long" in refusal(path)


def test_packed_code_never_unpacks_to_more_than_it_claims(tmp_path: Path) -> None:
    root = scripted(("w", weight()))
    path = written(root, tmp_path / "a.pt", CODE + b" " * (16 << 20), "a/code/__torch__.py")
    content = bytearray(path.read_bytes())
    entry = content.index(b"PK\x01\x02", content.index(b"a/code/__torch__.py"))
    while content[entry + 46 : entry + 65] != b"a/code/__torch__.py":
        entry = content.index(b"PK\x01\x02", entry + 4)
    content[entry + 24 : entry + 28] = (100).to_bytes(4, "little")
    path.write_bytes(content)
    assert "not what the directory says" in refusal(path)
    content[entry + 20 : entry + 24] = (8).to_bytes(4, "little")
    path.write_bytes(content)
    refusal(path)


@pytest.mark.slow
def test_damaged_archives_are_read_or_refused(net: Path, tmp_path: Path) -> None:
    content = net.read_bytes()
    generator = torch.Generator().manual_seed(0)
    started = time.monotonic()
    for _ in range(300):
        damaged = bytearray(content)
        for place in torch.randint(len(content), (4,), generator=generator).tolist():
            damaged[place] ^= 1 << (place % 8)
        (tmp_path / "a.pt").write_bytes(damaged)
        try:
            with open_checkpoint(tmp_path / "a.pt"):
                pass
        except FormatError:
            pass
    assert time.monotonic() - started < 60


def test_a_file_object_and_a_path_make_no_difference(tmp_path: Path) -> None:
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(nn.Linear(3, 2)), file)
    (tmp_path / "no suffix").write_bytes(file.getvalue())
    assert [spec.name for spec in found_in(tmp_path / "no suffix")[0].tensors] == ["weight", "bias"]


def test_code_without_a_list_of_parameters_has_none_as_for_pytorch(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv1d(3, 4, 2), nn.BatchNorm1d(4))
    path = saved(made("script", model.eval(), torch.ones(1, 3, 5)), tmp_path / "a.pt")
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            text = re.sub(rb"  __parameters__ = .*\n", b"", content)
            archive.writestr(name, text if name.endswith(".py") else content)
    state = torch.jit.load(path).state_dict()
    assert opened(path)[1] == {"": expected(state)}
