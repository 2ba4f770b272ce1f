"""What a pass says that it did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxcomp.graph.provenance import Origin


@dataclass(frozen=True)
class Change:
    """A weight or node that was changed, under the name by which it can be excluded the next time."""

    name: str
    what: str
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Skip:
    """A weight or node that was left alone, and why."""

    name: str
    reason: str


@dataclass
class Outcome:
    """What a pass did. Nothing in ``changed`` means that the graph is as it was.

    is_cut_short: the deadline came before the pass was through: what is not in ``changed`` was not looked at.
    origins: what tensors (by key) that were cut, widened or rescaled were before; all others are what they were.
    settled: fields that the clock decided, with what they came to: who applies the pass again gives it these.
    decided: the same by site, of those that were changed.
    """

    changed: list[Change] = field(default_factory=list)
    skipped: list[Skip] = field(default_factory=list)
    is_cut_short: bool = False
    origins: dict[str, Origin] = field(default_factory=dict)
    settled: dict[str, Any] = field(default_factory=dict)
    decided: dict[str, dict[str, Any]] = field(default_factory=dict)

    def change(self, name: str, what: str, **details: Any) -> None:
        """Note a weight or node that was changed."""
        self.changed.append(Change(name, what, details))

    def add(self, other: Outcome) -> None:
        """Take in what more was done."""
        self.changed += other.changed
        self.skipped += other.skipped
        self.is_cut_short |= other.is_cut_short
        self.origins.update(other.origins)
        self.settled.update(other.settled)
        self.decided.update(other.decided)

    def skip(self, name: str, reason: str) -> None:
        """Note a weight or node that was left alone."""
        self.skipped.append(Skip(name, reason))
