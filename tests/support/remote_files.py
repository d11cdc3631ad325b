"""Checkpoints of every format for servers, and a hub that has them."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

import wncli
from tests.support.servers import Asked, Reply, Server, etag_of, part_of

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def state(layers: int = 3, width: int = 96) -> dict[str, Tensor]:
    """A state dict with weight norm that is larger than what the first request brings."""
    found: dict[str, Tensor] = {}
    for number in range(layers):
        weight = torch.randn(width, width, 7)
        found[f"ups.{number}.weight_g"] = weight.flatten(1).norm(dim=1).reshape(width, 1, 1) * 1.5
        found[f"ups.{number}.weight_v"] = weight
        found[f"ups.{number}.bias"] = torch.randn(width)
    return found


def _zip(path: Path) -> None:
    torch.save({"generator": state(), "steps": 3, "optimizer": {"state": {}}}, path)


def _legacy(path: Path) -> None:
    torch.save({"generator": state()}, path, _use_new_zipfile_serialization=False)


def _safetensors(path: Path) -> None:
    safetensors.torch.save_file(state(), path, {"format": "pt"})


def _arrays() -> dict[str, object]:
    return {name: tensor.numpy() for name, tensor in state().items()}


def _npz(path: Path) -> None:
    np.savez(path, **_arrays())  # type: ignore[arg-type]


def _deflated(path: Path) -> None:
    np.savez_compressed(path, **_arrays())  # type: ignore[arg-type]


def _pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(_arrays(), 2))


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = weight_norm(nn.Conv1d(64, 64, 7))

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.conv(x))


def _script(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is on its way out, its files are not
        traced = torch.jit.trace(_Net(), torch.randn(1, 64, 20))
        torch.jit.save(traced, str(path))


def _nemo(path: Path) -> None:
    weights = io.BytesIO()
    torch.save(state(), weights)
    with tarfile.open(path, "w") as archive:
        for name, data in (("model_config.yaml", b"a: 1\n"),
                           ("model_weights.ckpt", weights.getvalue())):  # fmt: skip
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


#: How a file of each format is made, by the name that it gets.
FORMATS: dict[str, Callable[[Path], None]] = {
    "zip.pt": _zip,
    "legacy.pt": _legacy,
    "model.safetensors": _safetensors,
    "stored.npz": _npz,
    "deflated.npz": _deflated,
    "arrays.pkl": _pickle,
    "script.pt": _script,
    "archive.nemo": _nemo,
}


def shards(folder: Path) -> Path:
    """Write a folder of three shards with their index and a config, and return it."""
    safetensors.torch.save_file(state(), folder.with_suffix(".whole"), {"format": "pt"})
    wncli.convert(
        folder.with_suffix(".whole"), f"{folder}/", format="safetensors", max_shard_size="300KB"
    )
    (folder / "config.json").write_text('{"model_type": "vocoder"}')
    (folder / "weights.png").write_bytes(b"no config")
    return folder


class Hub:
    """A hub with one repository, `owner/name`, whose large files another host has."""

    def __init__(self, server: Server, store: Server | None) -> None:
        self.server = server
        self.store = store
        self.files: dict[str, Path] = {}
        self.token = ""
        #: What it says in place of all else, such as that the model is gated.
        self.refusal: Reply | None = None
        server.answer = self.answer

    def put(self, folder: Path) -> None:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                name = path.relative_to(folder).as_posix()
                self.files[name] = path
                if self.store:
                    self.store.put(name, path)

    def answer(self, asked: Asked) -> Reply | None:
        if self.token and asked.headers.get("authorization") != f"Bearer {self.token}":
            return Reply(401, {"X-Error-Code": "RepoNotFound"})
        return self.refusal or self._page(asked)

    def _page(self, asked: Asked) -> Reply:
        _, *parts = asked.path.partition("?")[0].split("/")
        match parts:
            case ["api", "models", "owner", "name", "revision", revision]:
                if revision not in {"main", COMMIT, "v1"}:
                    return Reply(404, {"X-Error-Code": "RevisionNotFound"})
                names = [{"rfilename": name} for name in self.files]
                return Reply(200, {}, json.dumps({"sha": COMMIT, "siblings": names}).encode())
            case ["owner", "name", "resolve", revision, *path]:
                if revision not in {"main", COMMIT, "v1"}:
                    return Reply(404, {"X-Error-Code": "RevisionNotFound"})
                return self._file("/".join(path), asked)
        return Reply(404, {"X-Error-Code": "RepoNotFound"})

    def _file(self, name: str, asked: Asked) -> Reply:
        commit = {"X-Repo-Commit": COMMIT}
        path = self.files.get(name)
        if path is None:
            return Reply(404, {"X-Error-Code": "EntryNotFound", **commit})
        if self.store is None or path.suffix in {".json", ".png"}:
            reply = part_of(path, asked)
            reply.headers |= commit
            return reply
        size = str(path.stat().st_size)
        return Reply(
            302,
            {
                "Location": f"{self.store.url}/{name}?signature=secret",
                "X-Linked-Size": size,
                "X-Linked-Etag": etag_of(path),
                "ETag": etag_of(path),
                **commit,
            },
            b"Found",
        )
