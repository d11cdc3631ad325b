"""Fuzzes a reader with atheris: `python -m fuzz.run --help`; see README.md beside this."""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
READERS = ("safetensors", "torch-zip", "torch-legacy", "index", "distributed")
#: Bytes of the longest input; the seeds have less than half of them.
LONGEST = 20_000


def main(arguments: Sequence[str] | None = None) -> int:
    """Fuzz, print what came of it; 1 where there is a finding."""
    options = _parse(arguments)
    findings = Path(options.findings or tempfile.mkdtemp(prefix="fuzz-"))
    findings.mkdir(parents=True, exist_ok=True)
    memory = Path("/dev/shm")  # noqa: S108 - a folder of its own in there
    fast = memory if memory.is_dir() else None
    with (
        tempfile.TemporaryDirectory(dir=fast) as corpus,
        tempfile.TemporaryDirectory(dir=fast) as work,
    ):
        for seed in sorted((HERE / "seeds" / options.reader).glob(_seeds_of(options.reader))):
            shutil.copy(seed, corpus)
        code, log = _fuzz(options, corpus, findings, work)
        _report(options.reader, findings, log)
        lines = _lines(options.reader, corpus)
    last = findings / "last"
    if code:
        last.rename(findings / f"ended-with-{code}")
        (findings / f"ended-with-{code}.txt").write_text(log)
    last.unlink(missing_ok=True)
    (findings / "counts.json").unlink(missing_ok=True)
    print(f"lines of wncli/formats: {lines}")
    found = sorted(path.stem for path in findings.glob("*.txt"))
    print(f"findings: {len(found)}", *found, sep="\n  ")
    if found:
        print(f"in {findings}")
    else:
        with contextlib.suppress(OSError):
            findings.rmdir()
    return 1 if found else 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("reader", choices=READERS)
    parser.add_argument("--seconds", type=int, default=60, help="how long (60)")
    parser.add_argument("--executions", type=int, default=-1, help="how many, at most")
    parser.add_argument("--seed", type=int, default=0, help="of libFuzzer's random numbers")
    parser.add_argument("--findings", help="folder for the inputs that broke something")
    return parser.parse_args(arguments)


def _seeds_of(reader: str) -> str:
    return {"index": "*.json", "distributed": ".metadata"}.get(reader, "*")


def _fuzz(options: argparse.Namespace, corpus: str, findings: Path, work: str) -> tuple[int, str]:
    """Return the exit code of the process that fuzzes, and what libFuzzer said of it."""
    command = [
        *(sys.executable, "-m", "fuzz.target", options.reader, str(findings), work, "--"),
        *(corpus, f"-max_total_time={options.seconds}", f"-runs={options.executions}"),
        *(f"-seed={options.seed}", f"-max_len={LONGEST}", "-timeout=0", "-rss_limit_mb=0"),
        *("-print_final_stats=1", f"-artifact_prefix={findings}/"),
    ]
    ran = subprocess.run(command, stderr=subprocess.PIPE, check=False, text=True, errors="replace")
    return ran.returncode, ran.stderr


def _report(reader: str, findings: Path, log: str) -> None:
    edges = re.findall(r"cov: (\d+) ft: (\d+) corp: (\d+)", log)
    runs = re.search(r"number_of_executed_units: (\d+)", log)
    with contextlib.suppress(FileNotFoundError):
        counts = json.loads((findings / "counts.json").read_text())
        print(f"{reader}: {runs[1] if runs else counts['executions']} executions", end="")
        print(f", {counts['opened'] / counts['executions']:.0%} of them opened")
    if edges:
        (first, *_), (last, features, inputs) = edges[0], edges[-1]
        print(f"edges: {first} by the seeds, {last} in the end", end="")
        print(f" ({features} features, {inputs} inputs)")


def _lines(reader: str, corpus: str) -> str:
    """How many lines the inputs reach that libFuzzer found to be worth keeping."""
    command = [sys.executable, "-m", "fuzz.lines", reader, corpus]
    ran = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    found: dict[str, tuple[int, int]] = json.loads(ran.stdout)
    met = {name: counts for name, counts in found.items() if counts[0]}
    shown = [f"\n  {name}: {count} of {most}" for name, (count, most) in met.items()]
    totals = [sum(numbers) for numbers in zip(*met.values(), strict=True)]
    return f"{totals[0]} of {totals[1]} in the files that were reached{''.join(shown)}"


if __name__ == "__main__":
    sys.exit(main())
