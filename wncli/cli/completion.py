"""What Tab offers: commands, options, files, and the names in the checkpoint on the line.

What an option takes is known by what the help calls its value. Nothing is written or run, and of
a checkpoint its header is read. Names that would not show as they are, are not offered.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from wncli.cli.guesses import COMMANDS
from wncli.cli.ranks import OPTION as RANKS

if TYPE_CHECKING:
    from wncli.checkpoint.checkpoint import Checkpoint, StateDict
    from wncli.plan.survey import Survey

#: What a shell completes by itself; `values` are ours, and behind `open` ones goes no blank.
Kind = Literal["files", "folders", "values", "open"]

#: More names than these are offered part by part.
_MOST_AT_ONCE = 100
_FILES = frozenset({"CHECKPOINT", "OUTPUT", "A", "B", "REFERENCE", "FILE"})


class Answer(NamedTuple):
    """What may stand in place of the word: the values, each with what it means or ""."""

    kind: Kind
    values: tuple[tuple[str, str], ...] = ()


class _Line(NamedTuple):
    """What stands before the word.

    Attributes:
        command: the command, empty where there is none yet.
        arguments: what is no option.
        options: the values of options, by their long names; the last of each.
        waiting: the option whose value the word is, if it is one.
        is_option_possible: whether no `--` has been typed.
    """

    command: str
    arguments: list[str]
    options: dict[str, str]
    waiting: str
    is_option_possible: bool


_FILE = Answer("files")
_NOTHING = Answer("values")


def complete(words: Sequence[str], word: str) -> Answer:
    """Return what may stand in place of the last word, behind the others; the shell's quotes off.

    Args:
        words: what stands behind `wn`, without the word.
        word: as far as it is typed.
    """
    words = [one for one in words if one != RANKS]
    if words[0] == "help" if words else not word.startswith("-"):
        return _commands(words, word)
    command = words[0] if words and words[0] in COMMANDS else ""
    options = _options(command)
    metavars = {name: one.metavar for one in options for name in one.opts if not one.is_flag}
    longest = {name: max(one.opts, key=len) for one in options for name in one.opts}
    line = _read_line(command, words, {name: longest[name] for name in metavars})
    if line.waiting:
        return _of_value(metavars[line.waiting], line, word)
    if not word.startswith("-") or not line.is_option_possible:
        return _FILE
    flag, equals, value = word.partition("=")
    if equals:
        answer = _of_value(metavars[flag], line, value) if flag in metavars else _NOTHING
        values = tuple((f"{flag}={text}", meaning) for text, meaning in answer.values)
        return answer._replace(values=values)
    said = {longest[one.opts[0]]: _first_sentence(one.help) for one in options}
    if re.fullmatch("-[A-Za-z]", word):  # a short one, and whole
        return _values(word, {name: said[longest[name]] for name in longest})
    return _values(word, said | {"--help": "Show this message and exit"})


def _commands(words: Sequence[str], word: str) -> Answer:
    """Offer the commands; where `wn help` is not typed, a file may be meant."""
    known = {one.name: _first_sentence(one.help) for one in _group("").commands.values()}
    answer = _values(word, known if words else known | {"help": "Say all about a command"})
    return answer if answer.values or words else _FILE


def _read_line(command: str, words: Sequence[str], takers: dict[str, str]) -> _Line:
    """Tell arguments and options apart; `takers` are the long names of those that take a value."""
    line = _Line(command, [], {}, "", is_option_possible=True)
    for word in words[1:] if command else words:
        flag, equals, value = word.partition("=")
        if line.waiting:
            line.options[takers[line.waiting]] = word
            line = line._replace(waiting="")
        elif not line.is_option_possible or not word.startswith("-") or word == "-":
            line.arguments.append(word)
        elif word == "--":
            line = line._replace(is_option_possible=False)
        elif flag in takers and equals:
            line.options[takers[flag]] = value
        elif flag in takers:
            line = line._replace(waiting=flag)
    return line


def _group(command: str) -> Any:  # noqa: ANN401 - typer hides types
    import typer

    from wncli.cli.commands import app_for

    return typer.main.get_group(app_for(command))


def _options(command: str) -> list[Any]:
    """Return the options of a command, or those of `wn` itself."""
    group = _group(command or COMMANDS[0])
    found = group.commands[command].params if command else group.params
    return [one for one in found if one.param_type_name == "option"]


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=\w)[.;:] |\.?$", " ".join(text.split()), maxsplit=1)[0]


def _values(word: str, known: dict[str, str]) -> Answer:
    found = tuple(item for item in known.items() if item[0].startswith(word))
    return Answer("values", found)


def _of_value(metavar: str, line: _Line, word: str) -> Answer:
    """Return what an option's value may be, of which a part is typed."""
    if metavar.startswith("<"):
        return _values(word, dict.fromkeys(metavar.strip("<>").split("|"), ""))
    name = metavar.strip("[]").partition("[")[0]
    if name in _FILES:
        return _FILE
    if name == "DIR":
        return Answer("folders")
    if name == "SHELL":
        return _values(word, dict.fromkeys(("bash", "zsh", "fish"), ""))
    if name == "KEY":
        from wncli.cli.options import SORTS

        return _values(word, dict.fromkeys(SORTS, ""))
    offer = {"GLOB": _layers, "ROOT": _roots, "ENTRY": _entries}.get(name)
    return _offered(offer(line, word), word) if offer and line.arguments else _NOTHING


