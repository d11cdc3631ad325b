"""Draws the screens of `wn` as pictures, from real runs on a terminal of 80 columns.

Run from the repository: `python docs/screens/make.py`. The pictures stand beside this file.
"""

from __future__ import annotations

import fcntl
import os
import pty
import shlex
import shutil
import struct
import sys
import tempfile
import termios
from pathlib import Path

import torch
from rich.console import Console
from rich.terminal_theme import DIMMED_MONOKAI
from rich.text import Text

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
ROWS, COLUMNS = 24, 80

#: The name of a picture, and what is typed for it.
SCREENS = {
    "inspect": "wn inspect g_02500000",
    "inspect-stats": "wn inspect g_02500000 --stats",
    "inspect-tensors": "wn inspect training.pt --tensors",
    "inspect-many": "wn inspect .",
    "remove": "wn remove g_02500000 generator.safetensors --verify",
    "remove-dry-run": "wn remove training.pt folded.pt --dry-run",
    "remove-many": "wn remove wavenet.pt training.pt linear.pt notes.pth --output-dir folded",
    "compare": "wn compare g_02500000 g_finetuned.pt",
    "error": "wn remove training.pt training.safetensors",
    "help": "wn remove --help",
}
#: Rich's frame, without its web font, and without its clip, which cuts the last line.
FRAME = """<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: {char_height}px; line-height: {line_height}px; }}
.{unique_id}-title {{ font-size: 18px; font-family: sans-serif; }}
{styles}
</style>
<defs>{lines}</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})">
{backgrounds}<g class="{unique_id}-matrix">{matrix}</g></g>
</svg>
"""


def prepare(folder: Path) -> None:
    """Put the files of the screens into a folder: the samples, and a generator trained further."""
    samples = ROOT / "sample_models"
    shutil.copy(samples / "hifigan_generator", folder / "g_02500000")
    for name in ("wavenet.pt", "training.pt", "linear.pt"):
        shutil.copy(samples / name, folder / name)
    (folder / "notes.pth").write_text("learning rate 2e-4 from here on\n")
    made = torch.load(folder / "g_02500000", weights_only=True)
    generator = torch.Generator().manual_seed(0)
    for name, value in made["generator"].items():
        if "conv" in name and name.endswith(("weight_g", "weight_v")):
            noise = torch.randn(value.shape, generator=generator)
            is_v = name.endswith("v")
            value.add_(0.0 if is_v and ".1." in name else 0.006 * value.abs().mean() * noise)
    torch.save(made, folder / "g_finetuned.pt")


def on_a_terminal(typed: str, folder: Path) -> str:
    """Run a command on a terminal, and return all that it draws."""
    child, terminal = pty.fork()
    if not child:
        fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        os.chdir(folder)
        environment = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm-256color"}
        for name in ("COLUMNS", "LINES", "NO_COLOR"):
            environment.pop(name, None)
        command = [sys.executable, "-m", "wncli", *shlex.split(typed)[1:]]
        os.execve(sys.executable, command, environment)  # noqa: S606 - on the terminal
    drawn = b""
    while True:
        try:
            part = os.read(terminal, 1 << 16)
        except OSError:
            break
        if not part:
            break
        drawn += part
    os.waitpid(child, 0)
    return drawn.decode()


def picture(typed: str, drawn: str) -> str:
    """Return a terminal with a command and what it has drawn, as SVG."""
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        console = Console(
            file=nowhere, record=True, width=COLUMNS, force_terminal=True, color_system="truecolor"
        )
        console.print(Text.assemble(("$ ", "dim"), (typed, "bold")), soft_wrap=True)
        console.print(Text.from_ansi(drawn.replace("\r\n", "\n").rstrip("\n")))
        return console.export_svg(
            title="wn", theme=DIMMED_MONOKAI, code_format=FRAME, unique_id="wn"
        )


def main() -> None:
    """Draw all screens."""
    for name, typed in SCREENS.items():
        with tempfile.TemporaryDirectory() as folder:
            prepare(Path(folder))
            drawn = on_a_terminal(typed, Path(folder))
        (HERE / f"{name}.svg").write_text(picture(typed, drawn), encoding="utf-8")
        print(HERE / f"{name}.svg")


if __name__ == "__main__":
    main()
