"""The Hugging Face Hub: addresses, token, commit, cache and refusals as its library has them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import wncli
from tests.support.remote_files import COMMIT, Hub, shards, state
from tests.support.run import Ran, environment
from tests.support.servers import Reply, Server
from wncli.storage.remote import hub_file
from wncli.storage.remote.hub_settings import hub_settings

pytestmark = pytest.mark.usefixtures("nothing_is_said")

RunHere = Callable[..., Ran]
SECRET = "hf_" + "secret"


@pytest.fixture
def hub(server: Server, other: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A hub with a sharded model at the top, and files in folders; the files are elsewhere."""
    made = Hub(server, other)
    folder = shards(tmp_path / "repository")
    (folder / "sub").mkdir()
    torch.save({"generator": state()}, folder / "sub" / "g.pt")
    (folder / "empty").mkdir()
    (folder / "empty" / "README.md").write_text("nothing")
    made.put(folder)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", SECRET)
    made.token = SECRET
    return made


@pytest.fixture
def without_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is where huggingface_hub is not installed."""
    monkeypatch.setattr(hub_file, "find_spec", lambda _: None)


def test_a_repository_is_read_as_a_folder_of_shards(hub: Hub, tmp_path: Path) -> None:
    report = wncli.inspect("hf://owner/name")
    here = wncli.inspect(tmp_path / "repository")
    assert report.checkpoint_files == here.checkpoint_files
    assert report.layers == here.layers
    assert report.checkpoint == "hf://owner/name"
    count = len(report.checkpoint_files)
    store = hub.store
    assert store is not None
    assert hub.server.requests + store.requests <= 2 * count + 2
    # All of one commit, which the first answer has named.
    assert all(f"/{COMMIT}/" in asked.path for asked in hub.server.asked[1:])
    assert all(asked.headers["authorization"] for asked in hub.server.asked)


@pytest.mark.parametrize(
    "address",
    [
        "hf://owner/name/sub/g.pt", "hf://owner/name@main/sub/g.pt", "hf://owner/name@v1/sub/g.pt",
        f"hf://owner/name@{COMMIT}/sub/g.pt", "hf://owner/name/sub", "hf://owner/name/sub/",
        "hf://models/owner/name/sub/g.pt", "{}/owner/name/resolve/main/sub/g.pt?download=true",
        "{}/owner/name/blob/main/sub/g.pt", "{}/owner/name/tree/main/sub",
    ],
)  # fmt: skip
def test_files_and_folders_of_any_revision_are_read(address: str, hub: Hub, tmp_path: Path) -> None:
    report = wncli.inspect(address.format(hub.server.url))
    assert report.layers == wncli.inspect(tmp_path / "repository/sub/g.pt").layers
    assert "?" not in report.checkpoint


@pytest.mark.usefixtures("without_library")
def test_a_repository_is_written_as_its_folder_is(hub: Hub, tmp_path: Path, outputs: Path) -> None:
    wncli.remove("hf://owner/name", outputs / "there")
    wncli.remove(tmp_path / "repository", outputs / "here")
    there, here = (
        {path.name: path.read_bytes() for path in (outputs / name).iterdir()}
        for name in ("there", "here")
    )
    assert there.keys() - here.keys() == set()
    assert there == here
    assert "config.json" in there
    assert hub.server.requests


def test_what_all_bytes_are_needed_of_comes_into_the_shared_cache(
    hub: Hub, tmp_path: Path, outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import try_to_load_from_cache

    cache = hub_settings().cache
    wncli.remove(f"hf://owner/name@{COMMIT}/sub/g.pt", outputs / "a.safetensors")
    wncli.remove(tmp_path / "repository/sub/g.pt", outputs / "b.safetensors")
    assert (outputs / "a.safetensors").read_bytes() == (outputs / "b.safetensors").read_bytes()
    found = try_to_load_from_cache("owner/name", "sub/g.pt", cache_dir=cache, revision=COMMIT)
    assert isinstance(found, str)
    assert Path(found).read_bytes() == (tmp_path / "repository/sub/g.pt").read_bytes()
    # From now on nothing is asked for but which commit is meant; and by a commit, nothing.
    store = hub.store
    assert store is not None
    hub.server.forget()
    store.forget()
    assert wncli.inspect("hf://owner/name/sub/g.pt").statistics
    assert (hub.server.requests, store.requests) == (1, 0)
    assert wncli.inspect(f"hf://owner/name@{COMMIT}/sub/g.pt").layers
    assert (hub.server.requests, store.requests) == (1, 0)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert wncli.inspect(f"hf://owner/name@{COMMIT}/sub/g.pt").layers
    (cache / "models--owner--name/refs").mkdir(exist_ok=True)
    (cache / "models--owner--name/refs/main").write_text(COMMIT)
    assert wncli.inspect("hf://owner/name/sub").layers
    assert hub.server.requests == 1


@pytest.mark.usefixtures("hub")
def test_offline_nobody_is_asked(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        with monkeypatch.context() as patch:
            patch.setenv(variable, "1")
            for address in ("hf://owner/name", "hf://owner/name/sub/g.pt"):
                with pytest.raises(wncli.FileError, match="HF_HUB_OFFLINE says to ask nobody"):
                    wncli.inspect(address)
    assert not server.requests


REFUSALS: dict[str, tuple[str, str]] = {
    "hf://owner/name/sub/h.pt": ("no such file in this repository", "hf://owner/name/sub/g.pt"),
    "hf://owner/name/g.pt": ("no such file in this repository", "hf://owner/name/sub/g.pt"),
    "hf://owner/name@v2/g.pt": ("there is no revision v2", "wn inspect hf://owner/name"),
    "hf://owner/nothing": ("there is no owner/nothing on the hub", "hf auth login"),
    "hf://owner/name/empty": ("no checkpoint in this directory", ""),
    "hf://owner": ("no address of a model", ""),
    "hf://owner/name/../x.pt": ("no address of a model", ""),
    "hf://": ("no address", ""),
}


@pytest.mark.parametrize("address", REFUSALS)
@pytest.mark.usefixtures("hub")
def test_what_is_not_there_is_named_with_what_may_be_meant(
    address: str, wn_here: RunHere, outputs: Path
) -> None:
    problem, hint = REFUSALS[address]
    ran = wn_here("remove", address, outputs / "a.pt")
    assert ran.code == 2
    assert problem in ran.stderr
    assert hint in ran.stderr
    assert not list(outputs.iterdir())


def test_which_token_was_looked_for_is_said(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub.token = SECRET[::-1]

    def found() -> str:
        with pytest.raises(wncli.FileError) as refused:
            wncli.inspect("hf://owner/name/sub/g.pt")
        assert "hf_secret" not in str(refused.value)
        return refused.value.found

    assert "the token of HF_TOKEN" in found()
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "token"))
    assert f"no token: neither in HF_TOKEN nor in {tmp_path / 'token'}" in found()
    (tmp_path / "token").write_text("hf_secret\n")
    assert f"the token of {tmp_path / 'token'}" in found()
    hub.token = SECRET
    assert wncli.inspect("hf://owner/name/sub/g.pt").layers
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
    assert "HF_HUB_DISABLE_IMPLICIT_TOKEN is set" in found()


def test_a_gated_model_says_where_to_agree(hub: Hub) -> None:
    hub.refusal = Reply(403, {"X-Error-Code": "GatedRepo"})
    with pytest.raises(wncli.FileError, match="agreed to their terms") as refused:
        wncli.inspect("hf://owner/name")
    assert "/owner/name" in refused.value.hint


def test_a_list_of_files_that_is_none_is_refused(hub: Hub) -> None:
    for text in (b"", b"[]", b'{"sha": 3}', b"[" * 100_000,
                 json.dumps({"sha": "../..", "siblings": []}).encode()):  # fmt: skip
        hub.refusal = Reply(200, {}, text)
        with pytest.raises(wncli.FileError, match="list of its files is none"):
            wncli.inspect("hf://owner/name")


def test_a_missing_shard_is_named(hub: Hub) -> None:
    name = next(name for name in hub.files if "-00002-" in name)
    del hub.files[name]
    with pytest.raises(wncli.FileError, match="shards is missing") as refused:
        wncli.inspect("hf://owner/name")
    assert refused.value.where == f"hf://owner/name/{name}"


def test_a_name_of_a_model_is_offered_as_an_address(wn_here: RunHere, outputs: Path) -> None:
    ran = wn_here("remove", "owner/name", outputs / "a")
    assert ran.code == 2
    assert "try:      hf://owner/name of the Hugging Face Hub, if that is meant\n" in ran.stderr


def test_several_repositories_are_written_under_their_names(
    hub: Hub, outputs: Path, wn_here: RunHere
) -> None:
    ran = wn_here("remove", "hf://owner/name@main", "hf://owner/name/sub/g.pt",
                  "--output-dir", outputs)  # fmt: skip
    assert ran.code == 0, ran.stderr
    assert sorted(path.name for path in outputs.iterdir()) == ["g.pt", "name"]
    assert hub.server.requests


ENVIRONMENTS: list[dict[str, str]] = [
    {},
    {"HF_HOME": "/a/b"},
    {"HF_HOME": "$HOME/b"},
    {"HF_HOME": "~/b"},
    {"XDG_CACHE_HOME": "/x"},
    {"HF_HUB_CACHE": "/c", "HF_HOME": "/a"},
    {"HUGGINGFACE_HUB_CACHE": "/d"},
    {"HF_TOKEN_PATH": "~/t"},
    {"HF_TOKEN": " hf_a\n"},
    {"HUGGING_FACE_HUB_TOKEN": "hf_b"},
    {"HF_TOKEN": "hf_a", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "yes"},
    {"HF_ENDPOINT": "https://hub.example.org/x/"},
    {"HF_HUB_OFFLINE": "true"},
    {"HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "1"},
    {"TRANSFORMERS_OFFLINE": "ON"},
]

ORACLE = """
import json, sys
from huggingface_hub import constants, get_token
print(json.dumps([
    constants.ENDPOINT, "" if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token() or "",
    constants.HF_TOKEN_PATH, constants.HF_HUB_CACHE, constants.HF_HUB_OFFLINE,
]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("said", ENVIRONMENTS, ids=str)
def test_the_environment_is_read_as_huggingface_hub_reads_it(
    said: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    ran = subprocess.run(
        [sys.executable, "-c", ORACLE], env=environment(), capture_output=True, text=True,
        check=True, timeout=60,
    )  # fmt: skip
    found = hub_settings()
    ours = [found.endpoint, found.token, str(found.token_file), str(found.cache), found.is_offline]
    assert ours == json.loads(ran.stdout)
