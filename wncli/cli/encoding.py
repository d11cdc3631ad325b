"""What a stream shows of a text: the one place that replaces what its encoding has no byte for."""

from __future__ import annotations

import codecs

#: What looks alike in ASCII; all else is escaped, as `\u6a21`.
_ALIKE = {
    "─": "-", "━": "-", "→": "->", "…": "...", "×": "x", "·": ".", "‖": "||", "Δ": "d",
    "°": " deg", "✓": "+", "✗": "!",
    "▁": ".", "▂": ":", "▃": "-", "▄": "=", "▅": "+", "▆": "*", "▇": "%", "█": "#",
    "▏": "|", "▎": "|", "▍": "|", "▌": "|", "▋": "#", "▊": "#", "▉": "#",
}  # fmt: skip


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    shown = (
        _ALIKE.get(char) or char.encode("ascii", "backslashreplace").decode() for char in lacking
    )
    return "".join(shown), error.end


#: How a stream treats what its encoding lacks, as the `errors` of `io.TextIOWrapper`.
REPLACING = "wncli.replacing"
codecs.register_error(REPLACING, _replace)


def shown(text: str, encoding: str) -> str:
    """Give the text as a stream of this encoding shows it."""
    return text if text.isascii() else text.encode(encoding, REPLACING).decode(encoding)
