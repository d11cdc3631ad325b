"""Compares what `wn` lists with what torch.load runs on random files: `python -m fuzz.would_run`.

See README.md beside it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.support.unlisted import Count, look_at

#: Files that one process loads, before another starts.
_AT_ONCE = 500


def main(arguments: Sequence[str] | None = None) -> int:
    """Make files, load all of them; 1 where one ran something that is not listed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("--files", type=int, default=10_000, help="how many (10000)")
    parser.add_argument("--seed", type=int, default=0, help="of the first file")
    parser.add_argument("--findings", help="folder for the files that ran something unlisted")
    options = parser.parse_args(arguments)
    findings = Path(options.findings or tempfile.mkdtemp(prefix="would-run-"))
    findings.mkdir(parents=True, exist_ok=True)
    total = Count()
    for first in range(options.seed, options.seed + options.files, _AT_ONCE):
        last = min(first + _AT_ONCE, options.seed + options.files)
        total += look_at(range(first, last), findings)
    print(f"{total.files} files: {total.listed} listed, {total.ran} ran something")
    print(f"of these not listed: {len(total.unlisted)}", *total.unlisted, sep="\n  ")
    return 1 if total.unlisted else 0


if __name__ == "__main__":
    sys.exit(main())
