"""What people's files are: parts of distributed models, archives, addresses; called by name."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import shutil
import subprocess
import tarfile
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict import get_model_state_dict
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

import wncli
from tests.support.bounds import SECONDS
from tests.support.layers import normalize
from tests.support.oracles import bits, load
from tests.support.refusals import hold_refused, hold_refused_by_all, snapshot
from tests.support.run import Ran, environment

pytestmark = pytest.mark.thinned(7)

RunHere = Callable[..., Ran]
Tensors = dict[str, Tensor]

COMMANDS = {
    "remove": ("remove", "in", "out"),
    "convert": ("convert", "in", "out"),
    "respell": ("convert", "in", "out", "--naming", "hook"),
    "like": ("convert", "in", "out", "--like", "whole.pt", "--partial"),
    "reference": ("convert", "whole.pt", "out", "--like", "in", "--partial"),
    "compare": ("compare", "in", "whole.pt"),
}


def network() -> nn.Module:
    """A vocoder in small, normalized."""
    torch.manual_seed(0)
    made = nn.ModuleDict({
        "ups": nn.ModuleList([nn.ConvTranspose1d(4, 6, 4)]),
        "blocks": nn.ModuleList([nn.Conv1d(6, 6, 3), nn.PReLU()]),
        "post": nn.Conv1d(6, 1, 3, bias=False),
    })  # fmt: skip
    for name in ("ups.0", "blocks.0"):
        normalize(made.get_submodule(name), "weight", 0, "parametrized")
    return made


def hold_refused_everywhere(
    wn_here: RunHere, folder: Path, name: str, code: str, *says: str
) -> None:
    """Every command but `inspect` refuses the file by name; a check has a finding of this code."""
    torch.save(network().state_dict(), folder / "whole.pt")
    before = snapshot(folder)
    words = {"in": folder / name, "out": folder / "out.pt", "whole.pt": folder / "whole.pt"}
    for command in COMMANDS.values():
        ran = wn_here(*(words.get(word, word) for word in command))
        assert ran.code == 2, (command, ran.stdout, ran.stderr)
        assert all(text in ran.stderr for text in says), ran.stderr
    assert snapshot(folder) == before
    checked = wn_here("inspect", "--check", "--json", folder / name)
    assert checked.code == 1
    assert code in [finding["code"] for finding in json.loads(checked.stdout)["findings"]]
    looked = wn_here("inspect", folder / name)
    assert looked.code == 0
    assert says[0] in looked.stderr


# -- placeholders ------------------------------------------------------------------------------


def emptied(state: Tensors, size: int) -> Tensors:
    return {name: torch.ones(size) for name in state}


def small_kept(state: Tensors, size: int) -> Tensors:
    """As ZeRO-3 has it: what is below a threshold stays whole on each rank."""
    return {name: t if t.numel() < 10 else torch.ones(size) for name, t in state.items()}


@pytest.mark.parametrize("size", [0, 1])
@pytest.mark.parametrize("make", [emptied, small_kept])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_placeholders_of_zero3_are_refused(
    make: Callable[[Tensors, int], Tensors],
    size: int,
    suffix: str,
    wn_here: RunHere,
    tmp_path: Path,
) -> None:
    state = make(dict(network().state_dict()), size)
    if suffix == ".pt":
        torch.save({"module": state, "param_shapes": [{}], "ds_version": "0.9"}, tmp_path / "z.pt")
    else:
        save_file(state, tmp_path / "z.safetensors")
    hold_refused_everywhere(
        wn_here, tmp_path, f"z{suffix}", "placeholders", "ZeRO-3", "zero_to_fp32.py"
    )


@pytest.mark.parametrize("size", [0, 1])
def test_placeholders_of_plain_weights_are_refused(
    size: int, wn_here: RunHere, tmp_path: Path
) -> None:
    torch.save(emptied(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4)).state_dict(), size),
               tmp_path / "z.pt")  # fmt: skip
    ran = wn_here("apply", tmp_path / "z.pt", tmp_path / "out.pt")
    assert ran.code == 2
    assert "zero_to_fp32.py" in ran.stderr


def test_weights_of_one_element_beside_others_are_no_placeholders(
    wn_here: RunHere, tmp_path: Path
) -> None:
    model = network()
    torch.save(model.state_dict(), tmp_path / "in.pt")
    assert wn_here("remove", tmp_path / "in.pt", tmp_path / "out.pt").code == 0
    folded = load(tmp_path / "out.pt")
    assert torch.equal(folded["blocks.1.weight"], model.state_dict()["blocks.1.weight"])
    assert wn_here("inspect", "--check", tmp_path / "in.pt").code == 0


# -- parts of tensors --------------------------------------------------------------------------


@pytest.fixture
def process_group() -> Iterator[None]:
    store = dist.HashStore()  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("which", ["all", "v alone", "parameters"])
def test_dtensors_in_a_torch_file_are_refused(which: str, wn_here: RunHere, tmp_path: Path) -> None:
    mesh = init_device_mesh("cpu", (1,))

    def spread(name: str, tensor: Tensor) -> Tensor:
        if which == "v alone" and not name.endswith("original1"):
            return tensor
        made = distribute_tensor(tensor.detach(), mesh, [Shard(0)])
        return nn.Parameter(made) if which == "parameters" else made

    state = {name: spread(name, tensor) for name, tensor in network().state_dict().items()}
    torch.save({"model": state, "step": 3}, tmp_path / "d.pt")
    hold_refused_everywhere(
        wn_here, tmp_path, "d.pt", "distributed-tensors", "DTensor", "full_state_dict=True"
    )


@pytest.mark.parametrize("prefix", ["", "_fsdp_wrapped_module.", "ups.0._fsdp_wrapped_module."])
def test_flattened_parameters_of_fsdp_are_refused(
    prefix: str, wn_here: RunHere, tmp_path: Path
) -> None:
    torch.save({f"{prefix}_flat_param": torch.ones(40), "post.weight": torch.ones(2, 3)},
               tmp_path / "f.pt")  # fmt: skip
    hold_refused_everywhere(wn_here, tmp_path, "f.pt", "flat-parameters", "FULL_STATE_DICT")


def halved(state: Tensors, rank: int) -> tuple[Tensors, dict[str, str]]:
    """What two ranks write: half of the rows of each tensor, and where they belong."""
    mine, info = {}, {}
    for name, tensor in state.items():
        rows = tensor.shape[0] // 2 if tensor.ndim and tensor.shape[0] > 1 else 0
        if rows or not rank:
            mine[name] = tensor[rows:] if rank and rows else tensor[: rows or None]
            offsets = [rows if rank else 0] + [0] * (tensor.ndim - 1)
            info[name] = {"saved_offsets": offsets}
    mine = {name: tensor.contiguous() for name, tensor in mine.items()}
    return mine, {"DCP_SHARDING_INFO": json.dumps(info), "DCP_VERSION": "1.0", "format": "pt"}


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("is_renamed", [False, True])
def test_a_shard_of_a_distributed_checkpoint_is_refused(
    rank: int, *, is_renamed: bool, wn_here: RunHere, tmp_path: Path
) -> None:
    made, metadata = halved(dict(network().state_dict()), rank)
    name = f"shard-{rank + 1:05}-model-00001-of-00001.safetensors"
    name = "model.safetensors" if is_renamed else name
    save_file(made, tmp_path / name, metadata)
    gathering = "HuggingFaceStorageReader" if is_renamed else "give the directory"
    hold_refused_everywhere(wn_here, tmp_path, name, "distributed-shard", "some rows", gathering)
    warned = wn_here("inspect", tmp_path / name).stderr
    assert f"wn inspect {tmp_path}" in warned or is_renamed
    assert "wncli" not in warned


def test_what_torch_writes_whole_with_sharding_info_is_folded(
    wn_here: RunHere, tmp_path: Path
) -> None:
    model = network()
    writer = HuggingFaceStorageWriter(str(tmp_path / "hf"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save(dict(model.state_dict()), storage_writer=writer)
    (file,) = (tmp_path / "hf").glob("model-*.safetensors")
    for source in (tmp_path / "hf", file):
        out = tmp_path / "out.safetensors"
        ran = wn_here("remove", source, out, "--force")
        assert ran.code == 0, ran.stderr
        assert torch.equal(load_file(out)["ups.0.bias"], model.state_dict()["ups.0.bias"])
        assert wn_here("convert", out, tmp_path / "out.pt", "--force").code == 0


def test_the_part_of_a_model_parallel_rank_is_refused(wn_here: RunHere, tmp_path: Path) -> None:
    content = {"module": network().state_dict(), "mp_world_size": 2, "dp_world_size": 1}
    torch.save(content, tmp_path / "mp_rank_00_model_states.pt")
    hold_refused_everywhere(
        wn_here, tmp_path, "mp_rank_00_model_states.pt", "model-parallel", "model-parallel"
    )


# -- folders and files of distributed training -----------------------------------------------------


def shell(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run what a hint says as typed, in the folder that the user stands in."""
    binary = folder.parent / f"{folder.name}-bin"
    binary.mkdir(exist_ok=True)
    for name, words in {"wn": '-m wncli "$@"', "python": '"$@"'}.items():
        script = binary / name
        script.write_text(f"#!/bin/sh\nexec {os.fspath(_python())} {words}\n")
        script.chmod(0o755)
    path = f"{binary}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment(PATH=path), capture_output=True,
        text=True, check=False, timeout=120,
    )  # fmt: skip


