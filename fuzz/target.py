"""The fuzzer's own process: libFuzzer calls it with input after input; `run.py` starts it.

A finding does not end the process: each new one, by where its exception was raised, is kept in a
file of its own, with the traceback beside it.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import sys
import traceback
import warnings
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, cast
from zlib import crc32

if TYPE_CHECKING:
    from fuzz.exercise import Reader
    from tests.support.mutations import Mutation

#: How often to begin with an input that was opened, how many to keep for that, how often to leave
#: it to libFuzzer, and how often to take a mutation that knows the format.
_ANEW, _KEPT, _PLAIN, _KNOWING = 0.5, 500, 0.2, 0.75
#: The file that holds the last input, where the process did not live to say more.
LAST = "last"
COUNTS = "counts.json"


class Findings:
    """The folder of findings, and which are known."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.known: set[str] = set()

    def add(self, error: BaseException, data: bytes) -> None:
        """Keep an input if it is the first whose exception comes from there."""
        frames = [f for f in traceback.extract_tb(error.__traceback__) if "/wncli/" in f.filename]
        at = f"{Path(frames[-1].filename).stem}-{frames[-1].lineno}" if frames else "fuzz"
        name = f"{type(error).__name__}-{at}"
        if name in self.known:
            return
        self.known.add(name)
        (self.folder / name).write_bytes(data)
        text = "".join(traceback.format_exception(error))
        (self.folder / f"{name}.txt").write_text(text)


def import_everything() -> None:
    """Import all rooms but those of the command line."""
    import wncli

    for found in pkgutil.walk_packages(wncli.__path__, "wncli."):
        if not found.name.startswith(("wncli.cli", "wncli.__main__")):
            importlib.import_module(found.name)


class Mutator:
    """libFuzzer's custom mutator: changes that know the format, and libFuzzer's own.

    Nearly all that comes of a change is refused on opening, and so would be all that comes of that.
    Therefore it begins anew, again and again, with an input that was opened.
    """

    def __init__(self, reader: Reader, atheris: Any) -> None:  # noqa: ANN401 - it has no types
        from fuzz.exercise import seeds_of
        from tests.support.mutations import BYTES, INDEX, LEGACY, PICKLE, SAFETENSORS, splice
        from tests.support.zip_mutations import ZIP

        tables: dict[Reader, dict[str, Mutation]] = {
            "safetensors": SAFETENSORS,
            "torch-zip": ZIP,
            "torch-legacy": LEGACY,
            "index": INDEX,
            "distributed": PICKLE,
        }
        self.atheris = atheris
        self.opened = [seed.read_bytes() for seed in seeds_of(reader)]
        self.seeds = len(self.opened)
        self.knowing = [made for name, made in tables[reader].items() if name not in BYTES]
        self.others = [*BYTES.values(), *(splice(seed) for seed in self.opened)]

    def remember(self, data: bytes) -> None:
        """Take an input that was opened for those to begin with, in place of an older one."""
        if len(self.opened) < self.seeds + _KEPT:
            self.opened.append(data)
        else:
            self.opened[self.seeds + crc32(data) % _KEPT] = data

    def __call__(self, data: bytes, most: int, seed: int) -> bytes:
        """Another input, of `most` bytes."""
        random = Random(seed)  # noqa: S311 - nothing is kept secret
        if random.random() < _ANEW:
            data = random.choice(self.opened)
        if random.random() < _PLAIN:
            mutated: bytes = self.atheris.Mutate(data, most)  # there only once Fuzz() has begun
            return mutated
        for _ in range(random.choice((1, 1, 2, 3))):
            knows = random.random() < _KNOWING
            data = random.choice(self.knowing if knows else self.others)(data, random)
        return data[:most]


def main() -> None:
    """Fuzz until libFuzzer's options, which come behind `--`, say that it is enough."""
    reader, work = cast("Reader", sys.argv[1]), Path(sys.argv[2])
    atheris: Any = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["wncli"]):
        import_everything()
    from fuzz.exercise import Exercise

    warnings.simplefilter("error")
    findings = Findings(work)
    mutator = Mutator(reader, atheris)
    exercise = Exercise(reader, Path(sys.argv[3]))
    counts = {"executions": 0, "opened": 0}

    def one(data: bytes) -> None:
        counts["executions"] += 1
        (work / LAST).write_bytes(data)
        try:
            if exercise.run(data):
                counts["opened"] += 1
                mutator.remember(data)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding
            findings.add(error, data)
        if counts["executions"] % 256 == 0:
            (work / COUNTS).write_text(json.dumps(counts))

    arguments = sys.argv[sys.argv.index("--") :]
    atheris.Setup(arguments, one, custom_mutator=mutator)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
