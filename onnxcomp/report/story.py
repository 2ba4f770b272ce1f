"""What the steps did to each weight, in their order, and how the weights of a receipt are shown.

A step names what it changed by the weight, or by the node that reads it: the receipt's outline tells which that is.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from onnxcomp.receipt import Alternative, Entry, Receipt, StepReport, WeightAccount

CHANGED, TAKEN_BACK, SKIPPED = "changed", "taken back", "skipped"
COMPACT = "compact"  # how a receipt calls what a decoder makes


@dataclass(frozen=True)
class Event:
    """What one step did, or did not do, to a weight."""

    step: str
    decision: str
    what: str
    details: Mapping[str, Any]

    @property
    def is_change(self) -> bool:
        """Whether it is part of the result."""
        return self.decision == CHANGED


@dataclass(frozen=True)
class WeightStory:
    """A weight, what was done to it, and what it could have become."""

    number: int
    name: str
    account: WeightAccount
    events: tuple[Event, ...] = ()
    chosen_stands: bool = True  # whether the step that chose it was kept

    @property
    def before(self) -> int | None:
        """Bytes in the source."""
        return self.account.bytes_before

    @property
    def after(self) -> int:
        """Bytes in the result, 0 for one that is gone."""
        return self.account.bytes_after or 0

    @property
    def is_gone(self) -> bool:
        """Whether nothing of it is left."""
        return self.account.bytes_after is None

    @property
    def is_cut(self) -> bool:
        """Whether it has another shape than it had."""
        account = self.account
        return None not in (account.shape, account.shape_after) and account.shape != account.shape_after

    @property
    def chosen(self) -> Alternative | None:
        """What a search chose for it."""
        return None if self.account.chosen is None else self.account.alternatives[self.account.chosen]

    @property
    def has_more(self) -> bool:
        """Whether there is more to say of it than its bytes."""
        return bool(self.account.alternatives) or any(each.decision != SKIPPED for each in self.events)

    @cached_property
    def stored(self) -> str:
        """How the result keeps it."""
        told = [each.what for each in self.events if each.is_change and "bytes_after" in each.details]
        if told:
            return told[-1]
        if self.is_gone:
            return "gone"
        return "decoded when the model is loaded" if self.account.stored == COMPACT else self.account.stored

    @cached_property
    def made(self) -> str:
        """What the steps made of its values."""
        told = [each.what for each in self.events if each.is_change and "bytes_after" not in each.details]
        return "; ".join(dict.fromkeys(told))

    @property
    def bits(self) -> float | None:
        """Bits that a value takes in the result."""
        shape = self.account.shape_after
        return None if not shape or not self.after else 8 * self.after / max(1, math.prod(shape))

    @property
    def rank(self) -> str:
        """Where it was put as a product of smaller ones: over how many terms."""
        ranks = [each.details["rank"] for each in self.events if each.is_change and "rank" in each.details]
        return "" if not ranks else "×".join(map(str, ranks[-1])) if isinstance(ranks[-1], list) else str(ranks[-1])

    @property
    def error(self) -> float | None:
        """The relative squared error that its rounding leaves, of its node's output where data told it."""
        found = [each.details["error"] for each in self.events if each.is_change and "error" in each.details]
        return found[-1] if found else None


@dataclass(frozen=True)
class Account:
    """The weights of a receipt, those of most bytes in the source first; those that the run made come last."""

    receipt: Receipt
    weights: Sequence[WeightStory] = field(default_factory=list)

    @classmethod
    def of(cls, receipt: Receipt) -> Account:
        """Put together what the steps said and what the receipt says of each weight, as far as it does."""
        known = receipt.weights or _told_by_steps(receipt.steps)
        events = _events(receipt, known)
        kept = [each for each in receipt.steps if each.decision.startswith("kept")]
        ordered = sorted(known.items(), key=lambda each: -(each[1].bytes_before or 0))
        made = [
            WeightStory(number, name, account, tuple(events[name]), _stands(name, account, kept))
            for number, (name, account) in enumerate(ordered)
        ]
        return cls(receipt, made)

    @property
    def is_whole(self) -> bool:
        """Whether the receipt has an account of all weights, as those of older versions have not."""
        return bool(self.receipt.weights)

    @property
    def searched(self) -> list[WeightStory]:
        """The weights that a search chose for."""
        return [each for each in self.weights if each.account.alternatives]

    @cached_property
    def harm(self) -> float:
        """The sum of what the chosen options were predicted to cause, each alone."""
        return sum(each.chosen.divergence or 0.0 for each in self.searched if each.chosen is not None)


def _stands(name: str, account: WeightAccount, kept: Sequence[StepReport]) -> bool:
    """Whether what a search chose for a weight is part of the result."""
    if account.chosen is None or not account.alternatives[account.chosen].what:
        return True
    chosen = account.alternatives[account.chosen].what.split()[0]
    return any(chosen in each.rewrite and any(entry.name == name for entry in each.changed) for each in kept)


def _events(receipt: Receipt, known: Mapping[str, WeightAccount]) -> dict[str, list[Event]]:
    found: dict[str, list[Event]] = defaultdict(list)
    readers: dict[str, list[str]] = defaultdict(list)
    for node in receipt.graphs.nodes:
        readers[node.name] += node.reads
    for report in receipt.steps:
        for decision, entries in (
            (CHANGED, report.changed),
            (TAKEN_BACK, report.taken_back),
            (SKIPPED, report.skipped),
        ):
            for entry in entries:
                for name in _meant(entry, known, readers, through_nodes=report.divergence is not None):
                    found[name].append(Event(report.rewrite, decision, entry.what, entry.details))
    return found


def _meant(
    entry: Entry, known: Mapping[str, WeightAccount], readers: Mapping[str, list[str]], *, through_nodes: bool
) -> Iterator[str]:
    """The weights that an entry is about: those that it names, else those that its nodes read, vectors where they were
    cut. through_nodes: whether nodes count, as they do of steps that lose something."""
    named = [each for each in (entry.name, str(entry.details.get("weight"))) if each in known]
    if not named and through_nodes:
        nodes = [entry.name, *(each for each in entry.details.get("nodes", ()) if isinstance(each, str))]
        read = [each for node in nodes for each in readers.get(node, ())]
        named = [each for each in read if known[each].kind != "vector" or known[each].shape != known[each].shape_after]
    yield from dict.fromkeys(named)


def _told_by_steps(steps: Sequence[StepReport]) -> dict[str, WeightAccount]:
    """The weights that steps gave bytes of, in the receipts of older versions."""
    found: dict[str, WeightAccount] = {}
    for report in steps:
        for each in report.changed:
            if {"bytes_before", "bytes_after"} <= each.details.keys():
                account = found.setdefault(each.name, WeightAccount("", bytes_before=int(each.details["bytes_before"])))
                account.bytes_after, account.stored = int(each.details["bytes_after"]), COMPACT
    return found
