"""Types what messages say to type next: it works as it stands, and harms nothing."""

from __future__ import annotations

import ast
import copy
import inspect
import json
import os
import pickle
import re
import shlex
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from itertools import chain, product
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from torch import nn
from torch.package.package_exporter import PackageExporter
from torch.package.package_importer import PackageImporter

import wncli
from tests.support.hint_cases import CASES, Case
from tests.support.hint_files import OPTIMIZER, SOUND, STEM
from tests.support.run import Ran, environment
from wncli.cli.commands import app_for
from wncli.hints import Text, in_shell, parameter
from wncli.plan.rules import parse_dim
from wncli.writing import WriteKeywords

pytestmark = pytest.mark.thinned(23)

PACKAGE = Path(wncli.__file__).parent

STORED = "storage_reader=HuggingFaceStorageReader('folder')"
LOADING = f"torch.distributed.checkpoint.load(state_dict, {STORED})"
GATHERING = "get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))"
FULL = "FSDP.state_dict_type(model, StateDictType.FULL_STATE_DICT)"
#: What is said to do and is nothing to type; each stands in the code, and nothing else does.
ADVICE = (
    "copy or download the file again",
    "copy or download it again",
    "try again later",
    "run it again",
    "check the address, and the endpoint and the region in the environment",
    "check the user and the password in the address",
    "give user and password in the address, or download it and give the file",
    "get a new link where this one is from: they run out",
    "SSL_CERT_FILE names a file of certificates to trust",
    "give another revision, or one that is whole",
    "copy or download it again: it is truncated",
    "download it first, and give the file",
    "download it again, or give one of the shards",
    "download the file itself",
    "download or copy the rest into the folder of the index",
    "download the index and its shards again, all from the same revision",
    "copy the whole folder, with its .metadata",
    "copy the index, and add it to the weight_map of the copy",
    "put the index and all its files, or links to nothing else, into one folder",
    "have Git LFS fetch the file: git lfs pull in its repository",
    "have the hard limit of open files raised to 5,000",
    "unpack it, and give the checkpoint in it",
    "give the file itself",
    "inspect it again",
    "inspect the output, whose layers have",
    "add --norms, or leave it out",
    "write a file, and upload that",
    "choose another OUTPUT, or move the folder",
    "run them one after the other, each with an --output-dir of its own",
    "nothing has been put in its place; run it again, and check the disk and the memory",
    "report it, with what it prints after export WN_TRACEBACK=1",
    "leave -l out",
    "leave --verify out",
    "leave --plot out",
    "wn compare A B --plot draws two",
    "--csv FILE or --json has it for each",
    "pip install 'wncli[plot]'",
    "pip install 'wncli[torch]'",
    "install the same version everywhere",
    "have every rank read the same files; rsync -t and cp -p keep the times of copies",
    "wncli.inspect('g', statistics=True).plot(ratio=True)",
    "leave --max-shard-size out",
    "- < FILE",
    "- > FILE",
    "run wn where the byte order is little: on x86-64 or arm64",
    "load it with PyTorch and save it again",
    "load it with NumPy and save it again",
    "load it with NumPy and save it again with numpy.savez",
    "load it with NumPy and save it again without this array, or as another dtype",
    "load it with NumPy and save it again with astype(dtype.newbyteorder('<'))",
    "load it in the way that it was meant, and save it again",
    "save the arrays under other names",
    "take as REFERENCE a file with the state dict alone, without the list",
    "leave one out",
    "leave it out, or name a checkpoint to be fitted with --like",
    "check that the file is complete, or save it again with torch.save",
    "save its state dict with torch.save",
    "save the module's state_dict() with torch.save",
    "save the module itself, not what torch.jit.freeze or optimize_for_inference made",
    "load it with torch.load and save it again",
    "load it with torch.load and save it again on a little-endian machine",
    "load it with torch.load where its code is, and save its state_dict()",
    "load it with torch.jit.load, and save it under a new name with torch.jit.save",
    "load the object with torch.package.PackageImporter and save its state_dict()",
    "load it with torch.distributed.checkpoint and its extension, and save it again without",
    "load it with torch.distributed.checkpoint, make its tensors contiguous, and save it again",
    "save it again without serialization_format, or with HuggingFaceStorageWriter",
    "save it again without serialization_format and extensions, or copy the directory again",
    "copy or download the whole directory again",
    "copy or download the rest into this directory",
    "copy the whole folder, with its .metadata, and give the folder",
    "run it once more",
    f"load all shards with {LOADING}, and save the state dict",
    f"save {GATHERING} of torch.distributed.checkpoint.state_dict, called on every rank",
    f"save model.state_dict() under {FULL}, called on every rank",
    "gather them with the zero_to_fp32.py that DeepSpeed puts into the folder that it saves to",
    # of wncli.pytorch, which no command calls; `tests/pytorch` tries them
    "assign=True",
    "strict=False",
    "assign=False casts it",
    "give its state_dict()",
    "copy.deepcopy(model) outside of it makes one",
    "torch.nn.utils.parametrize.remove_parametrizations makes it a plain weight",
    "run a batch through the model first",
    "make the model on its device, or these buffers after it",
    "call remove_weight_norm before fully_shard",
    "call load_weights before FullyShardedDataParallel",
    "call it before fully_shard, or on a full state dict",
    "call initialize before DistributedDataParallel, which copies it to all ranks",
    "load it with torch.load, and give the state dict",
    "load a copy of the file",
)


