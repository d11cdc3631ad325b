"""Notes: what a reader of the report should know beside the counts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Note:
    """One remark.

    Attributes:
        code: what kind it is of, for programs: it stays the same.
        message: what there is to know, for people.
        where: the layer, entry or file that it is about.
        is_warning: whether something may have to be done.
    """

    code: str
    message: str
    where: str = ""
    is_warning: bool = False
