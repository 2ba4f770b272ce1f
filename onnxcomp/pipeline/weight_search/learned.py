"""What one search of a step leaves to the next one, which is to leave less error in some weights, or them as they were.

Where nodes come out wrong by themselves their weights are held to little error: a search finds that by its first trial
that verifies, and goes on so; where it comes out later the step is done once more. What weights can become is the same
by then, and what it does: to try, make and measure it takes half of a search.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from onnxcomp.contract import Context, Pass, Skip
from onnxcomp.model import Model
from onnxcomp.pipeline.weight_search.candidates import Assignment, Table, WeightOption

LEFT_OUT = "it is excluded"
HELD_ERROR = 0.01  # of a node that came out wrong, by each weight alone: 20 dB, what about 4 bits leave
ROUNDS = 4  # of holding weights
AIMED = 0.7  # of what a node's output may be off by, where errors are made smaller for it

Options = dict[str, list[WeightOption]]


@dataclass
class Learned:
    """The table of a search as it was made, or measured, and what noise allows. model: that it is of. foreseen: the
    errors of options before they were made, by weight and choice. ways: of what follows, by its place. held: the most
    error that weights may have, for nodes that came out wrong; rounds: in which that was found."""

    model: Model | None = None
    table: Table = field(default_factory=lambda: Table({}))
    mild: Assignment = field(default_factory=dict)
    foreseen: dict[tuple[str, int | None], float] = field(default_factory=dict)
    ways: dict[int, Pass] = field(default_factory=dict)
    held: dict[str, float] = field(default_factory=dict)
    rounds: int = 0
    is_measured: bool = False

    def foresee(self, table: Table) -> None:
        """Note what is foreseen of options."""
        self.foreseen = {(name, each.choice): each.error for name, own in table.options.items() for each in own}

    def keep(self, model: Model, table: Table, mild: Assignment, *, is_measured: bool = False) -> None:
        """Note what came of it."""
        self.model, self.table, self.mild, self.is_measured = model, _copied(table), dict(mild), is_measured
        if not is_measured:
            self.table.influence, self.table.measured = {}, {}

    def hold(self, excess: Mapping[str, float], errors: Mapping[str, float]) -> bool:
        """Allow weights of wrong nodes less error, where that is not done yet; else all weights, since what these nodes
        read is off. Errors add up: less of each by a factor is less of the node's by that. The last of ROUNDS leaves
        next to none. Whether that changed anything.

        excess: by weight, of its node's error over what that may be. errors: of all weights that changed.
        """
        most = {
            name: max(HELD_ERROR, AIMED / each * errors.get(name, 0.0))
            for name, each in excess.items()
            if name not in self.held
        } or {name: max(HELD_ERROR, AIMED / max(excess.values()) * error) for name, error in errors.items()}
        self.rounds += 1
        most = dict.fromkeys(errors, HELD_ERROR) if self.rounds >= ROUNDS else most
        new = {name: each for name, each in most.items() if each < self.held.get(name, math.inf)}
        self.held |= new
        return bool(new)

    def hold_firmly(self, names: Collection[str]) -> None:
        """Allow weights next to no error, or all weights where these have that already."""
        firm = {name for name, most in self.held.items() if most <= HELD_ERROR}
        self.held |= dict.fromkeys(self.table.options if firm.issuperset(names) else names, HELD_ERROR)

    def restricted(self, options: Mapping[str, list[WeightOption]]) -> Options:
        """Options without those of weights that are held whose error, foreseen or made, is more than these may have."""
        return {
            name: own if name not in self.held else [
                each
                for each in own
                if max(each.error, self.foreseen.get((name, each.choice), 0.0)) <= self.held[name]
            ]
            for name, own in options.items()
        }  # fmt: skip

    def again(self, context: Context) -> tuple[Table, Assignment]:
        """The same for a search that leaves little error in the weights that are held and leaves out what its context
        does."""
        table = _copied(self.table)
        gone = [name for name in table.options if context.excludes(name)]
        table.skipped += [Skip(name, LEFT_OUT) for name in gone]
        table.options = self.restricted({name: own for name, own in table.options.items() if name not in gone})
        return table, {name: option for name, option in self.mild.items() if name in table.options}


def _copied(table: Table) -> Table:
    """A table of its own, to be measured and changed; fits are shared."""
    return replace(
        table, options={name: list(own) for name, own in table.options.items()}, skipped=list(table.skipped),
        influence=dict(table.influence), measured=dict(table.measured), unreached=set(table.unreached),
        last_rewritten={},
    )  # fmt: skip
