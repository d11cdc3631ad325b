"""What is typed, and what `wn` says to type next."""

from __future__ import annotations

import bz2
import gzip
import lzma
import shlex
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from tests.support.hint_files import (
    ARRAYS,
    FOLDER,
    FREE,
    IN,
    NEMO,
    ODD,
    OPTIMIZER,
    OUT,
    PARTS,
    REF,
    RUNS,
    SOUND,
    STEM,
    TENSORS,
    VAST,
    behind,
    below_folder,
    beside_text,
    both,
    bytes_of,
    compressed,
    damaged,
    deepspeed,
    directory,
    distributed,
    file,
    four_bits,
    fsdp,
    interrupted,
    marked,
    no_torch_zip,
    of_ranks,
    pair,
    plain,
    popping,
    script,
    several_in_folder,
    sharded_by_ranks,
    shards,
    tar,
    typed,
)


@dataclass(frozen=True)
class Case:
    """One hint.

    `says` is the whole of it; what stands in braces is typed next, `*` for anything. That
    is a command, or it takes the place of `instead_of`, or is added to what was typed before.
    `again` types the first command again behind it. What is typed first ends with `first`, what
    is typed next with `code`, and nothing but the files that `changes` begins changes.
    """

    make: Callable[[], object]
    typed: str
    says: str
    instead_of: str = ""
    again: bool = False
    first: int = 2
    code: int = 0
    changes: str = "\0"


def also(flag: str, value: str) -> str:
    """An option with any value, as a shell takes it, with no help of the tool's."""
    return shlex.quote(f"{flag}{'=' * flag.startswith('--')}{value}")


SLIP = ODD.replace("=", "[=]") + "x"
HALF = {f"{ODD}.weight_g": torch.ones(2, 1)}
WIDE = {f"{ODD}.weight": VAST}
WIDE_PAIR = {f"{ODD}.weight_g": torch.ones(1 << 13, 1), f"{ODD}.weight_v": VAST}
TWICE = {f"{ODD}.parametrizations.weight.original{n}": torch.ones(2, 1 + 2 * n) for n in (0, 1)}
SQUARE = {f"{ODD}.weight_g": torch.ones(3), f"{ODD}.weight_v": torch.ones(3, 3)}
UNDIRECTED = SOUND | pair(v=torch.zeros(2, 3))
ROOTS = {ODD: SOUND, "a.b": dict(SOUND)}
#: Two copies of one model in one state dict.
COPIES = {f"{top}.{name}": tensor for top in (ODD, "b") for name, tensor in SOUND.items()}

LEAVE = "{*-x*} leaves this layer alone"
KEEP = "{*-x*} leaves this layer as it is"

