"""What the tests share: the tool in a subprocess, the sample models, a real checkpoint, layers."""

from __future__ import annotations

import importlib.util
import os
import pty
import signal
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, Protocol

import pytest
import torch
from torch import Tensor, nn

import wncli
import wncli.arithmetic.norms
import wncli.streaming.fast_fold
from wncli.cli import main

if TYPE_CHECKING:
    from killing import Forks, Prepared

ROOT = Path(__file__).resolve().parents[1]
SAMPLES = ROOT / "sample_models"

for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    if signal.getsignal(number) == signal.SIG_IGN:  # as nohup has it, and what is started inherits
        signal.signal(number, signal.SIG_DFL)

torch.set_num_threads(1)  # small tensors gain nothing from more, and the tool has its own threads

Spelling = Literal["hook", "parametrized"]


@dataclass(frozen=True)
class Ran:
    """How a run of `wn` ended and what it printed."""

    code: int
    stdout: str
    stderr: str


class Wn(Protocol):
    """Runs `wn` with these arguments; further keywords are variables of its environment."""

    def __call__(
        self, *arguments: str | Path, cwd: Path | None = None, **environment: str
    ) -> Ran: ...


def environment(**extra: str) -> dict[str, str]:
    """This process's environment, without what would change the tool's output, and `extra`."""
    ours = {"PYTHONPATH": str(Path(wncli.__file__).parents[1]), "PYTHONDONTWRITEBYTECODE": "1"}
    ignored = ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "WN_TRACEBACK", "PYTHONWARNINGS")
    kept = {name: value for name, value in os.environ.items() if name not in ignored}
    return kept | ours | extra


def run_wn(*arguments: str | Path, cwd: Path | None = None, **extra: str) -> Ran:
    """Run `python -m wncli` and wait for its end."""
    ran = subprocess.run(
        [sys.executable, "-m", "wncli", *map(str, arguments)],
        cwd=cwd,
        env=environment(**extra),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        timeout=60,
    )
    return Ran(ran.returncode, ran.stdout.decode(), ran.stderr.decode())


