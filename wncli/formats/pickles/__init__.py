"""Pickles as inert data: read without importing or calling anything, and written again."""

from __future__ import annotations

try:
    from wncli.formats.pickles import opcodes
except ImportError:  # it was not built
    opcodes = None  # type: ignore[assignment]

__all__ = ["opcodes"]
