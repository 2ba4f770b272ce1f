"""What one search of a step leaves to the next one, which is to leave less error in some weights, or them as they were.

Where nodes come out wrong by themselves their weights are held to little error: a search finds that by its first trial
that verifies, and goes on so; where it comes out later the step is done once more. What weights can become is the same
by then, and what it does: to try, make and measure it takes half of a search.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from onnxcomp.contract import Context, Pass, Skip
from onnxcomp.model import Model
from onnxcomp.pipeline.weight_search.candidates import Assignment, Table, WeightOption

LEFT_OUT = "it is excluded"
HELD_ERROR = 0.01  # of a node that came out wrong, by each weight alone: 20 dB, what about 4 bits leave

Options = dict[str, list[WeightOption]]


@dataclass
class Learned:
    """The table of a search as it was made, or measured, and what noise allows. model: that it is of. foreseen: the
    errors of options before they were made, by weight and choice. ways: of what follows, by its place. held: weights
    of nodes that came out wrong, which become no worse than HELD_ERROR."""

    model: Model | None = None
    table: Table = field(default_factory=lambda: Table({}))
    mild: Assignment = field(default_factory=dict)
    foreseen: dict[tuple[str, int | None], float] = field(default_factory=dict)
    ways: dict[int, Pass] = field(default_factory=dict)
    held: set[str] = field(default_factory=set)
    is_measured: bool = False

    def foresee(self, table: Table) -> None:
        """Note what is foreseen of options."""
        self.foreseen = {(name, each.choice): each.error for name, own in table.options.items() for each in own}

    def keep(self, model: Model, table: Table, mild: Assignment, *, is_measured: bool = False) -> None:
        """Note what came of it."""
        self.model, self.table, self.mild, self.is_measured = model, _copied(table), dict(mild), is_measured
        if not is_measured:
            self.table.influence, self.table.measured = {}, {}

    def hold(self, wrong: Collection[str], changed: Collection[str]) -> bool:
        """Hold the weights of wrong nodes; where they are held already, what these read is off, and all that changed
        are held. Whether that is new."""
        new = set(wrong) - self.held or set(changed) - self.held
        self.held |= new
        return bool(new)

    def restricted(self, options: Mapping[str, list[WeightOption]]) -> Options:
        """Options with those of weights that are held whose error, foreseen and made, is little."""
        return {
            name: own if name not in self.held else [
                each for each in own if max(each.error, self.foreseen.get((name, each.choice), 0.0)) <= HELD_ERROR
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