#: What is said of addresses, which `tests/remote` has servers for.
OF_ADDRESSES = (
    "curl -fgL * -o * && wn inspect *",
    "aws s3 cp * && wn inspect *",
    "gcloud storage cp * * && wn inspect *",
    "wn inspect hf://owner/name",
    "agree at https://huggingface.co/owner/name, and set HF_TOKEN",
    "unset HF_HUB_OFFLINE TRANSFORMERS_OFFLINE",
    "export HF_ENDPOINT=https://huggingface.co",
    "NO_PROXY=host asks it directly",
    "pip install 'wncli[remote]'",
    "set AWS_ACCESS_KEY_ID, or AWS_SKIP_SIGNATURE=true for what anybody may read",
)


# -- what is said, typed ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the commands that hints name."""
    folder = tmp_path_factory.mktemp("bin")
    scripts = {"wn": f'#!/bin/sh\nexec {sys.executable} -m wncli "$@"\n'}
    scripts |= {"python": f'#!/bin/sh\nexec {sys.executable} "$@"\n'}
    run = "-m torch.distributed.run --standalone"
    scripts |= {"torchrun": f'#!/bin/sh\nexec {sys.executable} {run} "$@"\n'}
    for name, text in scripts.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return folder


def type_in(command: str, cwd: Path, commands: Path) -> Ran:
    """Type a command in a shell that stands in this folder."""
    path = f"{commands}{os.pathsep}{os.environ['PATH']}"
    ran = subprocess.run(
        ["bash", "-c", command], cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True,
        check=False, timeout=120, env=environment(PATH=path),
    )  # fmt: skip
    printed = (stream.decode(errors="backslashreplace") for stream in (ran.stdout, ran.stderr))
    return Ran(ran.returncode, *printed)


