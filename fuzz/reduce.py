"""Makes failing files smaller: opcodes and members are left out as long as they fail alike."""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Generator, Iterator
from functools import partial

from fuzz.generate import Made
from tests.support.zip_mutations import unzipped, zipped

Holds = Callable[[bytes], bool]
Members = list[tuple[str, bytes]]
_TEXTS = (b"X", b"\x8c", b"V", b"c")
_ENDS = (*_TEXTS, b"u", b"s", b"t", b".")


def reduced(made: Made, holds: Holds) -> Iterator[bytes]:
    """Smaller and smaller files of which `holds` is true."""
    if made.format in {"zip", "npz"}:
        try:
            members = unzipped(made.content)
        except ValueError:
            return
        if not holds(zipped(members)):
            return
        yield zipped(members)
        members = yield from _without_members(members, holds)
        for place, (name, content) in enumerate(members):
            if name.lower().endswith("data.pkl"):
                yield from _pickles(content, partial(_with, members, place), holds)
                return
    elif made.format in {"legacy", "pickle"}:
        heads, rest = b"", made.content
        for _ in range(3 if made.format == "legacy" else 0):
            try:
                parts, behind = opcodes_of(rest)
            except ValueError:
                return
            heads, rest = heads + b"".join(parts), behind
        try:
            parts, behind = opcodes_of(rest)
        except ValueError:
            return
        yield from _pickles(b"".join(parts), lambda raw: heads + raw + behind, holds)


def _with(members: Members, place: int, raw: bytes) -> bytes:
    return zipped([*members[:place], (members[place][0], raw), *members[place + 1 :]])


def _without_members(members: Members, holds: Holds) -> Generator[bytes, None, Members]:
    place = 0
    while place < len(members):
        fewer = members[:place] + members[place + 1 :]
        if holds(zipped(fewer)):
            members = fewer
            yield zipped(members)
        else:
            place += 1
    return members


def opcodes_of(data: bytes) -> tuple[list[bytes], bytes]:
    """Return the first pickle's opcodes with their arguments, and what stands behind it.

    Raises:
        ValueError: there is none.
    """
    places: list[int] = []
    try:
        places += [place or 0 for *_, place in pickletools.genops(data)]
    except Exception as error:  # pickletools raises whatever it meets
        raise ValueError("no pickle") from error
    end = places[-1] + 1
    return [data[a:b] for a, b in zip(places, [*places[1:], end], strict=True)], data[end:]


def _pickles(content: bytes, whole: Callable[[bytes], bytes], holds: Holds) -> Iterator[bytes]:
    """Files with fewer and fewer opcodes."""
    try:
        parts, _ = opcodes_of(content)
    except ValueError:
        return
    parts = yield from _without_items(parts, whole, holds)
    step = max(1, len(parts) // 2)
    changed = True
    while step > 1 or changed:
        changed = False
        place = 0
        while place < len(parts):
            fewer = parts[:place] + parts[place + step :]
            if holds(whole(b"".join(fewer))):
                parts, changed = fewer, True
                yield whole(b"".join(parts))
            else:
                place += step
        step = max(1, step // 2)


def _without_items(
    parts: list[bytes], whole: Callable[[bytes], bytes], holds: Holds
) -> Generator[bytes, None, list[bytes]]:
    """Leave out runs that begin with a text, as most keys are, and end before another."""
    start = 0
    while start < len(parts):
        if parts[start][:1] in _TEXTS:
            ends = [at for at in range(start + 1, len(parts)) if parts[at][:1] in _ENDS]
            for end in reversed(ends):
                fewer = parts[:start] + parts[end:]
                if holds(whole(b"".join(fewer))):
                    parts = fewer
                    yield whole(b"".join(parts))
                    start -= 1
                    break
        start += 1
    return parts