def _python() -> str:
    import sys

    return sys.executable


def hint_of(ran: Ran) -> str:
    (hint,) = [line for line in ran.stderr.splitlines() if line.startswith("  try:      ")]
    return hint.removeprefix("  try:      ")


def hold_hint_works(
    wn: Callable[..., Ran], folder: Path, name: str, *says: str, command: tuple[str, ...] = ()
) -> str:
    """The file is refused by name, and what the message says to type works and changes nothing."""
    ran = wn(*(command or ("inspect", name)), cwd=folder)
    assert ran.code == 2, ran.stdout
    assert all(text in ran.stderr for text in says), ran.stderr
    before = snapshot(folder)
    typed = shell(hint_of(ran), folder)
    assert typed.returncode == 0, (hint_of(ran), typed.stderr)
    after = snapshot(folder)
    assert {path: after[path] for path in before} == before
    return typed.stdout


@pytest.fixture
def user(tmp_path: Path) -> Path:
    """The folder that a user stands in."""
    (tmp_path / "user").mkdir()
    return tmp_path / "user"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dcp/.metadata", "dcp/__0_0.distcp", "."])
def test_what_is_in_or_above_a_dcp_folder_is_named_with_the_folder(
    name: str, wn: Callable[..., Ran], user: Path
) -> None:
    state = {"model": dict(network().state_dict())}
    folder = user / ("pytorch_model_fsdp_0" if name == "." else "dcp")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save(state, checkpoint_id=folder)
    if name == ".":
        torch.save({"last_epoch": 3}, user / "scheduler.bin")
    listed = hold_hint_works(wn, user, name, "distributed checkpoint", f"wn inspect {folder.name}")
    assert "blocks.0.weight" in listed


