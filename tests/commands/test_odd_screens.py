"""Screens of checkpoints that nobody expects: odd names, no tensors, hundreds of state dicts."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.cells import cell_len
from safetensors.torch import save_file
from torch import nn

import wncli
from tests.support.run import Ran, on_a_terminal

RunHere = Callable[..., Ran]
_STYLES = re.compile(r"\x1b\[[0-9;]*m")


def pair(name: str, slices: int = 4) -> dict[str, torch.Tensor]:
    return {f"{name}.weight_g": torch.rand(slices, 1), f"{name}.weight_v": torch.rand(slices, 3)}


def screen(*arguments: str | Path, columns: int = 80) -> list[str]:
    """Run `wn` on a terminal: the lines that stay there, without colours."""
    code, shown = on_a_terminal(*arguments, COLUMNS=str(columns), LINES="24")
    assert code == 0, shown
    stays = shown.rpartition("\x1b[2K")[2]  # a slow machine draws a bar, and wipes it away
    return _STYLES.sub("", stays).split("\n")


def saved(state: Any, folder: Path, name: str = "in.pt") -> Path:  # noqa: ANN401
    torch.save(state, folder / name)
    return folder / name


@pytest.mark.parametrize("list_of", ["--tensors", "--norms", "--all"])
def test_names_with_stars_and_with_numbers_are_told_apart(list_of: str, tmp_path: Path) -> None:
    state: dict[str, torch.Tensor] = {}
    for name in ["*", "1", "2.*", "2.3", "*.*", "a*", "a7", *map(str, range(10, 40))]:
        state |= pair(name)
    shown = screen("inspect", saved(state, tmp_path), list_of, columns=120)
    assert sum("*" in line for line in shown) >= 4
    assert any(line.split()[:1] in (["*"], ["*.weight_g"]) for line in shown)


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_no_name_of_a_state_dict_or_of_an_entry_is_longer_than_a_line(
    columns: int, tmp_path: Path
) -> None:
    state = {"m" * 5000: pair("conv"), "other": pair("conv"), "e" * 5000: 3, "\u8a9e" * 500: 4}
    source = saved(state, tmp_path)
    lines = screen("inspect", source, columns=columns)
    listed = [line for line in lines if "\u2026" in line]
    assert {line.strip()[0] for line in listed} >= {"m", "e", "\u8a9e"}
    assert all(cell_len(line) <= columns for line in listed)
    report = wncli.inspect(source)
    assert {root.root for root in report.roots} == {"m" * 5000, "other"}


def test_of_hundreds_of_state_dicts_a_screen_shows_some_and_a_pipe_all(
    wn_here: RunHere, tmp_path: Path
) -> None:
    source = saved({f"net{number}": pair("conv") for number in range(500)}, tmp_path)
    lines = screen("inspect", source)
    assert len(lines) < 90
    assert any("470 more: --all" in line for line in lines)
    every = screen("inspect", source, "--all")
    piped = wn_here("inspect", source).stdout.splitlines()
    for shown in (every, piped):
        named = [line for line in shown if "1 layer, 2 tensors" in line]
        assert [line.split()[0] for line in named] == [f"net{number}" for number in range(500)]


@pytest.mark.parametrize("state", [{}, [], None, 5])
def test_of_a_file_without_tensors_no_sums_are_shown(
    state: Any,  # noqa: ANN401
    wn_here: RunHere,
    tmp_path: Path,
) -> None:
    source = saved(state, tmp_path)
    ran = wn_here("inspect", source)
    assert ran.code == 0
    assert "no tensors" in ran.stdout
    assert "together" not in ran.stdout
    assert "parameters" not in ran.stdout
    assert not any("--tensors" in line for line in screen("inspect", source))


def test_what_is_no_dense_tensor_in_a_state_dict_is_named(wn_here: RunHere, tmp_path: Path) -> None:
    state = pair("conv") | {"sparse": torch.eye(3).to_sparse(), "steps": 5}
    ran = wn_here("inspect", saved(state, tmp_path), "--tensors")
    assert "sparse, steps" in ran.stdout
    assert "note" not in wn_here("inspect", saved(pair("conv"), tmp_path)).stdout


def test_no_line_of_a_table_ends_with_blanks(wn_here: RunHere, tmp_path: Path) -> None:
    state = pair("a") | {name: value.double() for name, value in pair("b").items()}
    state |= {"c.weight_g": torch.full((4, 1), torch.nan), "c.weight_v": torch.rand(4, 3)}
    other = {name: value * 1.1 if "_v" not in name else value for name, value in state.items()}
    one, two = saved(state, tmp_path), saved(other, tmp_path, "two.pt")
    for typed in (("inspect", one), ("inspect", one, "--norms"), ("compare", one, two)):
        printed = wn_here(*typed).stdout
        assert "float64" in printed or "--norms" in typed
        assert [line for line in printed.splitlines() if line != line.rstrip()] == []


@pytest.mark.parametrize("columns", [38, 40, 60])
def test_long_words_have_place_on_narrow_terminals(columns: int, tmp_path: Path) -> None:
    module = nn.utils.parametrizations.weight_norm(nn.Linear(3, 4))
    source = saved(module.state_dict(), tmp_path)
    lines = screen("inspect", source, "--check", columns=columns)
    said = [line for line in lines if "wn " not in line and str(source) not in line]
    assert any("parametrizations.weight.original0/1" in line for line in said)
    assert [line for line in said if len(line) > columns] == []


@pytest.mark.parametrize("columns", [40, 60, 80])
def test_a_row_of_several_checkpoints_is_one_line_on_any_terminal(
    columns: int, tmp_path: Path
) -> None:
    for number in range(12):
        saved(pair("conv"), tmp_path, f"g_{number}.pt")
    lines = screen("inspect", tmp_path, columns=columns)
    rows = [line for line in lines if "1 of 1 hook" in line]
    assert len(rows) == 12
    assert all(len(line) <= columns for line in rows)
    assert lines.index(rows[-1]) - lines.index(rows[0]) == 11
    assert [re.sub(r".*?(\d+)\.pt.*", r"\1", row) for row in rows] == [*map(str, range(12))]


@pytest.mark.parametrize("order", ["0", "-1", "nan", "-inf"])
def test_an_order_that_no_norm_has_is_refused(order: str, wn_here: RunHere, tmp_path: Path) -> None:
    ran = wn_here("inspect", saved(pair("conv"), tmp_path), "--norms", "--p", order)
    assert (ran.code, ran.stdout) == (2, "")
    assert ran.stderr.startswith("error: --p: ")


@pytest.mark.parametrize(
    "typed",
    [
        ("--sort", "size"),
        ("--norms", "--sort", "size"),
        ("--norms", "--sort", "dead"),
        ("--tensors", "--sort", "median"),
        ("--tensors", "--sort", "dead"),
    ],
)
def test_rows_are_not_sorted_by_what_they_do_not_have(
    typed: tuple[str, ...], wn_here: RunHere, tmp_path: Path
) -> None:
    ran = wn_here("inspect", saved(pair("conv"), tmp_path), *typed)
    assert (ran.code, ran.stdout) == (2, "")
    assert ran.stderr.startswith("error: --sort ")


def test_an_empty_word_is_not_the_folder_that_one_is_in(
    wn_here: RunHere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(pair("conv"), tmp_path, "one.pt")
    saved(pair("conv"), tmp_path, "two.pt")
    monkeypatch.chdir(tmp_path)
    ran = wn_here("inspect", "")
    assert (ran.code, ran.stdout) == (2, "")


def test_an_error_of_one_of_several_says_of_which(wn_here: RunHere, tmp_path: Path) -> None:
    one, two = saved(pair("a"), tmp_path, "one.pt"), saved(pair("b"), tmp_path, "two.pt")
    ran = wn_here("inspect", one, two, "-l", "a")
    assert ran.code == 2
    assert ran.stderr.startswith(f"error: {two}: -l a: ")
    assert "one.pt" not in ran.stderr


def test_a_warning_of_both_sides_is_said_once(wn_here: RunHere, tmp_path: Path) -> None:
    state = pair("conv")
    state["conv.weight_g"][1:3] = torch.nan
    source = saved(state, tmp_path)
    ran = wn_here("compare", source, source)
    assert ran.stderr.count("warning:") == 1
    assert "slices 1, 2 (of 4) of conv.weight have NaN" in ran.stderr


@pytest.mark.parametrize("kind", ["torch", "safetensors"])
def test_layers_without_elements_have_arrays_of_their_shape(kind: str, tmp_path: Path) -> None:
    state = {"a.weight_g": torch.zeros(0, 1), "a.weight_v": torch.zeros(0, 3).half()}
    state |= {"b.weight_g": torch.zeros(2, 1), "b.weight_v": torch.zeros(2, 0)}
    state["a.weight_g"] = state["a.weight_g"].half()
    source = tmp_path / "in"
    torch.save(state, source) if kind == "torch" else save_file(state, source)
    layers = wncli.inspect(source).layers
    for layer in layers:
        for which, array in (("g", layer.g), ("v", layer.v)):
            expected = state[f"{layer.module}.weight_{which}"].numpy()
            assert (array.shape, array.dtype) == (expected.shape, expected.dtype)


def test_a_name_is_in_the_layers_that_give_its_layer(tmp_path: Path) -> None:
    layers: Any = wncli.inspect(saved({"gen": pair("conv")}, tmp_path)).layers
    for name in ("conv", "conv.weight", "gen.conv", "gen.conv.weight"):
        assert name in layers
        assert layers[name] in layers
    assert "weight" not in layers
    assert 3 not in layers


@pytest.mark.parametrize("flag", ["--tensors", "--norms", "--stats"])
def test_what_a_row_does_not_show_is_not_asked_of_several(
    flag: str, wn_here: RunHere, tmp_path: Path
) -> None:
    files = saved(pair("a"), tmp_path, "one.pt"), saved(pair("b"), tmp_path, "two.pt")
    ran = wn_here("inspect", *files, flag)
    assert (ran.code, ran.stdout) == (2, "")
    assert ran.stderr.startswith(f"error: {flag}: ")
    table = wn_here("inspect", *files, flag, "--csv", "-")
    assert table.code == 0
    assert {"one.pt", "two.pt"} <= {
        Path(line.split(",")[0]).name for line in table.stdout.splitlines()
    }


def test_to_flatten_hundreds_is_said_in_a_few_lines(wn_here: RunHere, tmp_path: Path) -> None:
    source = saved({f"net{number}": pair("conv") for number in range(300)}, tmp_path)
    ran = wn_here("convert", source, tmp_path / "out.safetensors", "--flatten")
    assert ran.code == 0
    assert len(ran.stdout.splitlines()) <= 4
    assert "'net0.', 'net1.'" in ran.stdout
    refused = wn_here("convert", source, tmp_path / "two.safetensors")
    assert refused.code == 2
    assert max(map(len, refused.stderr.splitlines())) < 300
    assert "300: net0" in refused.stderr


def test_the_rule_of_a_table_is_no_longer_than_what_is_aligned(
    wn_here: RunHere, tmp_path: Path
) -> None:
    ran = wn_here("inspect", saved(pair("m" * 5000) | pair("conv"), tmp_path))
    assert [len(line) for line in ran.stdout.splitlines() if len(line) > 300] != []
    assert all(len(line) < 300 for line in ran.stdout.splitlines() if "mmm" not in line)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_what_to_type_next_stands_in_one_column(encoding: str, tmp_path: Path) -> None:
    source = saved(pair("conv"), tmp_path)
    code, shown = on_a_terminal("inspect", source, COLUMNS="80", PYTHONIOENCODING=encoding)
    lines = [line for line in _STYLES.sub("", shown).split("\n") if "  wn " in line]
    assert code == 0
    assert len(lines) == 3
    assert len({line.index("  wn ") for line in lines}) == 1


#: Magnitudes whose quotient, difference, square or half is more, or less, than a float holds.
FAR = {
    "from denormal to largest": (5e-324, 1.7e308),
    "from least to largest": (-1.7e308, 1.0, 1.7e308),
    "over 600 decades": (1e-300, 1e300),
    "two denormals": (5e-324, 1e-323),
    "both signs of denormals": (-1e-320, 5e-324),
    "one denormal": (5e-324, 5e-324),
    "the largest": (1.7e308, 1.79e308),
}


@pytest.mark.parametrize("name", FAR)
@pytest.mark.parametrize("kind", ["svg", "png", "html"])
def test_numbers_as_far_apart_as_can_be_are_drawn(
    name: str, kind: str, wn_here: RunHere, tmp_path: Path
) -> None:
    g = torch.tensor(FAR[name], dtype=torch.float64).reshape(-1, 1)
    state = {"a.weight_g": g, "a.weight_v": torch.ones(len(g), 2, dtype=torch.float64)}
    ran = wn_here("inspect", saved(state, tmp_path), "--stats", "--plot", tmp_path / f"out.{kind}")
    assert (ran.code, ran.stderr) == (0, "")
    assert (tmp_path / f"out.{kind}").stat().st_size > 1000


@pytest.mark.parametrize(
    "name", ["from denormal to largest", "from least to largest", "over 600 decades"]
)
def test_both_ends_of_an_axis_are_drawn_where_they_are(
    name: str, wn_here: RunHere, tmp_path: Path
) -> None:
    g = torch.tensor(FAR[name], dtype=torch.float64).reshape(-1, 1)
    state = {"a.weight_g": g, "a.weight_v": torch.ones(len(g), 2, dtype=torch.float64)}
    (row,) = [
        line
        for line in wn_here("inspect", saved(state, tmp_path)).stdout.splitlines()
        if line.startswith(" a.weight ")
    ]
    drawn = row[row.index("\u2588") :]
    assert drawn.count("\u2588") == len(g)
    assert (drawn[0], drawn[-1]) == ("\u2588", "\u2588")
    assert len(drawn) > 14


def test_a_long_name_on_one_side_alone_is_shortened_on_a_terminal(tmp_path: Path) -> None:
    one, two = saved(pair("m" * 5000), tmp_path, "one.pt"), saved(pair("b"), tmp_path, "two.pt")
    _, shown = on_a_terminal("compare", one, two, COLUMNS="80", LINES="24")
    assert "only in A" in shown
    assert max(map(len, shown.split("\n"))) < 300


#: Makes progress for as long as a bar needs to appear: of a megabyte and a half, or of kilobytes.
SLOW = """
import sys, time
from wncli.cli.progress import progress_bar
total = int(sys.argv[1])
with progress_bar(("reading",), quiet=False, place="model.pt, 2 of 10") as advance:
    for _ in range(4):
        time.sleep(0.2)
        advance(total // 5, total)
"""


@pytest.mark.parametrize(("total", "has_rate"), [(100_000, False), (10_000_000, True)])
@pytest.mark.parametrize("columns", [40, 60, 80, 120])
def test_a_progress_bar_has_whole_columns_and_no_rate_of_what_is_next_to_nothing(
    total: int, columns: int, *, has_rate: bool
) -> None:
    _, shown = on_a_terminal(str(total), start=("-c", SLOW), COLUMNS=str(columns))
    bars = [line for line in re.split(r"[\r\n]", _STYLES.sub("", shown)) if "%" in line]
    assert bars
    assert "%" in bars[-1]
    assert "\u2026" not in "".join(bars)
    assert ("B/s" in bars[-1]) == (has_rate and columns >= 80)
    assert (" of 9" in bars[-1]) == (columns >= 60)
