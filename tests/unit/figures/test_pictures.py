"""Pictures and pages: what they hold, at few and many layers, and under hostile names."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from matplotlib import pyplot as plt
from matplotlib.collections import LineCollection

import wncli
from tests.support.run import SAMPLES
from wncli.figures.bands import Numbers, Side
from wncli.figures.chart import MOST_NAMED, image
from wncli.figures.page import page
from wncli.statistics import Distribution

HOSTILE = (
    "<script>alert(1)</script>",
    "</title></style></svg><img src=x onerror=alert(1)>",
    "\" onmouseover=\"alert(1)' x='",
    "&lt;b&gt; &amp;",
    "\x1b[31mred\x07\x00\u202e",
    r"$\frac{1}{0}$ $x^",
    "\ud800 alone",
    "模型",
)


def made(names: tuple[str, ...] | list[str], title: str = "file.pt", *, ratio: bool = True) -> Side:
    numbers = [Distribution.of([0.5 + at % 7, 1.0 + at % 3, 0.25]) for at in range(len(names))]
    return Side(
        title,
        tuple(
            Numbers(name, one, one if ratio else None, {"g": "3 of 3×2", "dim": str(at % 2)})
            for at, (name, one) in enumerate(zip(names, numbers, strict=True))
        ),
    )


class Reader(HTMLParser):
    """Reads a page as a browser does: elements with their attributes, and the text of cells."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[str] = []
        self.titles: list[str] = []
        self.open: list[str] = []
        self.feed(data.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.open.append(tag)
        if tag == "td":
            self.cells.append("")
        if tag == "title":
            self.titles.append("")

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "td":
            self.cells[-1] += data
        if self.open and self.open[-1] == "title":
            self.titles[-1] += data


def test_no_name_gets_out_of_its_cell() -> None:
    honest = Reader(page([made([f"layer{n}" for n in range(len(HOSTILE))])], ["a fact"]))
    found = Reader(page([made(HOSTILE, HOSTILE[0])], [HOSTILE[1]]))
    assert [tag for tag, _ in found.elements] == [tag for tag, _ in honest.elements]
    assert [[*attrs] for _, attrs in found.elements] == [[*attrs] for _, attrs in honest.elements]
    for name in HOSTILE:
        if name.isprintable():
            assert name in found.cells
            assert any(title.startswith(f"{name}: ") for title in found.titles)
    assert r"\x1b[31mred\x07\x00\u202e" in found.cells
    assert found.titles[0] == HOSTILE[0]


def test_a_page_is_one_file_that_fetches_nothing_and_runs_its_own_script_alone() -> None:
    data = page([made(["a.b", "a.c"]), made(["a.b"], "other.pt")], [])
    found = Reader(data)
    names = {name for _, attrs in found.elements for name in attrs}
    assert not names & {"src", "href", "srcset", "action", "onclick", "style"}
    assert b"//" not in data.replace(b"<!--", b"")  # no address, of whatever scheme
    policy = next(attrs["content"] for _, attrs in found.elements if "http-equiv" in attrs)
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert re.search(r"script-src 'sha256-[A-Za-z0-9+/]{43}='$", policy)
    assert b"prefers-color-scheme: dark" in data


def test_a_page_has_a_row_and_a_picture_for_each_layer_and_its_exact_numbers() -> None:
    report = wncli.inspect(SAMPLES / "hifigan_generator", statistics=True)
    data = page([report.side()], []).decode()
    rows = re.findall(r"<tr><td>(.*?)</tr>", data)
    assert len(rows) == 28
    assert all(row.count("<svg") == 2 for row in rows)
    assert report.statistics is not None
    for row, one in zip(rows, report.statistics, strict=True):
        shown = [float(value) for value in re.findall(r'data-v="([^"]*)"', row)]
        assert one.ratio
        expected = (one.g.min, one.g.median, one.g.max)
        assert tuple(shown) == (*expected, one.ratio.min, one.ratio.median, one.ratio.max)


@pytest.mark.parametrize("count", [1, 8, MOST_NAMED, MOST_NAMED + 1, 1404])
@pytest.mark.parametrize("sides", [1, 2])
def test_every_number_of_layers_is_drawn_at_the_width_of_a_page(count: int, sides: int) -> None:
    names = [f"net.{at // 78}.conv.{at}" for at in range(count)]
    shown = [made(names, f"{number}.pt") for number in range(sides)]
    png = image(shown, "png")
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = (int.from_bytes(png[at : at + 4], "big") for at in (16, 20))
    assert width == 1400
    assert height < 2700
    root = ET.fromstring(image(shown, "svg"))  # noqa: S314 - made here
    assert root.tag.endswith("svg")
    assert len(page(shown, [])) < 3_000_000


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_a_picture_takes_every_name(kind: str) -> None:
    for many in (1, 10):
        data = image([made(HOSTILE * many, HOSTILE[5]), made(HOSTILE * many, HOSTILE[0])], kind)
        assert len(data) > 1000
    assert image([made(HOSTILE)], kind) == image([made(HOSTILE)], kind)


@pytest.mark.parametrize("values", [(math.nan,), (math.inf, -math.inf), (0.0,), (-2.0, 1e30), ()])
@pytest.mark.parametrize("count", [2, 60])
def test_numbers_that_are_none_are_drawn_too(values: tuple[float, ...], count: int) -> None:
    one = Distribution.of(values)
    side = Side("f", tuple(Numbers(f"l.{n}", one, one) for n in range(count)))
    assert image([side], "png")
    assert page([side], [])
    assert b"nan" not in page([side], []).replace(b"nan, inf", b"")


def test_a_notebook_gets_axes_with_a_box_for_each_layer() -> None:
    report = wncli.inspect(SAMPLES / "hifigan_generator", statistics=True)
    figure, (left, right) = plt.subplots(1, 2)
    try:
        assert report.plot(left) is left
        assert report.plot(ax=right, ratio=True) is right
        labels = [text.get_text() for text in left.get_yticklabels()]
        assert labels == [layer.module for layer in report.layers]
        assert right.get_xlabel() == "g / ‖v‖"
        alone = report.plot()
        assert alone.figure is not figure
        bars = alone.collections[-1]
        assert isinstance(bars, LineCollection)
        medians = [segment[0][0] for segment in bars.get_segments()]
        assert report.statistics is not None
        assert medians == pytest.approx([one.g.median for one in report.statistics])
    finally:
        plt.close("all")


def test_what_cannot_be_plotted_is_refused_with_what_reads_it() -> None:
    report = wncli.inspect(SAMPLES / "lstm.pt")
    with pytest.raises(wncli.UsageError, match="was not read") as refused:
        report.plot(ratio=True)
    assert eval(refused.value.hint, {"wncli": wncli})  # noqa: S307 - our own hint
    plt.close("all")
    with pytest.raises(wncli.UsageError, match="no weight norm"):
        wncli.inspect(SAMPLES / "linear.pt").plot()


def test_short_tables_hold_every_name_as_text(tmp_path: Path) -> None:
    report = wncli.inspect(SAMPLES / "hifigan_generator")
    html = report._repr_html_()
    assert html.count("<tr>") == 21
    assert "8 more rows" in html
    found = wncli.compare(SAMPLES / "lstm.pt", SAMPLES / "lstm.pt")
    assert "equal" in found._repr_html_()
    evil = tmp_path / "<script>.pt"
    evil.write_bytes((SAMPLES / "lstm.pt").read_bytes())
    assert "<script>" not in wncli.inspect(evil)._repr_html_()
    assert "<script>" not in wncli.compare(evil, evil)._repr_html_()
