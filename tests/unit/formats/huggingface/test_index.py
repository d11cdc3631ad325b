"""What is refused in an index, and in the files that it names: damaged, hostile, missing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.oracles import bits
from tests.support.run import refused_for_anybody
from tests.support.shards import (
    BOTH,
    FIRST,
    SECOND,
    contents,
    index_path,
    map_of,
    refused,
    save,
    shard_name,
    sharded,
    write_index,
)
from wncli.errors import FileError
from wncli.formats.huggingface.index import LONGEST_INDEX
from wncli.formats.huggingface.shard_files import is_bare_name

# -- hostile and damaged indexes ---------------------------------------------------------------

BAD_NAMES = {
    "empty": "",
    "dot": ".",
    "dot dot": "..",
    "parent": "../model-00001-of-00002.safetensors",
    "parent inside": "x/../model-00001-of-00002.safetensors",
    "current folder": "./model-00001-of-00002.safetensors",
    "subfolder": "sub/model.safetensors",
    "trailing separator": "model-00001-of-00002.safetensors/",
    "root": "/model.safetensors",
    "absolute": "/etc/passwd.safetensors",
    "backslash": "sub\\model.safetensors",
    "parent with a backslash": "..\\model.safetensors",
    "Windows root": "\\model.safetensors",
    "drive": "C:\\model.safetensors",
    "drive without a root": "C:model.safetensors",
    "UNC path": "\\\\host\\share\\model.safetensors",
    "device path": "\\\\.\\pipe\\model.safetensors",
    "NTFS stream": "model:stream.safetensors",
    "NUL": "model.safetensors\0",
    "NUL inside": "model\0.safetensors",
    "no extension": "model-00001-of-00002",
    "suffix alone": ".safetensors",
    "another extension": "model-00001-of-00002.bin",
    "executable": "model.exe",
    "extension with a space": "model.safetensors ",
    "extension in capitals": "model.SAFETENSORS",
    "the index itself": "model.safetensors.index.json",
    "URL": "https://example.com/model.safetensors",
    "home": "~/model.safetensors",
}


@pytest.mark.parametrize("defect", BAD_NAMES)
def test_a_file_name_that_leads_elsewhere_is_refused(defect: str, tmp_path: Path) -> None:
    index = sharded(tmp_path / "model")
    for stray in ("model.safetensors", "model-00001-of-00002.safetensors"):
        shutil.copy(index.parent / shard_name(1), tmp_path / stray)
    write_index(index, map_of() | {"a.bias": BAD_NAMES[defect]})
    message = refused(index)
    assert "'a.bias'" in message
    assert "not a valid index" in message
    assert message.isprintable() or message.replace("\n", "").isprintable()


def test_a_bare_name_is_no_folder_whatever_its_extension() -> None:
    assert is_bare_name("..model..safetensors")
    assert not any(is_bare_name(name) for name in ("", ".", "..", "a/", "/", "\\"))


@pytest.mark.parametrize("name", ["a.safetensors", "a.ckpt", "a.pkl", "a.bin.exe"])
def test_a_torch_index_with_files_of_another_kind_is_refused(name: str, tmp_path: Path) -> None:
    index = write_index(sharded(tmp_path, "torch"), map_of("torch") | {"a.bias": name})
    assert "of another kind" in refused(index)


DEFECTS: dict[str, bytes] = {
    "cut off": b'{"weight_map": {"a": "b.safeten',
    "not UTF-8": b'{"weight_map": {"\xff": "b.safetensors"}}',
    "UTF-16": '{"weight_map": {}}'.encode("utf-16-le"),
    "lone surrogate": b'{"weight_map": {"\\ud800": "b.safetensors"}}',
    "NaN": b'{"metadata": {"total_size": NaN}, "weight_map": {"a": "b.safetensors"}}',
    "trailing comma": b'{"weight_map": {"a": "b.safetensors",}}',
    "text behind": b'{"weight_map": {"a": "b.safetensors"}} x',
    "deep nesting": b'{"weight_map": ' + b"[" * 100_000,
    "number of 5000 digits": b'{"weight_map": {"a": "b.safetensors"}, "x": ' + b"9" * 5000 + b"}",
    "no weight_map": b'{"metadata": {}}',
    "nothing in it": b"{}",
    "weight_map is null": b'{"weight_map": null}',
    "weight_map is an array": b'{"weight_map": ["a"]}',
    "weight_map is text": b'{"weight_map": "a"}',
    "weight_map is empty": b'{"weight_map": {}}',
    "file is null": b'{"weight_map": {"a": null}}',
    "file is a number": b'{"weight_map": {"a": 1}}',
    "file is an array": b'{"weight_map": {"a": ["b.safetensors"]}}',
    "file is an object": b'{"weight_map": {"a": {"b": "c"}}}',
    "metadata is text": b'{"metadata": "x", "weight_map": {"a": "b.safetensors"}}',
    "tensor twice": b'{"weight_map": {"a": "b.safetensors", "a": "b.safetensors"}}',
    "tensor twice in two files": b'{"weight_map": {"a": "b.safetensors", "a": "c.safetensors"}}',
    "weight_map twice": b'{"weight_map": {"a": "b.safetensors"}, "weight_map": {}}',
    "array at the top": b'["weight_map"]',
    "text at the top": b'"weight_map"',
    "no JSON": b"weight_map: {}",
    "empty": b"",
    "byte order mark": b'\xef\xbb\xbf{"weight_map": {"a": "b.safetensors"}}',
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_damaged_index_is_refused(defect: str, tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_bytes(DEFECTS[defect])
    for path in (index, tmp_path):
        message = refused(path)
        assert str(index) in message
        assert "index" in message


@pytest.mark.parametrize("end", range(0, 60, 3))
def test_an_index_cut_off_at_any_byte_is_refused(end: int, tmp_path: Path) -> None:
    index = sharded(tmp_path)
    index.write_bytes(index.read_bytes()[:end])
    refused(index)


def test_an_index_that_is_too_long_is_refused_unread(tmp_path: Path) -> None:
    index = sharded(tmp_path)
    with index.open("r+b") as file:
        file.truncate(LONGEST_INDEX + 1)
    assert "too long" in refused(index)
    other = index.rename(tmp_path / "model.json")
    assert "not a checkpoint" in refused(other)


@pytest.mark.parametrize("name", ["config.json", "index.json.txt"])
def test_other_json_is_no_index(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text('{"architectures": ["BertModel"], "hidden_size": 768}')
    assert "a text file" in refused(path)


def test_a_git_lfs_pointer_in_place_of_an_index_is_named(tmp_path: Path) -> None:
    index = index_path(tmp_path)
    index.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    assert "git lfs pull" in refused(index)


def test_a_git_lfs_pointer_in_place_of_a_shard_is_named(tmp_path: Path) -> None:
    index = sharded(tmp_path)
    (tmp_path / shard_name(2)).write_text("version https://git-lfs.github.com/spec/v1\noid\n")
    message = refused(index)
    assert "git lfs pull" in message
    assert shard_name(2) in message


def test_a_shard_that_is_an_index_is_refused(tmp_path: Path) -> None:
    index = sharded(tmp_path)
    shutil.copy(index, tmp_path / shard_name(2))
    assert shard_name(2) in refused(index)


def test_a_truncated_shard_is_refused_by_its_name(tmp_path: Path) -> None:
    index = sharded(tmp_path)
    shard = tmp_path / shard_name(2)
    shard.write_bytes(shard.read_bytes()[:-1])
    message = refused(index)
    assert shard_name(2) in message
    assert "truncated" in message


# -- links and what is no file -----------------------------------------------------------------


def hugging_face_cache(home: Path, subfolder: str = "", model: str = "models--o--m") -> Path:
    """The layout of `~/.cache/huggingface/hub`; the snapshot's folder, or one inside it."""
    folder = home / model / "snapshots" / "0123abc" / subfolder
    blobs = home / model / "blobs"
    index = sharded(folder)
    blobs.mkdir(parents=True)
    for number, path in enumerate([index, *(folder / shard_name(n) for n in BOTH)]):
        path.rename(blobs / f"{number}")
        path.symlink_to(os.path.relpath(blobs / f"{number}", folder))
    return folder


