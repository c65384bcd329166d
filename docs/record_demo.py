"""Plays the demo and makes docs/demo.svg of it: the screen every second, as one animated picture without scripts.

Run as `make record-demo`. The picture is what was seen and measured in that run.
"""

from __future__ import annotations

import io
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.text import Text

from stafett.cli.demo import demo
from stafett.cli.demo.screen import render
from stafett.cli.demo.story import Story
from stafett.cli.store_choice import StoreChoice

TARGET = Path(__file__).with_name("demo.svg")
COLUMNS, LINES = 118, 20
FRAME_SECONDS = 1.0
PLAYED_FASTER = 2.0
LAST_FRAME_SECONDS = 8.0
WINDOW = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">'
    "<style>text{{font:20px monospace;white-space:pre}}</style>"
    '{chrome}<g transform="translate({terminal_x},{terminal_y})">@frames@</g></svg>\n'
)
FRAME = "<style>{styles}</style>{backgrounds}{matrix}"
"""What is in the window; rich's own format would repeat the window, and fonts from the web, in each frame."""

frames: list[str] = []


def draw(content: RenderableType, picture: str = FRAME) -> str:
    """Draw one frame."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(content)
    used = len(console.export_text(clear=False).splitlines())
    console.print("\n" * max(0, LINES - used - 1), end="")
    svg = console.export_svg(title="make demo", unique_id=f"f{len(frames)}", code_format=picture)
    return re.sub(r' clip-path="[^"]*"|\n\s*', "", svg).replace("&#160;", "\N{NO-BREAK SPACE}")


@contextmanager
def recording(story: Story, console: Console) -> Iterator[Callable[[], None]]:
    """Stand in for the demo's screen: keep a frame each second."""
    taken_at = 0.0

    def show() -> None:
        nonlocal taken_at
        if time.monotonic() - taken_at >= FRAME_SECONDS:
            taken_at = time.monotonic()
            frames.append(draw(render(story)))

    yield show
    frames.append(draw(Group(render(story), *(Text(line, style="green") for line in story.summary()))))


def animated(pictures: Sequence[str]) -> str:
    """Put the frames on top of each other in one window; each is visible in its turn."""
    per_frame = FRAME_SECONDS / PLAYED_FASTER
    total = per_frame * (len(pictures) - 1) + LAST_FRAME_SECONDS
    parts = []
    for number, picture in enumerate(pictures):
        begin, end = number * per_frame / total * 100, (number + 1) * per_frame / total * 100
        if number == len(pictures) - 1:
            end = 100.0
        steps = f"0%,100%{{visibility:hidden}}{begin:.3f}%{{visibility:visible}}{end:.3f}%{{visibility:hidden}}"
        rule = f"#p{number}{{visibility:hidden;animation:k{number} {total:.1f}s step-end infinite}}"
        parts.append(f'<g id="p{number}"><style>@keyframes k{number}{{{steps}}}{rule}</style>{picture}</g>')
    return draw(Text(), WINDOW).replace("@frames@", "".join(parts))


def main() -> int:
    """Play, and write the picture if all went well."""
    demo.screen = recording  # type: ignore[attr-defined]
    failed = demo.run_demo(StoreChoice.AUTO, as_json=False, quick="--quick" in sys.argv, keep=False)
    if not failed:
        TARGET.write_text(animated(frames))
        print(f"{TARGET.name}: {len(frames)} frames, {TARGET.stat().st_size // 1024} KiB")
    return failed


if __name__ == "__main__":
    sys.exit(main())
