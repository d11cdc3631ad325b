"""`--ranks`: this process is one of several that `torchrun` has started for one command."""

from __future__ import annotations

import os
import sys
from contextlib import AbstractContextManager, nullcontext

from wncli.errors import UsageError
from wncli.hints import word
from wncli.team import ALONE, LostError, Team

OPTION = "--ranks"
#: What a launcher tells each rank.
_TOLD = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
#: What is answered without work to share.
_QUESTIONS = frozenset({"-h", "--help", "-V", "--version", "--show-completion"})

_team: Team = ALONE


def team() -> Team:
    """Return the ranks that run this command together; without `--ranks` this process alone."""
    return _team


def is_asked_for(arguments: list[str]) -> bool:
    """Tell whether `--ranks` is among the arguments."""
    return OPTION in _options(arguments)


def join(arguments: list[str]) -> list[str]:
    """Meet the other ranks, and return the arguments without `--ranks`.

    Only rank 0 says anything from now on. Questions about `wn` itself are answered without others.

    Raises:
        UsageError: no launcher has started this, or PyTorch is missing.
        LostError: the ranks do not meet.
    """
    global _team  # noqa: PLW0603 - it is about the process
    options = _options(arguments)
    kept = [one for one in options if one != OPTION] + arguments[len(options) :]
    missing = [name for name in _TOLD if not os.environ.get(name)]
    if missing and (kept[:1] in ([], ["help"]) or not _QUESTIONS.isdisjoint(kept)):
        return kept
    if missing:
        raise UsageError(
            OPTION,
            "no launcher has started this process as one of several",
            expected=f"{', '.join(_TOLD)} in the environment, as torchrun sets them",
            found=f"no {', '.join(missing)}",
            hint=f"torchrun --nproc-per-node 2 -m wncli {OPTION} {' '.join(map(word, kept))}",
        )
    if os.environ["RANK"] != "0" and not os.environ.get("WN_TRACEBACK"):
        _say_nothing()
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        from wncli.pytorch.ranks import join_ranks
    except ImportError:
        raise UsageError(
            OPTION,
            "ranks need PyTorch, with torch.distributed",
            hint="pip install 'wncli[torch]'",
        ) from None
    sys.argv[1:] = kept  # what messages quote
    _team = join_ranks()
    return kept


def _say_nothing() -> None:
    """Lead what this process prints, and the libraries that it has loaded, nowhere."""
    null = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(null, descriptor)
    os.close(null)


def operation() -> AbstractContextManager[None]:
    """Run the block on all ranks to its end, or on none."""
    return _team.operation() if _team.size > 1 else nullcontext()


def refuse_streams(stream: str) -> None:
    """Refuse `-` for a file: a rank has nothing of what is in the stream of another.

    Raises:
        UsageError: there are several ranks.
    """
    if _team.size > 1:
        raise UsageError(
            stream,
            "ranks have no stream in common",
            expected="the path of a file that all ranks can open",
        )


def leave(code: int) -> int:
    """Wait until all ranks are done, and return the exit code of rank 0, which has reported."""
    if _team.size == 1 or _team.is_lost:
        return code
    try:
        return int(_team.exchange(str(code).encode())[0])
    except LostError:
        return code


def _options(arguments: list[str]) -> list[str]:
    """Return the arguments up to `--`, behind which there are only files."""
    return arguments[: arguments.index("--")] if "--" in arguments else arguments