@pytest.mark.parametrize("count", [1, 2, 5])
def test_items_of_a_dcp_file_are_never_read_as_a_checkpoint(
    count: int, wn: Callable[..., Ran], user: Path
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save({str(n): torch.ones(n + 2, 3) for n in range(count)}, checkpoint_id=user / "d")
    for name in ("d/__0_0.distcp", "alone.distcp", *(["alone.pt"] if count > 1 else [])):
        if name.startswith("alone"):
            shutil.copy(user / "d/__0_0.distcp", user / name)
        ran = wn("inspect", name, cwd=user)
        assert ran.code == 2
        assert "distributed checkpoint" in ran.stderr


@pytest.mark.slow
def test_deepspeed_folders_are_named_with_the_file_or_the_script(
    wn: Callable[..., Ran], user: Path
) -> None:
    step = user / "ds" / "global_step5"
    step.mkdir(parents=True)
    (user / "ds" / "latest").write_text("global_step5")
    (user / "ds" / "zero_to_fp32.py").write_text("import sys; open(sys.argv[2], 'x')")
    torch.save({"module": network().state_dict()}, step / "mp_rank_00_model_states.pt")
    torch.save({"state": {}}, step / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    for name in ("ds", "ds/latest", "ds/global_step5"):
        assert "blocks.0.weight" in hold_hint_works(wn, user, name, "DeepSpeed")
    (step / "mp_rank_00_model_states.pt").rename(step / "zero_pp_rank_0_mp_rank_00_model_states.pt")
    for number, name in enumerate(("ds", "ds/latest", "ds/global_step5"), 1):
        hold_hint_works(wn, user, name, "DeepSpeed", "ds/zero_to_fp32.py ds")
        assert len(list(user.glob("ds-gathered*"))) == number


def test_shards_of_a_distributed_checkpoint_are_read_as_a_folder(
    wn: Callable[..., Ran], user: Path
) -> None:
    model = network()
    for rank in (0, 1):
        made, metadata = halved(dict(model.state_dict()), rank)
        name = f"shard-{rank + 1:05}-model-00001-of-00001.safetensors"
        save_file(made, user / name, metadata)
    assert wn("remove", ".", "../out.pt", cwd=user).code == 0
    torch.save(model.state_dict(), user.parent / "whole.pt")
    assert wn("compare", "../out.pt", "../whole.pt", cwd=user).code == 0
    (user / "shard-00001-model-00001-of-00001.safetensors").unlink()
    ran = wn("remove", ".", "../out.pt", "--force", cwd=user)
    assert ran.code == 2
    assert "missing: those of rank 1" in ran.stderr


def test_what_distributed_folders_gather_to_is_folded(tmp_path: Path) -> None:
    model = network()
    torch.save(get_model_state_dict(model), tmp_path / "in.pt")
    wncli.remove(tmp_path / "in.pt", tmp_path / "out.pt")
    weight = model.get_submodule("ups.0").weight
    assert isinstance(weight, Tensor)
    assert torch.allclose(load(tmp_path / "out.pt")["ups.0.weight"], weight, rtol=1e-6)


# -- archives, pipelines, addresses ----------------------------------------------------------------


def saved_in(folder: Path) -> bytes:
    torch.save(network().state_dict(), folder / "x")
    data = (folder / "x").read_bytes()
    (folder / "x").unlink()
    return data


ARCHIVES = [
    (mode, inner)
    for mode in ("w", "w:gz", "w:bz2", "w:xz")
    for inner in ("./model_weights.ckpt", "model_weights.ckpt", "a b/best (1).th")
    if mode != "w" or "model_weights" not in inner  # which is read where it is
]


@pytest.mark.parametrize(("mode", "inner"), ARCHIVES)
def test_an_archive_is_named_with_what_takes_the_checkpoint_out(
    mode: str, inner: str, wn: Callable[..., Ran], user: Path
) -> None:
    source = user.parent / "w"
    source.write_bytes(saved_in(user))
    (user.parent / "c").write_text("target: x")
    with tarfile.open(user / "my tts.nemo", mode) as archive:  # type: ignore[call-overload]
        archive.add(user.parent / "c", "./model_config.yaml")
        archive.add(source, inner)
    says = "NeMo" if "model_weights" in inner else "tar archive"
    assert "blocks.0.weight" in hold_hint_works(wn, user, "my tts.nemo", says, "tar -xf")


@pytest.mark.parametrize("name", ["model.pt.gz", "model.pt", "-model.gz"])
def test_a_compressed_file_is_named_with_what_unpacks_it(
    name: str, wn: Callable[..., Ran], user: Path
) -> None:
    (user / name).write_bytes(gzip.compress(saved_in(user)))
    argument = f"./{name}" if name.startswith("-") else name
    assert "blocks.0.weight" in hold_hint_works(wn, user, argument, "gzip")


@pytest.mark.parametrize("inner", ["./model_weights.ckpt", "model_weights.ckpt"])
@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("content", ["torch", "legacy", "arrays"])
def test_the_checkpoint_in_a_nemo_archive_is_read_where_it_is(
    content: str, form: int, inner: str, wn_here: RunHere, tmp_path: Path
) -> None:
    state: dict[str, Any] = dict(network().state_dict())
    if content == "arrays":
        state = {name: tensor.numpy() for name, tensor in state.items()}
    torch.save(state, tmp_path / "w", _use_new_zipfile_serialization=content != "legacy")
    (tmp_path / "c").write_text("target: x")
    path = tmp_path / "tts.nemo"
    with tarfile.open(path, "w", format=form) as archive:
        archive.add(tmp_path / "c", "./model_config.yaml")
        archive.add(tmp_path / "w", inner)
        archive.add(tmp_path / "c", "./tokenizer" + "é" * 40)
    looked = wn_here("inspect", "--check", path)
    assert looked.code == 0
    assert "model_weights.ckpt of a NeMo archive" in looked.stdout
    for target in ("out.pt", "out.safetensors"):
        assert wn_here("remove", path, tmp_path / target, "--verify").code == 0
        model = network()
        for name in ("ups.0", "blocks.0"):
            nn.utils.parametrize.remove_parametrizations(model.get_submodule(name), "weight")
        expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        read = load_file if target.endswith("s") else load
        model.load_state_dict(read(tmp_path / target), strict=True)
        assert all(torch.allclose(expected[k], v, rtol=1e-6) for k, v in model.state_dict().items())
    assert wn_here("compare", path, tmp_path / "out.pt").code == 0
    assert wn_here("convert", tmp_path / "out.pt", tmp_path / "again.pt", "--like", path).code == 0
    assert wn_here("convert", path, tmp_path / "taken.pt").code == 0
    assert {k: bits(v) for k, v in load(tmp_path / "taken.pt").items()} == {
        k: bits(torch.as_tensor(v)) for k, v in state.items()
    }
    assert wn_here("remove", path, path, "--force").code == 2  # it is written as none


def member(name: str, content: bytes = b"", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:  # noqa: ANN401
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


WEIGHTS = "model_weights.ckpt"
#: Archives in which there is none that could be meant, and what is said of them.
NO_WEIGHTS: dict[str, tuple[Callable[[bytes], list[tuple[tarfile.TarInfo, bytes]]], str]] = {
    "twice": (lambda raw: [member(WEIGHTS, raw), member(f"./{WEIGHTS}", raw)], "2 times"),
    "twice by another way": (
        lambda raw: [member(WEIGHTS, raw), member(f"x/../{WEIGHTS}", raw)], "2 times"
    ),
    "a symbolic link": (
        lambda raw: [member("other.ckpt", raw),
                     member(WEIGHTS, type=tarfile.SYMTYPE, linkname="other.ckpt")],
        "not a checkpoint",
    ),
    "a hard link": (
        lambda raw: [member("other.ckpt", raw),
                     member(WEIGHTS, type=tarfile.LNKTYPE, linkname="other.ckpt")],
        "not a checkpoint",
    ),
    "a link outside": (
        lambda _: [member(WEIGHTS, type=tarfile.SYMTYPE, linkname="/etc/passwd")],
        "not a checkpoint",
    ),
    "a folder": (lambda _: [member(WEIGHTS, type=tarfile.DIRTYPE)], "not a checkpoint"),
    "a fifo": (lambda _: [member(WEIGHTS, type=tarfile.FIFOTYPE)], "not a checkpoint"),
    "text": (lambda _: [member(WEIGHTS, b"text")], "not a checkpoint"),
    "nothing": (lambda _: [member(WEIGHTS)], "not a checkpoint"),
    "in a folder": (lambda raw: [member(f"a/{WEIGHTS}", raw)], "not a checkpoint"),
    "too many members": (
        lambda raw: [*(member(f"{n}") for n in range(1001)), member(WEIGHTS, raw)],
        "not a checkpoint",
    ),
    "a name of megabytes": (
        lambda raw: [member("x" * (2 << 20)), member(WEIGHTS, raw)], "not a checkpoint"
    ),
    "damaged": (
        lambda raw: [member(WEIGHTS, raw[:80] + b"\xff" * 8 + raw[88:])], "cannot be read|damaged"
    ),
    "cut": (lambda raw: [member(WEIGHTS, raw[:-1])], "end record"),
}  # fmt: skip


@pytest.mark.parametrize("kind", NO_WEIGHTS)
def test_a_nemo_archive_without_one_checkpoint_is_refused(
    kind: str, wn_here: RunHere, tmp_path: Path
) -> None:
    make, says = NO_WEIGHTS[kind]
    path = tmp_path / "a.nemo"
    with tarfile.open(path, "w") as archive:
        for info, content in make(saved_in(tmp_path)):
            archive.addfile(info, io.BytesIO(content))
    hold_refused_by_all(wn_here, path, says)


def test_a_nemo_archive_that_ends_early_is_refused(wn_here: RunHere, tmp_path: Path) -> None:
    path = tmp_path / "a.nemo"
    with tarfile.open(path, "w") as archive:
        info, content = member(WEIGHTS, saved_in(tmp_path))
        archive.addfile(info, io.BytesIO(content))
    whole = path.read_bytes()
    end = 512 + info.size
    for size, says in {900: f"the file ends inside {WEIGHTS}", end: "damaged behind"}.items():
        path.write_bytes(whole[:size])
        hold_refused_by_all(wn_here, path, says)


def test_headers_that_lead_on_and_on_are_refused(wn_here: RunHere, tmp_path: Path) -> None:
    """Each says that the next one's name is long: Python's tarfile goes down one level for each."""
    path = tmp_path / "a.nemo"
    long = tarfile.TarInfo("././@LongLink")
    long.type, long.size = tarfile.GNUTYPE_LONGNAME, 1
    block = long.tobuf(tarfile.GNU_FORMAT) + b"x".ljust(512, b"\0")
    info, content = member(WEIGHTS, saved_in(tmp_path))
    path.write_bytes(block * 3000 + info.tobuf(tarfile.GNU_FORMAT) + content + bytes(2000))
    hold_refused_by_all(wn_here, path, "not a checkpoint")


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize(
    "kind", [b"x", b"L", b"0", b"Q"], ids=["pax", "long name", "file", "unknown"]
)
@pytest.mark.parametrize("size", [-(1 << 40), 1 << 40, (1 << 63) - 1, 1 << 80])
def test_a_header_with_a_size_of_any_number_is_refused_at_once(
    size: int, kind: bytes, pack: Callable[[bytes], bytes], wn_here: RunHere, tmp_path: Path
) -> None:
    """GNU's tar spells sizes beyond eleven octal digits as a number of 88 bits."""
    path = tmp_path / "a.nemo"
    info, content = member(WEIGHTS, saved_in(tmp_path))
    raw = bytearray(tarfile.TarInfo("x").tobuf(tarfile.GNU_FORMAT))
    raw[124:136] = bytes([0x80 if size > 0 else 0xFF]) + (size % (1 << 88)).to_bytes(11, "big")
    raw[156:157] = kind
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw)
    whole = bytes(raw) + info.tobuf(tarfile.GNU_FORMAT) + content + bytes(2000)
    path.write_bytes(pack(whole))
    begun = time.monotonic()
    hold_refused_by_all(wn_here, path, "not a checkpoint|the file ends inside")
    assert time.monotonic() - begun < SECONDS


#: Those that GPT-SoVITS' `head2version` has, and the one that forks have gone on with.
MARKS = [b"00", b"01", b"02", b"03", b"04", b"05", b"06", b"07"]


def exported(**more: object) -> dict[str, Any]:
    """What GPT-SoVITS saves: float16, without the posterior encoder."""
    state = {f"dec.{name}": tensor.half() for name, tensor in network().state_dict().items()}
    return {"weight": state, "config": {"model": {"version": "v2Pro"}}, "info": "8epoch"} | more


def save_marked(content: object, path: Path, mark: bytes) -> Path:
    """As GPT-SoVITS' `my_save2`: saved to memory, and the mark put over the first two bytes."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    path.write_bytes(mark + buffer.getvalue()[2:])
    return path


def load_marked(path: Path) -> Any:  # noqa: ANN401
    """As GPT-SoVITS' `load_sovits_new`: PK put back in memory."""
    return torch.load(io.BytesIO(b"PK" + path.read_bytes()[2:]), weights_only=True)


@pytest.mark.parametrize("mark", MARKS)
def test_a_zip_with_a_version_mark_is_read_and_keeps_it(
    mark: bytes, wn_here: RunHere, tmp_path: Path
) -> None:
    path = save_marked(exported(), tmp_path / "it's mine.pth", mark)
    looked = wn_here("inspect", path)
    assert looked.code == 0
    assert f"version mark {mark.decode()}" in looked.stdout
    assert wn_here("inspect", "--check", path).code == 0
    assert wn_here("remove", path, tmp_path / "out.pth", "--verify").code == 0
    assert (tmp_path / "out.pth").read_bytes()[:4] == mark + b"\3\4"
    with zipfile.ZipFile(io.BytesIO(b"PK" + (tmp_path / "out.pth").read_bytes()[2:])) as archive:
        assert archive.testzip() is None
    found, given = load_marked(tmp_path / "out.pth"), load_marked(path)
    assert (found["config"], found["info"]) == (given["config"], given["info"])
    model = network().half()
    for name in ("ups.0", "blocks.0"):
        nn.utils.parametrize.remove_parametrizations(model.get_submodule(name), "weight")
    folded = {name.removeprefix("dec."): tensor for name, tensor in found["weight"].items()}
    state = model.state_dict()
    model.load_state_dict(folded, strict=True)
    assert all(torch.allclose(folded[name], state[name], rtol=1e-3) for name in state)


def test_what_has_a_version_mark_is_written_as_its_own_code_writes_it(tmp_path: Path) -> None:
    content = exported(lora_rank=8)
    path = save_marked(content, tmp_path / "a.pth", b"04")
    wncli.convert(path, tmp_path / "b.pth", naming="hook")
    again = save_marked(load_marked(tmp_path / "b.pth"), tmp_path / "c.pth", b"04")
    found, expected = ((tmp_path / name).read_bytes() for name in ("b.pth", "c.pth"))
    with zipfile.ZipFile(io.BytesIO(b"PK" + found[2:])) as archive:
        start = archive.start_dir
    assert found[:start] == expected[:start]
    with zipfile.ZipFile(io.BytesIO(b"PK" + again.read_bytes()[2:])) as archive:
        left = [info.filename for info in archive.infolist() if info.header_offset >= start]
    assert left == ["archive/.data/serialization_id"]  # the one member that wn never writes


def test_a_version_mark_stays_with_the_whole_file(wn_here: RunHere, tmp_path: Path) -> None:
    path = save_marked(exported(), tmp_path / "a.pth", b"05")
    for target, options in (("w.pth", ("--only", "weight")), ("w.safetensors", ())):
        ran = wn_here("remove", path, tmp_path / target, *options)
        assert ran.code == 0
        assert "left out: the version mark 05" in ran.stdout + ran.stderr
    assert set(load(tmp_path / "w.pth")) == set(load_file(tmp_path / "w.safetensors"))
    assert wn_here("compare", tmp_path / "w.pth", path, "--only", "=weight").code == 0
    assert wn_here("convert", tmp_path / "w.pth", tmp_path / "g.pth", "--like", path).code == 0


@pytest.mark.parametrize("mark", [b"P5", b"5K", b"ab", b" 5", b"\0\0", "\u0665".encode()])
def test_what_is_no_version_mark_is_refused(
    mark: bytes, wn: Callable[..., Ran], user: Path
) -> None:
    (user / "it's mine.pth").write_bytes(mark + saved_in(user)[2:])
    assert "blocks.0.weight" in hold_hint_works(wn, user, "it's mine.pth", "have been changed")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"05", "no known format|text file"),
        (b"05\3\4", "end record"),
        (b"05\3\4" + bytes(100), "end record"),
    ],
)
def test_a_version_mark_alone_makes_no_zip(
    content: bytes, says: str, wn_here: RunHere, tmp_path: Path
) -> None:
    (tmp_path / "a.pth").write_bytes(content)
    hold_refused(wn_here("inspect", tmp_path / "a.pth"), tmp_path / "a.pth", says)


