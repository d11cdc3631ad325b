"""Parses JSON that strangers wrote: UTF-8, every name once, and nothing that JSON does not have."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

from wncli.errors import FormatError

#: Texts, keys included, and lists and objects: more than the 200,000 tensors that are allowed have.
_MOST_TEXTS = 1_250_000
_MOST_LISTS = 2_000_000
_TEXT = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)

#: Makes the refusal from the problem, what was expected, and what was found.
Broken = Callable[[str, str, str], FormatError]


def parse_object(
    raw: bytes, what: str, broken: Broken, parse_int: Callable[[str], int] | None = None
) -> dict[str, Any]:
    """Return the JSON object that `raw` is.

    Args:
        raw: the text's bytes; whoever reads them bounds their number.
        what: names the text in refusals: `the header`.
        broken: makes the refusal.
        parse_int: reads whole numbers, where it matters how they are written.

    Raises:
        FormatError: it is no UTF-8, no JSON, no object, or has a name twice.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            counts = Counter(name for name, _ in pairs)
            twice = counts.most_common(1)[0][0]
            raise broken(f"{twice!r} stands there twice", "every name once", "")
        return found

    def constant(name: str) -> None:
        raise broken(f"{what} holds {name}, which is no JSON", "", "")

    if b"\0" in raw:  # before it is decoded: a file of holes takes no room, its text would
        raise broken(f"{what} is not JSON (NUL stands in it)", "", "")
    _refuse_crowds(raw, what, broken)
    try:
        found = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=unique,
            parse_constant=constant,
            parse_int=parse_int,
        )
        if b"\\u" in raw:  # an escape can spell half a surrogate pair, which is no text
            json.dumps(found, ensure_ascii=False).encode("utf-8")
    except FormatError:
        raise
    except (ValueError, RecursionError) as error:
        raise broken(f"{what} {_problem(error)}", "", "") from None
    if not isinstance(found, dict):
        raise broken(f"{what} is no object", "{…}", type(found).__name__)
    return found


def _refuse_crowds(raw: bytes, what: str, broken: Broken) -> None:
    """Count what takes many times its bytes in memory, before any of it is made."""
    texts = (raw.count(b'"') - raw.count(b'\\"')) // 2  # those inside texts stand behind a stroke
    lists = raw.count(b"[") + raw.count(b"{")
    if lists > _MOST_LISTS:  # or they are in a text
        bare = _TEXT.sub(b"", raw)
        lists = bare.count(b"[") + bare.count(b"{")
    for count, most, of in ((texts, _MOST_TEXTS, "texts"), (lists, _MOST_LISTS, "lists")):
        if count > most:
            raise broken(
                f"{what} holds more {of} than any model's", f"up to {most:,}", f"{count:,}"
            )


def _problem(error: Exception) -> str:
    match error:
        case UnicodeDecodeError():
            return "is not UTF-8"
        case UnicodeEncodeError():
            return "holds half a surrogate pair, which is no text"
        case json.JSONDecodeError() | RecursionError():
            return f"is not JSON ({error})"
    return "holds a number of too many digits"  # `int` reads some thousand, and no more
