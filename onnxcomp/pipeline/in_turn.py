"""Passes in turn on one model, as one change: what a race measures, and what a sequence judges at its end.

model -> first pass -> second pass -> ... -> model        any of it again at some of its names only
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

from onnxcomp.contract import Change, Choice, Context, Outcome, Pass, own_choice
from onnxcomp.errors import TimeIsUp
from onnxcomp.model import Model
from onnxcomp.pipeline.history.lineage import Lineage
from onnxcomp.pipeline.history.records import application
from onnxcomp.pipeline.history.rollback import verified_part
from onnxcomp.pipeline.safety.reach import Reach
from onnxcomp.pipeline.safety.safe_changes import apply_safely
from onnxcomp.receipt import Application, Entry
from onnxcomp.recipe import Apply
from onnxcomp.verify import Verdict, Verifier


@dataclass
class InTurn:
    """Passes that were applied in turn from ``start``; ``line`` is where they led.

    limits: positions of the passes that act at fewer names where part is taken back. include: the names that are left
    of theirs, None for all. touched: what each pass changed when it was not limited. outcomes, contexts: of each
    pass; left_out: passes for which there was no time. restore: weights put back afterwards. taken: what the samples
    or the budget do not tolerate.
    """

    leaves: tuple[Apply, ...]
    start: Lineage
    line: Lineage
    limits: tuple[int, ...]
    include: list[str] | None = None
    touched: tuple[frozenset[str], ...] = ()
    outcomes: list[Outcome] = field(default_factory=list)
    contexts: list[Context] = field(default_factory=list)
    left_out: tuple[Apply, ...] = ()
    restore: list[str] = field(default_factory=list)
    taken: list[Entry] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def model(self) -> Model:
        """What the passes made."""
        return self.line.current

    @property
    def passes(self) -> tuple[Pass, ...]:
        """The passes, whether or not they found something to do."""
        return tuple(each.rewrite for each in self.leaves)

    @property
    def main(self) -> int:
        """The position of the pass that it is about."""
        return self.limits[-1]

    @property
    def changed(self) -> list[Change]:
        """What the passes changed of which part can be taken back."""
        return [each for index in self.limits if index < len(self.outcomes) for each in self.outcomes[index].changed]

    @property
    def names(self) -> list[str]:
        """Of these changes."""
        return list(dict.fromkeys(each.name for each in self.changed))

    @property
    def is_whole(self) -> bool:
        """Whether the passes acted at all that they could act at."""
        return self.include is None and not self.restore and not self.taken and not self.left_out

    def applications(self) -> list[Application]:
        """How to make it again."""
        made = [
            application(leaf.rewrite, context, outcome, self.choice_of(index))
            for index, (leaf, context, outcome) in enumerate(
                zip(self.leaves, self.contexts, self.outcomes, strict=False)
            )
            if outcome.changed
        ]
        made[-1].restore = list(self.restore)
        return made

    def choice_of(self, index: int) -> Choice | None:
        """The sites of the pass at this position, None for all."""
        if self.include is None or index not in self.limits:
            return None
        return own_choice(each for each in self.include if each in self.touched[index])

    def again(self, include: Sequence[str] | None, *, ends_idle: bool = False) -> InTurn:
        """The same from the same start, without what was left out of it; with ``include``, at these names only."""
        touched = tuple(frozenset(change.name for change in each.changed) for each in self.outcomes)
        names = None if include is None else list(include)
        made = InTurn(self.leaves, self.start, self.start, self.limits, names, touched)
        made.taken, made.notes, made.left_out = list(self.taken), list(self.notes), self.left_out
        for leaf, context in zip(self.leaves, self.contexts, strict=False):
            if not made._add(leaf, context, None) and ends_idle:
                break
        return made

    def _take_up(self, begun: InTurn) -> None:
        """Go on from where the same passes have led."""
        self.line, self.taken, self.notes = begun.line, list(begun.taken), list(begun.notes)
        self.outcomes, self.contexts = list(begun.outcomes), list(begun.contexts)

    def _add(self, leaf: Apply, context: Context, reach: Reach | None) -> bool:
        """Apply one more pass; whether it found something to do."""
        choice = self.choice_of(len(self.outcomes))
        held = apply_safely(self.model, leaf.rewrite, self.line.context(context), reach, choice)
        self.outcomes.append(held.outcome)
        self.contexts.append(held.context)
        self.taken += held.entries()
        self.notes += [each for each in held.notes() if each not in self.notes]
        if held.outcome.changed:
            self.line = self.line.after(leaf.rewrite, held.model, held.outcome)
        return bool(held.outcome.changed)


def apply_in_turn(
    leaves: Sequence[Apply],
    line: Lineage,
    context: Context,
    reach: Reach | None,
    *,
    limits: Sequence[int],
    ends_idle: bool = False,
    begun: InTurn | None = None,
) -> InTurn:
    """Apply passes in turn, without what the samples do not license (``reach``; None for a run without data).

    ends_idle: the first pass that finds nothing to do is the last; else those after it go on while there is time.
    begun: the first of the passes, applied by itself to the same model: it is not applied again.
    """
    made = InTurn(tuple(leaves), line, line, tuple(limits))
    if begun is not None:
        made._take_up(begun)
    for index, leaf in enumerate(leaves):
        own = dataclasses.replace(context, exclude=tuple(dict.fromkeys((*context.exclude, *leaf.exclude))))
        if index and not ends_idle and own.is_over():
            made.left_out = made.leaves[index:]
            break
        is_done = index < len(made.outcomes)
        changed = bool(made.outcomes[index].changed) if is_done else made._add(leaf, own, reach)
        if not changed and ends_idle:
            break
    return made


def part_of(
    made: InTurn, verifier: Verifier, tuner: Verifier | None, *, ends_idle: bool = False
) -> tuple[InTurn, Verdict] | None:
    """The largest part that verifies, with its verdict; None where there is none, nothing to take apart, or no time to
    find it."""
    if len(made.names) < 2 or made.contexts[0].is_over():
        return None
    latest = made

    def again(choice: Choice) -> tuple[Model, Outcome]:
        nonlocal latest
        if made.contexts[0].is_over():
            raise TimeIsUp("the time budget was used up")
        latest = made.again(sorted(choice), ends_idle=ends_idle)
        return latest.model, Outcome(latest.changed)

    several = again if len(made.leaves) > 1 else None
    before, outcome, rewrite = made.start.current, Outcome(made.changed), made.passes[made.main]
    try:
        rest, verdict = verified_part(before, made.model, outcome, rewrite, made.contexts[0], verifier, tuner, several)
    except TimeIsUp:
        return None
    if not rest.kept:
        return None
    part = latest if several else made.again(None if rest.by_value else rest.kept)
    part.restore = rest.taken if rest.by_value else []
    part.line = dataclasses.replace(part.line, current=rest.model)
    part.taken += rest.taken_entries()
    return part, verdict
