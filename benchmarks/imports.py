"""Which imports take the start-up time of `wn inspect`, as `python -X importtime` tells."""

from __future__ import annotations

import re
import statistics
import subprocess
from collections import defaultdict
from collections.abc import Sequence

from benchmarks.measure import ProcessFailedError
from benchmarks.show import Table

_SHOWN = 12
# "import time:      1479 |       3858 | rich.table": microseconds (own and cumulative), the name
# indented by the depth of the import.
_LINE = re.compile(r"import time: +(\d+) \| +(\d+) \| +(\S+)$")


def import_table(command: Sequence[str], runs: int) -> Table:
    """Run the command, which has `-X importtime`, and list what takes longest by itself.

    Raises:
        ProcessFailedError: it failed.
    """
    own: dict[str, list[int]] = defaultdict(list)
    cumulative: dict[str, list[int]] = defaultdict(list)
    totals: list[int] = []
    for _ in range(runs + 1):  # the first fills the caches
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if ended.returncode:
            raise ProcessFailedError(f"{' '.join(command)}: {ended.stderr.strip()}")
        found = [match.groups() for match in map(_LINE.match, ended.stderr.splitlines()) if match]
        for alone, together, name in found:
            own[name].append(int(alone))
            cumulative[name].append(int(together))
        totals.append(sum(int(alone) for alone, _, _ in found))
    slowest = sorted(own, key=lambda name: -_median(own[name]))[:_SHOWN]
    rows = [("all", str(len(own)), f"{_median(totals):.1f}", "")]
    rows += [
        (name, "", f"{_median(own[name]):.1f}", f"{_median(cumulative[name]):.1f}")
        for name in slowest
    ]
    headers = ("import", "modules", "own ms", "with what it imports ms")
    return Table("Slowest imports of wn inspect (-X importtime)", headers, tuple(rows), texts=1)


def _median(microseconds: Sequence[int]) -> float:
    """In milliseconds, without the first run where there are more."""
    return statistics.median(microseconds[1:] or microseconds) / 1000
