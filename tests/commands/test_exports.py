"""`--csv` and `--plot`: what is written, and what is never replaced."""

from __future__ import annotations

import csv
import io
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

import wncli
from tests.support.run import SAMPLES, Wn, environment
from wncli.errors import printable

GENERATOR = SAMPLES / "hifigan_generator"


def test_csv_has_a_row_for_each_layer_with_its_numbers(wn: Wn, tmp_path: Path) -> None:
    table = tmp_path / "layers.csv"
    ran = wn("inspect", GENERATOR, "--stats", "--csv", table)
    assert (ran.code, ran.stderr) == (0, "")
    assert "wrote" in ran.stdout
    rows = list(csv.DictReader(io.StringIO(table.read_text())))
    state = torch.load(GENERATOR, weights_only=True)["generator"]
    assert [row["name"] for row in rows] == [
        name.removesuffix("_g") for name in state if name.endswith("_g")
    ]
    for row in rows:
        g = state[f"{row['name']}_g"].double().flatten()
        norms = torch.linalg.vector_norm(state[f"{row['name']}_v"].double().flatten(1), dim=1)
        assert float(row["g_min"]) == g.min()
        assert float(row["g_median"]) == pytest.approx(float(g.quantile(0.5)), rel=1e-12)
        assert float(row["ratio_max"]) == pytest.approx(float((g / norms).max()), rel=1e-12)
        assert row["shape"] == "x".join(map(str, state[f"{row['name']}_v"].shape))
        assert (row["dim"], row["dtype"], row["dead"]) == ("0", "float32", "0")


def test_csv_on_stdout_is_alone_there(wn: Wn) -> None:
    ran = wn("inspect", SAMPLES / "lstm.pt", "--csv", "-")
    assert ran.code == 0
    rows = list(csv.DictReader(io.StringIO(ran.stdout)))
    assert [row["name"] for row in rows] == ["weight_hh_l0", "weight_ih_l0"]
    assert {row["ratio_min"] for row in rows} == {""}


def test_csv_of_several_says_which_checkpoint(wn: Wn) -> None:
    one, other = SAMPLES / "lstm.pt", SAMPLES / "bfloat16.safetensors"
    ran = wn("inspect", one, other, SAMPLES / "linear.pt", "--csv", "-")
    rows = list(csv.DictReader(io.StringIO(ran.stdout)))
    assert [row["checkpoint"] for row in rows] == [str(one)] * 2 + [str(other)] * 7


def test_csv_of_tensors_and_norms_has_a_row_for_each_tensor(wn: Wn) -> None:
    path = SAMPLES / "linear.pt"
    tensors = list(
        csv.DictReader(io.StringIO(wn("inspect", path, "--tensors", "--csv", "-").stdout))
    )
    assert [(row["name"], row["shape"], row["nbytes"]) for row in tensors] == [
        ("weight", "3x5", "60"),
        ("bias", "3", "12"),
    ]
    ran = wn("inspect", path, "--norms", "--dim", "none", "--csv", "-")
    weight, bias = csv.DictReader(io.StringIO(ran.stdout))
    state = torch.load(path, weights_only=True)
    assert weight["dim"] == "none"
    for row in (weight, bias):
        norm = float(torch.linalg.vector_norm(state[row["name"]].double()))
        assert float(row["norm_max"]) == pytest.approx(norm, rel=1e-6)


ODD = ('a"b,c', "two\nlines", "<script>alert(1)</script>", "=SUM(A1)", "x\u202e\x1b[0m", "模型 ")


def test_names_of_strangers_come_through_a_table_and_stay_text_on_a_page(
    wn: Wn, tmp_path: Path
) -> None:
    state: dict[str, torch.Tensor] = {}
    for name in ODD:
        state |= {f"{name}.weight_g": torch.ones(2, 1), f"{name}.weight_v": torch.ones(2, 3)}
    torch.save(state, tmp_path / "odd.pt")
    ran = wn("inspect", "odd.pt", "--csv", "odd.csv", "--plot", "odd.html", "-q", cwd=tmp_path)
    assert (ran.code, ran.stdout, ran.stderr) == (0, "", "")
    with (tmp_path / "odd.csv").open(newline="", encoding="utf-8") as table:
        assert [row["module"] for row in csv.DictReader(table)] == [*map(printable, ODD)]
    page = (tmp_path / "odd.html").read_text(encoding="utf-8")
    assert page.count("<script") == 1  # its own
    assert "\x1b" not in page
    assert "\u202e" not in page


def test_pandas_takes_the_rows_of_a_report() -> None:
    report = wncli.inspect(SAMPLES / "training.pt", statistics=True)
    frame = pd.DataFrame(report.to_rows())
    assert list(frame["root"]) == ["model", "ema"]
    assert frame["ratio_median"].dtype == "float64"
    assert frame.loc[0, "shape"] == (64, 24)
    tensors = pd.DataFrame(wncli.inspect(SAMPLES / "linear.pt", tensors=True).to_rows())
    assert tensors["nbytes"].sum() == 72
    norms = pd.DataFrame(wncli.inspect(SAMPLES / "linear.pt", norms=True, dim=None).to_rows())
    assert list(norms["slices"]) == [1, 1]


