"""Makes the pictures of README.md and the docs: ``python tests/browser/picture.py``.

It runs ``nightly.py`` on a terminal, and takes two pictures of that run, which fails:

- ``terminal.svg``: the screen at its end.
- ``run-page.png``: its page, with the failed step selected, in Chromium.
"""

from __future__ import annotations

import asyncio
import io
import os
import shutil
import subprocess
import sys
import tempfile
from itertools import groupby
from pathlib import Path

from conftest import CHROMIUM
from PIL import Image
from playwright.async_api import async_playwright
from rich.console import Console
from rich.style import Style
from rich.terminal_theme import TerminalTheme
from rich.text import Text

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent))

from terminals import Terminal  # noqa: E402

IMAGES = HERE.parents[1] / "docs" / "images"
COMMAND = "run nightly.py --run-id nightly-2026-01-05 --html run.html"
SHOWN = COMMAND.removesuffix(" --html run.html")
THEME = TerminalTheme(
    (22, 28, 37),
    (230, 235, 242),
    [(110, 120, 135), (255, 123, 114), (86, 211, 100), (227, 179, 65),
     (121, 174, 255), (210, 168, 255), (118, 227, 234), (230, 235, 242)],
)  # fmt: skip
SVG = """<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>.text {{ font: {char_height}px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace }}
{styles}</style>
<defs><clipPath id="{unique_id}-clip-terminal"><rect width="{terminal_width}"
height="{terminal_height}"/></clipPath>{lines}</defs>
{chrome}{backgrounds}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)"
class="text">{matrix}</g></svg>
"""
"""What rich draws, without fonts of another server."""


def run_on_a_terminal(folder: Path) -> Terminal:
    shutil.copy(HERE / "nightly.py", folder)
    terminal = Terminal(80, 24)
    subprocess.run(
        [sys.executable, "-m", "asyncflow", *COMMAND.split()],
        cwd=folder,
        stdin=terminal.device,
        stdout=terminal.device,
        stderr=terminal.device,
        env={**os.environ, "PYTHONPATH": str(HERE.parents[1]), "TERM": "xterm-256color"},
        check=False,
    )
    terminal.close()
    return terminal


def take_screen(terminal: Terminal) -> None:
    console = Console(width=80, record=True, file=io.StringIO(), force_terminal=True)
    console.print(f"[bold]$[/] asyncflow {SHOWN}", highlight=False)
    for line in terminal.styled_lines():
        text = Text()
        for (color, bold), run in groupby(line, lambda char: (char.fg, char.bold)):
            color = color.replace("brown", "yellow")  # the name that pyte has for it
            text.append("".join(char.data for char in run), Style(color=color, bold=bold))
        text.rstrip()
        if not text.plain.startswith("HTML report"):
            console.print(text)
    svg = console.export_svg(title="", theme=THEME, code_format=SVG, unique_id="screen")
    IMAGES.joinpath("terminal.svg").write_text(svg, "utf-8")


async def take_page(path: Path) -> None:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = await browser.new_page(
            viewport={"width": 1280, "height": 900}, locale="en-US", timezone_id="UTC"
        )
        await page.goto(f"{path.as_uri()}#step=features")
        screenshot = await page.screenshot()
        await browser.close()
    picture = Image.open(io.BytesIO(screenshot)).convert("RGB").quantize(128)
    picture.save(IMAGES / "run-page.png", optimize=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        take_screen(run_on_a_terminal(folder))
        page = folder / "run.html"
        page.write_text(page.read_text("utf-8").replace(f"{folder}/", ""), "utf-8")
        asyncio.run(take_page(page))
    for picture in ("terminal.svg", "run-page.png"):
        print(f"{picture}: {(IMAGES / picture).stat().st_size:,} bytes")
