"""For each weight the pass and the strength that serve best."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from onnxcomp.contract import Pass, SitePass, is_composed
from onnxcomp.recipe.step import AUTO, Apply, Order, Part, Step, needs_data, refuse_unless, with_data


@dataclass(frozen=True)
class Choose(Step):
    """One of several passes at one of its strengths for each weight. then: passes applied to every assignment before
    it is judged, so that what they bring is part of the choice. also: passes that rewrite the graph at weights, whose
    options stand beside the others in one more search where they promise less; what is found without them is never
    given up for more."""

    among: tuple[Pass, ...]
    then: tuple[Pass, ...] = ()
    also: tuple[SitePass, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_unless(bool(self.among), "choose must be a list of passes, got none.")
        for each in self.among:
            refuse_unless(bool(each.choices()), f"{each.pass_name()} has no strength to choose.")
        for other in self.also:
            rewrites = isinstance(other, SitePass) and not is_composed(other)
            refuse_unless(rewrites, f"{other.pass_name()} rewrites no graph: it belongs in choose, not in also.")

    @property
    def name(self) -> str:
        return " | ".join(dict.fromkeys(each.pass_name() for each in self.among))

    @property
    def summary(self) -> str:
        several = "For each weight, take the pass and strength that serve best."
        return several if len(self.among) > 1 else self.among[0].summary()

    @property
    def rewrites(self) -> tuple[Pass, ...]:
        return self.among

    @property
    def passes(self) -> tuple[Pass, ...]:
        return (*self.among, *self.also, *self.then)

    @property
    def candidates(self) -> tuple[Pass, ...]:
        """Every pass and strength to choose from by values; ``site_passes`` say theirs site by site."""
        composed = [each for each in self.among if is_composed(each)]
        return tuple(dataclasses.replace(each, **fields) for each in composed for fields in each.choices())

    @property
    def site_passes(self) -> tuple[SitePass, ...]:
        """The passes to choose from that rewrite the graph at their sites."""
        return tuple(each for each in self.among if isinstance(each, SitePass) and not is_composed(each))

    def fields(self) -> Mapping[str, Any]:
        """Of several passes only what is chosen is in common."""
        chosen = dict.fromkeys(self.among[0].choices()[0], AUTO)
        return chosen if len(self.among) > 1 else {**Apply(self.among[0]).fields(), **chosen}

    def stated(self) -> tuple[str, ...]:
        chosen = self.among[0].choices()[0]
        others = Apply(self.among[0]).stated() if len(self.among) == 1 else ()
        return (*(name for name in others if name not in chosen), *chosen)

    def parts(self) -> tuple[Part, ...]:
        several = self.among if len(self.among) > 1 else ()
        return (
            *(Part("choose", Choose((each,))) for each in several),
            *(Part("also", with_data(Apply(each))) for each in self.also),
            *(Part("then", with_data(Apply(each))) for each in self.then),
        )

    def orders(self) -> Iterator[Order]:
        yield from itertools.product((*self.among, *self.also), self.then)
        yield from itertools.combinations(self.then, 2)

    def without_data(self) -> Step | None:
        then = tuple(each for each in self.then if not needs_data([each]))
        return None if self.when == "calibration" else dataclasses.replace(self, then=then, also=())
