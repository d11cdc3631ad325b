"""Shares of ranks: all bytes once, what belongs together on one rank, and about as many each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wncli.checkpoint.layout import Content, Elements, Layout, Magnitude, Slot, Whole
from wncli.checkpoint.tensors import DType, Storage, TensorSpec, row_major
from wncli.layout.shares import divide, is_whole
from wncli.team import shared_out

EDGE = 64


@pytest.fixture(autouse=True, scope="module")
def small_edges() -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("wncli.layout.shares._EDGE", EDGE)
        yield


def tensor(numel: int, crc: int | None, storage: int | None = None) -> TensorSpec:
    """A tensor that is all of its storage, unless that is given as larger."""
    shape = (numel,)
    place = Storage("0", 0, 4 * (storage or numel), crc)
    return TensorSpec("t", DType.F32, shape, place, 0, row_major(shape))


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    slots: list[Slot] = []
    place = draw(st.integers(0, 100))
    for _ in range(draw(st.integers(0, 8))):
        numel = draw(st.integers(0, 400))
        crc = draw(st.sampled_from([None, 7]))
        spec = tensor(numel, crc, draw(st.sampled_from([None, 500])))
        plain: Content = Elements(spec) if draw(st.booleans()) else Whole(spec.storage)
        nbytes = spec.storage.nbytes if isinstance(plain, Whole) else spec.nbytes
        if numel and draw(st.booleans()):
            g = Magnitude(spec, 0, numel, 0, spec.strides)
            slots += [Slot(place, 4 * numel, g._replace(direction=place + 4 * numel))]
            place += 4 * numel
        slots.append(Slot(place, nbytes, plain))
        place += nbytes + draw(st.integers(0, 9))
    seal = draw(st.sampled_from([None, lambda _: []]))
    return Layout(place, (), tuple(slots), (), seal)


@given(st.lists(layouts(), min_size=1, max_size=5), st.integers(1, 6))
def test_every_byte_is_written_by_one_rank(files: Sequence[Layout], ranks: int) -> None:
    found = divide(files, ranks)
    assert len(found) == ranks
    for number, layout in enumerate(files):
        pieces = sorted(piece for share in found for piece in share.get(number, ()))
        for slot, content in enumerate(layout.slots):
            place = 0
            mine = [piece for piece in pieces if piece.slot == slot]
            assert mine
            for piece in mine:
                assert piece.start == place
                place += piece.nbytes
            assert place == content.nbytes


@given(st.lists(layouts(), min_size=1, max_size=5), st.integers(1, 6))
def test_what_belongs_together_stays_on_one_rank(files: Sequence[Layout], ranks: int) -> None:
    owners: dict[tuple[int, int], set[int]] = {}
    for rank, share in enumerate(divide(files, ranks)):
        for number, pieces in share.items():
            for piece in pieces:
                owners.setdefault((number, piece.slot), set()).add(rank)
                slot = files[number].slots[piece.slot]
                if piece.nbytes < slot.nbytes and piece.start:
                    assert not (slot.offset + piece.start) % EDGE
    for number, layout in enumerate(files):
        for index, slot in enumerate(layout.slots):
            content = slot.content
            if isinstance(content, Magnitude):
                assert layout.slots[index + 1].offset == content.direction
                assert len(owners[number, index]) == 1
                assert owners[number, index] == owners[number, index + 1]
            elif isinstance(content, Elements):
                checked = content.tensor.storage.crc is not None
                if checked and content.tensor.nbytes < content.tensor.storage.nbytes:
                    assert len(owners[number, index]) == 1, "its storage is compared as a whole"


def plain_file(numel: int) -> Layout:
    spec = tensor(numel, None)
    return Layout(spec.nbytes, (), (Slot(0, spec.nbytes, Elements(spec)),), ())


@pytest.mark.parametrize(("files", "ranks"), [(1, 1), (3, 1), (4, 4), (12, 4), (200, 8), (25, 8)])
def test_files_stay_whole_where_that_is_even(files: int, ranks: int) -> None:
    found = [plain_file(500)] * files
    shares = divide(found, ranks)
    is_even = files / ranks * 1.125 >= -(-files // ranks)
    owners = Counter(
        number
        for share in shares
        for number, pieces in share.items()
        if is_whole(found[number], pieces)
    )
    assert (owners == Counter(range(files))) == is_even
    assert is_even == (files != 25)


def test_a_large_file_beside_small_ones_is_divided() -> None:
    found = divide([plain_file(10), plain_file(10_000), plain_file(10)], 3)
    loads = [sum(piece.nbytes for pieces in share.values() for piece in pieces) for share in found]
    assert max(loads) - min(loads) <= 2 * EDGE


@given(st.lists(st.integers(0, 1000), max_size=30), st.integers(1, 6))
def test_items_are_shared_out_evenly(sizes: Sequence[int], ranks: int) -> None:
    found = shared_out(sizes, ranks)
    assert sorted(number for numbers in found for number in numbers) == list(range(len(sizes)))
    loads = [sum(max(1, sizes[number]) for number in numbers) for numbers in found]
    # Graham 1966: each goes where there is least, which is never more than the mean.
    assert max(loads) <= sum(loads) / ranks + max(sizes, default=0) + 1


@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_one_large_tensor_is_cut_into_even_pieces(ranks: int) -> None:
    spec = tensor(100_000, 7)
    layout = Layout(spec.nbytes + 40, (), (Slot(40, spec.nbytes, Elements(spec)),), ())
    loads = [sum(piece.nbytes for piece in share[0]) for share in divide([layout], ranks)]
    assert max(loads) - min(loads) <= 2 * EDGE


def test_a_plan_of_many_layers_is_divided_evenly() -> None:
    slots = [Slot(n * 4000, 4000, Elements(tensor(1000, None))) for n in range(1000)]
    layout = Layout(4_000_000, (), tuple(slots), ())
    for ranks in (2, 7, 64):
        loads = [sum(piece.nbytes for piece in share[0]) for share in divide([layout], ranks)]
        assert max(loads) - min(loads) <= 4000 + 2 * EDGE
