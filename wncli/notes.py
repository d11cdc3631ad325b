"""Notes: what a reader of the report should know beside the counts."""

from __future__ import annotations

from typing import NamedTuple


class Note(NamedTuple):
    """One remark.

    `code` is for programs and stays the same, `message` is for people, `where` is the layer, entry
    or file that it is about. `is_warning` marks what may need action.
    """

    code: str
    message: str
    where: str = ""
    is_warning: bool = False