def in_folder(folder: Path) -> dict[str, bytes]:
    """Every file in a folder and below it."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def next_of(says: str, ran: Ran) -> list[str]:
    """What stands, in what was printed, where braces stand in `says`."""
    pattern = re.escape(says).replace(r"\*", ".*").replace(r"\{", "(").replace(r"\}", ")")
    hint = re.search(r"^  try:      (.*)$", ran.stderr, re.MULTILINE)
    if not says:
        assert hint is None
        return []
    match = re.fullmatch(pattern, hint[1]) if hint else re.search(pattern, ran.stdout + ran.stderr)
    assert match, ran
    return list(match.groups())


def retyped(case: Case, words: str) -> str:
    """The whole line that is typed next."""
    if case.instead_of:
        start, _, end = case.typed.rpartition(case.instead_of)
        return start + words + end
    if words.startswith(("-", "'-", "$'-")):
        return f"{case.typed} {words}"
    stay = re.match(r"cd .* && ", case.typed, re.DOTALL)
    command = f"{stay[0]}{words}" if stay else words
    return f"{command} && {case.typed}" if case.again else command


@pytest.mark.parametrize(
    "name",
    [pytest.param(one, marks=[pytest.mark.slow] * ("launcher" in one)) for one in CASES],
)
def test_what_is_said_works_as_typed_and_harms_nothing(
    name: str, tmp_path: Path, commands: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES[name]
    if "zstd" in case.says and not shutil.which("zstd"):
        pytest.skip("no zstd is installed")
    made = tmp_path / "made"
    made.mkdir()
    monkeypatch.chdir(made)
    case.make()
    before = in_folder(made)
    ran = type_in(case.typed, made, commands)
    assert ran.code == case.first, ran.stderr
    kept = {
        path: data for path, data in in_folder(made).items() if not path.startswith(case.changes)
    }
    assert kept == {path: before[path] for path in kept}
    for number, words in enumerate(next_of(case.says, ran)):
        here = tmp_path / str(number)
        shutil.copytree(made, here, symlinks=True)
        ran = type_in(retyped(case, words), here, commands)
        assert ran.code == case.code, (words, ran)
        after = in_folder(here)
        changed = {path for path in before if after.get(path) != before[path]}
        assert all(path.startswith(case.changes) for path in changed), (words, changed)


@pytest.mark.parametrize("name", ["half a pair", "no direction", "a misfit", "a vast direction"])
def test_what_a_hint_leaves_as_it_is_stays_so_and_the_rest_is_folded(
    name: str, tmp_path: Path, commands: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES[name]
    monkeypatch.chdir(tmp_path)
    case.make()
    (words,) = next_of(case.says, type_in(case.typed, tmp_path, commands))
    assert type_in(retyped(case, words), tmp_path, commands).code == 0
    before, after = (read(Path(f"{STEM}{end}.pt")) for end in ("", " out"))
    g, v = (before.pop(f"sound.weight_{half}").double() for half in "gv")
    folded = after.pop("sound.weight").double()
    torch.testing.assert_close(folded, torch._weight_norm(v, g, 0), rtol=2**-23, atol=0)
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)


def read(path: Path) -> dict[str, torch.Tensor]:
    """PyTorch opens no file whose name is no UTF-8."""
    with path.open("rb") as file:
        found: dict[str, torch.Tensor] = torch.load(file)
    return found


@pytest.mark.slow
def test_the_advice_names_what_pytorch_has(tmp_path: Path, commands: Path) -> None:
    code = f"""
