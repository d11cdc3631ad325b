"""Completion in bash, zsh and fish: what each runs when Tab is pressed, and how it is told.

The scripts only pass words on: no name of a file or of a layer is evaluated or expanded. They run
the `wn` of the PATH. `wn --complete SHELL …` answers with a line that says of what kind the values
are, and then with a line for each.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from wncli.cli.completion import complete
from wncli.errors import FileError, UsageError
from wncli.formats.registry import SUFFIXES
from wncli.hints import path_word

#: Seconds after which Tab has no answer.
_PATIENCE = 2

_BASH = r"""# Completion of wn in bash.
_wn() {
    local kind= line
    COMPREPLY=()
    while IFS= read -r line; do
        if [ -z "$kind" ]; then kind=$line; else COMPREPLY+=("$line"); fi
    done < <(command wn --complete bash "${COMP_LINE:0:COMP_POINT}" "$2" 2> /dev/null)
    case $kind in
        files) compopt -o filenames ;;
        folders) compopt -o filenames -o dirnames +o default ;;
        open) compopt -o nospace +o default ;;
        *) compopt +o default ;;
    esac 2> /dev/null
}
complete -o default -o nosort -F _wn wn 2> /dev/null || complete -o default -F _wn wn
"""

_ZSH = r"""#compdef wn
# Completion of wn in zsh.
_wn() {
    local -a lines values shown
    local kind line
    local -a before=("${(@Q)words[2,CURRENT-1]}")
    lines=("${(@f)$(command wn --complete zsh "${(Q)PREFIX}" "${before[@]}" 2> /dev/null)}")
    kind=$lines[1]
    shift lines
    case $kind in
        files)
            [[ $PREFIX == --*=* ]] && compset -P '*='
            _files -g "(SUFFIXES|^*.*)(-.)"
            ;;
        folders)
            [[ $PREFIX == --*=* ]] && compset -P '*='
            _files -/
            ;;
        values|open)
            for line in $lines; do
                values+=("${line%%$'\t'*}")
                shown+=("${line/$'\t'/  -- }")
            done
            local -a how
            [[ $kind == open ]] && how+=(-S '')
            [[ $lines[1] == *$'\t'* ]] && how+=(-l)
            compadd -V wn $how -d shown -- $values
            ;;
    esac
}
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit; }
compdef _wn wn
"""

_FISH = r"""# Completion of wn in fish.
function __wn_complete
    set -l words (commandline -opc)
    set -e words[1]
    set -l current (commandline -ct)
    set -l lines (command wn --complete fish "$current" $words 2> /dev/null)
    set -l option (string match --regex -- '^--[a-z-]+=' "$current")
    set -l path (string replace -- "$option" '' "$current")
    switch "$lines[1]"
        case files
            set -l found (complete -C "__wn_files $path")
            set -l likely '^(?:.*(?:/|SUFFIXES)|(?:.*/)?[^./]+)$'
            printf '%s\n' "$option"(string match --regex -- $likely $found)
            printf '%s\n' "$option"$found
        case folders
            printf '%s\n' "$option"(complete -C "__wn_files $path" | string match -- '*/')
        case values open
            set -e lines[1]
            printf '%s\n' $lines
    end
