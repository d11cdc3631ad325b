"""The hostile corpus itself: what is in it is live, and the watch over `wn` would see it run."""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Iterator

import pytest

from tests.corpus.hostile_chains import CHAINS
from tests.corpus.hostile_names import LIVE
from tests.corpus.hostile_pickles import CALLS, ODD, OPCODES, REFERENCES
from tests.corpus.hostile_places import PLACES
from tests.support.opcodes import call, name
from tests.support.watch import Corpus, Watched, load_all, make_corpus

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # torch 2.13 calls TorchScript deprecated
    pytest.mark.thinned(7),
]

LIVE_CALLS = [called for called, found in CALLS.items() if found.is_live]
OTHER_CALLS = [called for called in CALLS if called not in LIVE_CALLS]

#: More that no file may have a program do: a process, a program in its place, a socket, a library.
FURTHER = {
    "os.fork": call("os.fork"),
    "os.execlp": call("os.execlp", "true", "true"),
    "os.rename": call("os.rename", "in", "gone"),
    "os.remove": call("os.remove", "in/sound.pt"),
    "shutil.rmtree": call("shutil.rmtree", "in"),
    "socket.socket": call("socket.socket"),
    "ctypes.CDLL": call("ctypes.CDLL", None),
    "builtins.compile": call("builtins.compile", "1", "x", "eval"),
    "reading": call("io.open", "/etc/hosts"),
    "name of a module that is there": name("wn_tripwire.touch"),
    "name of a module that is not": name("wn_stranger.run"),
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return make_corpus(tmp_path_factory.mktemp("n"))


@pytest.fixture(scope="module")
def marked(corpus: Corpus) -> set[str]:
    """The files whose call PyTorch made."""
    return load_all(corpus)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    with Watched(make_corpus(tmp_path_factory.mktemp("n"))) as running:
        yield running


@pytest.mark.slow
@pytest.mark.parametrize("called", LIVE_CALLS)
def test_torch_load_makes_the_calls(called: str, corpus: Corpus, marked: set[str]) -> None:
    assert corpus.marker("call", called).name in marked


@pytest.mark.slow
@pytest.mark.parametrize("called", OTHER_CALLS)
def test_torch_load_makes_no_other_call(called: str, corpus: Corpus, marked: set[str]) -> None:
    assert corpus.marker("call", called).name not in marked


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_torch_load_makes_the_call_in_every_place(
    place: str, corpus: Corpus, marked: set[str]
) -> None:
    assert corpus.marker("place", place).name in marked


def test_torch_makes_no_call_in_a_program(corpus: Corpus, marked: set[str]) -> None:
    assert not {path.stem for path in (corpus.folder / "in").glob("script*")} & marked


@pytest.mark.parametrize("called", [one for one in LIVE_CALLS if not CALLS[one].needs_torch])
def test_the_watch_prevents_what_python_would_run(called: str, watched: Watched) -> None:
    path = watched.corpus.path("call", called).with_suffix(".pkl")
    assert watched.outcome("unpickle", path)["violations"]
    assert watched.corpus.marked() == set()


@pytest.mark.parametrize("what", FURTHER)
def test_the_watch_prevents(what: str, watched: Watched) -> None:
    path = watched.corpus.folder / "further.pkl"
    path.write_bytes(FURTHER[what] + pickle.STOP)
    assert watched.outcome("unpickle", path)["violations"]
    assert watched.corpus.sound.exists()


def test_the_watch_lets_a_plain_pickle_pass(watched: Watched) -> None:
    path = watched.corpus.folder / "in" / "plain.pkl"
    path.write_bytes(pickle.dumps({"a": [1, (2.5, "x")]}))
    found = watched.outcome("unpickle", path)
    assert (found["violations"], found["stderr"]) == ([], "")


def test_every_pickle_is_one_that_python_can_take_apart(corpus: Corpus) -> None:
    paths = list((corpus.folder / "in").glob("*.pkl"))
    assert len(paths) == len(CALLS)
    for path in paths:
        pickletools.dis(path.read_bytes(), io.StringIO())


def test_no_two_calls_have_one_name() -> None:
    assert len(CALLS) == sum(len([*table]) for table in (LIVE, CHAINS, OPCODES, ODD, REFERENCES))
