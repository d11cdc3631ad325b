"""What the project wants to reach, beside what was measured. It judges nothing: no exit code."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from benchmarks.contenders import CP, SCRIPT, TORCH, TYPER, Command
from benchmarks.results import Result
from benchmarks.show import Table

_LARGE = 500 * 10**6
_PEAK = 100 * 10**6
_HALF_PRECISION = 2.0


@dataclass(frozen=True, slots=True)
class Target:
    """A limit for the wall time of `wn` as a part of another process's.

    Args:
        against: the name of the other process.
        limit: the largest ratio, as it is written.
        commands: those that it is for.
        applies: to which of their results.
    """

    against: str
    limit: str
    commands: tuple[Command, ...]
    applies: Callable[[Result], bool] = lambda _: True


def _is_small(result: Result) -> bool:
    return result.nbytes < _LARGE


def _is_large(result: Result) -> bool:
    return result.nbytes >= _LARGE


def _is_large_safetensors(result: Result) -> bool:
    return _is_large(result) and _format(result) == "safetensors"


def _is_large_torch(result: Result) -> bool:
    return _is_large(result) and _format(result) == "torch"


def _is_sparse(result: Result) -> bool:
    return result.checkpoint is not None and result.checkpoint.every >= 100  # noqa: PLR2004


def _format(result: Result) -> str:
    return result.checkpoint.format if result.checkpoint else ""


TARGETS = (
    Target(TYPER, "2.5", ("help", "inspect")),
    Target(TORCH, "1/8", ("help", "inspect")),
    Target(SCRIPT, "1/6", ("remove", "apply"), _is_small),
    Target(TORCH, "1/4", ("remove", "apply"), _is_small),
    Target(CP, "1.3", ("remove",), _is_large_safetensors),
    Target(CP, "1.6", ("remove",), _is_large_torch),
    Target(SCRIPT, "1/6", ("remove",), _is_large),
    Target(CP, "1.15", ("apply", "convert", "respell"), _is_sparse),
)


def target_table(results: Sequence[Result]) -> Table:
    """Every target that something was measured for."""
    measured = [result for result in results if result.samples]
    rows = (*_ratios(measured), *_peaks(measured), *_half_precision(measured))
    headers = ("target", "checkpoint", "limit", "measured", "reached")
    return Table("Targets", headers, rows, texts=2)


def _ratios(results: Sequence[Result]) -> Iterator[tuple[str, ...]]:
    for target in TARGETS:
        for result in results:
            if result.command not in target.commands or not target.applies(result):
                continue
            ratio = result.ratio(target.against)
            if ratio is not None:
                what = f"{result.ours.process.name} ÷ {target.against}"
                limit = float(Fraction(target.limit))
                reached = _yes(ratio <= limit)
                yield what, result.label, target.limit, f"{ratio:.3f}", reached


def _peaks(results: Sequence[Result]) -> Iterator[tuple[str, ...]]:
    """Peak memory, which has the same limit for every command and size."""
    for result in results:
        peak = result.ours.peak
        what = f"{result.ours.process.name}, peak memory"
        measured = f"{peak / 1e6:.0f} MB"
        yield what, result.label, f"{_PEAK // 10**6} MB", measured, _yes(peak <= _PEAK)


def _half_precision(results: Sequence[Result]) -> Iterator[tuple[str, ...]]:
    """Time per byte in two-byte floats, against that of the same command in float32."""
    for result in results:
        case = result.checkpoint
        if case is None or case.dtype not in {"bfloat16", "float16"}:
            continue
        wanted = (result.command, replace(case, dtype="float32"))
        for other in results:
            if (other.command, other.checkpoint) == wanted:
                per_byte = result.ours.wall / result.nbytes
                ratio = per_byte / (other.ours.wall / other.nbytes)
                what = f"{result.ours.process.name}, time per byte ÷ float32"
                reached = _yes(ratio <= _HALF_PRECISION)
                yield what, result.label, f"{_HALF_PRECISION:g}", f"{ratio:.3f}", reached


def _yes(is_so: bool) -> str:  # noqa: FBT001 - it says what it is told
    return "yes" if is_so else "no"
