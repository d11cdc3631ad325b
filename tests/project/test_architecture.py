"""How the package is built: what is imported when, in which direction, and what is documented."""

from __future__ import annotations

import ast
import dataclasses
import doctest
import inspect
import json
import pickle
import pydoc
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import numpy as np
import pytest
import torch
import typer

import wncli
from tests.support.run import ROOT, SAMPLES, environment
from wncli.analysis.comparison import Comparison, TensorDifference
from wncli.cli.commands import app
from wncli.notes import Note
from wncli.report import Layer, Other, Parameters, Report, Root, Tensor, WouldRun

PACKAGE = Path(wncli.__file__).parent

#: The packages from the bottom up; each imports from itself and from those below it.
PACKAGES = (
    *("hints", "errors", "notes", "checkpoint", "arithmetic", "storage", "parallel", "team"),
    *("formats", "plan", "streaming", "layout", "statistics", "figures", "report"),
    *("analysis", "fill", "writing", "api", "pytorch", "cli"),
)
#: Types alone point upward here: a checkpoint keeps what its format read, and looks at none of it.
UPWARD = {
    "wncli.checkpoint.checkpoint imports wncli.formats.torch.tree",
}
#: The package's own face, and what makes `python -m wncli` run.
FACES = {"wncli", "wncli.__main__"}


