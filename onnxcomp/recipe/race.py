"""Rewrites of the whole model that compete by what they take on the target."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from onnxcomp.contract import Pass
from onnxcomp.recipe.sequential import together
from onnxcomp.recipe.step import Apply, Order, Part, Step, needs_data, refuse_unless, with_data


@dataclass(frozen=True)
class Race(Step):
    """Several rewrites of the whole model, each one pass or passes in turn: the fastest within the budget is kept.

    fallbacks: what is tried beside the candidates where one that is faster than the rest breaks the budget. ahead: what
    is put ahead of the fastest, one after the other, where that leaves half of the budget.
    """

    candidates: tuple[Step, ...]
    fallbacks: tuple[Step, ...] = ()
    ahead: tuple[Step, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_unless(bool(self.candidates), "try must name at least one pass.")
        for each in self._all:
            each.in_turn()

    @classmethod
    def of(
        cls,
        *candidates: Sequence[Pass],
        fallbacks: Iterable[Sequence[Pass]] = (),
        ahead: Iterable[Sequence[Pass]] = (),
        **step: Any,
    ) -> Race:
        """The race of these, each a list of passes in turn."""
        parts = (tuple(together(*map(Apply, each)) for each in some) for some in (candidates, fallbacks, ahead))
        return cls(*parts, **step)

    @property
    def _all(self) -> tuple[Step, ...]:
        return (*self.candidates, *self.fallbacks, *self.ahead)

    @property
    def name(self) -> str:
        return f"fastest of {len(self.candidates)}"

    @property
    def summary(self) -> str:
        return "Keep the fastest of these that the budget tolerates."

    @property
    def rewrites(self) -> tuple[Pass, ...]:
        return tuple(itertools.chain.from_iterable(each.rewrites for each in self._all))

    def parts(self) -> tuple[Part, ...]:
        return (
            *(Part("try", with_data(each)) for each in self.candidates),
            *(Part("otherwise", with_data(each)) for each in self.fallbacks),
            *(Part("ahead", with_data(each)) for each in self.ahead),
        )

    def orders(self) -> Iterator[Order]:
        for each in self._all:
            yield from each.orders()

    def needy(self) -> Iterator[Step]:
        """Nothing: what needs data is not tried without."""
        return iter(())

    def without_data(self) -> Step | None:
        candidates, fallbacks, ahead = (
            tuple(each for each in some if not needs_data(each.rewrites))
            for some in (self.candidates, self.fallbacks, self.ahead)
        )
        if self.when == "calibration" or not candidates:
            return None
        return dataclasses.replace(self, candidates=candidates, fallbacks=fallbacks, ahead=ahead)
