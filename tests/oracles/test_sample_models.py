"""The sample models, each held against its own module in PyTorch."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import wncli
from sample_models.files import write
from sample_models.samples import SAMPLES as RECORDS
from sample_models.samples import Sample
from tests.support.oracles import bits, load
from tests.support.run import SAMPLES
from tests.support.samples import FILES, NORMALIZED, hold_same_outputs, loaded, state_at


def out_for(file: str, folder: Path, stage: str) -> Path:
    return folder / f"{stage}{Path(file).suffix or '.pt'}"


def test_these_are_all_the_samples_there_are(make: ModuleType) -> None:
    assert list(make.PLAIN) == list(make.BUILDERS) == list(FILES)
    others = {"README.md", *(path.name for path in SAMPLES.glob("*.py"))}
    assert {path.name for path in SAMPLES.iterdir() if path.is_file()} == {*FILES, *others}
    assert sum((SAMPLES / file).stat().st_size for file in FILES) < 1_000_000


@pytest.mark.parametrize("file", FILES)
def test_inspect_counts_what_pytorch_counts(file: str, make: ModuleType) -> None:
    root, layers = FILES[file]
    report = wncli.inspect(SAMPLES / file, only=root)
    stored = sum(tensor.numel() for tensor in state_at(SAMPLES / file, root).values())
    plain = sum(tensor.numel() for tensor in make.PLAIN[file]().state_dict().values())
    assert len(report.layers) == layers
    assert (report.parameters.before, report.parameters.after) == (stored, plain)


def readme_rows() -> dict[str, list[str]]:
    """The cells of each sample in the README, by its file, in the README's order."""
    lines = (SAMPLES / "README.md").read_text().partition("\n\n`python")[0].splitlines()
    rows = [[cell.strip() for cell in line.split("|")] for line in lines if line[:3] == "| `"]
    return {row[1].strip("`"): row for row in rows}


def test_the_readme_lists_each_sample_and_what_it_is_for() -> None:
    found = [(file, *row[2:5]) for file, row in readme_rows().items()]
    assert found == [(one.file, one.format, one.holds, one.purpose) for one in RECORDS]


@pytest.mark.parametrize("record", RECORDS, ids=lambda one: one.file)
def test_a_record_names_the_format_that_its_file_has(record: Sample) -> None:
    content = (SAMPLES / record.file).read_bytes()
    found = "torch zip" if content.startswith(b"PK\3\4") else "torch legacy"
    if content[8:10] == b'{"':  # behind the length of its header
        found = "safetensors"
    assert record.format == found


@pytest.mark.parametrize("file", FILES)
def test_the_readme_table_has_the_right_counts(file: str) -> None:
    row = readme_rows()[file]
    counts = wncli.inspect(SAMPLES / file, only=FILES[file][0]).parameters
    normalized, plain = (
        int(re.sub(r"[ ,]|\btwice\b", "", cell).strip()) for cell in (row[5], row[6])
    )
    before = 21 if file == "linear.pt" else counts.before  # it is stored without weight norm
    assert (normalized, plain) == (before, counts.after)


@pytest.mark.parametrize("file", NORMALIZED)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_removal_loads_into_the_plain_module_and_keeps_the_outputs(
    file: str, suffix: str, make: ModuleType, tmp_path: Path
) -> None:
    root, layers = FILES[file]
    target = tmp_path / f"plain{suffix}"
    only = root if suffix == ".safetensors" else None
    report = wncli.remove(SAMPLES / file, target, only=only)
    plain = loaded(make, "PLAIN", file, state_at(target, root))
    normalized = loaded(make, "BUILDERS", file, state_at(SAMPLES / file, root))
    assert sum(layer.root == root for layer in report.layers) == layers
    hold_same_outputs(plain, normalized, file)


@pytest.mark.parametrize("file", FILES)
def test_apply_loads_into_the_normalized_module_and_keeps_the_outputs(
    file: str, make: ModuleType, tmp_path: Path
) -> None:
    root, _ = FILES[file]
    source, plain, again = (
        SAMPLES / file,
        out_for(file, tmp_path, "a"),
        out_for(file, tmp_path, "b"),
    )
    rules: list[str] = []
    if file != "linear.pt":
        report = wncli.remove(source, plain)
        rules = [
            f"{'.'.join(filter(None, (layer.module, layer.parameter)))}={layer.dim}"
            for layer in report.layers
        ]
        naming = report.layers[0].naming
        source = plain
    else:
        naming = "hook"
    wncli.apply(source, again, layers=rules, naming=naming)
    normalized = loaded(make, "BUILDERS", file, state_at(again, root))
    reference = loaded(make, "PLAIN", file, state_at(source, root))
    hold_same_outputs(normalized, reference, file)