#: What the data or the names of a layer do not allow.
LAYERS = {
    "a norm beyond float16": Case(
        file(plain("b") | {f"{ODD}.weight": torch.full((2, 3), 6e4, dtype=torch.float16)}),
        f"wn apply {IN} {OUT}", LEAVE,
    ),
    "no direction": Case(file(UNDIRECTED), f"wn remove {IN} {OUT}", KEEP),
    "no direction, for many": Case(
        file(UNDIRECTED), f"wn remove {IN} --output-dir {FREE}", KEEP, first=2
    ),
    "no direction in B": Case(
        file(plain("b") | plain(), ref={"module": {f"module.{name}": tensor for name, tensor in
             (plain("b") | pair(v=torch.zeros(2, 3))).items()}}),
        f"wn compare {IN} {REF}", "{*-x*} leaves this layer out",
    ),
    "no direction beside --like": Case(
        file(UNDIRECTED, ref=plain("sound") | plain()), f"wn convert {IN} {OUT} --like {REF}", ""
    ),
    "half a pair": Case(file(SOUND | HALF), f"wn remove {IN} {OUT}", KEEP),
    "a misfit": Case(
        file(SOUND | pair() | {f"{ODD}.weight_g": torch.ones(5)}), f"wn remove {IN} {OUT}", KEEP
    ),
    "both spellings": Case(
        file(SOUND | pair() | TWICE), f"wn convert {IN} {OUT} --naming parametrized", KEEP
    ),
    "a name that is taken": Case(
        file(plain("b") | plain() | HALF), f"wn apply {IN} {OUT}", LEAVE
    ),
    "integers": Case(
        file(plain("b") | {f"{ODD}.count": torch.ones(2, 3, dtype=torch.int64)}),
        f"wn apply {IN} {OUT} -l b -l '*.count'", "{*-x*} leaves it alone",
    ),
    "no such dim": Case(
        file(plain() | {"c.weight": torch.ones(2, 3, 4)}), f"wn apply {IN} {OUT} --dim 2", LEAVE
    ),
    "vast weights": Case(file(plain("b") | WIDE), f"wn apply {IN} {OUT}", "{*-x*}"),
    "a vast direction": Case(file(SOUND | WIDE_PAIR), f"wn remove {IN} {OUT}", "{*-x*}"),
    "vast weights in both": Case(
        file(plain("b") | WIDE, ref=plain("b") | WIDE), f"wn compare {IN} {REF}", "{*-x*}"
    ),
    "vast weights for safetensors": Case(
        file({"a.b": SOUND | {ODD: VAST}}), f"wn convert {IN} {TENSORS}", "{--drop *}"
    ),
    "vast weights beside --like": Case(
        file(plain("b") | WIDE, ref=pair("b") | WIDE_PAIR), f"wn convert {IN} {OUT} --like {REF}",
        "{--partial *--drop*}",
    ),
    "vast weights to fill in": Case(
        file(plain("b"), ref=plain("b") | WIDE), f"wn convert {IN} {OUT} --like {REF} --fill",
        "{--partial} writes what matches, in place of --fill", instead_of="--fill",
    ),
    "vast tensors to fill in": Case(
        file(plain("b"), ref=plain("b") | {
            str(n): VAST.reshape(-1)[n:5000].expand(2000, -1) for n in range(9)}),
        f"wn convert {IN} {OUT} --like {REF} --fill",
        "{--partial} writes what matches, in place of --fill", instead_of="--fill",
    ),
    "vast tensors over one storage": Case(
        file({str(n): VAST.reshape(-1)[n:5000].expand(2000, -1) for n in range(9)}),
        f"wn convert {IN} {TENSORS}", "{--drop *}",
    ),
}  # fmt: skip

