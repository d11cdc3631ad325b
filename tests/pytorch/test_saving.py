"""`save`: a model or a state dict as a command would write it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, load_model
from torch import nn

import wncli
import wncli.pytorch as wn
from tests.support.live import everything, heard, vocoder
from tests.support.oracles import bits, load


def read(path: Path) -> Any:  # noqa: ANN401
    if path.suffix == ".npz":
        return {name: torch.from_numpy(value) for name, value in np.load(path).items()}
    return load_file(path) if path.suffix == ".safetensors" else load(path)


def held(state: Any) -> dict[str, Any]:  # noqa: ANN401
    return {name: bits(value) for name, value in state.items()}


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".npz"])
@pytest.mark.parametrize("given", ["model", "state dict"])
def test_what_is_saved_is_the_state_dict_to_every_reader(
    given: str, suffix: str, tmp_path: Path
) -> None:
    model = vocoder("parametrized")
    before = everything(model)
    output = tmp_path / f"out{suffix}"
    report = wn.save(model if given == "model" else model.state_dict(), output)
    assert held(read(output)) == held(model.state_dict())
    assert everything(model) == before
    assert report.output == str(output)
    assert report.parameters.change == 0


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_folded_and_respelled_weights_are_those_of_the_functions(
    suffix: str, tmp_path: Path
) -> None:
    model = vocoder("parametrized")
    report = wn.save(model, tmp_path / f"folded{suffix}", remove=True)
    assert held(read(tmp_path / f"folded{suffix}")) == held(wn.fold(model.state_dict()))
    assert [layer.action for layer in report.layers] == ["remove"] * 3
    wn.save(model, tmp_path / f"hook{suffix}", naming="hook")
    found = read(tmp_path / f"hook{suffix}")
    assert held(found) == held(wn.respell(model.state_dict(), "hook"))
    assert wn.load_weights(vocoder("hook", seed=1), tmp_path / f"folded{suffix}").missing == ()


def test_a_plain_model_is_saved_as_it_is_with_remove_too(tmp_path: Path) -> None:
    model = vocoder(None)
    wn.save(model, tmp_path / "out.pt", remove=True)
    assert held(load(tmp_path / "out.pt")) == held(model.state_dict())


def test_wrappers_leave_no_prefix(tmp_path: Path) -> None:
    model = vocoder("hook")
    compiled: Any = torch.compile(nn.DataParallel(model), backend="eager")
    wn.save(compiled, tmp_path / "out.safetensors")
    assert set(load_file(tmp_path / "out.safetensors")) == set(model.state_dict())


def test_shards_and_folders_are_as_hugging_face_names_them(tmp_path: Path) -> None:
    model = vocoder("hook")
    report = wn.save(model, tmp_path / "shards", format="safetensors", max_shard_size="400B")
    assert len(report.output_files) > 1
    assert (tmp_path / "shards" / "model.safetensors.index.json").exists()
    other = vocoder("parametrized", seed=1)
    wn.load_weights(other, tmp_path / "shards")
    assert bits(heard(other)) == bits(heard(model))
    wn.save(model, f"{tmp_path}/folder/", format="safetensors")
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_ties_are_stored_once_and_loaded_again(suffix: str, tmp_path: Path) -> None:
    embedding, head = nn.Embedding(500, 30), nn.Linear(30, 500, bias=False)
    head.weight = embedding.weight
    model = nn.ModuleDict({"embedding": embedding, "head": head})
    output = tmp_path / f"out{suffix}"
    wn.save(model, output)
    assert output.stat().st_size < 1.2 * 500 * 30 * 4
    if suffix == ".safetensors":
        load_model(model, output)
    found = nn.ModuleDict({"embedding": nn.Embedding(500, 30),
                           "head": nn.Linear(30, 500, bias=False)})  # fmt: skip
    wn.load_weights(found, output)
    assert held(found.state_dict()) == held(model.state_dict())


def test_views_and_strides_are_saved_as_numbers(tmp_path: Path) -> None:
    whole = torch.randn(6, 8)
    state = {"a": whole[::2, 1:4], "b": whole.t(), "c": whole[1], "d": torch.tensor(3)}
    for suffix in (".pt", ".safetensors"):
        wn.save(state, tmp_path / f"out{suffix}")
        assert held(read(tmp_path / f"out{suffix}")) == held(state)


def test_lazily_negated_and_conjugated_tensors_are_saved_as_the_numbers_that_they_are(
    tmp_path: Path,
) -> None:
    value = torch.randn(3, 4, dtype=torch.complex64)
    state = {"conjugated": value.conj(), "negated": value.conj().imag}
    assert state["negated"].is_neg()
    for suffix in (".pt", ".safetensors"):
        wn.save(state, tmp_path / f"out{suffix}")
        found = read(tmp_path / f"out{suffix}")
        assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


def test_an_existing_output_stays_without_force(tmp_path: Path) -> None:
    output = tmp_path / "out.pt"
    wn.save(vocoder("hook"), output)
    before = output.read_bytes()
    with pytest.raises(wncli.FileError, match="exists already") as caught:
        wn.save(vocoder(None), output)
    assert caught.value.hint.startswith("force=True")
    assert output.read_bytes() == before
    wn.save(vocoder(None), output, force=True)
    assert held(load(output)) == held(vocoder(None).state_dict())


def test_what_cannot_be_written_is_refused_by_name(tmp_path: Path) -> None:
    output = tmp_path / "out.safetensors"
    with pytest.raises(wncli.WeightNormError, match=r"0\.bias: this tensor is on the meta device"):
        wn.save(vocoder("hook").to("meta"), output)
    with pytest.raises(wncli.UsageError, match="sparse: this tensor is no run of numbers"):
        wn.save({"sparse": torch.eye(3).to_sparse()}, output)
    with pytest.raises(wncli.UsageError, match="what is folded has no g and v"):
        wn.save(vocoder("hook"), output, remove=True, naming="hook")
    with pytest.raises(wncli.UsageError, match="this is no module"):
        wn.save(3, output)  # type: ignore[arg-type]
    with pytest.raises(wncli.UsageError, match="does not say which format"):
        wn.save(vocoder("hook"), tmp_path / "out.txt")
    state = vocoder("hook").state_dict()
    state["0.weight_v"][0] = 0
    with pytest.raises(wncli.WeightNormError, match="has no direction"):
        wn.save(state, output, remove=True)
    assert not list(tmp_path.iterdir())


def test_extra_state_is_left_out_and_listed(tmp_path: Path) -> None:
    state: Any = vocoder("hook").state_dict() | {"0._extra_state": {"steps": 3}}
    report = wn.save(state, tmp_path / "out.safetensors")
    assert any("0._extra_state" in note.message for note in report.notes)
