"""What a file of the hostile corpus is: `hostile_safetensors.py` and its siblings hold them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Hostile:
    """A checkpoint that breaks one rule, which its name in the corpus tells.

    `write` puts it at a path; `says` is a regular expression that the refusal has to match.
    """

    write: Callable[[Path], object]
    says: str


def holding(content: bytes, says: str) -> Hostile:
    """A plain file of these bytes."""
    return Hostile(lambda path: path.write_bytes(content), says)