@pytest.mark.parametrize("subfolder", ["", "unet", "a/b"])
def test_the_links_of_the_hugging_face_cache_are_followed(subfolder: str, tmp_path: Path) -> None:
    folder = hugging_face_cache(tmp_path, subfolder)
    expected = {name: bits(tensor) for name, tensor in (FIRST | SECOND).items()}
    assert contents(folder) == contents(index_path(folder)) == expected
    (tmp_path / "link").symlink_to(folder)
    assert contents(tmp_path / "link") == expected


def test_a_relative_path_into_the_hugging_face_cache_is_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(hugging_face_cache(tmp_path))
    assert contents(Path()) == contents(index_path(Path()))


def other_model(_: Path, home: Path) -> Path:
    blob = hugging_face_cache(home, model="models--o--other").parents[1] / "blobs" / "1"
    assert blob.exists()
    return blob


FOREIGN: dict[str, Callable[[Path, Path], Path]] = {
    "the blobs of another model": other_model,
    "a folder in the blobs": lambda folder, _: folder.parents[1] / "blobs" / "sub" / "1",
    "a snapshot of another revision": lambda folder, _: folder.parent / "4567def" / "1",
    "the model's refs": lambda folder, _: folder.parents[1] / "refs" / "1",
    "the folder of all models": lambda _, home: home / "1",
    "a device": lambda _, __: Path(os.devnull),
}


@pytest.mark.parametrize("target", FOREIGN)
def test_a_link_from_the_cache_to_elsewhere_is_refused(target: str, tmp_path: Path) -> None:
    folder = hugging_face_cache(tmp_path)
    blob = FOREIGN[target](folder, tmp_path)
    if not blob.exists():
        blob.parent.mkdir(parents=True, exist_ok=True)
        save(FIRST, tmp_path / "made.safetensors")
        (tmp_path / "made.safetensors").rename(blob)
    shard = folder / shard_name(1)
    shard.unlink()
    shard.symlink_to(blob)
    message = refused(folder)
    assert shard_name(1) in message
    assert "leaves its folder" in message