def test_a_marked_zip_that_is_damaged_is_refused_like_any_other(
    wn_here: RunHere, tmp_path: Path
) -> None:
    raw = bytearray(save_marked(exported(), tmp_path / "a.pth", b"05").read_bytes())
    raw[
        raw.index(
            exported()["weight"]["dec.ups.0.parametrizations.weight.original1"].numpy().tobytes()
        )
    ] ^= 1
    (tmp_path / "a.pth").write_bytes(raw)
    hold_refused(
        wn_here("remove", tmp_path / "a.pth", tmp_path / "b.pth"), tmp_path / "a.pth", "damaged"
    )
    checked = wn_here("inspect", "--check", tmp_path / "a.pth")
    assert checked.code == 1
    assert "checksum" in checked.stdout + checked.stderr


def test_a_pipeline_is_named_with_the_folder_of_its_model(
    wn: Callable[..., Ran], user: Path
) -> None:
    (user / "sao/vae").mkdir(parents=True)
    (user / "sao/scheduler").mkdir()
    (user / "sao/scheduler/scheduler_config.json").write_text("{}")
    save_file(network().state_dict(), user / "sao/vae/diffusion_pytorch_model.safetensors")
    (user / "sao/model_index.json").write_text('{"_class_name": "StableAudioPipeline"}')
    for name in ("sao", "sao/model_index.json"):
        command = ("remove", name, "out.safetensors")
        shown = hold_hint_works(wn, user, name, "wn inspect sao/vae", command=command)
        assert "blocks.0.weight" in shown
    assert "sao/vae" in wn("inspect", "sao", cwd=user).stdout


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("ftp://example.org/model.pt", "download it first, and give the file"),
        ("file:///model.pt", "/model.pt"),
        ("https:///model.pt", "this is no address"),
        ("https://", "this is no address"),
        ("hf://model.pt", "this is no address of a model"),
    ],
)
def test_an_address_that_cannot_be_read_is_refused_as_one(
    address: str, says: str, wn_here: RunHere, tmp_path: Path
) -> None:
    torch.save(network().state_dict(), tmp_path / "in.pt")
    for command in (("inspect", address), ("remove", address, tmp_path / "out.pt"),
                    ("compare", tmp_path / "in.pt", address)):  # fmt: skip
        ran = wn_here(*command)
        assert ran.code == 2
        assert ran.stderr.startswith(f"error: {address.partition(':')[0]}://")
        assert says in ran.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["in.pt"]