end
complete --command wn --no-files --keep-order --arguments '(__wn_complete)'
"""


class _Shell(NamedTuple):
    """A shell: its script, where that goes, and the file that loads it if it is not found there."""

    script: str
    path: Path
    loaded_by: Path | None


def _shells() -> dict[str, _Shell]:
    home, variables = Path.home(), os.environ
    data = Path(variables.get("XDG_DATA_HOME") or home / ".local" / "share")
    config = Path(variables.get("XDG_CONFIG_HOME") or home / ".config")
    zsh = Path(variables.get("ZDOTDIR") or home)
    suffixes = [suffix.removeprefix(".") for suffix in SUFFIXES]
    globs = f"*.({'|'.join(suffixes)})|*.index.json"
    regex = "|".join(rf"\.{suffix}" for suffix in (*suffixes, r"index\.json"))
    return {
        "bash": _Shell(_BASH, data / "bash-completion" / "completions" / "wn", home / ".bashrc"),
        "zsh": _Shell(_ZSH.replace("SUFFIXES", globs), data / "wn" / "_wn", zsh / ".zshrc"),
        "fish": _Shell(
            _FISH.replace("SUFFIXES", regex), config / "fish" / "completions" / "wn.fish", None
        ),
    }


def script(shell: str) -> str:
    """Return what a shell has to run once.

    Raises:
        UsageError: it is none of those.
    """
    return _known(shell).script


def install(shell: str) -> str:
    """Put the script where the shell finds it, and return what has been done.

    Raises:
        UsageError: it is none of those.
        FileError: a file cannot be written.
    """
    known = _known(shell)
    done = [f"completion of wn in {shell}: {known.path}"]
    try:
        known.path.parent.mkdir(parents=True, exist_ok=True)
        known.path.write_text(known.script, "utf-8")
        if known.loaded_by:
            line = f". {path_word(known.path)}"
            old = (
                known.loaded_by.read_text("utf-8", "surrogateescape")
                if known.loaded_by.exists()
                else ""
            )
            if line not in old.splitlines():
                with known.loaded_by.open("a", encoding="utf-8") as file:
                    file.write(f"{chr(10) * (old[-1:] not in {'', chr(10)})}{line}\n")
            done.append(f"loaded by {known.loaded_by}: {line}")
    except OSError as error:
        raise FileError(error.filename or str(known.path), error.strerror or str(error)) from None
    return "\n".join([*done, "it works in every shell that is started from now on"])


def _known(name: str) -> _Shell:
    shells = _shells()
    if name not in shells:
        raise UsageError(
            name or "SHELL",
            "no such shell is completed",
            expected=", ".join(shells),
            hint="wn --show-completion bash",
        )
    return shells[name]


def answer(typed: list[str]) -> None:
    """Print what Tab offers: nothing where anything is wrong, or takes long.

    Args:
        typed: the shell, and what its script passes on.
    """
    with suppress(Exception), _in_time():
        shell, *words = typed
        print("\n".join(_of_bash(*words) if shell == "bash" else _of_others(shell, *words)))


@contextmanager
def _in_time() -> Iterator[None]:
    if not hasattr(signal, "setitimer"):
        yield
        return
    signal.signal(signal.SIGALRM, lambda *_: os._exit(0))
    signal.setitimer(signal.ITIMER_REAL, _PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _of_others(shell: str, word: str, *words: str) -> Iterator[str]:
    word = _unquoted(word)[1] if shell == "fish" else word
    found = complete(words, word)
    yield found.kind
    yield from (f"{value}\t{meaning}" if meaning else value for value, meaning in found.values)


def _of_bash(line: str, replaced: str) -> Iterator[str]:
    """Answer for a line up to the cursor; `replaced` is the end of it that a value replaces."""
    _, *words, raw = _split(line)
    quote, word = _unquoted(raw)
    found = complete([_unquoted(one)[1] for one in words], word)
    kept = raw[: len(raw) - len(replaced)]
    if found.kind == "files":  # which bash quotes
        yield found.kind
        option = "".join(re.findall(r"\A--[a-z-]+=", word))
        start = len(_unquoted(kept)[1])
        yield from (f"{option}{path}"[start:] for path in _files(word.removeprefix(option)))
    elif found.kind == "folders":
        yield found.kind
    else:
        yield found.kind
        for value, _ in found.values:
            yield f"{raw}{_quoted(value[len(word) :], quote)}"[len(kept) :]


#: What bash takes otherwise than as itself, outside of quotes and within double ones.
_SPECIAL = re.compile(r"[^\w./:=@%+,-]")
_IN_DOUBLE_QUOTES = re.compile(r"[\\\"$`!]")


def _split(line: str) -> list[str]:
    """Split a line into words as they are typed, the last of which may be empty."""
    words, quote, passed = [""], "", False
    for char in line:
        if char in " \t\n" and not quote and not passed:
            words += [""] * bool(words[-1])
            continue
        words[-1] += char
        quote, passed = _after(char, quote, passed=passed)
    return words


def _after(char: str, quote: str, *, passed: bool) -> tuple[str, bool]:
    """Return the quote that is open behind a character, and whether it escapes the next one."""
    if passed:
        return quote, False
    if char == "\\" and quote != "'":
        return quote, True
    if char in "'\"" and quote in {"", char}:
        return "" if quote else char, False
    return quote, False


def _unquoted(raw: str) -> tuple[str, str]:
    """Return the quote that a word leaves open, and what it says."""
    text, quote, passed = "", "", False
    for char in raw:
        before, escaped = quote, passed
        quote, passed = _after(char, quote, passed=passed)
        if escaped and before and not _IN_DOUBLE_QUOTES.match(char):
            text += "\\"
        if not passed and quote == before:
            text += char
    return quote, text


def _quoted(text: str, quote: str) -> str:
    """Spell text as it goes on behind what is typed, within the quote that is open there."""
    if quote == "'":
        return text.replace("'", "'\\''")
    special = _IN_DOUBLE_QUOTES if quote else _SPECIAL
    return special.sub(lambda found: f"\\{found[0]}", text)


def _files(word: str) -> Iterator[str]:
    """List folders and what may be a checkpoint, of which the word is the beginning."""
    folder, slash, start = word.rpartition("/")
    with os.scandir(Path(folder + slash or ".").expanduser()) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            name = entry.name
            if not name.startswith(start) or not name.isprintable():
                continue
            if name.startswith(".") and not start:
                continue
            suffix = Path(name).suffix.lower()
            if suffix in {"", *SUFFIXES} or name.endswith(".index.json") or entry.is_dir():
                yield folder + slash + name