def test_linear_is_the_layer_of_the_walk_through(tmp_path: Path) -> None:
    report = wncli.apply(SAMPLES / "linear.pt", tmp_path / "out.pt")
    state = load(tmp_path / "out.pt")
    counts = report.parameters
    assert (counts.before, counts.after, counts.change) == (18, 21, 3)
    assert [f"{g:.4f}" for g in state["weight_g"].flatten()] == ["0.5075", "0.4952", "0.6064"]
    assert bits(state["weight_v"]) == bits(load(SAMPLES / "linear.pt")["weight"])


def test_the_trained_wavenet_keeps_its_loss(make: ModuleType, tmp_path: Path) -> None:
    wncli.remove(SAMPLES / "wavenet.pt", tmp_path / "plain.pt")
    checkpoint = load(tmp_path / "plain.pt")
    assert checkpoint["config"] == make.WAVENET_CONFIG
    wavenet = loaded(make, "PLAIN", "wavenet.pt", checkpoint["model"])
    with torch.no_grad():
        loss = make.wavenet_loss(wavenet, make.synthetic_waveform()).item()
    untrained = make.BUILDERS["wavenet.pt"]()
    with torch.no_grad():
        worse = make.wavenet_loss(untrained, make.synthetic_waveform()).item()
    assert loss == pytest.approx(checkpoint["loss"], rel=1e-5)
    assert loss < worse / 2


def test_the_discriminators_spectral_norm_is_left_as_it_is(tmp_path: Path) -> None:
    before = load(SAMPLES / "discriminator.pt")
    report = wncli.remove(SAMPLES / "discriminator.pt", tmp_path / "out.pt")
    after = load(tmp_path / "out.pt")
    spectral = [name for name in before if name.startswith("discriminators.0.")]
    assert any(name.endswith("weight_v") for name in spectral)
    assert all(bits(after[name]) == bits(before[name]) for name in spectral)
    assert [note.code for note in report.notes].count("spectral-norm") == 3


def test_everything_but_the_models_of_the_training_checkpoint_is_as_before(
    tmp_path: Path,
) -> None:
    report = wncli.remove(SAMPLES / "training.pt", tmp_path / "out.pt")
    before = load(SAMPLES / "training.pt", weights_only=False)
    after = load(tmp_path / "out.pt", weights_only=False)
    assert list(after) == list(before)
    for root in ("model", "ema"):
        assert "last_layer.weight" in after.pop(root)
        del before[root]
    torch.testing.assert_close(after.pop("optimizer"), before.pop("optimizer"), rtol=0, atol=0)
    assert after == before
    assert type(after["args"]) is type(before["args"])
    assert [note.code for note in report.notes if note.is_warning] == ["optimizer"]


def test_both_models_of_the_training_checkpoint_are_folded_as_pytorch_folds_them(
    tmp_path: Path,
) -> None:
    wncli.remove(SAMPLES / "training.pt", tmp_path / "out.pt")
    before = load(SAMPLES / "training.pt", weights_only=False)
    after = load(tmp_path / "out.pt", weights_only=False)
    prefix = "last_layer.parametrizations.weight.original"
    for root in ("model", "ema"):
        expected = torch._weight_norm(before[root][f"{prefix}1"], before[root][f"{prefix}0"], 0)
        torch.testing.assert_close(after[root]["last_layer.weight"], expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("file", ["linear.pt", "lstm.pt", "hifigan_generator"])
def test_the_script_makes_the_same_bytes_again(file: str, tmp_path: Path) -> None:
    """Of samples that take no training; on another machine, a last bit may be another."""
    (record,) = [one for one in RECORDS if one.file == file]
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        write(record, folder)
    assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    torch.testing.assert_close(load(tmp_path / "one" / file), load(SAMPLES / file))


@pytest.mark.slow
@pytest.mark.parametrize("command", [["make.py"], ["-m", "sample_models.make"]], ids=" ".join)
def test_the_script_runs_as_a_file_and_as_a_module(command: list[str], tmp_path: Path) -> None:
    copy = tmp_path / "sample_models"
    shutil.copytree(SAMPLES, copy, ignore=shutil.ignore_patterns("__pycache__", *FILES))
    cwd = copy if command == ["make.py"] else tmp_path
    environment = {**os.environ, "PYTHONPATH": "", "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run([sys.executable, *command], cwd=cwd, env=environment, check=True)
    for file in FILES:
        found, expected = wncli.inspect(copy / file), wncli.inspect(SAMPLES / file)
        assert [layer.v_name for layer in found.layers] == [
            layer.v_name for layer in expected.layers
        ]
        assert found.parameters == expected.parameters
