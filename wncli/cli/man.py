"""The manual page, from what the help says: `python -m wncli.cli.man > docs/wn.1`."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator

import typer

import wncli
from wncli.cli.commands import app
from wncli.cli.help import Help, Section, describe


def manual() -> Iterator[str]:
    """Give the lines of the page, in the language of man(7)."""
    group = typer.main.get_group(app)
    context = typer.Context(group, info_name="wn", **group.context_settings)
    whole = describe(group, context)
    yield r".\" Made by python -m wncli.cli.man of what wn --help says."
    yield f'.TH WN 1 "" "wn {wncli.__version__}" "User Commands"'
    yield from (".ad l", ".nh", ".SH NAME")
    yield f"wn {_text(f'- {whole.about[0]}').rstrip('.')}"
    yield ".SH SYNOPSIS"
    yield from _usage(whole)
    yield ".SH DESCRIPTION"
    yield _text("A FILE that is given without a command is inspected.")
    for section in whole.sections:
        yield f".SH {section.title.upper()}"
        yield from _terms(section)
    for name, command in group.commands.items():
        found = describe(command, typer.Context(command, parent=context, info_name=name))
        yield f'.SH "WN {name.upper()}"'
        yield from _usage(found)
        for paragraph in found.about:
            yield ".PP"
            yield _text(paragraph)
        for section in found.sections:
            yield f".SS {section.title}"
            yield from _terms(section)
        yield ".SS Examples"
        yield from _examples(found)
    yield ".SH EXIT STATUS"
    yield _text(whole.end.removeprefix("Exit codes: "))
    yield ".SH EXAMPLES"
    yield from _examples(whole)


def _usage(found: Help) -> Iterator[str]:
    yield ".nf"
    for line in found.usage:
        yield re.sub(r"^\S+", r"\\fB\g<0>\\fP", _text(line))
    yield ".fi"


def _terms(section: Section) -> Iterator[str]:
    for term, text in section.terms:
        yield ".TP"
        yield f"\\fB{_text(term.strip())}\\fP"
        yield _text(text)


def _examples(found: Help) -> Iterator[str]:
    for example, text in found.examples:
        yield ".PP"
        yield _text(text)
        yield ".PP"
        yield ".nf"
        yield ".RS 4"
        yield _text(example)
        yield ".RE"
        yield ".fi"


def _text(text: str) -> str:
    """Spell text so that roff takes none of it for its own."""
    spelled = text.replace("\\", r"\e").replace("-", r"\-").replace("'", r"\(aq")
    spelled = spelled.replace("`", r"\(ga")
    return rf"\&{spelled}" if spelled.startswith(".") else spelled


if __name__ == "__main__":
    sys.stdout.write("\n".join([*manual(), ""]))
