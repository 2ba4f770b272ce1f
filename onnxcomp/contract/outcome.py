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


MISSED = 1.02  # times the share of the time that was asked for: above it is said, below is noise
NO_LESS = 0.995  # of the time, that reads as all of it


@dataclass(frozen=True)
class AskedTime:
    """A share of the time that was asked for, and how much is left. left: None where nodes' times are not known.
    whose: of the time of what. is_run: the model was run, else times of its nodes foretell it. is_least: no option
    takes less."""

    asked: float
    left: float | None
    whose: str
    is_run: bool = False
    is_least: bool = True

    @property
    def details(self) -> dict[str, float]:
        """For the account of a change: what is left, beside what was asked for."""
        key = "latency_of_all" if self.is_run else "latency_foreseen"
        left = {} if self.left is None else {key: round(self.left, 4)}
        return {**left, "latency_asked": self.asked}

    @property
    def notes(self) -> list[str]:
        """That it was missed, where it was."""
        asked = f"latency {self.asked:g} asked"
        if self.left is None:
            return [f"{asked}, but how long its nodes take is not known"]
        if self.left <= MISSED * self.asked:
            return []
        if self.left >= NO_LESS:
            return [f"{asked}, and none of its options takes less of {self.whose} time"]
        what = "the least that its options leave" if self.is_least else "the least that was found"
        how = "the cut model was run" if self.is_run else "foreseen by timed nodes"
        return [f"{asked}, {self.left:.2g} of {self.whose} time is {what} ({how})"]


@dataclass
class Outcome:
    """What a pass did. Nothing in ``changed`` means that the graph is as it was.

    is_cut_short: the deadline came before the pass was through: what is not in ``changed`` was not looked at.
    origins: what tensors (by key) that were cut, widened or rescaled were before; all others are what they were.
    settled: fields that the clock decided, with what they came to: who applies the pass again gives it these.
    decided: the same by site, of those that were changed. notes: what a reader is told of the whole.
    """

    changed: list[Change] = field(default_factory=list)
    skipped: list[Skip] = field(default_factory=list)
    is_cut_short: bool = False
    origins: dict[str, Origin] = field(default_factory=dict)
    settled: dict[str, Any] = field(default_factory=dict)
    decided: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

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
        self.notes += other.notes

    def skip(self, name: str, reason: str) -> None:
        """Note a weight or node that was left alone."""
        self.skipped.append(Skip(name, reason))
