"""Counts which lines of the readers some inputs reach: `python -m fuzz.lines READER INPUTS`.

A process of its own, because tracing slows down everything else.
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, cast

from fuzz.exercise import Exercise, Reader

FORMATS = Path(__file__).resolve().parents[1] / "wncli" / "formats"


class Reached:
    """The lines of the files in a folder that have been run."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)
        self.lines: dict[str, set[int]] = {}

    def trace(self, frame: FrameType, _event: str, _arg: Any) -> Callable[..., Any] | None:  # noqa: ANN401
        """As `sys.settrace` wants it."""
        name = frame.f_code.co_filename
        if not name.startswith(self.folder):
            return None
        reached = self.lines.setdefault(name, set())
        reached.add(frame.f_lineno)

        def line(frame: FrameType, _event: str, _arg: Any) -> Callable[..., Any]:  # noqa: ANN401
            reached.add(frame.f_lineno)
            return line

        return line


def lines_of(path: Path) -> set[int]:
    """Return the lines of functions that can be run; those of the module itself always are."""

    def inner(code: CodeType) -> Iterator[CodeType]:
        for found in code.co_consts:
            if isinstance(found, CodeType):
                yield found
                yield from inner(found)

    module = compile(path.read_text(), str(path), "exec")
    return {line for code in inner(module) for *_, line in code.co_lines() if line}


def main() -> None:
    """Run every input; print the lines of each file, and how many of them were reached."""
    reader, inputs = cast("Reader", sys.argv[1]), Path(sys.argv[2])
    reached = Reached(FORMATS)
    with tempfile.TemporaryDirectory() as folder:
        exercise = Exercise(reader, Path(folder))
        threading.settrace(reached.trace)
        sys.settrace(reached.trace)
        for path in sorted(inputs.iterdir()):
            try:
                exercise.run(path.read_bytes())
            except Exception:  # noqa: BLE001, S112 - it is among the findings
                continue
        sys.settrace(None)
    found = {}
    for path in sorted(FORMATS.rglob("*.py")):
        lines = lines_of(path)
        name = str(path.relative_to(FORMATS))
        found[name] = len(lines & reached.lines.get(str(path), set())), len(lines)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
