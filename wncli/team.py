"""The ranks that run a command together: what they exchange, and how one's failure ends all.

All ranks make the same exchanges in the same order. Where one is refused, its refusal takes the
place of its next message, so that each gets it and none waits for the others. What is exchanged is
JSON, never a pickle.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import wncli
from wncli.errors import FileError, FormatError, UsageError, WeightNormError, WnError
from wncli.hints import Text, in_shell
from wncli.notes import Note
from wncli.parallel import Advance, run_tasks

Value = TypeVar("Value")
Item = TypeVar("Item")
Given = ParamSpec("Given")
#: What `json.dumps` takes.
Json = Any

_KINDS: dict[str, type[WnError]] = {
    kind.__name__: kind for kind in (FileError, FormatError, UsageError, WeightNormError)
}
_PARTS = ("where", "problem", "expected", "found", "hint")


class AlarmError(Exception):
    """Another rank is refused, it seems: what this one does is in vain."""


class LostError(WnError):
    """Another rank has ended, or is silent, so that nothing can be exchanged any more."""


class Team:
    """The ranks that share a command's work; this class is the team of a process alone.

    Attributes:
        rank: the number of this process among them.
        size: how many there are.
        jobs: threads that each starts at most where nothing else is asked for; None for as many as
            there are processors.
        is_spread: whether they are on several machines, which see what one writes once that is on
            the disk.
    """

    rank = 0
    size = 1
    jobs: int | None = None
    is_spread = False
    #: What all ranks know that it has ended an operation, and whether one of them is gone.
    refused: Exception | None = None
    is_lost = False

    def exchange(self, message: bytes) -> list[bytes]:
        """Return the messages of all ranks, in their order, on each."""
        return [message]

    def alarm(self) -> None:
        """Let the others know, before the next exchange, that this rank is refused."""

    def look(self) -> None:
        """Look whether another rank has given the alarm, or is gone.

        Raises:
            AlarmError: it is refused.
            LostError: it is gone.
        """

    def gather(
        self,
        value: Value,
        pack: Callable[[Value], Json] = lambda value: value,
        unpack: Callable[[Json], Value] = lambda value: value,
    ) -> list[Value]:
        """Return the values of all ranks, in their order, on each.

        Raises:
            WnError: what another rank is refused with.
        """
        if self.size == 1:
            return [value]
        found = self._exchange({"value": pack(value)})
        return [unpack(message["value"]) for message in found]

    def wait(self) -> None:
        """Wait until all ranks have come here."""
        self.gather(None)

    @contextmanager
    def operation(self) -> Iterator[None]:
        """Run the block on all ranks to its end, or on none.

        Raises:
            WnError: what another rank is refused with, where this one is not.
        """
        try:
            yield
            self.wait()
        except LostError:
            self.is_lost = True
            raise
        except Exception as error:
            if self.size > 1 and error is not self.refused:
                self._tell(error)
            raise
        except BaseException:  # an interruption: this process ends, and the others are to notice
            self.alarm()
            raise

    def _tell(self, error: Exception) -> None:
        """Have all ranks know what this one is refused with.

        Raises:
            WnError: what another one is refused with, or that it is gone, where that is why.
        """
        self.alarm()
        try:
            self._exchange(_refusal(error, self.rank))
        except LostError:
            self.is_lost = True
            if isinstance(error, AlarmError):
                raise
        self.refused = error

    def _exchange(self, message: Json) -> list[Json]:
        """Exchange messages, of which some may be refusals.

        Raises:
            WnError: another rank is refused, and this one is not, or only because of that.
        """
        import json

        found = [json.loads(one) for one in self.exchange(json.dumps(message).encode())]
        refusals = [one for one in found if "problem" in one]
        if refusals and ("problem" not in message or "is_alarmed" in message):
            causes = [one for one in refusals if "is_alarmed" not in one]
            self.refused = _refused_elsewhere((causes or refusals)[0])
            raise self.refused
        return found


#: This process alone.
ALONE = Team()


def together(function: Callable[Given, Value]) -> Callable[Given, Value]:
    """Have all ranks of the argument `team` run a function to its end, or none."""

    @wraps(function)
    def run(*args: Given.args, **kwargs: Given.kwargs) -> Value:
        team = kwargs.get("team")
        with team.operation() if isinstance(team, Team) else ALONE.operation():
            return function(*args, **kwargs)

    return run


def agree(team: Team, inputs: Sequence[tuple[str, Sequence[int]]], plan: Iterable[object]) -> None:
    """Compare what the ranks see, before any of them does anything about it.

    Args:
        team: the ranks.
        inputs: the files that are read: their names, and numbers that tell one from another.
        plan: what is going to be done, in parts that their `repr` tells apart.

    Raises:
        FileError: an input is another on one of the ranks.
        WnError: the ranks have different versions of `wn`, or would do different things.
    """
    if team.size == 1:
        return
    import hashlib

    digest = hashlib.sha256()
    for part in plan:
        digest.update(repr(part).encode("utf-8", "surrogatepass"))
    stamps = [[name, list(numbers)] for name, numbers in inputs]
    own: Json = {"wn": wncli.__version__, "inputs": stamps, "plan": digest.hexdigest()}
    first, *others = team.gather(own)
    for rank, other in enumerate(others, 1):
        if first["wn"] != other["wn"]:
            raise WnError(
                "--ranks",
                f"ranks 0 and {rank} run different versions of wn",
                expected=first["wn"],
                found=other["wn"],
                hint="install the same version everywhere",
            )
        for one, its in zip(first["inputs"], other["inputs"], strict=False):
            if one[1] != its[1]:
                raise _different(one[0], rank, one[1], its[1])
        if first != other:
            raise _different("--ranks", rank, [], [])


def _different(where: str, rank: int, one: Sequence[int], other: Sequence[int]) -> FileError:
    seen = [f"{stamp[0]:,} bytes" for stamp in (one, other) if stamp]
    return FileError(
        where,
        f"ranks 0 and {rank} see different inputs",
        expected="the same files at the same paths, on a file system that all ranks share",
        found=f"{' and '.join(seen)}, of different times" if seen else "",
        hint="have every rank read the same files; rsync -t and cp -p keep the times of copies",
    )


def run_shared(  # noqa: PLR0913 - tasks, and who runs them
    team: Team,
    function: Callable[[Item, Advance], Value],
    items: Sequence[Item],
    *,
    sizes: Sequence[int],
    jobs: int | None,
    progress: Callable[[int], None],
    pack: Callable[[Value], Json] = lambda value: value,
    unpack: Callable[[Json], Value] = lambda value: value,
) -> list[Value]:
    """Call a function for all items, each on one rank and there on threads; see `run_tasks`.

    Args:
        team: the ranks.
        function: takes an item, and what to call with the bytes that it has just done.
        items: the same on all ranks.
        sizes: the bytes of each item.
        jobs: threads at most.
        progress: called with the bytes that this rank has just done.
        pack: turns a result into JSON.
        unpack: turns it back.

    Returns:
        The results, in the order of the items, on each rank.

    Raises:
        Exception: what a task has raised.
    """

    def report(count: int) -> None:
        team.look()
        progress(count)

    own = shared_out(sizes, team.size)[team.rank]
    results = run_tasks(
        function,
        [items[number] for number in own],
        nbytes=sum(sizes[number] for number in own),
        jobs=jobs,
        progress=report,
    )
    if team.size == 1:
        return results
    parts = team.gather(
        dict(zip(own, results, strict=True)),
        lambda found: [[number, pack(result)] for number, result in found.items()],
        lambda found: {number: unpack(result) for number, result in found},
    )
    every = {number: result for part in parts for number, result in part.items()}
    return [every[number] for number in range(len(items))]


def shared_out(sizes: Sequence[int], ranks: int) -> list[list[int]]:
    """Give each rank about as many bytes: the numbers of its items, in ascending order."""
    found: list[list[int]] = [[] for _ in range(ranks)]
    loads = [(0, rank) for rank in range(ranks)]
    for number in sorted(range(len(sizes)), key=lambda number: (-sizes[number], number)):
        load, rank = heapq.heappop(loads)
        found[rank].append(number)
        heapq.heappush(loads, (load + max(1, sizes[number]), rank))
    return [sorted(numbers) for numbers in found]


# -- as JSON --------------------------------------------------------------------------------------


def pack_note(note: Note) -> Json:
    """Turn a note into JSON."""
    return [note.code, _pack_text(note.message), note.where, note.is_warning]


def unpack_note(packed: Json) -> Note:
    """Turn it back."""
    code, message, where, is_warning = packed
    return Note(code, _unpack_text(message), where, is_warning=is_warning)


def _pack_text(text: str) -> Json:
    return [str(text), in_shell(text)] if isinstance(text, Text) else text


def _unpack_text(packed: Json) -> str:
    return packed if isinstance(packed, str) else Text(*packed)


def _refusal(error: Exception, rank: int) -> Json:
    if isinstance(error, AlarmError):
        return {"problem": str(error), "on": _named(rank), "is_alarmed": True}
    if not isinstance(error, WnError):
        return {"problem": f"{type(error).__name__}: {error}", "on": _named(rank)}
    found: Json = {part: _pack_text(getattr(error, part)) for part in _PARTS}
    kind = next((one.__name__ for one in type(error).__mro__ if one.__name__ in _KINDS), "")
    return {**found, "kind": kind, "on": _named(rank) if kind == "FileError" else ""}


def _named(rank: int) -> str:
    import socket

    return f"rank {rank} on {socket.gethostname()}"


def _refused_elsewhere(refusal: Json) -> WnError:
    parts = {part: _unpack_text(refusal.get(part, "")) for part in _PARTS}
    where, problem = parts.pop("where"), parts.pop("problem")
    if refusal["on"]:
        where = f"{refusal['on']}: {where}" if where else refusal["on"]
    return _KINDS.get(refusal.get("kind", ""), WnError)(where, problem, **parts)
