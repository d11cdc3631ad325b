"""The file names that Hugging Face's libraries write, and that `from_pretrained` looks for.

`model-00001-of-00003.safetensors` beside `model.safetensors.index.json`,
`pytorch_model-00001-of-00003.bin` beside `pytorch_model.bin.index.json`; a single file has neither
number nor index. With a variant an index is `model.safetensors.index.fp16.json`
(transformers `modeling_utils.py`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from wncli.formats.registry import FORMATS, FormatName

_STEMS = (*(made.hub_stem for made in FORMATS.values()), "diffusion_pytorch_model")
#: What single files are called that `from_pretrained` looks for, each with its format.
WHOLE_FILES: dict[str, FormatName] = {
    f"{stem}{made.shard_suffixes[0]}": made.name for made in FORMATS.values() for stem in _STEMS
}
_FORMATS_OF_SHARDS: dict[str, FormatName] = {
    suffix: made.name for made in FORMATS.values() for suffix in made.shard_suffixes
}
_INDEX = re.compile(
    rf".*({'|'.join(map(re.escape, _FORMATS_OF_SHARDS))})\.index(\.[^.]+)?\.json", re.DOTALL
)


def index_format(name: str) -> FormatName | None:
    """Give the format of the files that an index of this name lists; None if it is no index's."""
    match = _INDEX.fullmatch(name)
    return _FORMATS_OF_SHARDS[match[1]] if match else None


def numbered(name: FormatName, count: int) -> list[str]:
    """Name `count` new shards, or the one file."""
    stem, suffix = FORMATS[name].hub_stem, FORMATS[name].shard_suffixes[0]
    if count == 1:
        return [stem + suffix]
    return [f"{stem}-{number:05}-of-{count:05}{suffix}" for number in range(1, count + 1)]


def renamed(file: str, name: FormatName) -> str:
    """Name a file as it is called in another format."""
    stem = file.rpartition(".")[0]
    new = FORMATS[name]
    for old in FORMATS.values():
        if old is not new and re.fullmatch(rf"{old.hub_stem}(-\d+-of-\d+)?", stem):
            stem = new.hub_stem + stem.removeprefix(old.hub_stem)
            break
    return stem + new.shard_suffixes[0]


def index_name(files: Sequence[str], name: FormatName, old: str) -> str:
    """Name the index of these files: as `old`, that of the input, where that fits."""
    suffix = FORMATS[name].shard_suffixes[0]
    if old.endswith(f"{suffix}.index.json"):
        return old
    stem = re.sub(r"-\d+-of-\d+$", "", files[0].removesuffix(suffix))
    return f"{stem}{suffix}.index.json"
