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


@pytest.mark.parametrize("seed", ["1", "2"])
def test_a_file_is_the_same_tensors_to_wn_and_to_its_library_or_refused(seed: str) -> None:
    code, said, counts = fuzzed("--files", "2000", "--seed", seed)
    assert code == 0, said
    assert counts["finding"] == 0, said
    # Whoever refuses everything is never wrong.
    assert counts["read by both and same"] > 800, said
    assert counts["honest"] == counts["of them the same to both"] > 400, said