#: Rules, roots and entries.
NAMES = {
    "a rule with a slip": Case(
        file(SOUND | pair()), f"wn remove {IN} {OUT} {also('-l', SLIP)}", "{*-l*} or {*-l*}",
        instead_of=also("-l", SLIP),
    ),
    "a rule with a slip and a dim": Case(
        file(plain("b") | plain()), f"wn apply {IN} {OUT} {also('-l', SLIP + '=1')}",
        "{*-l*1*} or {*-l*1*}", instead_of=also("-l", SLIP + "=1"),
    ),
    "an exclusion with a slip": Case(
        file(SOUND | pair()), f"wn remove {IN} {OUT} {also('-x', SLIP)}",
        "{*-x*} or {*-x*} or {*-x*}", instead_of=also("-x", SLIP),
    ),
    "a rule of compare with a slip": Case(
        file(SOUND | pair(), ref=SOUND | pair()), f"wn compare {IN} {REF} {also('-l', SLIP)}",
        "{*-l*} or {*-l*}", instead_of=also("-l", SLIP),
    ),
    "a rule near nothing": Case(
        file(SOUND), f"wn remove {IN} {OUT} -l zzzzzzz", "{wn inspect --tensors *}"
    ),
    "a rule of compare near nothing": Case(
        file(SOUND, ref=SOUND), f"wn compare {IN} {REF} -l zzzzzzz", "{wn inspect --tensors *}"
    ),
    "an exclusion near nothing": Case(
        file(SOUND, ref=SOUND), f"wn compare {IN} {REF} -x zzzzzzz", "{wn inspect --tensors *}"
    ),
    "a rule for vectors": Case(
        file(plain("b") | {f"{ODD}.[0]": torch.ones(3)}), f"wn apply {IN} {OUT} -l '*[[]0]'",
        "{*-l*}", instead_of="-l '*[[]0]'",
    ),
    "a rule for what is normalized": Case(
        file(SOUND), f"wn apply {IN} {OUT} -l sound", "{wn inspect --tensors *}"
    ),
    "a dim beside a rule of remove": Case(
        file(SOUND), f"wn remove {IN} {OUT} -l 'so*=1'", "{-l *}", instead_of="-l 'so*=1'"
    ),
    "a dim beside a rule of inspect": Case(
        file(SOUND), f"wn inspect {IN} -l 'so*=0'", "{-l *}", instead_of="-l 'so*=0'"
    ),
    "a vector along no dim that is told": Case(
        file(SOUND | SQUARE), f"wn remove {IN} {OUT}", "{--dim 0} or {--dim 1}"
    ),
    "a vector along no dim that REFERENCE tells": Case(
        file(SOUND | SQUARE, ref=plain("sound") | {f"{ODD}.weight": torch.ones(3, 3)}),
        f"wn convert {IN} {OUT} --like {REF}", "{--dim 0} or {--dim 1}",
    ),
    "a vector along no dim that B tells": Case(
        file(SOUND | SQUARE, ref=plain("sound") | {f"{ODD}.weight": torch.ones(3, 3)}),
        f"wn compare {IN} {REF}", "{*-x*} leaves this layer out", code=1,
    ),
    "a vector along another dim": Case(
        file(SOUND | {f"{ODD}.weight_g": torch.ones(3), f"{ODD}.weight_v": torch.ones(3, 3, 2)}),
        f"wn remove {IN} {OUT} --dim 2", "{*-l*=0*} or {*-l*=1*}", instead_of="--dim 2",
    ),
    "a dim without a spelling": Case(
        file(SOUND), f"wn convert {IN} {OUT} --dim 0",
        "{--naming hook} or {--naming parametrized}",
    ),
    "a name with = as a rule of remove": Case(
        file(pair("a=b")), f"wn remove {IN} {OUT} -l 'a=b.weight'", "{-l *}",
        instead_of="-l 'a=b.weight'",
    ),
    "rules without a spelling": Case(
        file(SOUND), f"wn convert {IN} {OUT} -l sound",
        "{--naming hook} or {--naming parametrized}",
    ),
    "an entry that is not there": Case(
        file(SOUND), f"wn convert {IN} {OUT} --drop x", "{wn inspect *}"
    ),
    "an optimizer that fits no more": Case(
        file({"model": SOUND, ODD: OPTIMIZER}), f"wn remove {IN} {OUT} --dry-run",

        "the optimizer state * is kept, but no longer fits the changed parameters;"
        " {*--drop*} leaves it out", first=0,
    ),
    "tensors by position that fit no more": Case(
        file({"model": SOUND, ODD: {"shadow_params": list(SOUND.values()), "decay": 0.9}}),
        f"wn remove {IN} {OUT} --dry-run",
        "the tensors in * stand for parameters by position, and no longer fit the changed ones;"
        " {*--drop*} leaves them out", first=0,
    ),
    "several state dicts for shards": Case(
        file(SOUND | ROOTS), f"wn convert {IN} {FREE} --max-shard-size 1GB",
        "{--flatten} or {--only ''} or {*--only*} or {--only a.b}",
    ),
    "several state dicts for safetensors": Case(
        file(ROOTS), f"wn convert {IN} {TENSORS}", "{--flatten} or {*--only*} or {--only a.b}"
    ),
    "several folded state dicts for safetensors": Case(
        file({"a": SOUND, "c": SOUND}), f"wn remove {IN} {TENSORS}",
        "{--flatten} or {--only a} or {--only c}",
    ),
    "two of one name": Case(
        file({ODD: {"b.w": torch.ones(2)}, f"{ODD}.b": {"w": torch.ones(2)}, "c": SOUND}),
        f"wn convert {IN} {OUT} --flatten", "{*--drop*}",
    ),
    "two of one new name": Case(
        file({ODD: {"b.w": torch.ones(2), "c.w": torch.ones(2)}}),
        f"wn convert {IN} {OUT} --rename '[bc].*=d.*'", "{*--drop*}",
    ),
    "two of one name in a distributed checkpoint": Case(
        file({"model": SOUND, ODD: {"b": 1}, f"{ODD}.b": 2}),
        f"wn convert {IN} {FREE} --format dcp --dry-run", "{*--drop*}",
    ),
    "a key that a distributed checkpoint has not": Case(
        file({"model": SOUND, ODD: {(1, 2): 1}}),
        f"wn convert {IN} {FREE} --format dcp --dry-run", "{*--drop*}",
    ),
    "a list as a distributed checkpoint": Case(
        file([SOUND, dict(SOUND)]), f"wn convert {IN} {FREE} --format dcp --dry-run",
        "{--only 0} or {--only 1}",
    ),
    "a renaming of nothing": Case(
        file(SOUND), f"wn convert {IN} {OUT} --rename 'b.*=d.*'", "{wn inspect --tensors *}"
    ),
    "two of one name in one state dict": Case(
        file({f"module.{ODD}": torch.ones(2), ODD: torch.ones(2)}),
        f"wn convert {IN} {OUT} --flatten", "{*--drop*}",
    ),
    "a name that nobody types": Case(
        file({"a\0b": SOUND, "c": SOUND}), f"wn convert {IN} {TENSORS}", ""
    ),
    "a name that is too long": Case(
        file(SOUND | {f"{'n' * 3000}.weight_g": torch.ones(2, 1)}), f"wn remove {IN} {OUT}", ""
    ),
    "a rule near what nobody types": Case(
        file(pair("a\0\ud800b")), f"wn remove {IN} {OUT} -l a_b.weight", "{-l *}",
        instead_of="-l a_b.weight",
    ),
    "a prefix without its root": Case(
        file({ODD: COPIES}), f"wn remove {IN} {OUT} --only b", "{*--only*b*}",
        instead_of="--only b",
    ),
    "a prefix to drop, without its root": Case(
        file({ODD: COPIES}), f"wn convert {IN} {OUT} --drop b", "{*--drop*b*}",
        instead_of="--drop b",
    ),
    "copies below two prefixes": Case(
        file({"a=b": {f"{top}.{name}": tensor for top in (ODD.replace(".", ""), "b")
                      for name, tensor in (SOUND | pair("x.y") | plain("z")).items()}}),
        f"wn inspect {IN}", "the same names are below *: {*--only*} or {*--only*} takes one",
        first=0,
    ),
    "copies below many prefixes": Case(
        file({f"{top}.{name}": tensor for top in (ODD.replace(".", ""), "b", "c", "d")
              for name, tensor in (SOUND | pair("x.y") | plain("z")).items()}),
        f"wn inspect {IN}",
        "the same names are below * and 1 more: {*--only*} or {--only b} or {--only c} takes one",
        first=0,
    ),
    "names with wrappers": Case(
        file({f"module.{ODD}.{name}": tensor for name, tensor in SOUND.items()}),
        f"wn convert {IN} {OUT} --dry-run && wn inspect {IN}",
        "--like and compare see past the wrappers, convert {--flatten} takes them off: * is *",
        first=0, instead_of=f"--dry-run && wn inspect {IN}",
    ),
    "two networks": Case(
        file({ODD: SOUND, "b": plain("c")}), f"wn convert {IN} {OUT} --dry-run && wn inspect {IN}",
        "convert {--flatten} makes one state dict of these, with * before the names; "
        "so does --like where * has one", first=0, instead_of=f"--dry-run && wn inspect {IN}",
    ),
    "four networks": Case(
        file({ODD: SOUND} | {root: plain(root) for root in "bcd"}),
        f"wn convert {IN} {OUT} --dry-run && wn inspect {IN}",
        "convert {--flatten} makes one state dict of these, with * and 1 more before the names; "
        "so does --like where * has one", first=0, instead_of=f"--dry-run && wn inspect {IN}",
    ),
    "several prefixes of one root": Case(
        file({"a=b": COPIES}, ref=SOUND), f"wn convert {IN} {OUT} --like {REF}",
        "{*--only*} or {*--only*b*}",
    ),
    "several prefixes for compare": Case(
        file(COPIES, ref={"x=y": SOUND}), f"wn compare {IN} {REF}", "{*--only*} or {--only b}"
    ),
    "several prefixes of REFERENCE": Case(
        file({"x=y": SOUND}, ref=COPIES), f"wn convert {IN} {OUT} --like {REF}",
        "{*--only*x=y=*} or {--only x=y=b}",
    ),
    "several that B can mean": Case(
        file(ROOTS, ref=SOUND), f"wn compare {IN} {REF}", "{*--only*} or {--only a.b}"
    ),
    "several that A can mean": Case(
        file(SOUND, ref=ROOTS), f"wn compare {IN} {REF}", "{*--only*} or {--only =a.b}"
    ),
    "several for one of REFERENCE": Case(
        file(ROOTS, ref={"x=y": plain("sound"), "z": {"q.u": torch.ones(7)}}),
        f"wn convert {IN} {OUT} --like {REF}", "{*--only*=x=y*} or {--only a.b=x=y}",
    ),
    "several of REFERENCE": Case(
        file({"x=y": SOUND}, ref=ROOTS), f"wn convert {IN} {OUT} --like {REF}",
        "{--only *} or {--only x=y=a.b}",
    ),
    "a whole module": Case(
        file({ODD: nn.Linear(3, 2), "model": SOUND}), f"wn apply {IN} {OUT}",
        "{*--only*} writes that",
    ),
    "a TorchScript module": Case(
        script, f"wn apply {IN} {OUT} --dim none", "{--only ''} writes that"
    ),
    "a call in entries": Case(
        file({"model": SOUND, ODD: [RUNS], "b.c": {"d": RUNS}}), f"wn remove {IN} {OUT}",
        "{*--drop*}",
    ),
    "a call that is no entry's": Case(
        popping({ODD: SOUND, "model": SOUND | {"x": 1}}), f"wn remove {IN} {OUT}",
        "{*--only*} or {--only model} takes a state dict alone",
    ),
}  # fmt: skip

