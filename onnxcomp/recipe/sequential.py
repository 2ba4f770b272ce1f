"""Steps in turn, judged one by one or all together."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from onnxcomp.contract import Pass
from onnxcomp.recipe.step import VERIFY, Apply, Order, Part, Step, refuse_unless


@dataclass(frozen=True)
class Sequential(Step):
    """Steps in turn. verify: "each" on its own, or all of them together at the "end": then the whole is kept, in part
    or not at all, and a pass inside may harm for as long as a later one repairs it. What is judged together is made
    of passes: a choice or a race judges for itself, before the end is known."""

    steps: tuple[Step, ...]
    verify: str = "each"

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_unless(bool(self.steps), "sequence must name at least one step.")
        check_verify(self.verify)
        if self.verify == "end":
            self.in_turn()

    @property
    def name(self) -> str:
        return " + ".join(each.name for each in self.steps)

    @property
    def summary(self) -> str:
        return "Do these in turn, " + {"each": "each verified on its own.", "end": "verified together."}[self.verify]

    @property
    def rewrites(self) -> tuple[Pass, ...]:
        return tuple(itertools.chain.from_iterable(each.rewrites for each in self.steps))

    @property
    def passes(self) -> tuple[Pass, ...]:
        return tuple(itertools.chain.from_iterable(each.passes for each in self.steps))

    @property
    def is_exact(self) -> bool:
        return all(each.is_exact for each in self.steps)

    def parts(self) -> tuple[Part, ...]:
        return tuple(Part("in turn", each) for each in self.steps)

    def orders(self) -> Iterator[Order]:
        for earlier, later in itertools.combinations(self.steps, 2):
            yield from itertools.product(earlier.passes, later.passes)
        for each in self.steps:
            yield from each.orders()

    def needy(self) -> Iterator[Step]:
        for each in self.steps if self.when == "always" else ():
            yield from each.needy()

    def without_data(self) -> Step | None:
        return None if self.when == "calibration" else self._of(each.without_data() for each in self.steps)

    def exact_part(self) -> Step | None:
        if self.verify == "end":
            return super().exact_part()
        return self._of(each.exact_part() for each in self.steps)

    def _of(self, steps: Iterable[Step | None]) -> Step | None:
        left = tuple(each for each in steps if each is not None)
        return dataclasses.replace(self, steps=left) if left else None

    def unrolled(self) -> Iterator[Step]:
        if self.verify == "each":
            for each in self.steps:
                yield from each.within(self).unrolled()
        elif self.is_exact or len(self.in_turn()) == 1:  # neighbouring exact passes are verified together anyway
            yield from self.in_turn()
        else:
            yield self

    def in_turn(self) -> tuple[Apply, ...]:
        refuse_unless(self.verify == "end", judged_in_between(self))
        return tuple(leaf.within(self) for each in self.steps for leaf in each.in_turn())


def together(*steps: Step) -> Step:
    """Steps that are judged together: themselves where it is one."""
    return steps[0] if len(steps) == 1 else Sequential(steps, "end")


def check_verify(verify: str) -> None:
    """Raise RecipeError for no way of verification."""
    refuse_unless(verify in VERIFY, f"verify must be one of {', '.join(VERIFY)}, got {verify!r}.")


def judged_in_between(step: Step) -> str:
    """Why a step that verifies in between is no part of what is judged together."""
    return f'{step.name}: verify must be "end" inside what is judged together.'
