"""Bytes that are in no file: what reads and writes a checkpoint asks for no more than a source."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import wncli


class MemorySource:
    """All that a source has to offer, and nothing that only a file has."""

    def __init__(self, name: str, file: io.FileIO, number: int = 0) -> None:
        self.name = name
        self.number = number
        self.content = file.readall()
        self.nbytes = len(self.content)
        file.close()

    def read_at(self, offset: int, nbytes: int, what: str) -> bytes:
        found = self.content[offset : offset + nbytes]
        assert len(found) == nbytes, what
        return found

    def read_into(self, offset: int, buffer: memoryview, what: str) -> None:
        buffer[:] = self.read_at(offset, len(buffer), what)

    def close(self) -> None:
        pass


class SeekingSink:
    """All that a sink has to offer."""

    def __init__(self, file: io.FileIO) -> None:
        self.stream = file
        self.nbytes = self.stream.seek(0, io.SEEK_END)

    def write_at(self, offset: int, data: memoryview) -> None:
        self.stream.seek(offset)
        assert self.stream.write(data) == len(data)

    def read_at(self, offset: int, nbytes: int) -> bytes:
        self.stream.seek(offset)
        return self.stream.read(nbytes)


class Layer(nn.Module):
    """A layer of these parameters."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        for name, tensor in state.items():
            self.register_parameter(name, nn.Parameter(tensor))

    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("kind", ["safetensors", "torch", "torch legacy", "TorchScript"])
def test_a_checkpoint_that_is_no_file_is_folded_and_decomposed(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    state = {
        "weight_g": torch.rand(300, 1, 1) + 0.5,
        "weight_v": torch.randn(300, 200, 5),
        "bias": torch.randn(300),
        "zero": torch.zeros(3, 4),  # which is given a direction behind all others
    }
    path = tmp_path / "in.pt"
    if kind == "safetensors":
        save_file(state, path)
    elif kind == "TorchScript":
        torch.jit.trace(Layer(state), torch.ones(1)).save(path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "torch")
    assert wncli.inspect(path).format == kind

    def run(folder: Path) -> list[bytes]:
        folder.mkdir()
        wncli.remove(path, folder / "a.pt", only="", verify=True)
        wncli.apply(folder / "a.pt", folder / "b.pt", layers=["weight", "zero"], verify=True)
        assert wncli.compare(path, folder / "b.pt").equal
        return [(folder / name).read_bytes() for name in ("a.pt", "b.pt")]

    expected = run(tmp_path / "files")
    monkeypatch.setattr("wncli.formats.open.LocalSource", MemorySource)
    monkeypatch.setattr("wncli.storage.replace_file.LocalSink", SeekingSink)
    assert run(tmp_path / "memory") == expected
