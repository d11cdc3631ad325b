"""Where memory is lacking: the right result, or one message and nothing written."""

from __future__ import annotations

import pickle
import resource
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.support.run import Ran, environment

#: Mebibytes of address space. Below the first, Python itself may not get as far as to start `wn`.
LIMITS = [*range(20, 40, 2), *range(40, 124, 4)]
MESSAGE = "error: out of memory: the system, or a limit (ulimit -v), gives no more\n"

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux holds RLIMIT_AS"),
    pytest.mark.thinned(31),
]


def limited(megabytes: int | None, *arguments: str) -> Ran:
    limit = (megabytes or 0) << 20
    ran = subprocess.run(
        [sys.executable, "-m", "wncli", *arguments],
        check=False, capture_output=True, text=True, env=environment(), timeout=60,
        preexec_fn=partial(resource.setrlimit, resource.RLIMIT_AS, (limit, limit))
        if limit else None,
    )  # fmt: skip
    return Ran(ran.returncode, ran.stdout, ran.stderr)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Layers for the compiled loops, and one that only NumPy folds."""
    torch.manual_seed(1)
    state = {f"{n}.weight_v": torch.randn(64, 512) for n in range(8)}
    state |= {f"{n}.weight_g": torch.rand(64, 1) + 0.5 for n in range(8)}
    path = tmp_path_factory.mktemp("model") / "usual.safetensors"
    save_file(state, path)
    state["3.weight_v"][5, 7] = torch.nan
    save_file(state, path.with_name("odd.safetensors"))
    torch.save({"model": state}, path.with_name("odd.pt"))
    return path.parent


@pytest.fixture(scope="module")
def unlimited() -> Callable[..., Ran]:
    """A run without a limit, once for the same arguments."""
    runs: dict[tuple[str, ...], Ran] = {}

    def run(*arguments: str) -> Ran:
        if arguments not in runs:
            runs[arguments] = limited(None, *arguments)
            assert runs[arguments].code == 0
        return runs[arguments]

    return run


@pytest.mark.parametrize("megabytes", LIMITS)
@pytest.mark.parametrize(
    "command",
    ["inspect usual.safetensors", "inspect odd.pt", "compare usual.safetensors usual.safetensors"],
)
def test_under_a_limit_reading_gives_the_right_report_or_one_message(
    command: str, megabytes: int, model: Path, unlimited: Callable[..., Ran]
) -> None:
    name, *files = command.split()
    arguments = (name, *(str(model / file) for file in files))
    assert limited(megabytes, *arguments) in (unlimited(*arguments), Ran(2, "", MESSAGE))


@pytest.mark.parametrize("megabytes", LIMITS)
@pytest.mark.parametrize("source", ["usual.safetensors", "odd.safetensors", "odd.pt"])
def test_under_a_limit_writing_gives_the_right_output_or_leaves_the_old_one(
    source: str, megabytes: int, model: Path, unlimited: Callable[..., Ran], tmp_path: Path
) -> None:
    expected, out = model / f"of {source}" / "out.pt", tmp_path / "out.pt"
    expected.parent.mkdir(exist_ok=True)
    complete = unlimited("remove", str(model / source), str(expected), "--force")
    out.write_bytes(b"old")
    ran = limited(megabytes, "remove", str(model / source), str(out), "--force")
    assert [path.name for path in tmp_path.iterdir()] == ["out.pt"]
    if ran.code == 0:
        assert ran.stderr == complete.stderr.replace(str(expected), str(out))
        assert out.read_bytes() == expected.read_bytes()
    else:
        assert ran == Ran(2, "", MESSAGE)
        assert out.read_bytes() == b"old"


def test_with_much_memory_nothing_is_refused_and_with_little_something_is(model: Path) -> None:
    """Else the tests above would show nothing."""
    one = str(model / "usual.safetensors")
    assert limited(40, "inspect", one).code == 0
    assert limited(400, "compare", one, one).code == 0
    assert limited(60, "compare", one, one).code == 2  # here NumPy cannot be mapped,
    assert limited(84, "compare", one, one).code == 2  # and here its OpenBLAS would call exit(1)


#: What an import fails with, and what is said of it. dlopen(3) tells the reason in words only.
FAILURES = {
    "MemoryError": MESSAGE,
    "OSError(12, 'Cannot allocate memory')": MESSAGE,
    "ImportError('x.so: failed to map segment from shared object')": MESSAGE,
    "SystemError('error return without exception set')": MESSAGE,
    "ImportError('no y')": "error: wn cannot start (ImportError: no y)\n",
    "OSError(5, 'I/O')": "error: wn cannot start (OSError: [Errno 5] I/O)\n",
}


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("start", ["-m wncli", "wn"])
def test_an_import_that_fails_at_the_start_is_one_message(
    failure: str, start: str, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "typer.py").write_text(f"raise {failure}\n")
    script = tmp_path / "wn"  # as pip makes it
    script.write_text("import sys\nfrom wncli.cli import program\nsys.exit(program())\n")
    command = ["-m", "wncli"] if start == "-m wncli" else [str(script)]
    variables = environment()
    variables["PYTHONPATH"] = f"{tmp_path}:{variables['PYTHONPATH']}"
    ran = subprocess.run(
        [sys.executable, *command, "inspect", str(model / "usual.safetensors")],
        check=False, capture_output=True, text=True, env=variables, timeout=60,
    )  # fmt: skip
    assert Ran(ran.returncode, ran.stdout, ran.stderr) == Ran(2, "", FAILURES[failure])


#: Runs `wn` where what shows a refusal gets no memory, or a fork gets none.
NO_MEMORY_LATER = """
import os, sys
import wncli.cli.edge, wncli.api
def fail(*_, **__):
    raise MemoryError
if sys.argv.pop(1) == "in the handler":
    wncli.cli.edge.show_refusal = fail
else:
    wncli.inspect = fail
wncli.cli.edge.program()
"""


@pytest.mark.parametrize("where", ["in the handler", "in a command"])
def test_lack_of_memory_is_one_message_wherever_it_comes_up(where: str, tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", NO_MEMORY_LATER, where, "inspect", str(tmp_path / "missing")],
        check=False, capture_output=True, text=True, env=environment(), timeout=60,
    )  # fmt: skip
    assert Ran(ran.returncode, ran.stdout, ran.stderr) == Ran(2, "", MESSAGE)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("container", ["pickle", "torch"])
def test_pickled_arrays_take_no_more_memory_than_tensors(
    container: str, protocol: int, tmp_path: Path
) -> None:
    """Half a gigabyte of them, in what Python and NumPy take besides."""
    state = {f"{n}.weight": np.full((1 << 21, 3), n / 7, "f4") for n in range(20)}
    if container == "torch":
        torch.save(state, tmp_path / "a", pickle_protocol=protocol)
    else:
        with (tmp_path / "a").open("wb") as file:
            pickle.dump(state, file, protocol)
    assert limited(124, "inspect", str(tmp_path / "a")).code == 0
    target = str(tmp_path / "b.safetensors")
    assert limited(200, "convert", str(tmp_path / "a"), target, "--jobs", "1").code == 0