#: What is to be written, and where.
OUTPUTS = {
    "a version's flag without it": Case(file(plain()), "wn -v", "{wn --version -v}"),
    "nothing to remove": Case(file(plain()), f"wn remove {IN} {OUT}", "{wn inspect *}", first=1),
    "nothing to apply to": Case(
        file(SOUND), f"wn apply {IN} {OUT} --json", "{wn inspect * --tensors}", first=1
    ),
    "a directory under the name in a folder": Case(
        directory(f"{STEM}/{STEM}.pt"), f"wn remove {IN} {typed(STEM)}", "{*/} writes into it",
        instead_of=typed(STEM),
    ),
    "a dry run where something is": Case(
        both(file(SOUND), lambda: Path(shlex.split(OUT)[0]).write_bytes(b"mine")),
        f"wn remove {IN} {OUT} --dry-run", "* exists already: without {--force} it is refused",
        first=0,
    ),
    "another checkpoint in a folder": Case(
        both(directory(STEM), lambda: shutil.copy(f"{STEM}.pt", STEM)),
        f"wn remove {IN} {typed(STEM)}", "{--force} replaces it, and what it holds is lost",
        changes=f"{STEM}/",
    ),
    "a directory for one of many": Case(
        directory(f"{STEM}/{STEM}.pt"), f"wn remove {IN} --output-dir {typed(STEM)}", ""
    ),
    "a directory for a folder": Case(
        both(shards, directory("o.pt")), f"wn remove {FOLDER} o.pt", ""
    ),
    "a file that is there": Case(
        both(file(SOUND), lambda: Path(f"{STEM} out.pt").write_bytes(b"precious")),
        f"wn remove {IN} {OUT}", "{--force} replaces it, or choose another name",
        changes=f"{STEM} out",
    ),
    "a folder that is there": Case(
        both(shards, tar(f"{STEM}/x", {})), f"wn remove {FOLDER} {typed(STEM)}",
        "{--force} replaces the checkpoint in it, or choose another name",
    ),
    "another folder's checkpoint": Case(
        both(shards, lambda: shards("made too")), f"wn remove {FOLDER} 'made too'",
        "{--output-dir DIR} writes both, if two CHECKPOINTs are meant; {--force} replaces it, "
        "and what it holds is lost",
        changes="made too",
    ),
    "another checkpoint": Case(
        file(SOUND, out=SOUND), f"wn remove {IN} {OUT}",
        "{--output-dir DIR} writes both, if two CHECKPOINTs are meant; {--force} replaces it, "
        "and what it holds is lost",
        changes=f"{STEM} out",
    ),
    "CHECKPOINT": Case(
        file(SOUND), f"wn remove {IN} {IN}", "{*} keeps both", instead_of=IN
    ),
    "CHECKPOINT, for many": Case(
        file(SOUND), f"wn remove {IN} --output-dir .", "{*--output-dir*} keeps both"
    ),
    "no directory": Case(
        file(SOUND), f"wn remove {IN} {typed(f'-n {STEM}/b/o.pt')}", "{mkdir -p *}", again=True
    ),
    "no directory for a folder": Case(
        shards, f"wn remove {FOLDER} {typed(f'-n {STEM}/b/o')}", "{mkdir -p *}", again=True
    ),
    "no directory, and a file there": Case(
        file(SOUND), f"wn remove {IN} {typed(f'{STEM}.pt/b/o.pt')}", ""
    ),
    "a file's name for shards": Case(
        file(SOUND), f"wn remove {IN} {OUT} --max-shard-size 1GB", "{*/ --format torch}",
        instead_of=OUT,
    ),
    "a file's name for a distributed checkpoint": Case(
        file(SOUND), f"wn remove {IN} {OUT} --format dcp --dry-run", "{*/ --format dcp}",
        instead_of=OUT,
    ),
    "a distributed checkpoint for stdout": Case(
        file(SOUND), f"wn remove {IN} - --format dcp", "{--format safetensors}",
        instead_of="--format dcp",
    ),
    "a suffix of no format": Case(
        file(SOUND), f"wn remove {IN} o.xyz",
        "{--format torch} or {--format safetensors} or {--format npz}",
    ),
    "a dtype that npz has not": Case(
        file({ODD: torch.ones(2, 2).to(torch.float8_e5m2)}), f"wn convert {IN} {ARRAYS}",
        "{--format torch} keeps it",
    ),
    "names that NumPy takes for one": Case(
        file({ODD: torch.ones(2, 2), f"{ODD}.npy": torch.ones(3, 3)}), f"wn convert {IN} {ARRAYS}",
        "{--format safetensors} keeps both",
    ),
    "tied tensors in an npz": Case(
        file(dict.fromkeys(map(str, range(40)), torch.zeros(1 << 10, 1 << 10))),
        f"wn convert {IN} {ARRAYS}", "{--format safetensors} stores them once",
    ),
    "a dtype that PyTorch has not": Case(
        four_bits, f"wn convert {typed(f'{STEM}.safetensors')} {OUT}",
        "{--format safetensors} keeps it",
    ),
    "a dtype that safetensors has not": Case(
        file({ODD: torch.ones(2, dtype=torch.complex128)}), f"wn convert {IN} {TENSORS}",
        "{--format torch} keeps it",
    ),
    "a name that safetensors has not": Case(
        file({"\ud800\0": torch.ones(2)}), f"wn convert {IN} {TENSORS}",
        "{--format torch} keeps it",
    ),
    "no OUTPUT": Case(file(SOUND), f"wn remove {IN}", "{wn remove --help}"),
    "no such option": Case(file(SOUND), f"wn compare {IN} {IN} --loud", "{wn compare --help}"),
    "no such command": Case(file(SOUND), "wn fold", "{wn help remove}"),
    "nothing like a command": Case(file(SOUND), f"wn nonsense {IN}", "{wn help}"),
    "another name of a command": Case(file(SOUND), f"wn fold {IN} {OUT}", "{wn remove *}"),
    "a mistyped command": Case(file(SOUND), f"wn insepct {IN}", "{wn inspect *}"),
    "shards for stdout": Case(shards, f"wn remove {FOLDER} -", "{--format safetensors}"),
    "no such shell": Case(
        file(SOUND), "wn --show-completion tcsh", "{wn --show-completion bash}"
    ),
    "version": Case(file(SOUND), "wn version", "{wn --version}"),
    "help on another name": Case(file(SOUND), "wn help diff", "{wn help compare}"),
    "the version of a command": Case(file(SOUND), "wn inspect --version", "{wn --version}"),
    "no such file without a command": Case(
        file(SOUND), f"wn {typed(f'{STEM}x.pt')}", "{*}", instead_of=typed(f"{STEM}x.pt")
    ),
    "no B": Case(file(SOUND), f"wn compare {IN}", "{wn compare --help}"),
    "three files": Case(
        file(SOUND, ref=SOUND, out=SOUND), f"wn remove {IN} {REF} {OUT}",
        "{--output-dir DIR} takes several checkpoints",
    ),
    "a checkpoint that fits in part": Case(
        file(SOUND | pair("b") | pair(), ref=plain("sound") | plain("b") | plain("c")),
        f"wn convert {IN} {OUT} --like {REF}",
        "{--partial} writes those that match, {--fill} takes the others from REFERENCE",
    ),
    "a checkpoint with more than REFERENCE": Case(
        file(SOUND | pair("b") | pair(), ref=plain("sound") | plain("b")),
        f"wn convert {IN} {OUT} --like {REF}", "{--partial} writes those that match",
    ),
    "a checkpoint of another model": Case(
        file(SOUND, ref={"q.u": torch.ones(7)}), f"wn convert {IN} {OUT} --like {REF}",
        "{wn inspect --tensors * && wn inspect --tensors *}",
    ),
    "more entries than are shown": Case(
        file({f"n{n}": n for n in range(1005)} | {"model": SOUND}), f"wn inspect {IN}",
        " more; {--json} lists them all", first=0,
    ),
    "a table that would replace a checkpoint": Case(
        file(SOUND, ref=SOUND), f"wn compare {IN} {REF} --csv {REF}", "{*--csv*}"
    ),
}  # fmt: skip

