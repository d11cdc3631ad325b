"""What is printed for a character that the console's encoding does not have."""

from __future__ import annotations

import codecs

#: How a stream that has this for its `errors` writes what its encoding cannot: cp1252 has no rules.
IN_ASCII = "wn-in-ascii"

_ASCII = str.maketrans({"─": "-", "→": "->", "…": "..."})


def _in_ascii(error: UnicodeError) -> tuple[str | bytes, int]:
    """Spell our own characters in ASCII, and escape all others."""
    if isinstance(error, UnicodeEncodeError):
        text = error.object[error.start : error.end].translate(_ASCII)
        return text.encode("ascii", "backslashreplace").decode(), error.end
    raise error


codecs.register_error(IN_ASCII, _in_ascii)
