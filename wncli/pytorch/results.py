"""What the functions return: which layers, what loading left, what there is to know."""

from __future__ import annotations

from collections.abc import Iterable, Sized
from dataclasses import dataclass

from wncli.errors import few
from wncli.notes import Note
from wncli.report import Layer

#: What every function that makes new parameters says.
NEW_PARAMETERS = Note(
    "optimizer", "an optimizer made before holds the old parameters: make it again"
)


#: What they say beside that of a model that several ranks train.
WRAP_AGAIN = Note(
    "wrapper",
    "DistributedDataParallel averages gradients of the old parameters alone: wrap the model again",
    is_warning=True,
)


class Layers(tuple[str, ...]):  # noqa: SLOT001 - a tuple has no place for more
    """The full names of the weights that have changed, a plain tuple but for its `repr`.

    Attributes:
        notes: what there is to know beside that.
    """

    notes: tuple[Note, ...]

    def __new__(cls, names: Iterable[str], notes: Iterable[Note] = ()) -> Layers:  # noqa: D102, PYI034
        made = super().__new__(cls, names)
        made.notes = tuple(notes)
        return made

    def __reduce__(self) -> tuple[type[Layers], tuple[tuple[str, ...], tuple[Note, ...]]]:
        return Layers, (tuple(self), self.notes)

    def __repr__(self) -> str:
        lines = [f"{_counted(self)}: {few(self)}" if self else "no layers"]
        return f"<{'; '.join([*lines, *(note.message for note in self.notes)])}>"


def _counted(layers: Sized) -> str:
    return f"{len(layers)} layer{'' if len(layers) == 1 else 's'}"


@dataclass(frozen=True, slots=True, repr=False)
class Loaded:
    """What `load_weights` did.

    Attributes:
        missing: names of the model that the checkpoint has nothing for.
        unexpected: names of the checkpoint that the model has no place for.
        layers: those that were folded, split, or spelled otherwise on the way.
        notes: what else there is to know.
    """

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    layers: tuple[Layer, ...]
    notes: tuple[Note, ...]

    def __repr__(self) -> str:
        done = [f"{_counted(self.layers)} changed on the way"] if self.layers else []
        for word in ("missing", "unexpected"):
            names: tuple[str, ...] = getattr(self, word)
            done += [f"{len(names)} {word}: {few(names)}"] if names else []
        done += [note.message for note in self.notes if note.is_warning]
        return f"<Loaded: {'; '.join(done) or 'all names meet'}>"