def on_a_terminal(
    *arguments: str | Path, start: tuple[str, ...] = ("-m", "wncli"), **extra: str
) -> tuple[int, str]:
    """Run `wn` with all its streams on one terminal; what it shows there."""
    ours, theirs = pty.openpty()
    extra = {"TERM": "xterm-256color"} | extra
    with subprocess.Popen(
        [sys.executable, *start, *map(str, arguments)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment(**extra),
    ) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # how Linux tells the end of a terminal
                break
            if not part:
                break
            shown += part
        code = process.wait(60)
    os.close(ours)
    return code, shown.decode().replace("\r\n", "\n")


#: Gives up root's right to pass over permissions (capget(2), capset(2)), then runs `wn`.
AS_ANYBODY = """
import ctypes, os, sys
if os.geteuid() == 0:
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    sets = (ctypes.c_uint32 * 6)()
    assert libc.capget(header, sets) == 0
    sets[0] &= ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    assert libc.capset(header, sets) == 0
from wncli.cli import main
main()
"""


def refused_for_anybody(*arguments: Path | str) -> str:
    """What `wn` says, with exit code 2, where the system's permissions count for it."""
    done = subprocess.run(
        [sys.executable, "-c", AS_ANYBODY, *map(str, arguments)],
        check=False, capture_output=True, text=True, cwd=ROOT, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    return done.stderr


@pytest.fixture(scope="module", params=["compiled", "numpy"])
def both_ways(request: pytest.FixtureRequest) -> Iterator[None]:
    """Runs all tests of a module twice: with the compiled loops, and without them."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "numpy":
            without_compiled_loops(patch)
        elif wncli.arithmetic.kernels.kernel is None:
            pytest.skip("no C compiler built the loops, or they are not for this processor")
        yield


def without_compiled_loops(patch: pytest.MonkeyPatch) -> None:
    """Let this process compute with NumPy alone."""
    for room in (wncli.arithmetic.norms, wncli.streaming.fast_fold):
        patch.setattr(room, "kernel", None)


@pytest.fixture(scope="session")
def wn() -> Wn:
    return run_wn


@pytest.fixture
def wn_here(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Ran]]:
    """`wn` in this process, for the many cases that need no process of their own."""
    ending = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    usual = {number: signal.getsignal(number) for number in ending}
    hook, excepthook, finders = sys.unraisablehook, sys.excepthook, list(sys.meta_path)

    def run(*arguments: str | Path) -> Ran:
        monkeypatch.setattr(sys, "argv", ["wn", *map(str, arguments)])
        for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "WN_TRACEBACK"):
            monkeypatch.delenv(name, raising=False)
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        code = end.value.code
        assert isinstance(code, int)
        return Ran(code, *capfd.readouterr())

    yield run
    for number, handler in usual.items():
        signal.signal(number, handler)
    sys.unraisablehook, sys.excepthook, sys.meta_path[:] = hook, excepthook, finders


@pytest.fixture(autouse=True)
def _same_numbers_every_time() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def make() -> Iterator[ModuleType]:
    """`sample_models/make.py`, which is a script beside the package and no part of it."""
    spec = importlib.util.spec_from_file_location("sample_models_make", SAMPLES / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "dont_write_bytecode", True)  # nothing is written into the tree
        patch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        yield module


@pytest.fixture(scope="session")
def fcpe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained checkpoint that others made, from a wheel on PyPI, fetched once."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wncli-tests"
    cache = Path(os.environ.get("WNCLI_TEST_CACHE") or default)
    wheel = cache / "torchfcpe-0.0.4-py3-none-any.whl"
    if not wheel.exists():
        cache.mkdir(parents=True, exist_ok=True)
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        ran = subprocess.run(
            [*download, "-d", str(cache), "torchfcpe==0.0.4"],
            capture_output=True,
            text=True,
            check=False,
        )
        if ran.returncode:
            pytest.fail(f"the wheel torchfcpe==0.0.4 could not be fetched:\n{ran.stderr}")
    with zipfile.ZipFile(wheel) as archive:
        member = "torchfcpe/assets/fcpe_c_v001.pt"
        return Path(archive.extract(member, tmp_path_factory.mktemp("fcpe")))


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """Runs of `wn` that something goes wrong in."""
    from killing import Forks

    with Forks(tmp_path_factory.mktemp("forks")) as forks:
        yield forks


@pytest.fixture(scope="module")
def case_of(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """The conversions that something goes wrong in, by name and kind of file."""
    from killing import Prepared

    return Prepared(forks, tmp_path_factory.mktemp)


# Layers of every kind that weight norm is put on


@dataclass(frozen=True)
class Kind:
    """A kind of layer: how one is made, what it is fed, and its parameter that is normalized."""

    make: Callable[[], nn.Module]
    feed: Callable[[], Tensor]
    parameter: str = "weight"


KINDS: dict[str, Kind] = {
    "Linear": Kind(partial(nn.Linear, 5, 3), lambda: torch.randn(4, 5)),
    "Conv1d": Kind(partial(nn.Conv1d, 4, 6, 3), lambda: torch.randn(2, 4, 9)),
    "Conv2d": Kind(partial(nn.Conv2d, 4, 6, (3, 2), groups=2), lambda: torch.randn(2, 4, 7, 8)),
    "Conv3d": Kind(partial(nn.Conv3d, 2, 3, (3, 2, 2)), lambda: torch.randn(1, 2, 5, 4, 4)),
    "ConvTranspose1d": Kind(
        partial(nn.ConvTranspose1d, 4, 3, 4, stride=2), lambda: torch.randn(2, 4, 5)
    ),
    "ConvTranspose2d": Kind(
        partial(nn.ConvTranspose2d, 4, 3, (2, 3)), lambda: torch.randn(2, 4, 5, 4)
    ),
    "ConvTranspose3d": Kind(
        partial(nn.ConvTranspose3d, 3, 2, (2, 1, 3)), lambda: torch.randn(1, 3, 3, 3, 3)
    ),
    "Embedding": Kind(partial(nn.Embedding, 7, 4), lambda: torch.tensor([[0, 3, 6], [1, 1, 5]])),
    "LSTM": Kind(
        partial(nn.LSTM, 3, 4, batch_first=True), lambda: torch.randn(2, 5, 3), "weight_hh_l0"
    ),
}

#: Each kind with each dim that is in use: the first, the second, the last, and the whole tensor.
KINDS_AND_DIMS = [
    (kind, dim)
    for kind, made in KINDS.items()
    for dim in sorted({0, 1, getattr(made.make(), made.parameter).dim() - 1})
] + [(kind, None) for kind in KINDS]


def normalize(module: nn.Module, parameter: str, dim: int | None, spelling: Spelling) -> None:
    """Put PyTorch's own weight norm on a parameter."""
    whole = -1 if dim is None else dim
    if spelling == "parametrized":
        torch.nn.utils.parametrizations.weight_norm(module, parameter, whole)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.nn.utils.weight_norm(module, parameter, whole)


def forward(module: nn.Module, value: Tensor) -> Tensor:
    """What a module makes of its input."""
    if isinstance(module, nn.LSTM):  # it keeps a list of its weights that parametrize forgets
        module._flat_weights = [getattr(module, name) for name in module._flat_weights_names]
    with torch.no_grad():
        output = module(value)
    return output[0] if isinstance(output, tuple) else output  # type: ignore[no-any-return]


def pair_of(parameter: str, spelling: Spelling) -> tuple[str, str]:
    """The names that PyTorch gives to g and v."""
    if spelling == "hook":
        return f"{parameter}_g", f"{parameter}_v"
    return f"parametrizations.{parameter}.original0", f"parametrizations.{parameter}.original1"


def bits(tensor: Tensor) -> tuple[str, tuple[int, ...], bytes]:
    """All that must be equal where tensors are to be equal bit for bit."""
    flat = tensor.detach().contiguous().reshape(-1)
    raw = flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
    return str(tensor.dtype), tuple(tensor.shape), raw


def load(path: Path, *, weights_only: bool = True) -> Any:  # noqa: ANN401
    """Read a torch file the way users do."""
    return torch.load(path, weights_only=weights_only)
