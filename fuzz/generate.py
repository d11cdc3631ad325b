"""Makes the files of the differential fuzzer: each from a seed and its number alone.

A third is honest: what `torch.save` and safetensors write themselves, or what is written by hand
as they do. The others have odd moves in them, or are mutated.
"""

from __future__ import annotations

import io
import pickletools
import struct
import warnings
from collections import OrderedDict
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor, nn

from fuzz import numpy_maker
from fuzz.file_maker import legacy, torch_zip
from fuzz.numpy_maker import chance
from fuzz.pickle_maker import PickleMaker
from fuzz.safetensors_maker import SafetensorsMaker
from tests.support.mutations import BYTES, LEGACY, SAFETENSORS, Mutation
from tests.support.zip_mutations import ZIP, unzipped, zipped

ROOT = Path(__file__).resolve().parents[1]
_SEEDS = ROOT / "fuzz" / "seeds"
_DTYPES = (
    "float32", "float32", "float16", "bfloat16", "float64", "int64", "int32", "int16", "int8",
    "uint8", "bool", "complex64", "complex128",
)  # fmt: skip
#: What the legacy format has no names for.
_NEW_DTYPES = ("uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2", "complex32")
#: Larger files cost more than they show.
_LARGEST = 128 << 10


#: Of what is mutated, how much is real; how much that or written by its library just now.
_REAL, _SAVED = 0.3, 0.6


class Made(NamedTuple):
    """A file: its format, its content, and what was done to it.

    `is_honest` says that it has to be read, `is_saved` that a state dict has to be found in it.
    """

    format: str
    content: bytes
    moves: tuple[str, ...] = ()
    is_honest: bool = False
    is_saved: bool = False


def make(seed: int, number: int) -> Made:
    """Return the file of this number."""
    random = Random(f"{seed}:{number}")  # noqa: S311 - nothing is kept secret
    kind = random.choices(list(_KINDS), [weight for _, weight in _KINDS.values()])[0]
    return _KINDS[kind][0](random)


# -- honest files -------------------------------------------------------------------------------


def tensor(random: Random, dtypes: tuple[str, ...]) -> Tensor:
    """Return a tensor of a few elements; views and transposed ones are among them."""
    dtype: torch.dtype = getattr(torch, random.choice(dtypes))
    shape = [random.randint(1, 3) for _ in range(random.choice((0, 1, 1, 2, 2, 3)))]
    if shape and chance(random, 0.05):  # few are empty
        shape[0] = 0
    more = random.choice((0, 0, 0, 1))
    rows = [size + more for size in shape[:1]] + shape[1:]
    count = torch.Size(rows).numel() * dtype.itemsize
    raw = bytearray(random.randbytes(count))
    if dtype is torch.bool:
        raw = bytearray(byte & 1 for byte in raw)
    found = torch.frombuffer(raw, dtype=dtype) if raw else torch.empty(0, dtype=dtype)
    made = found.reshape(rows)[more:] if rows else found.reshape(rows)
    match random.randrange(8):
        case 0 if made.dim() > 1:
            made = made.transpose(0, 1)
        case 1 if made.dim():
            made = made[:1].expand(3, *made.shape[1:]) if made.shape[0] else made
        case 2 if made.is_floating_point() and dtype.itemsize > 1:
            made = nn.Parameter(made, requires_grad=chance(random, 0.8))
        case 3 if chance(random, 0.3):  # few have attributes
            made.note = "kept"  # type: ignore[attr-defined]
    return made


def state_dict(random: Random, dtypes: tuple[str, ...]) -> Any:  # noqa: ANN401
    """Return a state dict, some of whose tensors are tied; at least one could be a weight."""
    made: dict[str, Tensor] = random.choice((dict, OrderedDict))()
    made["a.weight"] = torch.frombuffer(bytearray(random.randbytes(24)), dtype=torch.float32).view(
        2, 3
    )
    for name in random.sample(("a.bias", "a.weight_g", "b.weight", "c.scale", "é", ""), 3):
        tied = random.choice(list(made.values()))
        made[name] = tied if chance(random, 0.15) else tensor(random, dtypes)
    if isinstance(made, OrderedDict) and chance(random, 0.5):  # those of modules
        made._metadata = OrderedDict({"": {"version": 1}})  # type: ignore[attr-defined]  # noqa: SLF001
    return made