from torch.distributed.checkpoint import HuggingFaceStorageReader, load
from torch.distributed.checkpoint.state_dict import get_model_state_dict, StateDictOptions
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP, StateDictType
model, reader = torch.nn.Linear(3, 2), HuggingFaceStorageReader
state_dict = {GATHERING}
torch.save(state_dict, "gathered.pt")
FSDP.state_dict_type, StateDictType.FULL_STATE_DICT
"""
    ran = type_in(f"python -c 'import torch\n{code}'", tmp_path, commands)
    assert ran.code == 0, ran.stderr
    assert type_in("wn inspect gathered.pt", tmp_path, commands).code == 0


def test_a_package_is_read_as_its_refusal_says(tmp_path: Path, commands: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with PackageExporter(str(tmp_path / "in.pt")) as exporter:
            exporter.extern("torch.**")
            exporter.save_pickle("model", "model.pkl", nn.Linear(3, 2))
        ran = type_in("wn inspect in.pt", tmp_path, commands)
        assert "torch.package.PackageImporter and save its state_dict()" in ran.stderr
        module = PackageImporter(str(tmp_path / "in.pt")).load_pickle("model", "model.pkl")
    torch.save(module.state_dict(), tmp_path / "out.pt")
    assert type_in("wn inspect out.pt", tmp_path, commands).code == 0


# -- what the library says, put into Python -----------------------------------------------------

STRING = r"""(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")"""
ARGUMENT = rf"\w+=(?:True|\d+|{STRING}|\[{STRING}(?:, {STRING})*\])"
#: A call, or arguments of the one that was refused, the first of which may be a path.
PYTHON = re.compile(
    rf"wncli\.inspect\({STRING}(?:, \w+=True)?\)|(?:{STRING}|{ARGUMENT})(?:, {ARGUMENT})*"
)
#: What only a command line says.
OPTIONS = re.compile(r"(?<!\S)--[a-z]+|(?<!\S)-[lx]\b|\bwn inspect|OUTPUT|CHECKPOINT|REFERENCE")


def call_of(typed: str) -> tuple[str, list[str], dict[str, Any]] | None:
    """The call that a command makes, its paths and other arguments; None where it makes none."""
    if re.search(r"--output-dir|\$PWD|^cd | -(?!\S)", typed):
        return None
    _, name, *words = shlex.split(typed)
    group = typer.main.get_group(app_for(name))
    try:
        given = group.commands[name].make_context(name, words).params
    except (KeyError, typer.TyperException, wncli.WnError):
        return None
    outputs = list(given.pop("output") or ()) if "output" in given else []
    paths = [given.pop(one) for one in ("checkpoint", "a", "b") if one in given]
    paths += given.pop("checkpoints", ())
    shown = ("json", "quiet", "verbose", "show_all", "sort", "csv", "plot")
    for option in (*shown, "output_dir", "output_option"):
        given.pop(option, None)
    given["only"] = next(iter(given["only"]), None)
    if name == "inspect":
        given["statistics"] = given.pop("stats")
        given = {option: value for option, value in given.items() if value is not None}
    if isinstance(given.get("dim"), str):
        given["dim"] = parse_dim(given["dim"], "--dim")
    is_whole = len(outputs) == (name not in {"inspect", "compare"})
    return (name, paths + outputs, given) if is_whole else None


CALLS = {
    name: call
    for name, case in CASES.items()
    if case.first and not re.search("--json|--csv", case.says) and (call := call_of(case.typed))
}


@pytest.mark.parametrize("name", CALLS)
def test_what_the_library_says_works_in_python(
    name: str, tmp_path: Path, commands: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, (command, paths, given) = CASES[name], CALLS[name]
    if "zstd" in case.says and not shutil.which("zstd"):
        pytest.skip("no zstd is installed")
    made = tmp_path / "made"
    made.mkdir()
    monkeypatch.chdir(made)
    case.make()
    call: Callable[..., Any] = getattr(wncli, command)
    old = shlex.split(case.instead_of)[-1] if case.instead_of else ""

    def again(*path: str, **more: object) -> object:
        """Call it with a path in place of the last that it stands for, and with these arguments."""
        own = [*paths, given.get("like")]
        for new in path:
            own[len(own) - 1 - own[::-1].index(old)] = new
        *own, like = own
        kept = {one: it for one, it in given.items() if parameter(one).in_shell != case.instead_of}
        return call(*own, **kept | ({"like": like} if like else {}) | more)

    with pytest.raises(wncli.WnError) as caught:
        call(*paths, **given)
    hint = caught.value.hint
    assert not OPTIONS.search(PYTHON.sub("", str(caught.value)))
    typed, then, python = hint.rpartition(", then ")
    if then:
        assert type_in(typed, made, commands).code == 0
    before = in_folder(made)
    found = PYTHON.findall(python) if isinstance(hint, Text) else []
    assert found or in_shell(hint) == hint
    for python in found:
        here = tmp_path / "here"
        shutil.copytree(made, here, symlinks=True)
        monkeypatch.chdir(here)
        one = python if python.startswith("wncli.") else f"again({python})"
        result = eval(one, {"wncli": wncli, "again": again})  # noqa: S307 - that is the promise
        is_alike = getattr(result, "equal", True)
        assert bool(getattr(result, "findings", None) or not is_alike) == bool(case.code)
        after = in_folder(here)
        changed = {path for path in before if after.get(path) != before[path]}
        assert all(path.startswith(case.changes) for path in changed), (python, changed)
        monkeypatch.chdir(made)
        shutil.rmtree(here)


@pytest.mark.parametrize("name", ["inspect", "apply", "remove", "convert", "compare"])
def test_the_command_line_calls_each_parameter_as_messages_do(name: str) -> None:
    group = typer.main.get_group(app_for(name))
    known = {param.name: param for param in group.commands[name].params}
    taken = {*inspect.signature(getattr(wncli, name)).parameters, *WriteKeywords.__annotations__}
    shared = taken & known.keys() - {"a", "b"}
    assert shared >= {"layers", "exclude", "only"}
    for one in shared:
        names = (*known[one].opts, getattr(known[one], "metavar", None))
        assert parameter(one).in_shell in names


def test_notes_and_refusals_have_options_in_the_json_of_the_command_line_alone(
    tmp_path: Path, commands: Path
) -> None:
    torch.save({"model": SOUND, "optim": OPTIMIZER}, tmp_path / "in.pt")
    (note,) = wncli.remove(tmp_path / "in.pt", tmp_path / "out.pt", dry_run=True).notes
    assert note.message.endswith("; drop=['optim'] leaves it out")
    ran = type_in("wn remove in.pt out.pt --json", tmp_path, commands)
    assert json.loads(ran.stdout)["notes"][0]["message"].endswith("; --drop optim leaves it out")
    ran = type_in("wn remove in.pt --output-dir . --json", tmp_path, commands)
    assert json.loads(ran.stdout)["files"][0]["error"]["hint"] == "--output-dir out keeps both"


@pytest.mark.parametrize(
    "again",
    [copy.copy, copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))],  # noqa: S301 - made here
)
def test_a_text_keeps_both_spellings_when_it_is_copied(again: Callable[[Text], Text]) -> None:
    text = again(parameter("output"))
    assert (text, text.in_shell) == ("`output`", "OUTPUT")


