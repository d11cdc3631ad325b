"""What is done with every input: opened, reported on, planned, and some of them written."""

from __future__ import annotations

import contextlib
import json
import shutil
import zlib
from functools import partial
from pathlib import Path
from random import Random
from typing import Literal

import safetensors

from tests.support.bounds import bounded
from wncli import api
from wncli.checkpoint.naming import Naming
from wncli.errors import WnError
from wncli.report import Report

Reader = Literal["safetensors", "torch-zip", "torch-legacy", "index", "distributed"]
READERS: tuple[Reader, ...] = ("safetensors", "torch-zip", "torch-legacy", "index", "distributed")
#: What lists other files, by its name.
LISTS = {"index": "*.json", "distributed": ".metadata"}
SEEDS = Path(__file__).with_name("seeds")

#: How many of the inputs are written; all are planned and laid out.
_WRITTEN = 0.25
_SUFFIXES = (".pt", ".safetensors")


class UnsoundError(Exception):
    """The tool has written what it cannot read, or not what it has read."""


def seeds_of(reader: Reader) -> list[Path]:
    """Return the sound files that are mutated, and not those that they list."""
    return sorted((SEEDS / reader).glob(LISTS.get(reader, "*")))


class Exercise:
    """Everything that is done with inputs of one reader, in a folder of its own."""

    def __init__(self, reader: Reader, folder: Path) -> None:
        self.folder = folder
        self.path = self.broken = folder / "input"
        if reader == "distributed":  # the folder is what is opened
            shutil.copytree(SEEDS / reader, self.path, dirs_exist_ok=True)
            self.broken = self.path / ".metadata"
        if reader == "index":
            shutil.copytree(SEEDS / reader, folder, dirs_exist_ok=True)
            self.path = self.broken = folder / "input.index.json"

    def run(self, data: bytes) -> bool:
        """Do all there is to do with one input; whether it was opened.

        Raises:
            Exception: a finding, whatever it is: only answers and refusals are right.
        """
        self.broken.write_bytes(data)
        with bounded():
            try:
                report = api.inspect(self.path)
            except WnError as refusal:
                str(refusal).encode()
                return False
            json.dumps(report.to_json())
            chosen = Random(zlib.crc32(data))  # noqa: S311 - nothing is kept secret
            written = chosen.random() < _WRITTEN
            for suffix in _SUFFIXES:
                self.convert(self.folder / f"converted{suffix}", dry_run=not written)
                self.change(report, chosen, suffix, dry_run=not written)
            if written:
                self.compare(self.path)
        return True

    def convert(self, output: Path, *, dry_run: bool) -> None:
        """Convert, and hold what was written against what was read."""
        output.unlink(missing_ok=True)
        try:
            report = api.convert(self.path, output, dry_run=dry_run)
        except WnError as refusal:
            str(refusal).encode()
            return
        json.dumps(report.to_json())
        if dry_run:
            return
        if output.suffix == ".safetensors":
            with safetensors.safe_open(output, "np") as file:
                file.keys()
        try:
            api.inspect(output)
        except WnError as refusal:
            raise UnsoundError(str(refusal)) from refusal
        self.compare(output)

    def change(self, report: Report, chosen: Random, suffix: str, *, dry_run: bool) -> None:
        """One of the commands, with options that fit the input."""
        output = self.folder / f"changed{suffix}"
        output.unlink(missing_ok=True)
        naming: Naming = chosen.choice(("hook", "parametrized"))
        only = chosen.choice([None, *(root.root for root in report.roots)])
        drop = [entry.path for entry in report.entries[: chosen.randrange(3)]]
        command = chosen.choice((
            partial(api.remove, only=only, drop=drop),
            partial(api.apply, only=only, drop=drop, dim=chosen.choice((0, 1, None))),
            partial(api.convert, only=only, drop=drop, naming=naming),
            partial(api.convert, only=only, like=self.path, partial=True),
            partial(api.convert, only=only, max_shard_size=chosen.choice((1, 40))),
        ))  # fmt: skip
        if "max_shard_size" in command.keywords:
            output = self.folder / "shards"
            shutil.rmtree(output, ignore_errors=True)
            command = partial(command, format="torch" if suffix == ".pt" else "safetensors")
        with contextlib.suppress(WnError):
            json.dumps(command(self.path, output, dry_run=dry_run).to_json())

    def compare(self, other: Path) -> None:
        """Compare the input with what must be equal to it."""
        with contextlib.suppress(WnError):
            found = api.compare(self.path, other)
            json.dumps(found.to_json())
            if not found.equal:
                raise UnsoundError(f"{other.name} is not equal to what it was made from")