UNPACK = "{mkdir * && tar -xf * && wn inspect *}"
#: What is to be read.
INPUTS = {
    "a slip in CHECKPOINT": Case(
        file(SOUND), f"wn remove {typed(f'{STEM}.ptt')} {OUT}", "{*}",
        instead_of=typed(f"{STEM}.ptt"),
    ),
    "a slip in B": Case(
        file(SOUND), f"wn compare {IN} {typed(f'{STEM}.ptt')}", "{*}",
        instead_of=typed(f"{STEM}.ptt"),
    ),
    "a slip in REFERENCE": Case(
        file(SOUND), f"wn convert {IN} {OUT} --like {typed(f'{STEM}.ptt')}", "{*}",
        instead_of=typed(f"{STEM}.ptt"),
    ),
    "no state dict in A": Case(
        file({"a": 1}, ref=SOUND), f"wn compare {IN} {REF}", "{wn inspect *}"
    ),
    "no state dict in B": Case(
        file(SOUND, ref={"a": 1}), f"wn compare {IN} {REF}", "{wn inspect *}"
    ),
    "a damaged storage": Case(
        damaged, f"wn convert {IN} {TENSORS}",
        "copy or download the file again; {wn inspect --check *} lists all that is damaged", code=1,
    ),
    "a folder of several": Case(
        several_in_folder, f"wn remove {FOLDER} {OUT}", "give one of them: {*} or {*}",
        instead_of=FOLDER,
    ),
    "a folder without an index": Case(
        lambda: shards(index=False), f"wn convert {FOLDER} {TENSORS}",
        "{*} is one of them; all need their index", instead_of=FOLDER,
    ),
    "a folder of a killed run": Case(
        interrupted, f"wn remove {FOLDER} {FREE}", "{mv */* */}", again=True, changes=STEM
    ),
    "a folder above": Case(
        below_folder, "wn remove top new.pt", "{wn inspect *} or {wn inspect *}"
    ),
    "a config beside it": Case(
        beside_text, f"wn inspect {typed(f'{STEM}.json')}", "{wn inspect *}"
    ),
    "gzip": Case(compressed(f"{STEM}.gz", gzip.compress), f"wn inspect {typed(f'{STEM}.gz')}",
                 "{gzip -dc < * > * && wn inspect *}"),
    "gzip under a checkpoint's name": Case(
        compressed(f"{STEM}.pt", gzip.compress), f"wn inspect {IN}",
        "{gzip -dc < * > * && wn inspect *}"
    ),
    "gzip of a text": Case(
        lambda: Path(f"{STEM}.pt").write_bytes(gzip.compress(b"text")), f"wn inspect {IN}", ""
    ),
    "bzip2": Case(compressed(f"{STEM}.pt", bz2.compress), f"wn inspect {IN}",
                  "{bzip2 -dc < * > * && wn inspect *}"),
    "xz": Case(compressed(f"{STEM}.pt", lzma.compress), f"wn inspect {IN}",
               "{xz -dc < * > * && wn inspect *}"),
    "zstd": Case(
        compressed(f"{STEM}.pt", lambda data: subprocess.run(
            ["zstd", "-c"], input=data, stdout=subprocess.PIPE, check=True).stdout),
        f"wn inspect {IN}", "{zstd -dc < * > * && wn inspect *}",
    ),
    "a NeMo archive, compressed": Case(
        tar("a:b.nemo", NEMO, "w:gz"), "wn inspect a:b.nemo", UNPACK
    ),
    "a tar of odd names": Case(
        tar(f"{STEM}.pt", {"a.bin": b"text", f"x{STEM}/{STEM}.pt": bytes_of()}), f"wn inspect {IN}",
        UNPACK,
    ),
    "a tar of odder names": Case(
        tar(f"{STEM}.pt", {"b\\n.pt": bytes_of(), "-c.pt": bytes_of(), "../d.pt": bytes_of()}),
        f"wn inspect {IN}", "{tar -tf *}",
    ),
    "a tar without a checkpoint": Case(
        tar(f"{STEM}.tar", {"a": b"b"}), f"wn inspect {typed(f'{STEM}.tar')}", "{tar -tf *}"
    ),
    "other first bytes": Case(
        marked, f"wn inspect {IN}", "{cp * && printf * | dd * && wn inspect *}"
    ),
    "bytes in front": Case(behind, f"wn inspect {IN}", "{tail -c +11 * > * && wn inspect *}"),
    "bytes in front of another zip": Case(no_torch_zip(b"#!/bin/sh\n"), f"wn inspect {IN}", ""),
    "a part of a distributed checkpoint": Case(
        distributed, f"cd {FOLDER} && wn inspect __0_0.distcp", "{wn inspect .}"
    ),
    "the metadata of one rank": Case(
        of_ranks, f"cd {FOLDER} && wn inspect __0.metadata", "{wn inspect .}"
    ),
    "what accelerate saves": Case(
        fsdp, f"wn inspect {FOLDER}", "{wn inspect */pytorch_model_fsdp_0*}"
    ),
    "a shard of one rank": Case(
        sharded_by_ranks,
        f"cd {FOLDER} && wn remove shard-00001-model-00001-of-00001.safetensors x.pt",
        "give the directory, which has all of them: {wn inspect .}"
    ),
    "a distributed checkpoint in its own place": Case(
        distributed, f"wn convert {FOLDER} {FOLDER}/ --force --format torch",
        "choose another name: {*}", instead_of=f"{FOLDER}/",
    ),
    "a checkpoint of DeepSpeed": Case(
        deepspeed("step", *PARTS), f"wn inspect {FOLDER}", "{python *zero_to_fp32.py* * *}"
    ),
    "a step of DeepSpeed's": Case(
        deepspeed("-s [0]", *PARTS), f"cd {FOLDER}/'-s [0]' && wn inspect .",
        "{python *zero_to_fp32.py* * *--tag=*}",
    ),
    "whole weights of DeepSpeed's": Case(
        deepspeed("step", "mp_rank_00_model_states.pt"), f"wn inspect {FOLDER}", "{wn inspect *}"
    ),
    "ranks without a launcher": Case(
        file(SOUND), f"wn --ranks remove {IN} {OUT}",
        "{torchrun --nproc-per-node 2 -m wncli --ranks remove * *}"
    ),
    "an address of a file": Case(
        file(SOUND), f'wn inspect "file://$PWD/"{shlex.quote(f"{STEM}.pt")}', "{*}",
        instead_of=f'"file://$PWD/"{shlex.quote(f"{STEM}.pt")}',
    ),
    "a model of the Hub by its name": Case(
        file(SOUND), f"HF_HUB_OFFLINE=1 wn remove owner/name {OUT}",
        "{hf://owner/name} of the Hugging Face Hub, if that is meant",
        instead_of="owner/name", code=2,
    ),
}  # fmt: skip

CASES = LAYERS | NAMES | OUTPUTS | INPUTS