def module(random: Random) -> nn.Module:
    """Return a small module."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return random.choice((
            lambda: nn.Linear(2, 2), lambda: nn.Sequential(nn.Linear(2, 1), nn.BatchNorm1d(1)),
            lambda: nn.utils.weight_norm(nn.Conv1d(2, 1, 1)), lambda: nn.LSTM(1, 1),
            lambda: nn.ModuleDict({"x": nn.Embedding(2, 2), "y": nn.PReLU()}),
        ))()  # fmt: skip


def checkpoint(random: Random, dtypes: tuple[str, ...]) -> Any:  # noqa: ANN401
    """Return a state dict, a module, or a training's checkpoint."""
    match random.randrange(6):
        case 0:
            return module(random)
        case 1:
            # as Adam's `state_dict()` has it; to make one imports half of PyTorch
            kept = {"step": torch.tensor(1.0), "exp_avg": torch.ones(2, 2)}
            optimizer = {"state": {0: kept}, "param_groups": [{"lr": 1e-3, "params": [0]}]}
            return {"model": nn.Linear(2, 2).state_dict(), "optimizer": optimizer, "epoch": 3}
        case 2:
            both = [state_dict(random, dtypes) for _ in range(2)]
            return {
                "generator": both[0],
                "ema": random.choice(both),
                "args": {"lr": 0.1, "x": (1, [2])},
            }
    return state_dict(random, dtypes)


def saved(random: Random, *, is_legacy: bool) -> bytes:
    """Return what `torch.save` writes."""
    buffer = io.BytesIO()
    dtypes = _DTYPES if is_legacy else _DTYPES + _NEW_DTYPES
    protocol = random.choice((2, 2, 2, 3, 4, 5))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(
            checkpoint(random, dtypes),
            buffer,
            pickle_protocol=protocol,
            _use_new_zipfile_serialization=not is_legacy,
        )
    return buffer.getvalue()


def saved_safetensors(random: Random) -> bytes:
    """Return what safetensors writes."""
    dtypes = tuple(
        name for name in _DTYPES + _NEW_DTYPES if name not in {"complex128", "complex32"}
    )
    made = {f"a.{number}": tensor(random, dtypes).contiguous().clone() for number in range(3)}
    made["a.weight"] = torch.ones(2, 2)
    return safetensors.torch.save(made, random.choice((None, {"format": "pt"}, {"b": "a.0"})))


def _honest_zip(random: Random) -> Made:
    return Made("zip", saved(random, is_legacy=False), is_honest=True, is_saved=True)


def _honest_legacy(random: Random) -> Made:
    return Made("legacy", saved(random, is_legacy=True), is_honest=True, is_saved=True)


def _honest_safetensors(random: Random) -> Made:
    return Made("safetensors", saved_safetensors(random), is_honest=True, is_saved=True)


def _by_hand(random: Random) -> Made:
    is_legacy = chance(random, 0.3)  # less is to be found there
    maker = PickleMaker(random, 0.0, random.choice((2, 2, 3, 4)), is_legacy=is_legacy)
    made = legacy(maker) if is_legacy else torch_zip(maker)
    return Made("legacy" if is_legacy else "zip", made, is_honest=True)


def _saved_arrays(random: Random) -> Made:
    """Return a sound file of NumPy's arrays, or of a checkpoint in another box."""
    match random.randrange(5):
        case 0:
            return Made("npz", numpy_maker.saved_npz(random), is_honest=True, is_saved=True)
        case 1:
            return Made("pickle", numpy_maker.saved_pickle(random), is_honest=True, is_saved=True)
        case 2:
            is_legacy = chance(random, 0.3)
            buffer = io.BytesIO()
            torch.save(
                numpy_maker.tree(random),
                buffer,
                pickle_protocol=random.choice((2, 2, 3, 4, 5)),
                _use_new_zipfile_serialization=not is_legacy,
            )
            kind = "legacy" if is_legacy else "zip"
            return Made(kind, buffer.getvalue(), is_honest=True, is_saved=True)
        case 3:
            content = numpy_maker.marked(saved(random, is_legacy=False), random)
            return Made("zip", content, is_honest=True, is_saved=True)
    inner = (saved(random, is_legacy=chance(random, 0.3)), numpy_maker.saved_pickle(random))
    content = numpy_maker.nemo(random, random.choice(inner))
    return Made("tar", content, is_honest=True, is_saved=True)


