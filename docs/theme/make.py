"""Takes pictures of the site, light and dark, wide and narrow, and puts them on one sheet.

Run from the repository: `python docs/theme/make.py`. The sheet, `pages.png`, stands beside this
file. It needs the `docs` extra, Pillow, and Chromium; `--chromium` says how that is called.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from PIL import Image

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PAGES = ("index", "tutorial", "how-to/hifi-gan-bigvgan", "errors", "reference/commands/remove")
#: The sizes of windows, in pixels: no window of Chromium is narrower than the second.
WIDE, NARROW = (1280, 1600), (500, 1600)
#: Pixels of a picture for one of the sheet, and between two.
SCALE, GAP = 3, 12
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
         "--disable-background-networking", "--virtual-time-budget=3000")  # fmt: skip


def take(chromium: str, address: str, size: tuple[int, int], *, dark: bool) -> Image.Image:
    """Return what the browser shows of an address."""
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "shot.png"
        subprocess.run(  # noqa: S603 - the browser, which whoever calls this names
            [chromium, *FLAGS, f"--user-data-dir={folder}/profile", f"--screenshot={shot}",
             f"--window-size={size[0]},{size[1]}",
             f"--blink-settings=preferredColorScheme={0 if dark else 1}", address],
            check=True, capture_output=True,
        )  # fmt: skip
        with Image.open(shot) as picture:
            return picture.convert("RGB")


def sheet(pictures: list[list[Image.Image]]) -> Image.Image:
    """Put rows of pictures below each other."""
    small = [
        [one.resize((round(one.width / SCALE), round(one.height / SCALE))) for one in row]
        for row in pictures
    ]
    width = max(sum(one.width + GAP for one in row) for row in small) + GAP
    height = sum(row[0].height + GAP for row in small) + GAP
    made = Image.new("RGB", (width, height), "gray")
    top = GAP
    for row in small:
        left = GAP
        for one in row:
            made.paste(one, (left, top))
            left += one.width + GAP
        top += row[0].height + GAP
    return made.quantize(32)


def main() -> None:
    """Build the site, show it to the browser, and write the sheet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chromium", default="chromium", help="the browser")
    chromium = parser.parse_args().chromium
    with tempfile.TemporaryDirectory() as site:
        subprocess.run(  # noqa: S603 - our own site
            [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", site],
            cwd=ROOT, check=True,
        )  # fmt: skip
        handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=site)
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            root = f"http://127.0.0.1:{server.server_port}"
            sheet(
                [
                    [
                        take(chromium, f"{root}/{page}.html", size, dark=dark)
                        for size in (WIDE, NARROW)
                        for dark in (False, True)
                    ]
                    for page in PAGES
                ]
            ).save(HERE / "pages.png", optimize=True)
            server.shutdown()


if __name__ == "__main__":
    main()
