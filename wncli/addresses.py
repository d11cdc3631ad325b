"""Tells addresses of the web and of object stores from paths, and says how to fetch them."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from wncli.errors import FileError
from wncli.hints import free_path, path_word, word

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_FETCH = {"s3": "aws s3 cp", "gs": "gcloud storage cp"}


def refuse_address(text: str, *, is_output: bool) -> None:
    """Nothing is read or written at a distance.

    Raises:
        FileError: `text` is an address, which a path would be made of by dropping a slash.
    """
    if not _ADDRESS.match(text):
        return
    scheme, _, path, _, _ = urlsplit(text)
    if is_output:
        problem, hint = "OUTPUT has to be a file here", "write a file, and upload that"
    else:
        problem, hint = "a checkpoint has to be a file here", _fetch(scheme.lower(), text, path)
    raise FileError(text, problem, expected="a path", found="an address", hint=hint)


def _fetch(scheme: str, text: str, path: str) -> str:
    """What brings the file here; nothing is overwritten by it."""
    if scheme == "file":
        return f"wn inspect {path_word(unquote(path))}"
    if scheme == "hf":
        owner, _, inner = text.partition("://")[2].partition("/")
        repository, _, file = inner.partition("/")
        return " ".join(["hf download", word(f"{owner}/{repository}"), *filter(None, [word(file)])])
    name = Path(unquote(path)).name or "checkpoint"
    target = path_word(free_path(Path(name)))
    if scheme in _FETCH:
        return f"{_FETCH[scheme]} {word(text)} {target} && wn inspect {target}"
    if scheme in {"http", "https"}:
        # A hub shows a page about the file at blob, and has the file itself at resolve.
        text = re.sub(r"^(https?://huggingface\.co/[^/]+/[^/]+)/blob/", r"\1/resolve/", text)
        return f"curl -fL {word(text)} -o {target} && wn inspect {target}"
    return "download it first, and give the file"
