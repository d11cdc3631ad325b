"""What was measured: the runs of one command and its contenders, and the ratios between them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.checkpoints import Checkpoint
from benchmarks.contenders import TORCH, TYPER, Command
from benchmarks.measure import Samples
from benchmarks.show import Table

_HEADERS = ("checkpoint", "process", "wall s", "CPU s", "s/GB", "peak MB", "wn ÷ it")


@dataclass(frozen=True, slots=True)
class Result:
    """One command on one checkpoint.

    Args:
        command: of `wn`.
        checkpoint: None for `help`.
        nbytes: what the command reads, both files for `compare`; 0 for `help`.
        samples: of `wn` first, then of what it is held against.
        missing: what it could not be held against, and why.
    """

    command: Command
    checkpoint: Checkpoint | None
    nbytes: int
    samples: tuple[Samples, ...]
    missing: tuple[tuple[str, str], ...] = ()

    @property
    def ours(self) -> Samples:
        """Those of `wn`."""
        return self.samples[0]

    @property
    def label(self) -> str:
        """What was measured on."""
        case = self.checkpoint
        if case is None:
            return "no file"
        kind = "folder" if self.command == "folder" else case.format
        files = " in two files" if self.command == "compare" else ""
        facts = (f"{kind}{files}", case.dtype, f"dim {case.dim_name}", case.share)
        return f"{self.nbytes / 1e6:,.1f} MB {', '.join(facts)}"

    def ratio(self, name: str) -> float | None:
        """Wall time of `wn` divided by that of the named process; None where there is none."""
        named = [its for its in self.samples if its.process.name == name]
        return self.ours.relative_to(named[0]) if named else None

    @property
    def rows(self) -> Iterator[tuple[str, ...]]:
        """The cells of the table, a row per process."""
        label = self.label
        for its in self.samples:
            reads = self.nbytes and its.process.name not in {TORCH, TYPER}
            yield (
                label,
                its.process.name,
                f"{its.wall:.3f}",
                f"{its.cpu:.3f}",
                f"{its.wall / self.nbytes * 1e9:.2f}" if reads else "",
                f"{its.peak / 1e6:.0f}",
                "" if its is self.ours else f"{self.ours.relative_to(its):.2f}",
            )
            label = ""
        for name, reason in self.missing:
            yield (label, f"{name}: {reason}", "", "", "", "", "")
            label = ""


def main_table(results: Sequence[Result]) -> Table:
    """All processes with their figures."""
    rows = tuple(row for result in results for row in result.rows)
    return Table("Processes", _HEADERS, rows, texts=2)