def test_blobs_that_are_a_link_are_refused(tmp_path: Path) -> None:
    folder = hugging_face_cache(tmp_path / "hub")
    blobs = folder.parents[1] / "blobs"
    blobs.rename(tmp_path / "elsewhere")
    blobs.symlink_to(tmp_path / "elsewhere")
    assert "leaves its folder" in refused(folder)


def test_blobs_without_a_models_folder_around_are_refused(tmp_path: Path) -> None:
    folder = hugging_face_cache(tmp_path, model="o--m")
    assert "leaves its folder" in refused(folder)


@pytest.mark.parametrize("name", [shard_name(1), "model.safetensors.index.json"])
def test_a_link_that_leaves_the_folder_is_refused(name: str, tmp_path: Path) -> None:
    index = sharded(tmp_path / "model")
    (tmp_path / "model" / name).rename(tmp_path / name)
    (tmp_path / "model" / name).symlink_to(f"../{name}")
    for path in (index, tmp_path / "model"):
        message = refused(path)
        assert "leaves its folder" in message
        assert str(tmp_path / "model" / name) in message


def test_links_inside_the_folder_are_followed(tmp_path: Path) -> None:
    index = sharded(tmp_path)
    expected = contents(index)
    (tmp_path / "files").mkdir()
    for name in (shard_name(1), shard_name(2), index.name):
        (tmp_path / name).rename(tmp_path / "files" / name)
        (tmp_path / name).symlink_to(f"files/{name}")
    assert contents(index) == contents(tmp_path) == expected


def test_a_loop_of_links_as_a_shard_is_refused(tmp_path: Path) -> None:
    index = sharded(tmp_path)
    for number in (1, 2):
        (tmp_path / shard_name(number)).unlink()
        (tmp_path / shard_name(number)).symlink_to(shard_name(3 - number))
    message = refused(index, FileError)
    assert shard_name(1) in message
    assert "leads back to itself" in message


def test_a_loop_of_links_as_the_index_is_refused(tmp_path: Path) -> None:
    index_path(tmp_path).symlink_to(index_path(tmp_path))
    for path in (index_path(tmp_path), tmp_path):
        assert str(index_path(tmp_path)) in refused(path, FileError)


@pytest.mark.parametrize("what", ["a FIFO", "a directory", "a socket", "a link to a FIFO"])
def test_a_shard_that_is_no_file_is_refused_and_not_waited_for(what: str, tmp_path: Path) -> None:
    index = sharded(tmp_path)
    shard = tmp_path / shard_name(2)
    shard.unlink()
    if what == "a directory":
        shard.mkdir()
    elif what == "a FIFO":
        os.mkfifo(shard)
    elif what == "a link to a FIFO":
        os.mkfifo(tmp_path / "pipe")
        shard.symlink_to("pipe")
    else:
        os.mknod(shard, 0o140644)
    message = refused(index, FileError)
    assert shard_name(2) in message
    assert ("directory" if what == "a directory" else "not a regular file") in message


def test_a_shard_that_may_not_be_read_is_refused(tmp_path: Path) -> None:
    index = sharded(tmp_path)
    (tmp_path / shard_name(2)).chmod(0)
    message = refused_for_anybody("inspect", index)
    assert shard_name(2) in message
    assert "Permission denied" in message


def test_a_shard_name_that_the_system_does_not_take_is_refused(tmp_path: Path) -> None:
    index = write_index(sharded(tmp_path), map_of() | {"x": "y" * 300 + ".safetensors"})
    assert "File name too long" in refused(index, FileError)


# -- missing shards ----------------------------------------------------------------------------


def test_a_missing_shard_is_named_with_how_many_are_there(tmp_path: Path) -> None:
    index = sharded(tmp_path)
    (tmp_path / shard_name(2)).unlink()
    for path in (index, tmp_path):
        message = refused(path, FileError)
        assert f"1 of 2 shards missing: {shard_name(2)}" in message
        assert "1 of 2\n" in message
        assert "download" in message


def test_a_link_to_nothing_is_a_missing_shard(tmp_path: Path) -> None:
    folder = hugging_face_cache(tmp_path)
    (folder / shard_name(1)).resolve().unlink()
    assert f"1 of 2 shards missing: {shard_name(1)}" in refused(folder, FileError)


def test_of_many_missing_shards_the_first_are_named(tmp_path: Path) -> None:
    names = {f"t{n}": shard_name(n, count=40) for n in range(1, 41)}
    message = refused(write_index(index_path(tmp_path), names), FileError)
    assert "40 of 40 shards missing" in message
    assert shard_name(3, count=40) in message
    assert shard_name(4, count=40) not in message
    assert "and 37 more" in message
