"""Makes the files that hints are about, under the oddest names that files and tensors can have."""

from __future__ import annotations

import io
import json
import os
import pickle
import shlex
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.corpus.hostile_places import zipped
from tests.support import opcodes
from tests.support.shards import sharded

State = dict[str, Any]

#: As a key: a leading dash, blanks, quotes, what globs and rules take for their own, escapes.
ODD = "-a b'\"c[0]*?=$(x)`!\\\n\u200bé"
#: As a file's name also a byte that is no UTF-8.
STEM = "-i n'[0]*=$x!\n\udcff"


def typed(name: str) -> str:
    """A file's name as a shell takes it, with no help of the tool's."""
    return shlex.quote(f"./{name}")


IN, OUT, REF = typed(f"{STEM}.pt"), typed(f"{STEM} out.pt"), typed(f"{STEM} ref.pt")
TENSORS, ARRAYS = typed(f"{STEM} out.safetensors"), typed(f"{STEM} out.npz")
FOLDER, FREE = typed(f"{STEM} folder"), typed(f"{STEM} free")


def put(name: str, content: object, *, legacy: bool = False) -> None:
    """Save with PyTorch, which opens no file whose name is no UTF-8."""
    path = Path(name)
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as file:
        torch.save(content, file, _use_new_zipfile_serialization=not legacy)


def file(content: object, **more: object) -> Callable[[], None]:
    """The file IN; `ref`, `out` and `tensors` are the others."""
    names = {"ref": "ref.pt", "out": "out.pt"}

    def make() -> None:
        put(f"{STEM}.pt", content)
        for name, other in more.items():
            put(f"{STEM} {names[name]}", other)

    return make


def both(*made: Callable[[], object]) -> Callable[[], None]:
    def make() -> None:
        for one in made:
            one()

    return make


def popping(content: object) -> Callable[[], None]:
    """The file IN with a call that is part of nothing: what it gives is thrown away."""

    def make() -> None:
        call = opcodes.call("os.system", "true") + pickle.POP
        changed = zipped(content, b"", wrap=lambda found: found[:2] + call + found[2:])
        Path(f"{STEM}.pt").write_bytes(changed)

    return make


def pair(module: str = ODD, g: float = 2.0, v: Tensor | None = None) -> State:
    v = torch.arange(6.0).reshape(2, 3) + 1 if v is None else v
    return {f"{module}.weight_g": torch.full((len(v), 1), g), f"{module}.weight_v": v}


def plain(module: str = ODD) -> State:
    return {f"{module}.weight": torch.arange(6.0).reshape(2, 3) + 1}


#: 256 MB of one element.
VAST = torch.ones(1, 1).expand(1 << 13, 1 << 13)
SOUND = pair("sound")
OPTIMIZER = {"state": {}, "param_groups": [{"params": [0, 1]}]}


class Runs:
    """What runs something when it is loaded."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("true",)


RUNS = Runs()


def shards(folder: str = f"{STEM} folder", *, index: bool = True) -> None:
    written = sharded(Path("made"))  # safetensors opens no file in a folder whose name is no UTF-8
    if not index:
        written.unlink()
    Path("made").rename(folder)


def damaged() -> None:
    file(SOUND | pair())()
    path = Path(f"{STEM}.pt")
    raw = bytearray(path.read_bytes())
    place = raw.index(struct.pack("<2f", 1, 2))
    raw[place] ^= 1
    path.write_bytes(raw)


def four_bits() -> None:
    """Three elements of four bits each are no whole number of bytes in PyTorch's F4."""
    header = json.dumps({ODD: {"dtype": "F4", "shape": [2, 3], "data_offsets": [0, 3]}}).encode()
    path = Path(f"{STEM}.safetensors")
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\1\2\3")


def bytes_of(content: object = SOUND) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def compressed(name: str, compress: Callable[[bytes], bytes]) -> Callable[[], None]:
    return lambda: (Path(name).write_bytes(compress(bytes_of())), None)[1]


def tar(name: str, members: Mapping[str, bytes], mode: str = "w") -> Callable[[], None]:
    def make() -> None:
        Path(name).parent.mkdir(exist_ok=True)
        with tarfile.open(name, mode) as archive:  # type: ignore[call-overload]
            for member, content in members.items():
                entry = tarfile.TarInfo(member)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))

    return make


NEMO = {"./model_config.yaml": b"a: 1", "./model_weights.ckpt": bytes_of()}


