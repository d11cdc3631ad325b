"""Finds what distributed training leaves in place of whole tensors, and says how to gather them.

Sources: DeepSpeed `runtime/zero/partition_parameters.py` (a partitioned parameter's data is of size
0, before 0.5 of size 1), PyTorch `torch/distributed/fsdp/_flat_param.py`, and
`torch/distributed/checkpoint/hf_storage.py` (`DCP_SHARDING_INFO`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from wncli.checkpoint.checkpoint import SHARDING_INFO, Checkpoint, StateDict
from wncli.checkpoint.naming import read_half, split
from wncli.checkpoint.tensors import TensorSpec
from wncli.errors import FormatError, few
from wncli.formats.distributed import SHARD
from wncli.hints import inspecting, phrase
from wncli.notes import Note
from wncli.plan.survey import Survey

_FLAT = ("_flat_param", "flat_param")
_PLACED = re.compile(r'"saved_offsets"\s*:\s*\[[^]]*[1-9]')
_WHOLE_NAME = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")


class Ungathered(NamedTuple):
    """What is in a state dict in place of whole tensors: `names` are theirs."""

    code: str
    problem: str
    names: tuple[str, ...]
    hint: str


def find_ungathered(checkpoint: Checkpoint, state_dict: StateDict) -> Ungathered | None:
    """Return what has to be gathered before this state dict is one; None where nothing has."""
    if state_dict.parts:
        return Ungathered(
            "distributed-tensors",
            "DTensor or ShardedTensor: each rank has a part of these tensors",
            state_dict.parts,
            hint="save get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))"
            " of torch.distributed.checkpoint.state_dict, called on every rank",
        )
    names = [spec.name for spec in state_dict.tensors]
    flat = tuple(name for name in names if split(name)[1].startswith(_FLAT))
    if flat:
        return Ungathered(
            "flat-parameters",
            "FSDP has flattened the parameters into these, a part on each rank",
            flat,
            hint="save model.state_dict() under FSDP.state_dict_type(model,"
            " StateDictType.FULL_STATE_DICT), called on every rank",
        )
    if _is_distributed_shard(checkpoint):
        path = Path(checkpoint.name)
        folder = repr(str(path.parent))
        return Ungathered(
            "distributed-shard",
            "this is a shard of a distributed checkpoint: it has some rows of each tensor",
            tuple(names),
            hint=phrase("give the directory, which has all of them: {}", inspecting(path.parent))
            if SHARD.fullmatch(path.name)
            else "load all shards with torch.distributed.checkpoint.load(state_dict,"
            f" storage_reader=HuggingFaceStorageReader({folder})), and save the state dict",
        )
    ranks = [e.summary for e in checkpoint.entries if e.path == "mp_world_size"]
    if ranks and ranks[0].isdigit() and int(ranks[0]) > 1:
        return Ungathered(
            "model-parallel",
            f"this is the part of one of {ranks[0]} model-parallel ranks",
            tuple(names),
            "gather the parts with the code that trained the model, and save its state dict",
        )
    placeholders = _placeholders(state_dict.tensors)
    if placeholders:
        return Ungathered(
            "placeholders",
            "these are placeholders, as DeepSpeed's ZeRO-3 has in place of partitioned parameters",
            placeholders,
            hint="gather them with the zero_to_fp32.py that DeepSpeed puts into the folder that it"
            " saves to",
        )
    return None


def refuse_ungathered(checkpoint: Checkpoint, surveys: Iterable[Survey]) -> None:
    """Nothing is computed with parts of tensors.

    Raises:
        FormatError: one of the state dicts has to be gathered first.
    """
    for found in surveys:
        ungathered = find_ungathered(checkpoint, found.state_dict)
        if ungathered:
            raise FormatError(
                _where(checkpoint, found.state_dict),
                ungathered.problem,
                expected="whole tensors",
                found=few(ungathered.names),
                hint=ungathered.hint,
            )


def ungathered_notes(checkpoint: Checkpoint, surveys: Sequence[Survey]) -> list[Note]:
    """Warn of each state dict that has to be gathered first."""
    notes = []
    for found in surveys:
        ungathered = find_ungathered(checkpoint, found.state_dict)
        if ungathered:
            names = few(ungathered.names)
            message = phrase("{}: {}; {}", ungathered.problem, names, ungathered.hint)
            root = found.state_dict.root
            notes.append(Note(ungathered.code, message, root, is_warning=True))
    return notes


def _where(checkpoint: Checkpoint, state_dict: StateDict) -> str:
    return f"{checkpoint.name}: {state_dict.root}" if state_dict.root else checkpoint.name


def _placeholders(tensors: Sequence[TensorSpec]) -> tuple[str, ...]:
    """Return the tensors without numbers, where they show that the state dict has been partitioned.

    A direction of one element is no weight's, whatever is whole beside it: ZeRO-3 does not
    partition small parameters. Of plain weights half are empty, or all have one element, as a
    PReLU's has.
    """
    tiny = [spec for spec in tensors if spec.shape in {(0,), (1,)}]
    kinds = [(spec, _is_direction(spec), _is_weight(spec)) for spec in tiny]
    empty = sum(is_weight for spec, _, is_weight in kinds if spec.shape == (0,))
    single = sum(is_weight for spec, _, is_weight in kinds if spec.shape == (1,))
    if not empty + single:
        return ()
    names = tuple(s.name for s, _, is_weight in kinds if s.shape == (0,) or is_weight)
    if any(is_direction for _, is_direction, _ in kinds):
        return names
    weights = sum(map(_is_weight, tensors))
    is_partitioned = weights > 1 and (2 * empty >= weights or empty + single == weights)
    return names if is_partitioned else ()


def _is_direction(spec: TensorSpec) -> bool:
    half = read_half(spec.name)
    return half is not None and half.role == "v" and half.parameter.startswith("weight")


def _is_weight(spec: TensorSpec) -> bool:
    return split(spec.name)[1] == "weight" or _is_direction(spec)


def _is_distributed_shard(checkpoint: Checkpoint) -> bool:
    """Whether the tensors are parts, which the shapes in a shard do not show.

    A file that torch wrote whole says the same of its tensors as the first rank's shard does; it
    has another name, and an index beside it.
    """
    info = (checkpoint.metadata or {}).get(SHARDING_INFO)
    if info is None:
        return False
    is_whole = checkpoint.index is not None or _WHOLE_NAME.fullmatch(Path(checkpoint.name).name)
    return not is_whole or _PLACED.search(info) is not None
