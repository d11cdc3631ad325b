"""What bash, zsh and fish run when Tab is pressed, and how that is installed.

The scripts only pass words on to the `wn` of the PATH, and take lines of text for an answer: no
name of a file or of a layer is evaluated or expanded.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from wncli.errors import FileError, UsageError
from wncli.formats.registry import SUFFIXES
from wncli.hints import path_word

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
                shown+=("${line#*$'\t'}")
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
