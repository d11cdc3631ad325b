"""The exceptions: caught by Python's own names too, kept as they are, and never wrapped again."""

from __future__ import annotations

import copy
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import wncli
from tests.support.run import SAMPLES
from wncli.errors import FileError, FormatError, UsageError, WeightNormError, WnError
from wncli.formats.pickles.reader import read_pickle
from wncli.formats.strict_json import parse_object
from wncli.storage.replace_file import check_output, replacing
from wncli.storage.replace_folder import check_folder, replacing_folder

BUILTIN = {
    FileError: OSError,
    FormatError: ValueError,
    UsageError: ValueError,
    WeightNormError: ValueError,
}
LINEAR = SAMPLES / "linear.pt"


@pytest.mark.parametrize(
    ("builtin", "refused"),
    [
        (OSError, lambda: wncli.inspect("no such file")),
        (OSError, lambda: wncli.convert(LINEAR, "no such folder/out.pt")),
        (ValueError, lambda: wncli.inspect(Path(__file__))),
        (ValueError, lambda: wncli.inspect(LINEAR, exclude=["no such layer"])),
        (ValueError, lambda: wncli.magnitude([1.0], dim=7)),
    ],
)
def test_a_refusal_is_caught_by_the_name_that_python_has_for_it(
    builtin: type[Exception], refused: Callable[[], object]
) -> None:
    with pytest.raises(builtin) as caught:
        refused()
    assert isinstance(caught.value, WnError)


@pytest.mark.parametrize("kind", BUILTIN)
def test_a_refusal_is_what_it_was_made_of(kind: type[WnError]) -> None:
    error = kind("a.pt", "broken", expected="whole", found="half", hint="mend it")
    assert isinstance(error, BUILTIN[kind])
    assert (error.args, repr(error)) == (("a.pt", "broken"), f"{kind.__name__}('a.pt', 'broken')")
    shown = "a.pt: broken\n  expected: whole\n  found:    half\n  try:      mend it"
    assert (str(error), error.in_shell) == (shown, shown)
    if isinstance(error, OSError):  # nothing is taken for a number of the system's
        assert (error.errno, error.strerror, error.filename) == (None, None, None)


def _pickled(error: WnError) -> WnError:
    again: WnError = pickle.loads(pickle.dumps(error))  # noqa: S301 - made here
    return again


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, _pickled])
def test_every_refusal_survives_pickling_and_copying(
    again: Callable[[WnError], WnError], tmp_path: Path
) -> None:
    made = [kind("a.pt", "broken", expected="whole", hint="mend it") for kind in BUILTIN]
    with pytest.raises(wncli.NothingToDo) as nothing:
        wncli.remove(LINEAR, tmp_path / "out.pt")
    with pytest.raises(UsageError) as usage:
        wncli.inspect(LINEAR, exclude=["liner"])
    for error in (*made, nothing.value, usage.value):
        new = again(error)
        assert type(new) is type(error)
        assert (new.args, vars(new)) == (error.args, vars(error))
        assert (str(new), new.in_shell) == (str(error), error.in_shell)


# -- where a handler of Python's own exceptions could take ours ----------------------------------


def fails(says: str, refused: Callable[[], object]) -> None:
    """The refusal says this and nothing else: a second one around it would repeat it."""
    with pytest.raises(WnError) as caught:
        refused()
    assert str(caught.value).splitlines()[0].split(": ", 1)[1] == says
    assert caught.value.__cause__ is None


def test_what_is_no_regular_file_is_refused_as_that() -> None:
    fails("not a regular file", lambda: wncli.inspect(os.devnull))


@pytest.mark.parametrize("what", ["full", "file"])
def test_a_folder_that_is_there_is_refused_as_that(what: str, tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    output, says = {
        "full": (tmp_path, "`output` exists already and is not empty"),
        "file": (tmp_path / "a", "`output` is a file"),
    }[what]
    fails(says, lambda: check_folder(output, force=False))


def test_a_file_in_no_directory_is_refused_as_that(tmp_path: Path) -> None:
    output = tmp_path / "no" / "out.pt"
    fails("the directory does not exist", lambda: check_output(output, force=False))
    fails("the directory does not exist", lambda: check_folder(output, force=False))


@pytest.mark.parametrize("kind", BUILTIN)
def test_what_is_refused_while_writing_is_not_said_of_the_output(
    kind: type[WnError], tmp_path: Path
) -> None:
    def a_file() -> None:
        with replacing(tmp_path / "out.pt", 4, force=False):
            raise kind("the input", "cannot be read")

    def a_folder() -> None:
        with replacing_folder(tmp_path / "out", ["a"], tuple, force=False):
            raise kind("the input", "cannot be read")

    for refused in (a_file, a_folder):
        with pytest.raises(kind, match=r"^the input: cannot be read$"):
            refused()
    assert not list(tmp_path.iterdir())


def test_an_input_that_fails_while_it_is_read_is_what_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"a.weight": torch.ones(3, 2)}, tmp_path / "in.pt")

    def fail(*_: object) -> int:
        raise OSError(5, os.strerror(5))

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(FileError, match=r"in\.pt: cannot be read \(Input/output error\)") as caught:
        wncli.apply(tmp_path / "in.pt", tmp_path / "out.pt")
    assert caught.value.errno is None
    assert [path.name for path in tmp_path.iterdir()] == ["in.pt"]


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b'{"a": 1, "a": 2}', "'a' stands there twice"),
        (b'{"a": NaN}', "the text holds NaN, which is no JSON"),
    ],
)
def test_json_that_is_refused_inside_the_parser_is_refused_once(raw: bytes, says: str) -> None:
    fails(says, lambda: parse_object(raw, "the text", lambda why, *_: FormatError("a", why)))


def test_a_pickle_that_is_refused_inside_an_opcode_is_refused_once() -> None:
    says = r"the pickle cannot be read: opcode b'\xff' is unknown (near byte 3)"
    fails(says, lambda: read_pickle(b"\x80\x02\xff.", "a test"))
