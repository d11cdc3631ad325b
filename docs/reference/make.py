"""Makes the parts of the reference that are in the code: `python docs/reference/make.py`.

In the pages beside this file each stands between `<!-- made: NAME -->` and `<!-- end -->`. With
`--check` nothing is written, and the exit code is 1 where one is not what would be made.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import typer

from wncli.cli.commands import app
from wncli.cli.help import Help, describe
from wncli.formats import registry

HERE = Path(__file__).resolve().parent
SCHEMA = json.loads((HERE.parent / "schema" / "wn-1.json").read_text())

#: How a file is recognised, and what is read of it, by its kind's name in the registry.
KINDS = {
    "a zip archive": (
        "`PK\\x03\\x04`, or GPT-SoVITS' two digits in place of `PK`",
        "what `torch.save` has written since PyTorch 1.6, TorchScript",
    ),
    "NumPy's .npz": ("a zip whose first member ends with `.npy`", "arrays, stored or deflated"),
    "a legacy torch file": (
        "a pickle of the number `0x1950a86a20f9469cfc6c`",
        "what `torch.save` wrote before PyTorch 1.6 (`_use_new_zipfile_serialization=False`)",
    ),
    "a plain pickle": (
        "`\\x80`, a protocol from 2 to 5, and what can follow it",
        "NumPy arrays by name, `.pdparams` of Paddle",
    ),
    "safetensors": ("a length of 8 bytes, and `{` behind it", "one file, or shards with an index"),
}


def table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    """Give the lines of a table, in a division that the style of the site knows."""
    heads = list(heads)
    lines = [heads, ["---"] * len(heads), *rows]
    yield from ("", '<div class="terms" markdown>', "")
    yield from (f"| {' | '.join(line)} |" for line in lines)
    yield from ("", "</div>", "")


def plain(text: str) -> str:
    """Spell text so that Markdown takes none of it for its own; what is code stays."""
    parts = text.split("`")
    for place in range(0, len(parts), 2):
        parts[place] = re.sub(r"([*|])", r"\\\1", parts[place].replace("<", "&lt;"))
    return "`".join(parts)


def code(text: str) -> str:
    """Spell text as code, also in a table."""
    return f"`{text.strip()}`".replace("|", "\\|")


def described(name: str = "") -> Help:
    """Return the help of a command, or of `wn` itself."""
    group = typer.main.get_group(app)
    context = typer.Context(group, info_name="wn", **group.context_settings)
    if not name:
        return describe(group, context)
    command = group.commands[name]
    return describe(command, typer.Context(command, parent=context, info_name=name))


def command_page(name: str = "") -> Iterator[str]:
    """Give the help of a command as a page."""
    found = described(name)
    yield from ("", "```text", *found.usage, "```", "")
    yield from (f"{plain(text)}\n" for text in found.about)
    for section in found.sections:
        yield f"## {section.title}"
        heads = ["argument" if section.title == "Arguments" else "option", ""]
        if section.title == "Commands":
            heads[0] = "command"
        yield from table(heads, ((code(term), plain(text)) for term, text in section.terms))
    yield from ("## Examples", "", "Typed beside `sample_models`:", "")
    yield '```sh norun="the tests of the help run it"'
    yield "\n\n".join(f"# {text}\n{example}" for example, text in found.examples)
    yield from ("```", "")


def type_of(schema: dict[str, Any]) -> str:
    """Say what a value may be."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name})"
    if "const" in schema:
        return code(json.dumps(schema["const"]))
    if "enum" in schema:
        return ", ".join(code(json.dumps(word)) for word in schema["enum"])
    choices = schema.get("anyOf") or schema.get("oneOf")
    if choices:
        return " or ".join(map(type_of, choices))
    names = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    items = schema.get("items")
    within = f" of {type_of(items)}" if items else ""
    return " or ".join(name + within * (name == "array") for name in names)


def keys_of(schema: dict[str, Any], above: str = "") -> Iterator[tuple[str, str, str]]:
    """Give the keys of an object, those of objects in it as `above[].key`."""
    needed = schema.get("required", ())
    for key, value in schema["properties"].items():
        said = value.get("description") or _resolved(value).get("description", "")
        if key not in needed:
            said = f"Not always there. {said}"
        yield code(above + key), type_of(value), plain(said)
        items = value.get("items", {})
        if "properties" in items:
            yield from keys_of(items, f"{above}{key}[].")


def _resolved(schema: dict[str, Any]) -> dict[str, Any]:
    if "$ref" not in schema:
        return schema
    found: dict[str, Any] = SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]]
    return found


def json_page() -> Iterator[str]:
    """Give every key of the reports."""
    whole = [one["$ref"].rpartition("/")[2] for one in SCHEMA["oneOf"]]
    for name in (*whole, *(name for name in SCHEMA["$defs"] if name not in whole)):
        schema = SCHEMA["$defs"][name]
        yield from ("", f"### {name}", "")
        if "description" in schema:
            yield from (plain(schema["description"]), "")
        yield from table(("key", "type", ""), keys_of(schema))


def written_formats() -> Iterator[str]:
    """Give the formats that are written, from the registry."""
    rows = []
    for name in registry.OFFERED:
        made = registry.FORMATS.get(name)
        suffixes = " ".join(map(code, made.suffixes)) if made else "a folder's name, without one"
        holds = "the whole file" if registry.holds_a_tree(name) else "one state dict"
        shards = "in the folder"
        if made:
            index = f"{made.hub_stem}{made.shard_suffixes[0]}.index.json"
            shards = code(f"{made.hub_stem}-00001-of-00002{made.shard_suffixes[0]}")
            shards = f"{shards}, {code(index)}"
        rows.append((code(f"--format {name}"), suffixes, holds, shards))
    yield from table(("format", "suffix of OUTPUT", "holds", "files of shards"), rows)


def read_kinds() -> Iterator[str]:
    """Give the kinds of files in the order of the registry."""
    rows = ((plain(kind.label), *KINDS[kind.label]) for kind in registry.FILE_KINDS)
    yield from table(("a file is", "where it begins with", "and is read as"), rows)


PARTS: dict[str, Callable[[], Iterator[str]]] = {
    "wn": command_page,
    "inspect": lambda: command_page("inspect"),
    "apply": lambda: command_page("apply"),
    "remove": lambda: command_page("remove"),
    "convert": lambda: command_page("convert"),
    "compare": lambda: command_page("compare"),
    "json": json_page,
    "written formats": written_formats,
    "read kinds": read_kinds,
}
_PART = re.compile(r"(<!-- made: ([\w ]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def made(page: str) -> str:
    """Return a page with its parts made anew."""

    def part(found: re.Match[str]) -> str:
        text = re.sub(r"\n{3,}", "\n\n", "\n".join(PARTS[found[2]]()))
        return f"{found[1]}\n{text.strip()}\n\n{found[3]}"

    return _PART.sub(part, page)


def main() -> None:
    """Write the pages that have changed; with `--check`, only name them."""
    changed = []
    for path in sorted(HERE.rglob("*.md")):
        page = path.read_text()
        if made(page) != page:
            changed.append(path)
            if "--check" not in sys.argv:
                path.write_text(made(page))
    for path in changed:
        print(path.relative_to(HERE))
    sys.exit(bool(changed) and "--check" in sys.argv)


if __name__ == "__main__":
    main()
