"""What a server gives is what a file here gives, and costs few requests."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import wncli
import wncli.pytorch
from tests.support.remote_files import FORMATS, shards, state
from tests.support.run import Ran
from tests.support.servers import Server
from wncli.report import Report

pytestmark = pytest.mark.usefixtures("nothing_is_said")

RunHere = Callable[..., Ran]


def like_local(report: Report, name: str) -> Report:
    """A report as it would be of the file here, but for what is not read at a distance."""
    return replace(report, checkpoint=name, seconds=0.0, remote=None, statistics=None)


@pytest.fixture(params=FORMATS)
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    name = str(request.param)
    FORMATS[name](tmp_path / name)
    return tmp_path / name


def test_inspect_gives_what_it_gives_of_the_file_here(file: Path, server: Server) -> None:
    url = server.put(file.name, file)
    here = wncli.inspect(file, tensors=True)
    there = wncli.inspect(url, tensors=True)
    assert there.checkpoint == url
    assert like_local(there, str(file)) == replace(here, seconds=0.0, statistics=None)
    assert there.statistics is None
    assert wncli.inspect(url, statistics=True).statistics == here_statistics(file)
    assert here.layers


def here_statistics(file: Path) -> object:
    return wncli.inspect(file, statistics=True).statistics


def test_every_command_writes_the_same_bytes_as_of_the_file_here(
    file: Path, server: Server, outputs: Path
) -> None:
    url = server.put(file.name, file)
    commands: dict[str, Callable[[Path | str, Path], Report]] = {
        "remove": wncli.remove,
        "convert": lambda given, out: wncli.convert(given, out, naming="parametrized"),
        "npz": lambda given, out: wncli.convert(given, out, format="npz", flatten=True),
        "apply": lambda given, out: wncli.apply(given, out, layers=["*bias"], dim=0),
    }
    for name, run in commands.items():
        suffix = ".npz" if name == "npz" else ".pt"
        here, there = (outputs / f"{where}-{name}" / f"x{suffix}" for where in ("here", "there"))
        for path in (here, there):
            path.parent.mkdir()
        assert problem(run, url, there) == problem(run, file, here)
        assert there.exists() is here.exists()
        assert not here.exists() or there.read_bytes() == here.read_bytes(), name
    written = {path.parent.name for path in outputs.glob("there-*/x*")}
    # A TorchScript archive is not written as one.
    assert written >= ({"there-npz"} if file.name == "script.pt" else {"there-remove"})


def problem(run: Callable[[Path | str, Path], Report], given: Path | str, output: Path) -> str:
    """Run it, and say what was wrong; nothing where it was done."""
    try:
        run(given, output)
    except wncli.WnError as refusal:
        return refusal.problem
    return ""


def test_check_norms_and_values_are_those_of_the_file_here(file: Path, server: Server) -> None:
    url = server.put(file.name, file)
    here, there = (wncli.inspect(given, check=True, norms=True) for given in (file, url))
    assert there.findings == here.findings == ()
    assert there.norms == here.norms
    for one, other in zip(wncli.inspect(url).layers, wncli.inspect(file).layers, strict=True):
        assert (one.g == other.g).all()
        assert (one.v == other.v).all()


def test_compare_takes_addresses_on_both_sides(file: Path, server: Server) -> None:
    url = server.put(file.name, file)
    for a, b in ((url, file), (file, url), (url, url)):
        found = wncli.compare(a, b)
        assert found.equal
        assert found.tensors
        assert found.remote is not None
        assert found.remote.requests > 0
    changed = state()
    changed["ups.0.bias"] = changed["ups.0.bias"] + 1
    torch.save(changed, file.with_name("changed.pt"))
    if file.name in {"zip.pt", "legacy.pt"}:
        other = server.put("changed.pt", file.with_name("changed.pt"))
        assert not wncli.compare(url, other).equal


# -- what it costs ------------------------------------------------------------------------------


def large_zip(path: Path) -> None:
    """A zip as torch.save writes it, of 56 MB with 78 layers; zeros take no place on the disk."""
    stored = {
        name: tensor.expand(size)
        for number in range(78)
        for name, tensor, size in (
            (f"ups.{number}.weight_g", torch.zeros(1), (256,)),
            (f"ups.{number}.weight_v", torch.zeros(1), (256, 700)),
            (f"ups.{number}.bias", torch.zeros(1), (256,)),
        )
    }
    torch.save({name: tensor.contiguous() for name, tensor in stored.items()}, path)


def test_a_zip_of_56_megabytes_takes_three_requests_and_160_kib(
    server: Server, tmp_path: Path
) -> None:
    large_zip(tmp_path / "large.pt")
    assert (tmp_path / "large.pt").stat().st_size > 56_000_000
    report = wncli.inspect(server.put("large.pt", tmp_path / "large.pt"), tensors=True)
    assert report.tensors is not None
    assert len(report.tensors) == 3 * 78
    assert server.requests <= 3
    assert server.sent <= 160 << 10
    assert report.remote is not None
    assert (report.remote.requests, report.remote.bytes) == (server.requests, server.sent)


@pytest.mark.parametrize(("name", "most"), [("model.safetensors", 1), ("legacy.pt", 1),
                                            ("zip.pt", 2), ("archive.nemo", 5)])  # fmt: skip
def test_inspect_asks_for_headers_alone(
    name: str, most: int, server: Server, tmp_path: Path
) -> None:
    FORMATS[name](tmp_path / name)
    wncli.inspect(server.put(name, tmp_path / name))
    assert server.requests <= most
    assert server.sent <= most * (66 << 10)
    assert all(asked.range for asked in server.asked)


def test_a_safetensors_header_that_is_longer_than_the_first_request_takes_another(
    server: Server, tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    tensors = {f"a.module.of.a.long.name.{n}.weight": torch.zeros(1) for n in range(2000)}
    save_file(tensors, tmp_path / "many.safetensors")
    report = wncli.inspect(server.put("many.safetensors", tmp_path / "many.safetensors"))
    assert report.roots[0].tensors == 2000
    assert server.requests == 2


def test_shards_take_a_request_each_and_one_for_their_index(
    server: Server, tmp_path: Path, outputs: Path
) -> None:
    made = shards(tmp_path / "sharded")
    for path in made.iterdir():
        server.put(f"a/{path.name}", path)
    url = f"{server.url}/a/model.safetensors.index.json"
    there = wncli.inspect(url)
    here = wncli.inspect(made)
    count = len(here.checkpoint_files)
    assert count > 2
    assert there.layers == here.layers
    assert server.requests == count + 1
    wncli.remove(url, outputs / "one.safetensors")
    wncli.remove(made, outputs / "two.safetensors")
    assert (outputs / "one.safetensors").read_bytes() == (outputs / "two.safetensors").read_bytes()
    wncli.remove(url, outputs / "many")
    wncli.remove(made, outputs / "many-here")
    for path in (outputs / "many").iterdir():  # a server lists no config beside them
        assert path.read_bytes() == (outputs / "many-here" / path.name).read_bytes()


def test_data_comes_once_and_in_large_parts(server: Server, tmp_path: Path, outputs: Path) -> None:
    large_zip(tmp_path / "large.pt")
    url = server.put("large.pt", tmp_path / "large.pt")
    wncli.convert(url, outputs / "out.pt", naming="parametrized")
    nbytes = (tmp_path / "large.pt").stat().st_size
    assert server.sent <= nbytes + (256 << 10)
    assert server.requests <= 2 + nbytes / (8 << 20) + 1
    sizes = [asked.sent for asked in server.asked]
    assert max(sizes) == 8 << 20


def test_only_what_is_used_is_read(server: Server, tmp_path: Path, outputs: Path) -> None:
    large_zip(tmp_path / "large.pt")
    url = server.put("large.pt", tmp_path / "large.pt")
    wncli.convert(url, outputs / "out.pt", drop=["ups.1*", "ups.2*", "ups.3*", "ups.5*", "ups.6*"])
    assert server.sent < (tmp_path / "large.pt").stat().st_size // 2


def test_the_same_source_gives_any_part_of_a_file_from_any_thread(server: Server) -> None:
    from wncli.parallel import run_tasks
    from wncli.storage.addresses import parse_address
    from wncli.storage.remote.at import place_at

    content = bytes(torch.randint(0, 256, (20 << 20,), dtype=torch.uint8).numpy())
    place = place_at(parse_address(server.put("any", content)))
    try:
        source = place.file()
        source.expect([(1 << 20, 12 << 20), (15 << 20, 16 << 20)])
        parts = [(number * 37_123 % len(content), 30_000 + number) for number in range(100)]
        parts = [(begin, min(count, len(content) - begin)) for begin, count in parts]

        def read(part: tuple[int, int], _: Callable[[int], None]) -> bool:
            begin, count = part
            return source.read_at(begin, count, "it") == content[begin : begin + count]

        assert all(run_tasks(read, parts, nbytes=1 << 30, jobs=8, progress=lambda _: None))
        with pytest.raises(wncli.FormatError, match="the file ends inside it"):
            source.read_at(len(content) - 1, 2, "it")
    finally:
        place.close()


# -- wherever a checkpoint is named -------------------------------------------------------------


def test_a_reference_may_be_at_an_address(server: Server, tmp_path: Path, outputs: Path) -> None:
    torch.save(state(), tmp_path / "hook.pt")
    wncli.convert(tmp_path / "hook.pt", tmp_path / "new.pt", naming="parametrized")
    url = server.put("new.pt", tmp_path / "new.pt")
    report = wncli.convert(tmp_path / "hook.pt", outputs / "a.pt", like=url)
    assert report.remote is not None
    wncli.convert(tmp_path / "hook.pt", outputs / "b" / "a.pt", like=tmp_path / "new.pt",
                  make_folder=True)  # fmt: skip
    assert (outputs / "a.pt").read_bytes() == (outputs / "b" / "a.pt").read_bytes()
    filled = state()
    del filled["ups.0.bias"]
    torch.save(filled, tmp_path / "less.pt")
    full = server.put("hook.pt", tmp_path / "hook.pt")
    wncli.convert(tmp_path / "less.pt", outputs / "c.pt", like=full, fill=True)
    assert wncli.compare(outputs / "c.pt", full, layers=["ups.0.bias"]).equal


def test_load_weights_takes_an_address(server: Server, tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ups = nn.ModuleList(nn.Conv1d(96, 96, 7) for _ in range(3))

    torch.save(state(), tmp_path / "hook.pt")
    url = server.put("hook.pt", tmp_path / "hook.pt")
    here, there = Net(), Net()
    wncli.pytorch.load_weights(here, tmp_path / "hook.pt")
    wncli.pytorch.load_weights(there, url)
    for name, tensor in here.state_dict().items():
        assert torch.equal(tensor, there.state_dict()[name])
    assert server.sent < 2 * (tmp_path / "hook.pt").stat().st_size


def test_several_checkpoints_are_written_under_their_own_names(
    server: Server, tmp_path: Path, outputs: Path, wn_here: RunHere
) -> None:
    urls = []
    for name in ("a.pt", "b.pt"):
        torch.save(state(), tmp_path / name)
        urls.append(server.put(f"some/{name}", tmp_path / name) + "?token=secret")
    ran = wn_here("remove", *urls, "--output-dir", outputs)
    assert ran.code == 0, ran.stderr
    assert sorted(path.name for path in outputs.iterdir()) == ["a.pt", "b.pt"]
    assert "secret" not in ran.stdout + ran.stderr
    ran = wn_here("inspect", *urls, "--json")
    files = json.loads(ran.stdout)["files"]
    assert [one["remote"]["requests"] for one in files] == [2, 2]
    assert "secret" not in ran.stdout + ran.stderr


def test_an_output_at_an_address_is_refused(
    server: Server, wn_here: RunHere, outputs: Path
) -> None:
    file = io.BytesIO()
    torch.save(state(), file)
    url = server.put("a.pt", file.getvalue())
    for output in ("https://user:secret@example.org/a.pt?secret", "s3://bucket/a.pt", "hf://a/b"):
        ran = wn_here("remove", url, output)
        assert ran.code == 2
        assert "OUTPUT has to be a file here" in ran.stderr
        assert "write a file, and upload that" in ran.stderr
        assert "secret" not in ran.stderr
    assert not list(outputs.iterdir())
    assert not server.requests


def test_the_screens_say_what_it_took(server: Server, tmp_path: Path, wn_here: RunHere) -> None:
    torch.save(state(), tmp_path / "a.pt")
    url = server.put("a.pt", tmp_path / "a.pt")
    assert "2 requests, " in wn_here("inspect", url).stdout
    ran = wn_here("remove", url, tmp_path / "b.pt", "-v")
    assert "remote" in ran.stdout
    assert "3 requests, " in ran.stdout
    assert "request" not in wn_here("remove", url, tmp_path / "c.pt").stdout
    assert " requests, " in wn_here("compare", url, tmp_path / "a.pt").stdout
    server.forget()
    report = json.loads(wn_here("remove", url, tmp_path / "d.pt", "--json").stdout)
    assert report["remote"] == {"requests": 3, "bytes": server.sent}
    assert json.loads(wn_here("inspect", tmp_path / "a.pt", "--json").stdout)["remote"] is None