def test_an_address_of_a_local_file_is_named_by_its_path(
    wn: Callable[..., Ran], user: Path
) -> None:
    torch.save(network().state_dict(), user / "in 1.pt")
    address = (user / "in 1.pt").as_uri()
    ran = wn("inspect", address, cwd=user)
    assert ran.code == 2
    assert "blocks.0.weight" in shell(f"wn inspect {hint_of(ran)}", user).stdout


# -- what is typed ------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [(), ("c.pt",)])
def test_further_checkpoints_in_place_of_output_are_no_output(
    more: tuple[str, ...], wn: Callable[..., Ran], user: Path
) -> None:
    for name in ("a.pt", "b.pt", *more):
        torch.save(network().state_dict(), user / name)
    before = snapshot(user)
    ran = wn("remove", "a.pt", "b.pt", *more, cwd=user)
    assert ran.code == 2
    hint = hint_of(ran)
    assert hint.startswith("--output-dir")
    assert ("is a checkpoint" in ran.stderr) is not bool(more)
    assert snapshot(user) == before
    assert wn("remove", "a.pt", "b.pt", *more, "--output-dir", "d", cwd=user).code == 0
    assert sorted(path.name for path in (user / "d").iterdir()) == ["a.pt", "b.pt", *more]


def test_the_checkpoint_itself_as_output_is_named_so(wn: Callable[..., Ran], user: Path) -> None:
    torch.save(network().state_dict(), user / "x.pt")
    ran = wn("remove", "x.pt", "./x.pt", cwd=user)
    assert ran.code == 2
    assert "it is CHECKPOINT itself" in ran.stderr


