"""Takes from REFERENCE what CHECKPOINT has no tensors for: `wn convert --like --fill`. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from wncli.checkpoint.checkpoint import Checkpoint
from wncli.checkpoint.pairs import Pair
from wncli.checkpoint.tensors import TensorSpec
from wncli.hints import parameter, phrase, setting
from wncli.plan.actions import Copy, Part
from wncli.plan.guards import refuse_damage, refuse_expansion, refuse_growth
from wncli.plan.pairing import Place
from wncli.plan.survey import Survey

_WITHOUT = phrase(
    "{} writes what matches, in place of {}", setting(partial=True), parameter("fill")
)


def parts_to_fill(
    checkpoint: Checkpoint, reference: Checkpoint, theirs: Sequence[Survey], lacking: set[Place]
) -> tuple[Part, ...]:
    """Copy what is `lacking`, by root and plain name, from REFERENCE's files.

    These are numbered behind those of the checkpoint.

    Raises:
        FormatError: REFERENCE's bytes are damaged, or a tensor of it is out of all proportion.
    """
    if not lacking:
        return ()
    refuse_damage(reference)
    first = max(1, len(checkpoint.shards))
    parts = []
    for found in theirs:
        state_dict = found.state_dict
        wanted: list[TensorSpec] = []
        for name, item in found.plain.items():
            if (state_dict.root, name) in lacking:
                wanted += (item.g, item.v) if isinstance(item, Pair) else (item,)
        for spec in wanted:
            refuse_expansion(reference, spec, _WITHOUT)
        refuse_growth(reference, ((spec, None) for spec in wanted), lambda _: _WITHOUT)
        tensors = tuple(
            spec._replace(storage=spec.storage._replace(file=spec.storage.file + first))
            for spec in wanted
        )
        if tensors:
            own = state_dict._replace(tensors=tensors, others=())
            copies = tuple(Copy(spec, spec.name) for spec in tensors)
            parts.append(Part(own, copies, state_dict.keys, keeps_others=False, is_filled=True))
    return tuple(parts)
