"""What a file is to `wn` is what it is to PyTorch and safetensors, or it is refused."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest


def fuzzed(*options: str) -> tuple[int, str, dict[str, int]]:
    """A run of the differential fuzzer: its exit code, what it says, and what it counted."""
    ran = subprocess.run(
        [sys.executable, "-m", "fuzz.differential", "--jobs", "2", *options],
        capture_output=True,
        check=False,
        text=True,
    )
    said = ran.stdout + ran.stderr
    found = re.findall(r"(\d[\d,]*) ([a-z][a-z ]+)", ran.stdout)
    counts = {what: int(count.replace(",", "")) for count, what in found}
    return ran.returncode, said, counts


@pytest.mark.parametrize(
    ("seed", "files"),
    [
        pytest.param(1, 2000, id="1", marks=pytest.mark.slow),
        pytest.param(2, 2000, id="2", marks=pytest.mark.slow),
        pytest.param(3, 200, id="3"),
    ],
)
def test_a_file_is_the_same_tensors_to_wn_and_to_its_library_or_refused(
    seed: int, files: int
) -> None:
    code, said, counts = fuzzed("--files", str(files), "--seed", str(seed))
    assert code == 0, said
    assert counts["finding"] == 0, said
    # Whoever refuses everything is never wrong.
    assert counts["read by both and same"] > 0.4 * files, said
    assert counts["honest"] == counts["of them the same to both"] > 0.2 * files, said