def _offered(names: Iterable[str], word: str) -> Answer:
    """Offer the names that begin with the word; of many, as far as their next dots."""
    found = [name for name in names if name.startswith(word) and name.isprintable() and name]
    if len(found) <= _MOST_AT_ONCE:
        return Answer("values", tuple((name, "") for name in dict.fromkeys(found)))
    known = dict.fromkeys(name[: name.find(".", len(word)) + 1] or name for name in found)
    return Answer("open", tuple((name, "") for name in known))


def _read(path: str, what: Callable[[Checkpoint], Iterator[str]]) -> list[str]:
    from wncli.formats.open import open_checkpoint

    with open_checkpoint(Path(path).expanduser(), for_weights=True) as (opened, _):
        return list(what(opened))


def _roots(line: _Line, word: str) -> list[str]:
    """Offer state dicts; behind a `=` those of the other checkpoint, whose these are to be."""
    other = line.arguments[1] if line.command == "compare" else line.options.get("--like")
    ours, equals, _ = word.partition("=")
    if equals and other:
        return [f"{ours}={root}" for root in _read(other, _roots_of)]
    return _read(line.arguments[0], _roots_of)


def _roots_of(opened: Checkpoint) -> Iterator[str]:
    yield from (found.root for found in opened.state_dicts)


def _entries(line: _Line, _word: str) -> list[str]:
    return _read(line.arguments[0], _entries_of)


def _entries_of(opened: Checkpoint) -> Iterator[str]:
    yield from (entry.path for entry in opened.entries)
    yield from (found.root for found in opened.state_dicts)


def _layers(line: _Line, _word: str) -> list[str]:
    """Offer the layers that a command takes, and `ups.*` for what has several below it."""
    from wncli.plan.narrowing import named
    from wncli.plan.rules import glob_of

    def labels(opened: Checkpoint) -> Iterator[str]:
        only = line.options.get("--only")
        for found in named(opened, only.partition("=")[0] if only else only):
            yield from _labels_of(line.command, found)

    found = dict.fromkeys(_read(line.arguments[0], labels))
    below = Counter(
        label[: place.start()] for label in found for place in re.finditer(r"\.", label)
    )
    parents = [f"{glob_of(name)}.*" for name, count in below.items() if count > 1]
    return sorted((*parents, *map(glob_of, found)), key=_naturally)


def _labels_of(command: str, state_dict: StateDict) -> Iterator[str]:
    from wncli.plan.survey import survey

    surveyed = survey(state_dict)
    if command != "apply":
        yield from (_label(pair.weight) for pair in surveyed.pairs)
    if command in {"apply", "compare"}:
        yield from _plain(command, surveyed)


def _plain(command: str, surveyed: Survey) -> Iterator[str]:
    """Name what is not normalized, and for `apply` can be."""
    taken = surveyed.halves() | {pair.weight for pair in surveyed.pairs}
    for spec in surveyed.state_dict.tensors:
        if spec.name not in taken and (command == "compare" or len(spec.shape) > 1):
            yield _label(spec.name) if command == "apply" else spec.name


def _label(weight: str) -> str:
    """Call a weight by its module, as most have but one."""
    return weight.removesuffix(".weight")


def _naturally(name: str) -> list[tuple[int, str]]:
    return [
        (int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)
    ]
