"""What one search of a step leaves to the next one, which is to leave less error in some weights, or them as they were.

Where nodes come out wrong by themselves a step is done once more. What weights can become is the same by then: to try
and to make it takes half of a search.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace

from onnxcomp.contract import Context, Pass, Skip
from onnxcomp.model import Model
from onnxcomp.pipeline.weight_search.candidates import Assignment, Table

LEFT_OUT = "it is excluded"


@dataclass
class Learned:
    """The table of a search as it was made, or measured (``is_measured``), and what noise allows. model: that it is of.
    foreseen: the errors of options before they were made, by weight and choice. ways: of what follows, by its place."""

    model: Model | None = None
    table: Table = field(default_factory=lambda: Table({}))
    mild: Assignment = field(default_factory=dict)
    foreseen: dict[tuple[str, int | None], float] = field(default_factory=dict)
    ways: dict[int, Pass] = field(default_factory=dict)
    is_measured: bool = False

    def foresee(self, table: Table) -> None:
        """Note what is foreseen of options."""
        self.foreseen = {(name, each.choice): each.error for name, own in table.options.items() for each in own}

    def keep(self, model: Model, table: Table, mild: Assignment, *, is_measured: bool = False) -> None:
        """Note what came of it; what was measured of options before they were made says nothing of them."""
        self.model, self.table, self.mild, self.is_measured = model, _copied(table), dict(mild), is_measured
        if not is_measured:
            self.table.influence, self.table.measured = {}, {}

    def again(self, context: Context, held: Collection[str], most_error: float) -> tuple[Table, Assignment]:
        """The same for a search that leaves no more than ``most_error`` in the weights that are held, foreseen or made,
        and leaves out what its context does."""
        table = _copied(self.table)
        gone = [name for name in table.options if context.excludes(name)]
        table.skipped += [Skip(name, LEFT_OUT) for name in gone]
        table.options = {name: own for name, own in table.options.items() if name not in gone}
        for name in held & table.options.keys():
            table.options[name] = [
                each for each in table.options[name]
                if max(each.error, self.foreseen.get((name, each.choice), 0.0)) <= most_error
            ]  # fmt: skip
        return table, {name: option for name, option in self.mild.items() if name in table.options}


def _copied(table: Table) -> Table:
    """A table of its own, to be measured and changed; fits are shared."""
    return replace(
        table, options={name: list(own) for name, own in table.options.items()}, skipped=list(table.skipped),
        influence=dict(table.influence), measured=dict(table.measured), unreached=set(table.unreached),
        last_rewritten={},
    )  # fmt: skip