# -- odd files ----------------------------------------------------------------------------------


def _odd_maker(random: Random, *, is_legacy: bool) -> PickleMaker:
    """Of which some have one odd move and some have many."""
    return PickleMaker(
        random,
        random.choice((0.1, 0.2, 0.3, 0.5, 1.0)),
        random.choice((2, 2, 2, 2, 3, 4)),
        is_legacy=is_legacy,
    )


def _odd_zip(random: Random) -> Made:
    maker = _odd_maker(random, is_legacy=False)
    return Made("zip", torch_zip(maker), tuple(maker.moves))


def _odd_legacy(random: Random) -> Made:
    maker = _odd_maker(random, is_legacy=True)
    return Made("legacy", legacy(maker), tuple(maker.moves))


def _odd_safetensors(random: Random) -> Made:
    maker = SafetensorsMaker(random, random.choice((0.1, 0.3, 0.5, 1.0)))
    return Made("safetensors", maker.file(), tuple(maker.moves))


def _odd_arrays(random: Random) -> Made:
    maker = numpy_maker.ArrayPickleMaker(random)
    return Made("pickle", maker.pickle(), tuple(maker.moves))


# -- mutated files ------------------------------------------------------------------------------

_TABLES: dict[str, dict[str, Mutation]] = {
    "zip": ZIP, "legacy": LEGACY, "safetensors": SAFETENSORS, "npz": numpy_maker.NPZ,
    "pickle": numpy_maker.PICKLE, "tar": numpy_maker.TAR,
}  # fmt: skip


def respell(data: bytes, random: Random) -> bytes:
    """Write some opcodes of a pickle in another way, of the same meaning or nearly so."""
    found: list[bytes] = []
    try:
        parsed = [(code, arg, place or 0) for code, arg, place in pickletools.genops(data)]
    except Exception:  # noqa: BLE001 - it raises whatever it meets
        return data
    ends = [place for *_, place in parsed[1:]] + [parsed[-1][2] + 1]
    rate = random.choice((0.02, 0.2))
    for (code, arg, place), end in zip(parsed, ends, strict=True):
        raw = data[place:end]
        found.append(_respelled(code.name, arg, raw, random) if random.random() < rate else raw)
    return b"".join(found) + data[ends[-1] :]


#: Other opcodes that leave the same on the stack, or nearly.
_RESPELLED: dict[str, tuple[bytes, ...]] = {
    "REDUCE": (b"\x81", b"}\x92", b"R20"),
    "NEWTRUE": (b"I01\n", b"I00\n", b"K\1", b"N"),
    "NEWFALSE": (b"I00\n", b"I01\n", b"K\0", b"N"),
    "EMPTY_DICT": (
        b"(d", b"ccollections\nOrderedDict\n)R", b"ccollections\nCounter\n)R",
        b"ccollections\nOrderedDict\n)\x81",
    ),
    "EMPTY_TUPLE": (b"(t", b"]", b"N", b"cbuiltins\ntuple\n(tR"),
    "SETITEMS": (b"u}b", b"u20", b"uNb", b"u(NNu"),
    "BINPERSID": (b"QNb", b"Q20", b"Qq\xf0"),
    "TUPLE1": (b"\x8520", b"\x85q\xf0"),
    "TUPLE2": (b"\x8620", b"\x86q\xf0"),
    "TUPLE3": (b"\x8720", b"\x87q\xf0"),
}  # fmt: skip


