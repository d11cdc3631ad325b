"""The fixtures: the tool in a subprocess, the sample models, a real checkpoint, faults."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import HealthCheck, settings

import wncli.arithmetic.kernels
from tests.support.faults import Forks, Prepared
from tests.support.loops import without_compiled_loops
from tests.support.run import Ran, Wn, run_wn
from tests.support.servers import Server, serving
from wncli.cli import main
from wncli.storage.remote import patience

#: What ends a run; Windows has no SIGHUP.
ENDING = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]
for number in ENDING:
    if signal.getsignal(number) == signal.SIG_IGN:  # as nohup has it, and what is started inherits
        signal.signal(number, signal.SIG_DFL)

settings.register_profile("busy", suppress_health_check=[HealthCheck.too_slow], deadline=None)
settings.load_profile("busy")  # other programs' time is none of the tests'

torch.set_num_threads(1)  # small tensors gain nothing from more, and the tool has its own threads


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow what `thinned` leaves out of the fast lane."""
    cases: Counter[str] = Counter()
    for item in items:
        thinned = item.get_closest_marker("thinned")
        if thinned:
            test = item.nodeid.partition("[")[0]
            if cases[test] % thinned.args[0]:
                item.add_marker("slow")
            cases[test] += 1


@pytest.fixture(scope="module", params=["compiled", "numpy"])
def both_ways(request: pytest.FixtureRequest) -> Iterator[None]:
    """Runs all tests of a module twice: with the compiled loops, and without them."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "numpy":
            without_compiled_loops(patch)
        elif wncli.arithmetic.kernels.kernel is None:
            pytest.skip("no C compiler built the loops, or they are not for this processor")
        yield


@pytest.fixture(scope="session")
def wn() -> Wn:
    return run_wn


@pytest.fixture
def wn_here(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Ran]]:
    """`wn` in this process, for the many cases that need no process of their own."""
    usual = {number: signal.getsignal(number) for number in ENDING}
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


_SAID = ("HF_", "HUGGING", "TRANSFORMERS_OFFLINE", "AWS_", "GOOGLE_", "AZURE_", "SSL_CERT", "XDG_C")


@pytest.fixture
def nothing_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """No token, cache or proxy of who runs the tests; and little patience with other machines."""
    for name in os.environ:
        if name.startswith(_SAID) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hf")))
    brief = patience.Patience(first=0.01, longest=0.02, timeout=1.0)
    monkeypatch.setattr(patience, "PATIENCE", brief)


@pytest.fixture
def server(nothing_is_said: None) -> Iterator[Server]:  # noqa: ARG001 - its environment
    """A web server."""
    with serving() as server:
        yield server


@pytest.fixture
def other() -> Iterator[Server]:
    """Another host, to which no secret may go."""
    with serving("127.0.0.2") as server:
        yield server
        for asked in server.asked:
            assert "authorization" not in asked.headers


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    """An empty folder for what is written."""
    made = tmp_path / "out"
    made.mkdir()
    return made


@pytest.fixture(autouse=True)
def _same_numbers_every_time() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def make() -> Iterator[ModuleType]:
    """`sample_models.make`: the modules that the samples belong to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "dont_write_bytecode", True)  # nothing is written into the tree
        yield importlib.import_module("sample_models.make")


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
    with Forks(tmp_path_factory.mktemp("forks")) as forks:
        yield forks


@pytest.fixture(scope="module")
def case_of(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """The conversions that something goes wrong in, by name and kind of file."""
    return Prepared(forks, tmp_path_factory.mktemp)