def test_what_would_run_is_a_finding(wn_here: RunHere, tmp_path: Path) -> None:
    class Runs:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, ("true",)

    torch.save({"model": network().state_dict(), "extra": Runs()}, tmp_path / "x.pt")
    ran = wn_here("inspect", "--check", "--json", tmp_path / "x.pt")
    assert ran.code == 1
    (finding,) = json.loads(ran.stdout)["findings"]
    assert (finding["code"], finding["where"]) == ("would-run", "extra")
    assert "posix.system('true')" in finding["message"]
    assert "nothing is wrong" not in wn_here("inspect", "--check", tmp_path / "x.pt").stdout


def test_names_that_do_not_meet_are_shown_and_partial_is_not_offered(
    wn_here: RunHere, tmp_path: Path
) -> None:
    ours = {f"enc.{n}.w": torch.ones(2, 3) for n in range(20)} | {"post.bias": torch.ones(2)}
    theirs = {f"net.{n}.kernel": torch.ones(2, 3) for n in range(20)} | {"post.bias": torch.ones(2)}
    torch.save(ours, tmp_path / "a.pt")
    torch.save(theirs, tmp_path / "b.pt")
    ran = wn_here("convert", tmp_path / "a.pt", tmp_path / "o.pt", "--like", tmp_path / "b.pt")
    assert ran.code == 2
    assert "--partial" not in ran.stderr
    for name in ("enc.0.w", "enc.1.w", "enc.2.w", "net.0.kernel", "net.1.kernel", "net.2.kernel"):
        assert name in ran.stderr
    del ours["enc.7.w"]
    torch.save(dict(ours, extra=torch.ones(1)), tmp_path / "b.pt")
    ran = wn_here("convert", tmp_path / "a.pt", tmp_path / "o.pt", "--like", tmp_path / "b.pt")
    assert "--partial" in ran.stderr