@pytest.mark.parametrize("suffix", [".png", ".svg", ".html"])
def test_plot_writes_a_picture_and_replaces_one(wn: Wn, tmp_path: Path, suffix: str) -> None:
    target = tmp_path / f"g{suffix}"
    for options in ([], ["--stats"]):
        ran = wn("inspect", GENERATOR, "--plot", target, *options)
        assert (ran.code, ran.stderr) == (0, "")
        assert f"wrote {target}" in ran.stdout
    start = {".png": b"\x89PNG", ".svg": b"<?xml", ".html": b"<!DOCTYPE html>"}
    assert target.read_bytes().startswith(start[suffix])
    assert [path.name for path in tmp_path.iterdir()] == [target.name]


def test_plot_of_two_draws_the_layers_that_meet(wn: Wn, tmp_path: Path) -> None:
    target = tmp_path / "two.html"
    ran = wn(
        "compare", SAMPLES / "training.pt", SAMPLES / "training.pt",
        "--only", "model=ema", "--plot", target, "-q",
    )  # fmt: skip
    assert (ran.code, ran.stdout, ran.stderr) == (1, "", "")
    page = target.read_text()
    assert re.findall(r"<tr><td>([^<]*)</td>", page) == ["last_layer"]
    assert page.count("<figure>") == 4  # g and g / ||v|| of either side
    wn("compare", GENERATOR, GENERATOR, "-l", "ups.*", "--plot", target)
    assert re.findall(r"<tr><td>([^<]*)</td>", target.read_text()) == ["ups.0", "ups.1"]
    folded = tmp_path / "folded.pt"
    wncli.remove(GENERATOR, folded)
    ran = wn("compare", GENERATOR, folded, "--plot", target)
    assert ran.code == 0, ran.stderr
    assert "folded.pt (no weight norm)" in target.read_text()
    wn("compare", folded, GENERATOR, "-l", "ups.*", "--plot", target)
    assert re.findall(r"<tr><td>([^<]*)</td>", target.read_text()) == ["ups.0", "ups.1"]


def identity(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


@pytest.mark.parametrize("option", ["--plot", "--csv"])
@pytest.mark.parametrize("name", ["lstm.pt", "renamed.html", "folder.html"])
def test_no_checkpoint_is_ever_replaced(wn: Wn, tmp_path: Path, option: str, name: str) -> None:
    target = tmp_path / name
    if name.startswith("folder"):
        target.mkdir()
    else:
        target.write_bytes((SAMPLES / "lstm.pt").read_bytes())
    before = identity(target)
    ran = wn("inspect", target if target.is_file() else GENERATOR, option, target)
    assert ran.code == 2
    assert ran.stdout == ""
    assert identity(target) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--plot", "g.gif"], "expected: .png, .svg, .html"),
        (["--plot", "g"], "found:    none"),
        (["--plot", "missing/g.html"], "try:      mkdir -p missing"),
        (["--csv", "-", "--json"], "--json prints to stdout as well"),
        (["--csv", "new.safetensors"], "try:      --csv new.csv"),
    ],
)
def test_what_cannot_be_written_is_refused_before_anything_is_read(
    wn: Wn, tmp_path: Path, arguments: list[str], said: str
) -> None:
    ran = wn("inspect", "not-there.pt", *arguments, cwd=tmp_path)
    assert ran.code == 2
    assert said in ran.stderr
    assert not list(tmp_path.iterdir())


def test_there_has_to_be_something_to_draw(wn: Wn, tmp_path: Path) -> None:
    target = tmp_path / "g.html"
    ran = wn("inspect", SAMPLES / "linear.pt", "--plot", target)
    assert ran.code == 2
    assert "no weight norm" in ran.stderr
    ran = wn("inspect", SAMPLES / "lstm.pt", SAMPLES / "linear.pt", "--plot", target)
    assert ran.code == 2
    assert "one checkpoint is drawn at a time" in ran.stderr
    assert not target.exists()


WITHOUT_MATPLOTLIB = """
import sys
class Hidden:
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] == "matplotlib":
            raise ModuleNotFoundError(name)
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "matplotlib" else found(name, *rest)
sys.meta_path.insert(0, Hidden)
from wncli.cli import main
main()
"""


def test_without_matplotlib_a_page_is_made_and_a_picture_says_what_to_install(
    tmp_path: Path,
) -> None:
    def run(name: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", WITHOUT_MATPLOTLIB, "inspect", SAMPLES / "lstm.pt",
             "--plot", tmp_path / name],
            capture_output=True, text=True, check=False, env=environment(), timeout=60,
        )  # fmt: skip

    refused = run("g.png")
    assert refused.returncode == 2
    assert "--plot: Matplotlib is not installed" in refused.stderr
    assert "pip install 'wncli[plot]'" in refused.stderr
    assert run("g.html").returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["g.html"]
