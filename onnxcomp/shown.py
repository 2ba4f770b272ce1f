"""Results as people look at them in Python: one line, a few lines, or a table in a notebook.

    >>> result                      <Result net.onnx: 1,000 -> 250 bytes, 4x smaller, PASS>
    >>> print(result.summary())     net.onnx: 1,000 -> 250 bytes, 4x smaller, PASS
                                      size     1,000 -> 250 bytes
                                      ...
"""

from __future__ import annotations

import html
from abc import ABC, abstractmethod
from collections.abc import Sequence

Row = tuple[str, ...]


class Shown(ABC):
    """A result that says in one line what it is, and in rows of words what there is to it."""

    @abstractmethod
    def headline(self) -> str:
        """The result in one line."""

    def rows(self) -> Sequence[Row]:
        """Facts, each a row of cells: what it is, then what is to be said of it. The first of a table are headings."""
        return ()

    def summary(self) -> str:
        """The result in a few lines."""
        rows = self.rows()
        widths = [max(len(row[column]) for row in rows if column < len(row)) for column in range(_columns(rows))]
        lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)) for row in rows)
        return "\n".join([self.headline(), *(f"  {line}".rstrip() for line in lines)])

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.headline()}>"

    def _repr_html_(self) -> str:
        """What notebooks show: names from models are text there, never markup."""
        lines = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in self.rows())
        body = "".join(f"<tr>{line}</tr>" for line in lines)
        return f"<p><b>{html.escape(self.headline())}</b></p><table>{body}</table>"


def _columns(rows: Sequence[Row]) -> int:
    return max(map(len, rows), default=0)
