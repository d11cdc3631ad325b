"""Holds that `wn` refuses: one short message about the file, and nothing written."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from tests.support.run import Ran

RunHere = Callable[..., Ran]

#: Characters of a message beside the path: what a person reads at a glance.
MOST_CHARACTERS = 3000
#: Characters of a message that show the start of a path, however long that is.
_SHOWN = 300
_LABELS = ("  expected: ", "  found:    ", "  try:      ")


def hold_printable(text: str) -> None:
    """Nothing in it moves the cursor, rings, or hides."""
    assert text.replace("\n", "").isprintable()


def hold_refused(ran: Ran, where: Path | str, says: str) -> None:
    """Exit code 2 and one short message that begins with a place or what is in it, and the rule."""
    assert ran.code == 2, ran.stderr[:MOST_CHARACTERS]
    assert ran.stdout == ""
    hold_printable(ran.stderr)
    first, *rest = ran.stderr.splitlines()
    start = f"error: {where}"[:_SHOWN]
    assert first.startswith(start)
    assert first[len(start) : len(start) + 1] in {":", " ", "/"} or len(start) == _SHOWN
    assert all(line.startswith(_LABELS) for line in rest)
    message = ran.stderr.removeprefix(f"error: {where}")
    assert re.search(says, message, re.DOTALL), message[:MOST_CHARACTERS]
    assert len(message) < MOST_CHARACTERS


def snapshot(folder: Path) -> dict[str, object]:
    """All that is in a folder and below it: small files with their bytes, links with their ends."""
    return {
        str(path): (
            path.lstat().st_mode,
            path.lstat().st_ino,
            path.readlink() if path.is_symlink() else None,
            path.read_bytes() if path.is_file() and path.stat().st_size < 1 << 20 else None,
        )
        for path in folder.rglob("*")
    }


def hold_refused_by_all(
    wn_here: RunHere, path: Path, says: str, where: Path | str | None = None
) -> None:
    """Refused by `inspect`, and by `convert`, which leaves what is there.

    `where` is what the message is about, where it is not the path.
    """
    output = path.parent / "out.pt"
    output.write_bytes(b"precious")
    before = snapshot(path.parent)
    hold_refused(wn_here("inspect", path), where or path, says)
    hold_refused(wn_here("convert", path, output, "--force"), where or path, says)
    assert snapshot(path.parent) == before
