"""Rounds of passes in turn, such as ever more pruning with a repair after each."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from onnxcomp.contract import Pass, parameters
from onnxcomp.errors import ParameterError, RecipeError
from onnxcomp.recipe.sequential import Sequential, check_verify, judged_in_between
from onnxcomp.recipe.step import Apply, Order, Part, Step, refuse_unless

LENGTHS = "schedule must give each of its fields a list of values, one for every round{}."


@dataclass(frozen=True)
class Repeat(Step):
    """Rounds of passes in turn; the passes of a round are judged together. verify: "each" round, so that the first that
    breaks the budget is the end and what those before it made is kept; or all rounds together at the "end".

    schedule: fields, each with its value in every round: "sparsity", or "prune-weights.sparsity" where several of the
    passes have a field of this name. count: of rounds, where no schedule tells.
    """

    steps: tuple[Step, ...]
    schedule: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    count: int | None = None
    verify: str = "each"

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_unless(bool(self.steps), "repeat must name at least one pass.")
        check_verify(self.verify)
        stated = [] if self.count is None else [self.count]
        refuse_unless(bool(self.schedule or stated), "repeat needs rounds, or a schedule.")
        lengths = {*stated, *(len(values) for values in self.schedule.values())}
        refuse_unless(len(lengths) == 1, LENGTHS.format(f", of which there are {self.count}" if stated else ""))
        refuse_unless(min(lengths) > 0 and bool(self.rounds), "repeat needs at least one round.")

    @cached_property
    def rounds(self) -> tuple[Sequential, ...]:
        """Every round with the values that its fields have in it. Raises RecipeError where a pass does not take one."""
        targets = {key: self._target(key) for key in self.schedule}
        count = self.count or len(next(iter(self.schedule.values())))
        found = []
        for index in range(count):
            given: dict[str, dict[str, Any]] = {}
            for key, (name, member) in targets.items():
                given.setdefault(name, {})[member] = self.schedule[key][index]
            leaves = tuple(_set(each, given.get(each.name, {})) for each in self._body.in_turn())
            found.append(Sequential(leaves, "end"))
        return tuple(found)

    @property
    def _body(self) -> Sequential:
        return Sequential(self.steps, "end", when=self.when, exclude=self.exclude)

    @property
    def _written_out(self) -> Sequential:
        return Sequential(self.rounds, "end")

    def _target(self, key: str) -> tuple[str, str]:
        """The pass and the field that a key of the schedule means."""
        stated, _, member = key.rpartition(".")
        kinds = {each.name: type(each.rewrite) for each in self._body.in_turn()}
        able = [name for name, kind in kinds.items() if member in {each.name for each in parameters(kind)}]
        found = [name for name in able if stated in ("", name)]
        if len(found) > 1:
            also = " or ".join(f"{name}.{member}" for name in found)
            raise RecipeError(f"schedule: {member} is a field of several passes. Write {also}.")
        refuse_unless(bool(found), f"schedule: {key} is a field of none of {', '.join(kinds)}.")
        return found[0], member

    @property
    def name(self) -> str:
        return f"{len(self.rounds)} rounds of {self._body.name}"

    @property
    def summary(self) -> str:
        how = {"each": "each verified; the first that breaks the budget is the end.", "end": "verified together."}
        return f"Do these in rounds, {how[self.verify]}"

    @property
    def rewrites(self) -> tuple[Pass, ...]:
        return self._written_out.rewrites

    @property
    def is_exact(self) -> bool:
        return self._body.is_exact

    def fields(self) -> Mapping[str, Any]:
        return {key: ", ".join(map(str, values)) for key, values in self.schedule.items()}

    def parts(self) -> tuple[Part, ...]:
        return tuple(Part("each round", each) for each in self.steps)

    def orders(self) -> Iterator[Order]:
        """What a round destroys of the one before it does no harm where it makes that again."""
        yield from self._body.orders()
        passes = self._body.passes
        for index, later in enumerate(passes):
            again = frozenset(itertools.chain.from_iterable(each.makes for each in passes[index:]))
            yield from ((each, later) for each in passes if (each.makes & later.destroys) - again)

    def needy(self) -> Iterator[Step]:
        return self._body.needy()

    def without_data(self) -> Step | None:
        left = self._body.without_data()
        if not isinstance(left, Sequential):
            return None
        names = {each.name for each in left.in_turn()}
        schedule = {key: values for key, values in self.schedule.items() if self._target(key)[0] in names}
        return dataclasses.replace(self, steps=left.steps, schedule=schedule, count=len(self.rounds))

    def unrolled(self) -> Iterator[Step]:
        if self.verify == "end" or self.is_exact:
            yield from self._written_out.unrolled()
        else:
            yield self

    def in_turn(self) -> tuple[Apply, ...]:
        refuse_unless(self.verify == "end", judged_in_between(self))
        return self._written_out.in_turn()


def _set(leaf: Apply, fields: Mapping[str, Any]) -> Apply:
    """The pass with these fields; raises RecipeError for values that it does not take."""
    try:
        return dataclasses.replace(leaf, rewrite=dataclasses.replace(leaf.rewrite, **fields))
    except ParameterError as error:
        raise RecipeError(f"schedule: {error}") from error
