"""What is shown where: tables and results on standard output, progress on standard error.

On a terminal lines are fitted to its width and progress is a bar; elsewhere there is neither colour nor
cursor movement, and lines are as long as they need to be.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import click
from rich.console import Console, JustifyMethod
from rich.padding import Padding
from rich.progress import BarColumn, Progress, ProgressColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Column, Table
from rich.text import Text

from onnxcomp.cli.printing.time_left import TimeLeft, in_words
from onnxcomp.clock import clock

WIDE = 10_000  # columns, where nothing has to fit a terminal
QUIET_S = 1.0  # a run shorter than this shows no progress
LINE_EVERY_S = 5.0  # progress lines, where there is no terminal

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")  # C0, DEL and C1

Tell = Callable[[int, int, str], None]


def table(*headings: str, right: Sequence[str] = (), whole: Sequence[str] = ()) -> Table:
    """An empty table without a frame; columns in ``right`` hold numbers, those in ``whole`` are never folded. Where no
    heading says anything, there is no row of them."""
    made = Table(box=None, pad_edge=False, header_style="bold", show_header=any(map(str.strip, headings)))
    for heading in headings:
        justify: JustifyMethod = "right" if heading in right else "left"
        made.add_column(heading, justify=justify, no_wrap=heading in (*right, *whole), overflow="fold")
    return made


def visible(text: str) -> str:
    """The text with its control characters written out: names in a file must not reach a terminal as commands."""
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def show(*parts: Table | Text | str) -> None:
    """Print tables and lines on standard output; a ``Text`` is one whose names are harmless already."""
    console = _console()
    with console.capture() as captured:
        for part in parts:
            if isinstance(part, str):
                console.print(Text("\n".join(map(visible, part.split("\n")))))
            elif isinstance(part, Text):
                console.print(part)
            else:
                console.print(Padding(part, (0, 0, 0, 0), expand=False))
    click.echo("\n".join(line.rstrip() for line in captured.get().removesuffix("\n").split("\n")))


def headline(words: str, *, good: bool) -> Text:
    """What a run came to, in a line of its own; coloured on a terminal."""
    return Text(visible(words), style="bold green" if good else "bold yellow")


def facts(rows: Sequence[tuple[str, str]], *, indent: int = 0) -> Table:
    """Rows of a name and what is to be said about it."""
    made = Table(box=None, pad_edge=False, show_header=False)
    rows = [(" " * indent + name, words) for name, words in rows]
    made.add_column(style="bold", no_wrap=True)
    made.add_column(overflow="fold")
    for name, words in rows:
        made.add_row(visible(name), Text(visible(words)))
    return made


def cells(*values: object) -> list[Text]:
    """Values as table cells; names are never read as markup, nor as commands to the terminal."""
    return [Text(visible(str(value))) for value in values]


def show_json(content: Any) -> None:
    """Print JSON on standard output."""
    click.echo(json.dumps(content, indent=1, default=_plain))


def remark(words: str) -> None:
    """Say something about a run before it begins, on standard error."""
    click.echo(visible(words), err=True)


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _console() -> Console:
    if sys.stdout.isatty():
        return Console(file=sys.stdout, highlight=False)
    return Console(file=sys.stdout, highlight=False, no_color=True, force_terminal=False, width=WIDE)


@contextlib.contextmanager
def progress(*, quiet: bool, words: Callable[[str], str] = str) -> Iterator[Tell]:
    """A function ``(done, total, what)`` that shows how far a run has come, for as long as the context is open.

    words: how what is under way is said.
    """
    if quiet:
        yield _silent
    elif sys.stderr.isatty():
        with _Bar(words).shown() as tell:
            yield tell
    else:
        yield _Lines(words).tell


def _silent(done: int, total: int, what: str) -> None:
    """Show nothing."""


@dataclass
class _Lines:
    """A line now and then, for logs."""

    words: Callable[[str], str] = str
    started: float = field(default_factory=clock)
    said: float = -math.inf
    last: str = ""
    left: TimeLeft = field(default_factory=TimeLeft)

    def tell(self, done: int, total: int, what: str) -> None:
        now, left = clock(), self.left.told(done, total)
        what = self.words(what)
        if now - self.started < QUIET_S or now - self.said < LINE_EVERY_S or what == self.last:
            return
        self.said, self.last = now, what
        click.echo(f"{now - self.started:5.0f} s  {_words(done, total, what, left)}", err=True)


class _Bar:
    """One line at the foot of the terminal, gone when the run ends."""

    def __init__(self, words: Callable[[str], str] = str) -> None:
        self.words = words
        told = TextColumn("{task.description}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"))
        columns: tuple[ProgressColumn, ...] = (
            TimeElapsedColumn(table_column=Column(min_width=7)),
            BarColumn(20, table_column=Column(min_width=5)),
            TaskProgressColumn(table_column=Column(min_width=4)),
            told,
        )
        self.bar = Progress(*columns, console=Console(stderr=True), transient=True, expand=True)
        self.task = self.bar.add_task("", total=None)
        self.left = TimeLeft()

    @contextlib.contextmanager
    def shown(self) -> Iterator[Tell]:
        with self.bar:
            yield self.tell

    def tell(self, done: int, total: int, what: str) -> None:
        task = self.bar.tasks[0]
        task.total = total if total > 1 else None  # `update` takes None for no change
        left = in_words(self.left.told(done, total))
        words = ", ".join(filter(None, [visible(self.words(what)), left]))
        self.bar.update(self.task, completed=done, description=Text(words).markup)


def _words(done: int, total: int, what: str, left: float) -> str:
    count = f" ({done} of {total})" if total > 1 else ""
    return ", ".join(filter(None, [f"{visible(what)}{count}", in_words(left)]))
