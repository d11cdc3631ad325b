"""The compiled opcodes: whatever a pickle says, they and Python's way say the same."""

from __future__ import annotations

import io
import pickle
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import flip_bits
from test_pickles import OPCODES, rewritten, without_compiled_opcodes

from wncli.errors import FormatError
from wncli.formats.pickles import opcodes
from wncli.formats.pickles.nodes import Call, PersistentId
from wncli.formats.pickles.reader import read_pickle

pytestmark = pytest.mark.skipif(opcodes is None, reason="no C compiler built them")


def what_it_says(data: bytes) -> object:
    try:
        found = read_pickle(data, "a test")
        counts = len(found.globals), len(found.persistent_ids), len(found.calls)
        return counts, found.protocol, rewritten(data)
    except FormatError as error:
        return str(error)


def both_say_the_same(data: bytes) -> None:
    with without_compiled_opcodes():
        expected = what_it_says(data)
    assert what_it_says(data) == expected


@settings(max_examples=1000, deadline=None)
@given(st.lists(st.sampled_from(OPCODES), max_size=60))
def test_any_sequence_of_opcodes_says_the_same(sequence: list[bytes]) -> None:
    both_say_the_same(b"\x80\x02" + b"".join(sequence) + b".")


def torch_pickle() -> bytes:
    class Pickler(pickle.Pickler):
        def persistent_id(self, value: object) -> object:
            if isinstance(value, torch.storage.UntypedStorage | torch.storage.TypedStorage):
                return ("storage", torch.FloatStorage, str(id(value)), "cpu", 12)
            return None

    shared = torch.ones(3, 4)
    value: Any = {
        "model": {f"layer.{n}.weight": torch.ones(2, n + 1, 3).transpose(0, 1) for n in range(150)},
        "tied": [shared, shared.t(), torch.nn.Parameter(shared)],
        "text": ["a", "\ud800", "ä" * 300, 1 << 15, 1 << 16, -1, 1 << 31, 1 << 70, (1, 2, 3, 4)],
    }
    with io.BytesIO() as buffer:
        Pickler(buffer, 2).dump(value)
        return buffer.getvalue()


def test_a_torch_pickle_cut_off_or_changed_anywhere_says_the_same() -> None:
    data = torch_pickle()
    both_say_the_same(data)
    random = Random(2)  # noqa: S311 - the same ones each time
    for _ in range(400):
        both_say_the_same(data[: random.randrange(len(data))])
        both_say_the_same(flip_bits(data, random))


def test_a_pickle_in_pieces_says_the_same(tmp_path: Any) -> None:  # noqa: ANN401
    """Wherever the bytes that have been read end inside an opcode."""
    data = pickle.dumps(["x" * 1_048_500, *("y" * n for n in range(300)), (1, 2), "z" * 70_000], 2)
    path = tmp_path / "pickle"
    path.write_bytes(data)
    with path.open("rb") as file:
        found = read_pickle(file, "a test", len(data))
    assert found.root == pickle.loads(data)  # noqa: S301 - made here


def test_nothing_is_made_of_impossible_arguments() -> None:
    assert opcodes
    for place in (-1, 2, 1 << 62):
        with pytest.raises(ValueError, match="place"):
            opcodes.carry_out(b".", place, [], [], [], [], [], PersistentId, Call)
    with pytest.raises(TypeError):
        opcodes.carry_out("text", 0, [], [], [], [], [], PersistentId, Call)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        opcodes.carry_out(b".", 0, (), [], [], [], [], PersistentId, Call)  # type: ignore[arg-type]
