"""The help of a command, from its parameters: what it consists of, and how a terminal shows it."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from wncli.cli.examples import EXAMPLES
from wncli.cli.page import Page
from wncli.cli.terminal import show

#: The groups of options, in this order; others stand before the report.
_FIRST, _LAST = ("Select", "Change", "Tolerance", "Output", "Safety"), "Report"
#: Columns of a terminal that are used, those below which explanations get lines of their own, and
#: those for what is explained.
_WIDEST, _NARROW, _TERMS = 100, 70, 30

_TITLE = "bold underline"


class Section(NamedTuple):
    """Things of one kind, each explained: `("-f, --force", "Replace an existing OUTPUT.")`."""

    title: str
    terms: tuple[tuple[str, str], ...]


class Help(NamedTuple):
    """All that the help of a command says; `command` is empty for `wn` itself."""

    command: str
    usage: tuple[str, ...]
    about: tuple[str, ...]
    sections: tuple[Section, ...]
    examples: tuple[tuple[str, str], ...]
    end: str


def describe(command: Any, context: Any) -> Help:  # noqa: ANN401 - typer hides types
    """Collect the help of a command, or of the group of all, as typer has read it."""
    known = getattr(command, "commands", None)
    parameters = command.get_params(context)
    arguments = [one for one in parameters if one.param_type_name == "argument"]
    sections = [Section("Arguments", tuple((one.metavar, one.help) for one in arguments))]
    if known:
        terms = tuple((name, _paragraphs(one.help)[0]) for name, one in known.items())
        sections = [Section("Commands", (*terms, ("help", "Say all about a command.")))]
    groups: dict[str, list[tuple[str, str]]] = {name: [] for name in _FIRST}
    last = "Options" if known else _LAST
    for one in parameters:
        if one.param_type_name == "option":
            group = getattr(one, "rich_help_panel", None) or last
            groups.setdefault(group, []).append((_spelled(one), one.help))
    groups[last] = groups.pop(last)
    sections += [Section(title, tuple(terms)) for title, terms in groups.items() if terms]
    name = "" if known else command.name
    usage = _usage_of_all() if known else _usage(name, arguments, groups["Output"])
    about = tuple(_paragraphs(command.help))
    return Help(name, usage, about, tuple(sections), EXAMPLES[name], command.epilog or "")


def _paragraphs(text: str) -> list[str]:
    return [" ".join(part.split()) for part in text.split("\n\n")]


def _usage_of_all() -> tuple[str, ...]:
    return ("wn COMMAND ...", "wn help [COMMAND]", "wn FILE")


def _usage(name: str, arguments: list[Any], output: list[tuple[str, str]]) -> tuple[str, ...]:
    words = [one.metavar + "..." * (one.nargs < 0 and not output) for one in arguments]
    usage = [" ".join(("wn", name, *words, "[OPTIONS]"))]
    if output:
        usage.append(f"wn {name} CHECKPOINT... --output-dir DIR [OPTIONS]")
    return tuple(usage)


def _spelled(option: Any) -> str:  # noqa: ANN401
    """Spell an option as it is typed: `-l, --layers GLOB`."""
    names = sorted(option.opts, key=len)
    words = ", ".join(names) if len(names[0]) == len("-x") else f"    {names[0]}"
    return words if option.is_flag else f"{words} {option.metavar.strip('<>')}"


def show_help(found: Help) -> None:
    """Print it on stdout, as wide as the terminal is up to a hundred columns."""
    width = min(_WIDEST, max(_TERMS, shutil.get_terminal_size().columns)) - 1
    page = Page()
    page.line(("Usage:", _TITLE))
    _add(page, (line for usage in found.usage for line in _continued(usage, width)))
    for text in found.about:
        page.line()
        _add(page, _wrapped(text, width))
    for section in found.sections:
        page.line()
        page.line((f"{section.title}:", _TITLE))
        for term, text in section.terms:
            _add_term(page, term, text, width)
    page.line()
    page.line(("Examples:", _TITLE))
    for example, text in found.examples:
        _add(page, _wrapped(text, width, "  "), "dim")
        _add(page, _continued(example, width, "    "))
    if found.end:
        page.line()
        _add(page, _wrapped(found.end, width))
    show(page)


def _add_term(page: Page, term: str, text: str, width: int) -> None:
    """Add what is explained, bold, and its explanation: beside it where there is room."""
    if width < _NARROW - 1:
        page.line((f"  {term.strip()}", "bold"))
        _add(page, _wrapped(text, width, " " * 4))
        return
    lines = _wrapped(text, width, " " * _TERMS)
    term = f"  {term}"
    beside = lines.pop(0)[len(term) :] if len(term) < _TERMS - 1 else ""
    page.line((term, "bold"), beside)
    _add(page, lines)


def _add(page: Page, lines: Iterable[str], style: str = "") -> None:
    for line in lines:
        page.line((line, style))


def _wrapped(text: str, width: int, indent: str = "") -> list[str]:
    return textwrap.wrap(
        text,
        width,
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _continued(command: str, width: int, indent: str = "  ") -> Iterator[str]:
    """Break a line of a shell as a shell takes it."""
    first, *more = _wrapped(command, width - len(indent) - len("   \\"))
    lines = [f"{indent}{first}", *(f"{indent}  {line}" for line in more)]
    yield from (f"{line} \\" for line in lines[:-1])
    yield lines[-1]
