"""Tells addresses of the web and of object stores from paths, and says how to fetch them."""

from __future__ import annotations

import re
from pathlib import Path

from wncli.errors import FileError
from wncli.hints import free_path, parameter, path_text, path_word, phrase, then_inspecting, word

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
#: Characters of the name that a file gets here.
_LONGEST = 60
#: A model of the Hugging Face Hub, as its owner and its name.
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FETCH = {"s3": "aws s3 cp", "gs": "gcloud storage cp"}


def refuse_address(text: str, *, is_output: bool) -> None:
    """Nothing is read or written at a distance.

    Raises:
        FileError: `text` is an address, which a path would be made of by dropping a slash.
    """
    if not _ADDRESS.match(text):
        return
    raise FileError(
        text,
        phrase("{} has to be a file here", parameter("output") if is_output else "a checkpoint"),
        expected="a path",
        found="an address",
        hint="write a file, and upload that" if is_output else _fetch(text),
    )


def repository_hint(path: Path) -> str:
    """Return what fetches a model of the Hub, where a path that leads nowhere may name one."""
    text = path.as_posix()
    if not _REPOSITORY.fullmatch(text) or path.parent.exists():
        return ""
    return phrase("{} prints the folder to give", f"hf download {word(text)}")


def _fetch(text: str) -> str:
    """Return what brings the file here; nothing is overwritten by it."""
    from urllib.parse import unquote

    scheme, _, place = text.partition("://")
    scheme = scheme.lower()
    _, _, path = place.partition("/")
    if scheme == "file":
        return path_text(f"/{unquote(path)}")
    if not path:
        return "download it first, and give the file"
    if scheme == "hf":
        owner, repository, *file = place.split("/", 2)
        return " ".join(["hf download", word(f"{owner}/{repository}"), *map(word, file)])
    is_web = scheme in {"http", "https"}
    name = Path(unquote(re.split("[?#]", path)[0]) if is_web else path).name
    name = name.replace("\0", "_")[-_LONGEST:] or "checkpoint"
    target = free_path(Path(name))
    if scheme in _FETCH:
        return then_inspecting(f"{_FETCH[scheme]} {word(text)} {path_word(target)}", target)
    if is_web:
        # A hub shows a page about the file at blob, and has the file itself at resolve.
        text = re.sub(r"^(https?://huggingface\.co/[^/]+/[^/]+)/blob/", r"\1/resolve/", text)
        return then_inspecting(f"curl -fgL {word(text)} -o {path_word(target)}", target)
    return "download it first, and give the file"