def marked() -> None:
    Path(f"{STEM}.pt").write_bytes(b"ab" + bytes_of()[2:])


def behind() -> None:
    Path(f"{STEM}.pt").write_bytes(b"#!/bin/sh\n" + bytes_of())


def interrupted() -> None:
    """As a run leaves it that is killed while it puts new files in the place of old ones."""
    shards("new")
    partial = Path(f"{STEM} folder", f".{STEM} folder.0123abcd.wn-partial")
    partial.parent.mkdir()
    Path("new").rename(partial)
    (partial / ".going").mkdir()


def distributed() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that this is one process alone
        dcp.state_dict_saver.save({"model": dict(SOUND)}, checkpoint_id=f"{STEM} folder")


def of_ranks() -> None:
    distributed()
    Path(f"{STEM} folder", ".metadata").rename(Path(f"{STEM} folder", "__0.metadata"))


def fsdp() -> None:
    distributed()
    Path(f"{STEM} folder").rename("pytorch_model_fsdp_0")
    Path(f"{STEM} folder").mkdir()
    Path("pytorch_model_fsdp_0").rename(f"{STEM} folder/pytorch_model_fsdp_0")


def sharded_by_ranks() -> None:
    """As two ranks write them: the second has the last rows."""
    folder = Path(f"{STEM} folder")
    folder.mkdir()
    for rank, rows in enumerate((slice(0, 1), slice(1, None))):
        tensors = {name: tensor[rows].contiguous() for name, tensor in SOUND.items()}
        places = {
            name: {"saved_offsets": [rank, *(0 for _ in tensor.shape[1:])]}
            for name, tensor in SOUND.items()
        }
        metadata = {"DCP_SHARDING_INFO": json.dumps(places), "format": "pt"}
        path = folder / f"shard-{rank + 1:05}-model-00001-of-00001.safetensors"
        path.write_bytes(safetensors.torch.save(tensors, metadata))


def deepspeed(step: str = "step", *names: str, latest: str = "step") -> Callable[[], None]:
    def make() -> None:
        folder = Path(f"{STEM} folder", step)
        folder.mkdir(parents=True)
        for name in names:
            put(str(folder / name), {"module": dict(SOUND)})
        (folder.parent / "latest").write_text(latest)
        (folder.parent / "zero_to_fp32.py").write_text(ZERO)

    return make


#: Takes the arguments that DeepSpeed's script documents, and finds the step as that does.
ZERO = """
import argparse, pathlib
parser = argparse.ArgumentParser()
parser.add_argument("checkpoint_dir")
parser.add_argument("output_dir")
parser.add_argument("-t", "--tag", default=None)
given = parser.parse_args()
folder = pathlib.Path(given.checkpoint_dir)
step = folder / (given.tag or (folder / "latest").read_text())
assert any("zero_pp_rank" in path.name for path in step.iterdir())
pathlib.Path(given.output_dir).mkdir()
"""
PARTS = ("zero_pp_rank_0_mp_rank_00_model_states.pt", "zero_pp_rank_1_mp_rank_00_model_states.pt")


def script() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls TorchScript deprecated
        module = torch.jit.trace(nn.Linear(3, 2), torch.ones(1, 3))
        buffer = io.BytesIO()
        torch.jit.save(module, buffer)
    Path(f"{STEM}.pt").write_bytes(buffer.getvalue())


def no_torch_zip(mark: bytes) -> Callable[[], None]:
    def make() -> None:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("a/b", b"c")
        Path(f"{STEM}.pt").write_bytes(mark + buffer.getvalue())

    return make


def directory(name: str, content: object = SOUND) -> Callable[[], None]:
    def make() -> None:
        file(content)()
        Path(name).mkdir(parents=True)

    return make


def several_in_folder() -> None:
    for name in ("a b.pt", f"{STEM}.pt"):
        put(str(Path(f"{STEM} folder", name)), SOUND)


def below_folder() -> None:
    Path("top").mkdir()
    put(str(Path("top", STEM)), SOUND)  # without a suffix, as HiFi-GAN's
    Path("top", "sub").mkdir()
    put("top/sub/one.pt", SOUND)


def beside_text() -> None:
    put(f"{STEM}.pt", SOUND)
    Path(f"{STEM}.json").write_text("{}")


def in_tensors() -> None:
    save_file(SOUND | pair("b"), "in.safetensors")
    shards()
