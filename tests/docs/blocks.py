"""The blocks of code in the project's pages, and what the pages say about running them.

A comment right before a block says how it is meant:

    <!-- slow: why -->         run with the slow tests only
    <!-- not run: why -->      not run at all; the tests list it with the reason
    <!-- needs: torch -->      a script that is run where these modules can be imported; else the page ends there
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^(?P<indent> *)```(?P<info>[^`]*)$")
MARK = re.compile(r"<!-- (slow|not run|needs): (.*?) -->")
SHELL = ("sh", "console", "bash")
COMMAND = re.compile(r"^(\$ |onnxcomp |pip |make |python |docker |git )")


@dataclass(frozen=True)
class Block:
    """One fenced block. line: of its fence, from 1. marks: what the comment before it says."""

    page: Path
    line: int
    language: str
    title: str
    text: str
    marks: dict[str, str] = field(default_factory=dict)

    @property
    def place(self) -> str:
        """Where it stands, to be found by a reader."""
        return f"{self.page.relative_to(ROOT).as_posix()}:{self.line}"

    @property
    def is_shell(self) -> bool:
        """Whether its lines are commands."""
        return self.language in SHELL

    def commands(self) -> list[str]:
        """Its commands: lines without comments, continued ones joined."""
        joined = self.text.replace("\\\n", " ")
        lines = (line.removeprefix("$ ").strip() for line in joined.splitlines())
        return [re.sub(r"\s+#\s.*$", "", line) for line in lines if line and not line.startswith("#")]


def pages() -> list[Path]:
    """The pages whose commands a reader may type; decisions record what was, and tables of the judge have none."""
    found = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    left_out = (ROOT / "docs" / "decisions", ROOT / "docs" / "judge_pairs.md")
    return [each for each in found if not any(each == one or one in each.parents for one in left_out)]


def blocks(page: Path) -> Iterator[Block]:
    """All blocks of a page, in order."""
    lines = page.read_text(encoding="utf-8").splitlines()
    at = 0
    while at < len(lines):
        opened = FENCE.match(lines[at])
        if opened is None:
            at += 1
            continue
        start, indent = at, len(opened["indent"])
        at += 1
        while at < len(lines) and lines[at].strip() != "```":
            at += 1
        text = "\n".join(line[indent:] for line in lines[start + 1 : at]) + "\n"
        language, _, rest = opened["info"].strip().partition(" ")
        title = re.search(r'title="([^"]*)"', rest)
        before = lines[start - 1] if start else ""
        yield Block(page, start + 1, language, title[1] if title else "", text, dict(MARK.findall(before)))
        at += 1


def all_blocks() -> list[Block]:
    """The blocks of all pages."""
    return [block for page in pages() for block in blocks(page)]