def test_every_tensor_is_listed_with_its_shape_and_dtype(wn_here: RunHere, tmp_path: Path) -> None:
    state = {**network().state_dict(), "steps": torch.tensor(3), "h": torch.ones(2).bfloat16()}
    torch.save({"a": state, "b": {"x.weight": torch.ones(2, 3)}}, tmp_path / "x.pt")
    ran = wn_here("inspect", "--tensors", "--json", tmp_path / "x.pt")
    listed = [(t["root"], t["name"], tuple(t["shape"]), t["dtype"])
              for t in json.loads(ran.stdout)["tensors"]]  # fmt: skip
    wanted = [("a", name, tuple(t.shape), str(t.dtype).removeprefix("torch."))
              for name, t in state.items()]  # fmt: skip
    assert listed == [*wanted, ("b", "x.weight", (2, 3), "float32")]
    shown = wn_here("inspect", "--tensors", tmp_path / "x.pt").stdout
    assert all(name in shown for _, name, _, _ in wanted)
    rows = wn_here("inspect", "--tensors", "--csv", "-", tmp_path / "x.pt").stdout
    names = [row["name"] for row in csv.DictReader(io.StringIO(rows))]
    assert names == [*state, "x.weight"]
    assert json.loads(wn_here("inspect", "--json", tmp_path / "x.pt").stdout)["tensors"] is None
