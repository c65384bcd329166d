"""What the demo shows: one live screen on a terminal, a line for everything that happens elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.filesize import decimal
from rich.live import Live
from rich.table import Table
from rich.text import Text

from stafett.cli.demo.host_pull import HostPull
from stafett.cli.demo.story import Act, Story

BAR_CELLS = 24
NUMBERS = "①②③④⑤"


@contextmanager
def screen(story: Story, console: Console) -> Iterator[Callable[[], None]]:
    """Give a function that brings the screen up to date."""
    if console.is_terminal:
        with Live(render(story), console=console, refresh_per_second=10) as live:
            yield lambda: live.update(render(story))
        return
    told: set[str] = set()

    def show() -> None:
        for line in _lines(story):
            if line not in told:
                told.add(line)
                console.print(line, soft_wrap=True, markup=False, highlight=False)

    yield show


def render(story: Story) -> RenderableType:
    """Draw all acts: those that are over as a line, the last one with its hosts."""
    parts: list[RenderableType] = []
    for number, act in zip(NUMBERS, story.acts, strict=False):
        last = act is story.acts[-1]
        parts.append(Text(f"{number} {act.title}{_result(act)}", style="bold" if last else ""))
        parts += [Text(f"  {remark}", style="yellow") for remark in act.remarks]
        if last and act.pulls:
            parts.append(_table(story, act))
    return Group(*parts)


def _lines(story: Story) -> Iterator[str]:
    for number, act in zip(NUMBERS, story.acts, strict=False):
        yield f"{number} {act.title}"
        yield from (f"  {number} {remark}" for remark in act.remarks)
        for pull in act.pulls:
            if not pull.running:
                yield (
                    f"  {number} {pull.host.name} ({pull.host.zone}): {pull.seconds:.1f} s, {decimal(pull.bytes_peer)} "
                    f"from peers, {decimal(pull.bytes_upstream)} from upstream, {pull.error or 'every digest right'}"
                )


def _result(act: Act) -> str:
    return f": {act.seconds:.1f} s" if act.ended else ""


def _table(story: Story, act: Act) -> Table:
    table = Table(box=None)
    for column in ("host", "zone", "progress", "its zone", "other zone", "upstream", "seconds", "longest gap", "state"):
        table.add_column(column, no_wrap=column == "progress", min_width=BAR_CELLS if column == "progress" else None)
    for pull in act.pulls:
        cells = round(min(1.0, pull.bytes_stored / story.image_bytes) * BAR_CELLS)
        sizes = (pull.bytes_near, pull.bytes_peer - pull.bytes_near, pull.bytes_upstream)
        table.add_row(
            pull.host.name,
            pull.host.zone,
            f"{'█' * cells:░<{BAR_CELLS}}",
            *(decimal(size) if size else "" for size in sizes),
            f"{pull.seconds:.1f}" if pull.seconds else "",
            _gap(pull),
            pull.error or ("pulling" if pull.running else "all digests right"),
        )
    return table


def _gap(pull: HostPull) -> str:
    """The gap as a bar, a cell for each 0.1 s."""
    seconds = pull.gaps.longest_seconds
    return f"{'▒' * min(20, round(seconds * 10))} {seconds:.1f} s" if seconds >= 0.1 else ""
