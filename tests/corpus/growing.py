"""Families of files that grow: what `n` of something costs has to grow no faster than `n`."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from tests.support.opcodes import Op, build, call, name, new, put
from tests.support.zip_mutations import zipped

#: Makes files for `n` in a folder, and gives the command for them.
Make = Callable[[Path, int], tuple[str | Path, ...]]

_DATA = struct.pack("<12f", *range(12))
_PAIR = {"l.weight_g": (3, 1), "l.weight_v": (3, 4)}


def recalled(place: int) -> Op:
    return Op(pickle.LONG_BINGET + struct.pack("<I", place))


def kept(value: Op, place: int) -> Op:
    return Op(value + pickle.LONG_BINPUT + struct.pack("<I", place))


def tensor(*shape: int, strides: Iterable[int] = (4, 1), offset: int = 0) -> Op:
    storage = put(("storage", name("torch.FloatStorage"), "0", "cpu", 12))
    pid = Op(storage + pickle.BINPERSID)
    steps = tuple(strides)[: len(shape)]
    hooks = call("collections.OrderedDict")
    return call("torch._utils._rebuild_tensor_v2", pid, offset, shape, steps, False, hooks)  # noqa: FBT003


W, G = kept(tensor(3, 4), 60_000), kept(tensor(3, 1), 60_001)
SAME_W, SAME_G = recalled(60_000), recalled(60_001)
#: Both tensors, remembered and thrown away.
BOTH = Op(W + pickle.POP + G + pickle.POP)


def torch_file(path: Path, content: Op, first: bytes = b"") -> Path:
    pickled = pickle.PROTO + b"\4" + first + content + pickle.STOP
    members = {"data.pkl": pickled, "byteorder": b"little", "data/0": _DATA, "version": b"3\n"}
    path.write_bytes(zipped([(f"archive/{key}", value) for key, value in members.items()]))
    return path


def safetensors_file(
    path: Path, tensors: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str] | None = None
) -> Path:
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    place = 0
    for key, shape in tensors.items():
        size = 4
        for count in shape:
            size *= count
        offsets = [place, place + size]
        header[key] = {"dtype": "F32", "shape": shape, "data_offsets": offsets}
        place += size
    raw = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(place))
    return path


def items(pairs: Iterable[tuple[str, Op]]) -> Op:
    return put(dict(pairs))


def beside(value: Op) -> Op:
    """Something beside a state dict."""
    return put({"w": tensor(3, 4), "x": value})


def mixed(folder: Path, n: int, suffix: str = "") -> Path:
    """As many entries of a mapping beside a state dict, some of them shared."""
    model = put({"a.weight": tensor(3, 4)})
    return torch_file(
        folder / f"in{suffix}.pt", put({"model": model, **{f"x{i}": i for i in range(n)}})
    )


def roots(folder: Path, n: int, root: str = "r", key: str = "l", file: str = "in.pt") -> Path:
    pairs = ((f"{root}{i}", put({f"{key}{i}.weight": SAME_W})) for i in range(n))
    return torch_file(folder / file, items(pairs), BOTH)


def roots_of_pairs(folder: Path, n: int) -> Path:
    pair = put({"l.weight_g": SAME_G, "l.weight_v": SAME_W})
    return torch_file(folder / "in.pt", items((f"r{i}", pair) for i in range(n)), BOTH)


def roots_of_one(folder: Path, n: int) -> Path:
    """One mapping of n tensors under n roots."""
    shared = kept(items((f"l{i}.weight", SAME_W) for i in range(n)), 70_000)
    first = Op(BOTH + shared + pickle.POP)
    return torch_file(folder / "in.pt", items((f"r{i}", recalled(70_000)) for i in range(n)), first)


def long_key(folder: Path, n: int) -> Path:
    inner = put([put([0]) for _ in range(n // 10)])
    return torch_file(folder / "in.pt", put({"w": tensor(3, 4), "k" * n: inner}))


def long_root(folder: Path, n: int) -> Path:
    """A root of n characters, over n halves of pairs."""
    model = items((f"l{i}.weight_g", SAME_G) for i in range(n // 20))
    model = Op(model[:-1] + put("a.weight") + SAME_W + pickle.SETITEMS)
    return torch_file(folder / "in.pt", put({"k" * n: model}), BOTH)


def dots(folder: Path, n: int) -> Path:
    danger = call("os.system", "x")
    return torch_file(folder / "in.pt", put({"w": tensor(3, 4), "." * n: danger}))


def names_of_dots(folder: Path, n: int, letter: str = "a") -> Path:
    return safetensors_file(folder / f"{letter}.safetensors", {"." * n + letter + ".weight": (1,)})


def names_with_dots(folder: Path, n: int) -> Path:
    """Pairs below many modules, in the other spelling, and an optimizer that knows their names."""
    key = "a." * n + "weight"
    model = put({f"{key}_g": SAME_G, f"{key}_v": SAME_W})
    flat = put({f"state.{key}_v.step": 1, f"param_groups.{key}_v.lr": 1})
    return torch_file(folder / "in.pt", put({"model": model, "optimizer": flat}), BOTH)


def empty_dicts(folder: Path, n: int) -> Path:
    return torch_file(folder / "in.pt", beside(put((Op(pickle.EMPTY_DICT),) * n)))


def history(folder: Path, n: int) -> Path:
    return torch_file(
        folder / "in.pt", beside(put([put({"loss": i, "step": i}) for i in range(n)]))
    )


def nested_history(folder: Path, n: int) -> Path:
    records = [put({"m": put({"loss": put([i])})}) for i in range(n)]
    return torch_file(folder / "in.pt", beside(put(records)))


def lists(folder: Path, n: int) -> Path:
    return torch_file(folder / "in.pt", beside(Op(pickle.EMPTY_LIST * n + pickle.POP * (n - 1))))


def deep(folder: Path, n: int) -> Path:
    inside = Op(pickle.EMPTY_LIST * n + pickle.APPEND * (n - 1))
    return torch_file(folder / "in.pt", beside(inside))


def deep_tuples(folder: Path, n: int) -> Path:
    inside = Op(pickle.NONE + pickle.TUPLE1 * n)
    return torch_file(folder / "in.pt", beside(inside))


def deep_calls(folder: Path, n: int) -> Path:
    function = name("collections.OrderedDict")
    inside = Op(
        function * n
        + pickle.EMPTY_TUPLE
        + (pickle.REDUCE + pickle.TUPLE1) * (n - 1)
        + pickle.REDUCE
    )
    return torch_file(folder / "in.pt", beside(inside))


def shared_list(folder: Path, n: int) -> Path:
    """n entries that are one list of n numbers, and a list with it n times."""
    many = kept(put(list(range(n))), 70_000)
    first = Op(many + pickle.POP)
    content: dict[str, object] = {f"x{i}": recalled(70_000) for i in range(n)}
    content |= {"model": put({"a.weight": tensor(3, 4)}), "all": put([recalled(70_000)] * n)}
    return torch_file(folder / "in.pt", put(content), first)


def shared_metadata(folder: Path, n: int) -> Path:
    """n tensors with one mapping of n items beside their hooks."""
    shared = kept(put({f"m{i}": i for i in range(n)}), 70_000)
    storage = Op(put(("storage", name("torch.FloatStorage"), "0", "cpu", 12)) + pickle.BINPERSID)
    arguments = (kept(storage, 70_001), 0, (3, 4), (4, 1), False, None, recalled(70_000))
    one = call("torch._utils._rebuild_tensor_v2", *arguments)
    more = call("torch._utils._rebuild_tensor_v2", recalled(70_001), *arguments[1:])
    content = {"l0.weight": one, **{f"l{i}.weight": more for i in range(1, n)}}
    return torch_file(folder / "in.pt", put(content), Op(shared + pickle.POP))


def shared_shape(folder: Path, n: int) -> Path:
    """n tensors with one shape of n dims."""
    shape = kept(put((1,) * n), 70_000)
    storage = kept(
        Op(put(("storage", name("torch.FloatStorage"), "0", "cpu", 12)) + pickle.BINPERSID), 70_001
    )
    one = call(
        "torch._utils._rebuild_tensor_v2",
        recalled(70_001),
        0,
        recalled(70_000),
        recalled(70_000),
        False,  # noqa: FBT003
        None,
    )
    first = Op(shape + pickle.POP + storage + pickle.POP)
    return torch_file(folder / "in.pt", items((f"l{i}.weight", one) for i in range(n)), first)


def shared_state(folder: Path, n: int) -> Path:
    """n objects with one state of n items."""
    shared = kept(put({f"m{i}": i for i in range(n)}), 70_000)
    content = [build(new("argparse.Namespace"), recalled(70_000)) for _ in range(n)]
    return torch_file(folder / "in.pt", beside(put(content)), Op(shared + pickle.POP))


def modules(folder: Path, n: int) -> Path:
    """Modules that hold one mapping of n parameters, n times."""
    shared = kept(items((f"w{i}", SAME_W) for i in range(n)), 70_000)
    state = {"_parameters": recalled(70_000), "_buffers": {}, "_modules": {}}
    content = items((f"m{i}", build(new("models.Part"), put(state))) for i in range(n))
    top = {"_parameters": {}, "_buffers": {}, "_modules": content}
    first = Op(BOTH + shared + pickle.POP)
    return torch_file(folder / "in.pt", build(new("models.Net"), put(top)), first)


def python2_dicts(folder: Path, n: int) -> Path:
    shared = kept(put([put([f"k{i}", i]) for i in range(n)]), 70_000)
    content = [call("collections.OrderedDict", recalled(70_000)) for _ in range(n)]
    return torch_file(folder / "in.pt", beside(put(content)), Op(shared + pickle.POP))


def long_class(folder: Path, n: int) -> Path:
    """n objects of a class with a name of n characters."""
    cls = kept(Op(pickle.GLOBAL + b"models\n" + b"A" * n + b"\n"), 70_000)
    first = Op(cls + pickle.POP)
    made = Op(recalled(70_000) + pickle.EMPTY_TUPLE + pickle.NEWOBJ)
    content = {"model": put({"a.weight": tensor(3, 4)}), **{f"x{i}": made for i in range(n)}}
    return torch_file(folder / "in.pt", put(content), first)


def long_module(folder: Path, n: int) -> Path:
    """n names of a module whose own has n characters."""
    module = kept(put("m" * n), 70_000)
    function = Op(recalled(70_000) + put("f") + pickle.STACK_GLOBAL)
    first = Op(module + pickle.POP)
    return torch_file(folder / "in.pt", beside(put([function] * n)), first)


def calls(folder: Path, n: int) -> Path:
    content = {"model": put({"a.weight": tensor(3, 4)})}
    content |= {f"x{i}": call("os.system", f"{i}") for i in range(n)}
    return torch_file(folder / "in.pt", put(content))


def calls_below_a_long_key(folder: Path, n: int) -> Path:
    inner = items((f"x{i}", call("os.system", f"{i}")) for i in range(n // 20))
    return torch_file(folder / "in.pt", put({"w": tensor(3, 4), "k" * n: inner}))


def shared_with_a_call(folder: Path, n: int) -> Path:
    """n roots that are one mapping with a call in it."""
    model = kept(put({"a.weight": tensor(3, 4), "x": call("os.system", "x")}), 70_000)
    first = Op(model + pickle.POP)
    return torch_file(folder / "in.pt", put([recalled(70_000)] * n), first)


def optimizers(folder: Path, n: int) -> Path:
    """n entries that are one optimizer with n names, beside a pair."""
    names = kept(put([f"p{i}" for i in range(n)]), 70_001)
    group = put({"params": list(range(n)), "param_names": names})
    shared = kept(put({"state": put({}), "param_groups": [group]}), 70_000)
    content: dict[str, object] = {f"x{i}": recalled(70_000) for i in range(n)}
    content["model"] = put({"l.weight_g": SAME_G, "l.weight_v": SAME_W})
    return torch_file(folder / "in.pt", put(content), Op(BOTH + shared + pickle.POP))


def averages(folder: Path, n: int) -> Path:
    """n averages by position, beside n roots of a pair."""
    pair = put({"l.weight_g": SAME_G, "l.weight_v": SAME_W})
    content: dict[str, object] = {f"r{i}": pair for i in range(n)}
    content |= {f"e{i}": put({"shadow_params": [SAME_G, SAME_W]}) for i in range(n)}
    return torch_file(folder / "in.pt", put(content), BOTH)


def tied(folder: Path, n: int) -> Path:
    return torch_file(folder / "in.pt", items((f"l{i}.weight", SAME_W) for i in range(n)), BOTH)


def tied_pairs(folder: Path, n: int) -> Path:
    pairs = (
        (f"l{i}.weight_{half}", SAME_G if half == "g" else SAME_W)
        for i in range(n)
        for half in "gv"
    )
    return torch_file(folder / "in.pt", items(pairs), BOTH)


def chain(folder: Path, n: int) -> Path:
    """Pairs in the order of a chain: the v of each is the g of the next."""
    pairs = [(f"l{i}.weight_g", SAME_G) for i in range(n)]
    spread = [
        (f"l{i}.weight_v", tensor(3, 1, strides=(1, 1), offset=i % 9)) for i in reversed(range(n))
    ]
    return torch_file(folder / "in.pt", items([*pairs, *spread]), BOTH)


def other_keys(folder: Path, n: int) -> Path:
    content = Op(b"".join(put((i, "k" * 50)) + put(i) for i in range(n)))
    held = Op(
        pickle.EMPTY_DICT
        + pickle.MARK
        + put("model")
        + put({"a.weight": tensor(3, 4)})
        + content
        + pickle.SETITEMS
    )
    return torch_file(folder / "in.pt", held)


def alike_keys(folder: Path, n: int) -> Path:
    """Keys that read the same, and others that read as the marked ones."""
    content = Op(b"".join(put(Op(pickle.EMPTY_TUPLE)) + put(i) for i in range(n)))
    marked = Op(b"".join(put(f"()'{i}") + put(i) for i in range(n)))
    held = Op(
        pickle.EMPTY_DICT
        + pickle.MARK
        + put("model")
        + put({"a.weight": tensor(3, 4)})
        + marked
        + content
        + pickle.SETITEMS
    )
    return torch_file(folder / "in.pt", held)


def many_layers(folder: Path, n: int) -> Path:
    layers = (f"l{i}.weight_{half}" for i in range(n) for half in "gv")
    return safetensors_file(folder / "in.safetensors", dict.fromkeys(layers, (1, 1)))


def many_tensors(folder: Path, n: int, prefix: str = "", file: str = "in") -> Path:
    shapes = {f"{prefix}l{i}.kernel": (1, 1) for i in range(n)}
    return safetensors_file(folder / f"{file}.safetensors", shapes)


def metadata(folder: Path, n: int) -> Path:
    return safetensors_file(
        folder / "in.safetensors", {"w": (1,)}, {f"{i:x}": "" for i in range(n)}
    )


def long_names(folder: Path, n: int, letter: str) -> Path:
    key = "." * 33 + letter * n + "\U0001f600"
    return safetensors_file(folder / f"{letter}.safetensors", {key: (1,)})


def missing_shards(folder: Path, n: int) -> Path:
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {f"k{i}": f"m{i}.safetensors" for i in range(n)}}))
    return index


def no_elements(folder: Path, n: int) -> Path:
    """A weight without elements, whose g would have n."""
    return safetensors_file(folder / "in.safetensors", {"l.weight": (n, 0)})


def zeros(folder: Path, n: int) -> Path:
    return safetensors_file(folder / "in.safetensors", {"l.weight": (n, 1)})


def shards(folder: Path, n: int) -> Path:
    where: dict[str, str] = {}
    (folder / "in").mkdir(exist_ok=True)
    for old in (folder / "in").iterdir():
        old.unlink()
    for i in range(n):
        file = f"model-{i + 1:05}-of-{n:05}.safetensors"
        pair = {f"l{i}.weight_g": (1, 1), f"l{i}.weight_v": (1, 1)}
        tensors = pair | {f"l{i}.b{k}": (0,) for k in range(10)}
        safetensors_file(folder / "in" / file, tensors)
        where |= dict.fromkeys(tensors, file)
    index = {"weight_map": where}
    (folder / "in" / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder / "in"


def commanded(make: Callable[[Path, int], Path], *command: str) -> Make:
    """A command for one file; its words that begin with `out` are outputs."""

    def prepare(folder: Path, n: int) -> tuple[str | Path, ...]:
        path = make(folder, n)
        first, *more = command
        out = [folder / word if word.startswith("out") else word for word in more]
        return first, path, *out

    return prepare


def compared(
    a: Callable[[Path, int], Path], b: Callable[[Path, int], Path], *, like: bool = False
) -> Make:
    """A comparison of two files, or one in the structure of the other."""

    def prepare(folder: Path, n: int) -> tuple[str | Path, ...]:
        one, other = a(folder, n), b(folder, n)
        if like:
            return "convert", one, folder / "out.pt", "--force", "--like", other
        return "compare", one, other

    return prepare


_TO_TORCH = ("out.pt", "--force")
_RESPELLED = (*_TO_TORCH, "--naming", "parametrized")
_IN_SHARDS = ("out", "--force", "--format", "safetensors", "--max-shard-size", "1GB")
_TO_SAFETENSORS = ("out.safetensors", "--force")

#: By what there is n of: how to make it and what to run, and n for about a fifth of a second.
FAMILIES: dict[str, tuple[Make, int]] = {
    "entries": (commanded(mixed, "inspect"), 8000),
    "entries, converted": (commanded(mixed, "convert", *_TO_TORCH), 4000),
    "entries, one dropped": (commanded(mixed, "convert", *_TO_TORCH, "--drop", "x1"), 4000),
    "entries as JSON": (commanded(mixed, "inspect", "--json"), 4000),
    "roots": (commanded(roots_of_pairs, "inspect", "-q"), 2000),
    "roots, shown": (commanded(roots_of_pairs, "inspect"), 2000),
    "roots, checked": (commanded(roots_of_pairs, "inspect", "--check"), 1000),
    "roots, removed": (commanded(roots_of_pairs, "remove", *_TO_TORCH), 1000),
    "roots, verified": (commanded(roots_of_pairs, "remove", *_TO_TORCH, "--verify"), 1000),
    "roots, respelled": (commanded(roots_of_pairs, "convert", *_RESPELLED), 1000),
    "roots of one mapping": (commanded(roots_of_one, "inspect", "-q"), 100),
    "roots of one mapping, applied": (commanded(roots_of_one, "apply", *_TO_TORCH), 100),
    "roots on both sides": (compared(roots, lambda f, n: roots(f, n, "s", "m", "b.pt")), 100),
    "roots on both sides, few": (compared(roots, lambda f, n: roots(f, n, "s", "m", "b.pt")), 8),
    "the same roots on both sides": (
        compared(roots, lambda f, n: roots(f, n, "r", "m", "b.pt")),
        500,
    ),
    "equal roots on both sides": (compared(roots, lambda f, n: roots(f, n, "r", "l", "b.pt")), 500),
    "roots on both sides, like": (
        compared(roots, lambda f, n: roots(f, n, "s", "m", "b.pt"), like=True),
        100,
    ),
    "characters of a key": (commanded(long_key, "inspect"), 100_000),
    "characters of a key, dropped": (
        commanded(long_key, "convert", *_TO_TORCH, "--drop", "w"),
        50_000,
    ),
    "characters of a root": (commanded(long_root, "inspect"), 20_000),
    "characters of a root, checked": (commanded(long_root, "inspect", "--check"), 20_000),
    "dots of a key": (commanded(dots, "inspect"), 400_000),
    "dots of a name": (commanded(names_of_dots, "inspect", "--check"), 400_000),
    "dots of a name, compared": (
        compared(names_of_dots, lambda f, n: names_of_dots(f, n, "b")),
        400_000,
    ),
    "dots of a pair's name": (commanded(names_with_dots, "convert", *_RESPELLED), 50_000),
    "empty dicts in a tuple": (commanded(empty_dicts, "inspect"), 200_000),
    "empty dicts in a tuple, converted": (commanded(empty_dicts, "convert", *_TO_TORCH), 100_000),
    "records": (commanded(history, "inspect"), 20_000),
    "nested records": (commanded(nested_history, "inspect"), 10_000),
    "nested records, converted": (commanded(nested_history, "convert", *_TO_TORCH), 10_000),
    "lists that are thrown away": (commanded(lists, "inspect"), 100_000),
    "lists inside lists": (commanded(deep, "convert", *_TO_TORCH), 50_000),
    "tuples inside tuples": (commanded(deep_tuples, "convert", *_TO_TORCH), 50_000),
    "calls inside calls": (commanded(deep_calls, "convert", *_TO_TORCH), 5_000),
    "places of one list": (commanded(shared_list, "inspect"), 4000),
    "places of one list, converted": (commanded(shared_list, "convert", *_TO_TORCH), 2000),
    "tensors with one metadata": (commanded(shared_metadata, "inspect"), 1000),
    "tensors with one shape": (commanded(shared_shape, "inspect"), 2000),
    "objects with one state": (commanded(shared_state, "inspect"), 1000),
    "modules of one mapping": (commanded(modules, "inspect"), 100),
    "dicts of Python 2 with one list": (commanded(python2_dicts, "inspect"), 500),
    "characters of a class": (commanded(long_class, "inspect"), 2000),
    "characters of a module": (commanded(long_module, "inspect"), 2000),
    "calls": (commanded(calls, "inspect"), 2000),
    "calls, one dropped": (commanded(calls, "convert", *_TO_TORCH, "--drop", "x1"), 2000),
    "calls below a long key": (commanded(calls_below_a_long_key, "inspect", "--json"), 20_000),
    "roots with one call": (commanded(shared_with_a_call, "inspect"), 1000),
    "roots with one call, refused": (commanded(shared_with_a_call, "convert", *_TO_TORCH), 1000),
    "roots with one call, dropped": (
        commanded(shared_with_a_call, "convert", *_TO_TORCH, "--drop", "0.x"),
        1000,
    ),
    "places of one optimizer": (commanded(optimizers, "convert", *_RESPELLED), 1000),
    "averages": (commanded(averages, "convert", *_RESPELLED), 500),
    "names of one tensor": (commanded(tied, "inspect"), 5000),
    "names of one tensor, checked": (commanded(tied, "inspect", "--check"), 3000),
    "names of one tensor, applied": (commanded(tied, "apply", *_TO_TORCH), 2000),
    "names of one tensor, to safetensors": (commanded(tied, "convert", *_TO_SAFETENSORS), 2000),
    "names of one tensor, verified": (
        commanded(tied, "convert", *_TO_SAFETENSORS, "--verify"),
        2000,
    ),
    "names of one tensor, in shards": (commanded(tied, "convert", *_IN_SHARDS), 2000),
    "names of one pair, checked": (commanded(tied_pairs, "inspect", "--check"), 1000),
    "names of one pair, removed": (commanded(tied_pairs, "remove", *_TO_SAFETENSORS), 1000),
    "names of one pair, in shards": (commanded(tied_pairs, "convert", *_IN_SHARDS), 1000),
    "pairs in a chain, in shards": (commanded(chain, "convert", *_IN_SHARDS), 1000),
    "keys that are no text": (commanded(other_keys, "inspect"), 2000),
    "keys that read alike": (commanded(alike_keys, "inspect"), 2000),
    "layers": (commanded(many_layers, "inspect"), 2000),
    "layers, removed": (commanded(many_layers, "remove", *_TO_TORCH), 1000),
    "layers, checked": (commanded(many_layers, "inspect", "--check"), 500),
    "tensors taken by a rule": (
        commanded(many_tensors, "apply", *_TO_SAFETENSORS, "-l", "*.kernel"),
        1000,
    ),
    "tensors that no rule takes": (
        commanded(many_tensors, "apply", *_TO_SAFETENSORS, "-l", "ernel"),
        500,
    ),
    "tensors under another prefix": (
        compared(many_tensors, lambda f, n: many_tensors(f, n, "x.y.", "b")),
        1000,
    ),
    "tensors under no common prefix": (
        compared(many_tensors, lambda f, n: many_tensors(f, n, "x", "b")),
        2000,
    ),
    "metadata": (commanded(metadata, "inspect"), 50_000),
    "metadata, converted": (commanded(metadata, "convert", *_TO_TORCH), 50_000),
    "characters of a name": (
        compared(lambda f, n: long_names(f, n, "a"), lambda f, n: long_names(f, n, "b")),
        500_000,
    ),
    "slices of zeros": (commanded(zeros, "apply", *_TO_SAFETENSORS), 200_000),
    "slices of zeros, to torch": (commanded(zeros, "apply", *_TO_TORCH), 200_000),
    "shards that are missing": (commanded(missing_shards, "inspect"), 5000),
    "shards": (commanded(shards, "inspect"), 50),
    "shards, removed": (commanded(shards, "remove", "out", "--force"), 50),
}