def _respelled(name: str, arg: Any, raw: bytes, random: Random) -> bytes:  # noqa: ANN401
    if name in _RESPELLED:
        return random.choice(_RESPELLED[name])
    match name:
        case "BININT" | "BININT1" | "BININT2" | "LONG1":
            return PickleMaker(random, 0.0).odd_number(arg)
        case "BINUNICODE" | "SHORT_BINUNICODE":
            return PickleMaker(random, 100.0).text(arg)
        case "BINPUT" | "LONG_BINPUT":
            places = (b"p%d\n", b"p0%d\n", b"p %d\n", b"\x94")
            return random.choice(places).replace(b"%d", b"%d" % arg)
        case "BINGET" | "LONG_BINGET":
            near = max(0, arg + random.choice((-1, 0, 0, 1)))
            return random.choice((b"g%d\n" % arg, b"j" + struct.pack("<I", near), b"g %d\n" % arg))
    return raw


def _respell_zip(data: bytes, random: Random) -> bytes:
    try:
        members = unzipped(data)
    except ValueError:
        return data
    return zipped(
        [
            (name, respell(content, random) if name.endswith("data.pkl") else content)
            for name, content in members
        ]
    )


def _respell_legacy(data: bytes, random: Random) -> bytes:
    rest, heads = data, b""
    for _ in range(random.choice((3, 3, 3, 3, 4, 2))):
        try:
            *_, (_, _, place) = pickletools.genops(rest)
        except Exception:  # noqa: BLE001 - it raises whatever it meets
            break
        end = (place or 0) + 1
        heads, rest = heads + rest[:end], rest[end:]
    return heads + respell(rest, random)


_RESPELL: dict[str, Mutation] = {
    "zip": _respell_zip, "legacy": _respell_legacy, "pickle": respell,
}  # fmt: skip


@cache
def _real() -> dict[str, list[bytes]]:
    """Files that were there before, by their formats."""
    folders = {"zip": "torch-zip", "legacy": "torch-legacy", "safetensors": "safetensors"}
    found = {
        kind: [path.read_bytes() for path in sorted((_SEEDS / folder).iterdir())]
        for kind, folder in folders.items()
    }
    for path in sorted((ROOT / "sample_models").iterdir()):
        is_sample = path.is_file() and path.suffix not in {".md", ".py"}
        if is_sample and path.stat().st_size <= _LARGEST:
            content = path.read_bytes()
            found["zip" if content.startswith(b"PK") else "safetensors"].append(content)
    return found


def _mutated(random: Random) -> Made:
    kind = random.choice(("zip", "zip", "zip", "legacy", "legacy", "safetensors"))
    moves: list[str] = []
    roll = random.random()
    if roll < _REAL:  # some are real
        content = random.choice(_real()[kind])
    elif kind == "safetensors":
        content = saved_safetensors(random)
    elif roll < _SAVED:
        content = saved(random, is_legacy=kind == "legacy")
    else:
        maker = PickleMaker(random, random.choice((0.0, 0.5)), is_legacy=kind == "legacy")
        content = legacy(maker) if kind == "legacy" else torch_zip(maker)
        moves += maker.moves
    return _changed(random, kind, content, moves)


def _mutated_arrays(random: Random) -> Made:
    made = _saved_arrays(random)
    return _changed(random, made.format, made.content, [])


def _changed(random: Random, kind: str, content: bytes, moves: list[str]) -> Made:
    for _ in range(random.choice((1, 1, 2))):
        table = _TABLES[kind]
        names = [name for name in table if name not in BYTES or chance(random, 0.15)]
        name = random.choice(names)
        if kind in _RESPELL and chance(random, 0.4):  # what the tables lack
            name, change = "respell", _RESPELL[kind]
        else:
            change = table[name]
        content = change(content, random)
        moves.append(name)
    return Made(kind, content, tuple(moves))


_KINDS: dict[str, tuple[Callable[[Random], Made], float]] = {
    "honest zip": (_honest_zip, 8),
    "honest legacy": (_honest_legacy, 4),
    "honest safetensors": (_honest_safetensors, 3),
    "by hand": (_by_hand, 10),
    "odd zip": (_odd_zip, 35),
    "odd legacy": (_odd_legacy, 10),
    "odd safetensors": (_odd_safetensors, 8),
    "mutated": (_mutated, 22),
    "honest arrays": (_saved_arrays, 8),
    "odd arrays": (_odd_arrays, 10),
    "mutated arrays": (_mutated_arrays, 20),
}