def rooms() -> dict[str, Path]:
    found = {}
    for path in (*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.pyi")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(path: Path, known: set[str]) -> Iterator[str]:
    """The rooms that a room imports, wherever in it the import stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} has a relative import"
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name for name in inner if name in known)
            if node.module in known and not all(name in known for name in inner):
                yield str(node.module)


def graph() -> dict[str, set[str]]:
    found = rooms()
    return {
        room: {imported for imported in imports_of(path, set(found)) if imported not in FACES}
        for room, path in found.items()
        if room not in FACES
    }


def package_of(room: str) -> str:
    return room.split(".")[1]


def test_every_room_is_in_a_known_package() -> None:
    assert {package_of(room) for room in graph()} == set(PACKAGES)


def test_imports_go_strictly_downward() -> None:
    level = {name: number for number, name in enumerate(PACKAGES)}
    upward = {
        f"{room} imports {imported}"
        for room, imports in graph().items()
        for imported in imports
        if level[package_of(imported)] > level[package_of(room)]
    }
    assert upward == UPWARD


def test_no_imports_are_circular() -> None:
    try:
        TopologicalSorter(graph()).prepare()
    except CycleError as error:
        pytest.fail(f"circular: {' <- '.join(error.args[1])}")


def test_only_the_command_line_knows_the_terminal_libraries() -> None:
    for room, path in rooms().items():
        names = {
            name.split(".")[0]
            for node in ast.walk(ast.parse(path.read_text()))
            for name in (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [str(node.module)]
                if isinstance(node, ast.ImportFrom)
                else []
            )
        }
        takes_torch = package_of(f"{room}.") == "pytorch" or room.endswith(".torch_tensors")
        assert "torch" not in names or takes_torch
        assert "matplotlib" not in names or room in {"wncli.figures.chart", "wncli.report"}
        assert room.startswith("wncli.cli") or not names & {"typer", "rich", "click"}


def test_nothing_else_imports_the_package_that_needs_torch() -> None:
    for room, imported in graph().items():
        inner = {name for name in imported if package_of(name) == "pytorch"}
        # With `--ranks` alone, which a process of its own asks for.
        assert not inner or package_of(room) == "pytorch" or room == "wncli.cli.ranks"


# What is loaded when

RECORD = """
import json, sys
sys.argv[:] = ["wn", *sys.argv[1:]]
try:
    {run}
except SystemExit as end:
    assert not end.code, end.code
print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""
RUN = "from wncli.cli import main; main()"


def modules_after(run: str, *arguments: str | Path) -> set[str]:
    """The top-level modules that are loaded when this has run in a process of its own."""
    ran = subprocess.run(
        [sys.executable, "-c", RECORD.format(run=run), *map(str, arguments)],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    names: list[str] = json.loads(ran.stderr.splitlines()[-1])
    return {name.split(".")[0] for name in names}


def test_no_command_imports_torch_or_pydantic(tmp_path: Path) -> None:
    normalized = SAMPLES / "bfloat16.safetensors"
    for arguments in (
        ("inspect", normalized),
        ("remove", normalized, tmp_path / "plain.pt"),
        ("apply", tmp_path / "plain.pt", tmp_path / "normalized.safetensors"),
        ("convert", normalized, tmp_path / "shards/", "--max-shard-size", "5KB"),
        ("convert", normalized, tmp_path / "out", "--format", "torch", "--naming", "hook"),
        ("convert", tmp_path / "plain.pt", tmp_path / "like.pt", "--like", normalized),
        ("compare", normalized, tmp_path / "shards", "--rtol", "1e-3"),
    ):
        # From 0.29 on typer has pydantic, which would take as long as all that `wn inspect` does.
        assert not modules_after(RUN, *arguments) & {"torch", "safetensors", "pydantic"}


def test_importing_the_package_loads_no_library() -> None:
    heavy = {"typer", "rich", "numpy", "torch", "ml_dtypes", "safetensors", "click"}
    assert not modules_after("import wncli") & heavy


@pytest.mark.parametrize("sample", ["training.pt", "hifigan_generator", "bfloat16.safetensors"])
def test_inspect_loads_no_numpy_and_a_pipe_no_rich(sample: str) -> None:
    assert not modules_after(RUN, "inspect", SAMPLES / sample) & {"numpy", "ml_dtypes", "rich"}


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("command", ["apply", "remove"])
def test_a_dry_run_loads_no_numpy(command: str, suffix: str, tmp_path: Path) -> None:
    sample = SAMPLES / ("linear.pt" if command == "apply" else "lstm.pt")
    target = tmp_path / f"out{suffix}"
    loaded = modules_after(RUN, command, sample, target, "--dry-run")
    assert not loaded & {"numpy", "ml_dtypes"}
    assert not target.exists()


@pytest.mark.parametrize("sample", ["hifigan_generator", "bfloat16.safetensors"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_what_only_copies_loads_no_numpy(sample: str, suffix: str, tmp_path: Path) -> None:
    target = tmp_path / f"out{suffix}"
    assert not modules_after(RUN, "convert", SAMPLES / sample, target) & {"numpy", "ml_dtypes"}
    assert target.exists()


def test_help_loads_no_numpy() -> None:
    assert not modules_after(RUN, "apply", "--help") & {"numpy", "ml_dtypes"}


# What is promised


def test_no_room_hides_a_public_name() -> None:
    """Importing a submodule sets it on the package, over a function of its name."""
    tops = {room.split(".")[1] for room in rooms() if "." in room}
    assert not tops & set(wncli.__all__)


def test_the_public_names_are_these() -> None:
    assert set(wncli.__all__) == {
        *("__version__", "apply", "compare", "convert", "inspect", "remove"),
        *("compose", "decompose", "magnitude"),
        *("Comparison", "Layer", "Note", "Parameters", "Report", "TensorDifference"),
        *("WnError", "FileError", "FormatError", "NothingToDo", "UsageError", "WeightNormError"),
    }
    assert len(wncli.__all__) == len(set(wncli.__all__))
    assert all(hasattr(wncli, name) for name in wncli.__all__)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = wncli.no_such_name


def test_dir_and_help_show_the_public_names() -> None:
    assert dir(wncli) == sorted(wncli.__all__)
    shown = pydoc.plain(pydoc.render_doc(wncli))
    for name in set(wncli.__all__) - {"__version__"}:
        assert re.search(rf"^    (class )?{name}\b", shown, re.MULTILINE)
    front = shown.partition("PACKAGE CONTENTS")[0]
    assert "Example:" in front
    assert all(re.search(rf"^ {{8}}.*\b{name}\b", front, re.MULTILINE) for name in FUNCTIONS)


FUNCTIONS = [
    *("inspect", "apply", "remove", "convert", "compare"),
    *("magnitude", "decompose", "compose"),
]


def section(doc: str | None, title: str) -> list[str]:
    """The names that a section of a docstring describes."""
    assert doc
    body = re.search(rf"^( *){title}:\n((?:\1 +.*\n|\n)*)", doc + "\n", re.MULTILINE)
    assert body, f"no {title}"
    return re.findall(rf"^{body[1]}    (\w+): ", body[2], re.MULTILINE)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_says_what_it_takes_gives_and_raises(name: str) -> None:
    function = getattr(wncli, name)
    doc = inspect.getdoc(function)
    assert section(doc, "Args") == list(inspect.signature(function).parameters)
    assert set(section(doc, "Raises")) <= set(wncli.__all__)
    section(doc, "Returns")
    section(doc, "Example")


@pytest.mark.parametrize("name", ["", *FUNCTIONS])
def test_an_example_gives_what_it_shows(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sample_models").symlink_to(SAMPLES)
    monkeypatch.chdir(tmp_path)
    subject = getattr(wncli, name) if name else wncli
    known = {"wncli": wncli, "np": np}
    (example,) = doctest.DocTestFinder(recurse=False).find(subject, name or "wncli", globs=known)
    said: list[str] = []
    result = doctest.DocTestRunner().run(example, out=said.append)
    assert result.attempted
    assert not result.failed, "".join(said)


RESULTS = (
    *(Report, Layer, Parameters, Root, Tensor, Other, WouldRun),
    *(Comparison, TensorDifference, Note),
)


@pytest.mark.parametrize("result", RESULTS)
def test_a_result_is_frozen_and_each_of_its_fields_is_documented(result: type) -> None:
    names = [field.name for field in dataclasses.fields(result)]
    assert section(inspect.getdoc(result), "Attributes") == names
    made = result(*names)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(made, names[0], None)
    assert not hasattr(made, "__dict__")
    assert pickle.loads(pickle.dumps(made)) == made  # noqa: S301 - made here


def test_every_refusal_is_a_wn_error() -> None:
    for name in ("FileError", "FormatError", "NothingToDo", "UsageError", "WeightNormError"):
        assert issubclass(getattr(wncli, name), wncli.WnError)


def test_the_readme_names_every_command_and_the_reference_every_option() -> None:
    readme = (ROOT / "README.md").read_text()
    reference = (ROOT / "docs" / "reference" / "options.md").read_text()
    group = typer.main.get_command(app)
    commands = getattr(group, "commands", {})
    assert set(commands) == {"inspect", "apply", "remove", "convert", "compare"}
    missing = {f"wn {name}" for name in commands if f"wn {name}" not in readme}
    for command in (group, *commands.values()):
        for parameter in command.params:
            options = [text for text in parameter.opts if text.startswith("--")]
            missing |= {text for text in options if text not in reference}
    assert not missing


def test_the_arithmetic_takes_what_torch_tensors_hold() -> None:
    weight = torch.randn(4, 3)
    g, v = wncli.decompose(weight.numpy())
    expected = torch.norm_except_dim(weight.double(), 2, 0).float()
    torch.testing.assert_close(torch.from_numpy(g), expected, rtol=2**-23, atol=0)
    assert torch.equal(torch.from_numpy(wncli.compose(g, v)), weight)