# -- nothing else is said -----------------------------------------------------------------------


#: What quotes names, and says nothing by itself.
QUOTING = {
    *("word", "path_word", "option", "free_path", "glob_of"),
    *("in_shell", "phrase", "either", "parameter", "setting", "given", "inspecting"),
    *("then_inspecting", "path_text"),
}


def nodes() -> Iterator[tuple[str, ast.AST]]:
    """Everything in the code, with its file."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            yield str(path.relative_to(PACKAGE)), node


def is_hint(target: ast.expr) -> bool:
    return ast.unparse(target).rpartition(".")[2] == "hint"


def said_next() -> Iterator[tuple[str, ast.expr]]:
    """What is given as a hint, and what messages say beside one."""
    for file, node in nodes():
        match node:
            case ast.keyword("hint", value):
                yield file, value
            case ast.Assign([target], value) | ast.AnnAssign(target, _, ast.expr() as value):
                if is_hint(target):
                    yield file, value
            case ast.Call(ast.Name("refuse_expansion"), _, [_, *_] as keywords):
                yield file, ast.Call(ast.Name("setting"), [], keywords)
            case ast.Call(ast.Name("phrase")) if "setting(" in ast.unparse(node):
                yield file, node
            case ast.Constant(str(text)) if "--json lists" in text:
                yield file, node


def returned() -> dict[str, list[ast.expr]]:
    """What the functions of the code return."""
    return {
        node.name: [
            one.value for one in ast.walk(node) if isinstance(one, ast.Return) and one.value
        ]
        for _, node in nodes()
        if isinstance(node, ast.FunctionDef) and node.name not in QUOTING
    }


def parts_of(  # noqa: PLR0911 - one for each kind of expression
    node: ast.expr, functions: dict[str, list[ast.expr]]
) -> list[ast.expr]:
    """The expressions of which one is what this one comes to."""
    match node:
        case ast.FormattedValue(value):
            return [value]
        case ast.Call(ast.Name("Text"), [_, shell]):
            return [shell]
        case ast.Call(ast.Name("parameter"), [ast.Constant(str(name))]):
            return [ast.Constant(parameter(name).in_shell)]
        case ast.BoolOp(_, values):
            return values
        case ast.IfExp(_, body, orelse):
            return [body, orelse]
        case ast.Call(ast.Name(name)):
            return functions.get(name, [])
    return []


ANY = ast.Name("any")


def in_turn(node: ast.expr) -> list[ast.expr]:  # noqa: C901, PLR0911 - as above
    """The expressions that one puts beside each other, as the command line has them."""
    match node:
        case ast.JoinedStr(values):
            return values
        case ast.BinOp(left, ast.Add(), right):
            return [left, right]
        case ast.Call(ast.Name("phrase"), [ast.Constant(str(template)), *parts]):
            first, *others = map(ast.Constant, template.split("{}"))
            return [first, *chain.from_iterable(zip(parts, others, strict=True))]
        case ast.Call(ast.Name("setting"), [], keywords):
            flags = [ast.Constant(parameter(k.arg).in_shell) for k in keywords if k.arg]
            return [ANY, *chain.from_iterable((flag, ANY) for flag in flags)]
        case ast.Call(ast.Name("inspecting"), [_], keywords):
            return [
                ast.Constant(" ".join(("wn inspect", *(f"--{k.arg}" for k in keywords), ""))),
                ANY,
            ]
        case ast.Call(ast.Name("then_inspecting"), [command, _]):
            return [command, ast.Constant(" && wn inspect "), ANY]
        case ast.Call(ast.Name("path_text"), [_, end]):
            return [ANY, end]
        case ast.Call(ast.Name("option"), [flag, _]):
            return [ANY, flag, ANY]
        case ast.Call(ast.Name("either"), [ast.GeneratorExp(each)]):
            return [each, ANY]
        case ast.Call(ast.Name("either"), [ast.Call(ast.Name("map"), [function, _])]):
            return [ast.Call(function, [ANY], []), ANY]
    return []


def patterns(node: ast.expr, functions: dict[str, list[ast.expr]]) -> Iterator[str]:
    """What an expression can come to: its constant parts, and `.*` for all others."""
    beside = in_turn(node)
    ways = parts_of(node, functions)
    if isinstance(node, ast.Constant):
        yield re.escape(str(node.value))
    elif beside:
        yield from map("".join, product(*(list(patterns(one, functions)) for one in beside)))
    elif not ways:
        yield ".*"
    for way in ways:
        yield from patterns(way, functions)


def test_every_hint_of_the_code_is_typed_here_or_is_advice() -> None:
    functions = returned()
    said = {re.sub("[{}]", "", case.says) for case in CASES.values()} | {*ADVICE, *OF_ADDRESSES}
    found = {
        (file, pattern)
        for file, node in said_next()
        for pattern in patterns(node, functions)
        if pattern.replace(".*", "")  # else it passes on what others say
    }
    untried = {one for one in found if not any(re.fullmatch(one[1], text) for text in said)}
    assert not untried
    idle = [
        text
        for text in (*ADVICE, *OF_ADDRESSES)
        if not any(re.fullmatch(one, text) for _, one in found)
    ]
    assert not idle
    assert len(found) > 100
