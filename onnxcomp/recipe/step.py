"""What every step of a recipe is, and the smallest of them: one pass at fixed fields."""

from __future__ import annotations

import dataclasses
import glob
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

from onnxcomp.contract import Needs, Pass, parameters
from onnxcomp.errors import RecipeError

AUTO = "auto"
WHEN = ("always", "calibration")
VERIFY = ("each", "end")
Order = tuple[Pass, Pass]
"""A pass and one that may come after it."""


class Part(NamedTuple):
    """A step inside another one, and what it is there."""

    role: str
    step: Step


@dataclass(frozen=True)
class Step(ABC):
    """One node of a recipe's tree, as data: the pipeline gives each kind its behaviour.

    when: "always", or "calibration": only where calibration data is given. exclude: patterns of weight and node names
    that it leaves alone. Raises RecipeError for what cannot be done.
    """

    when: str = field(default="always", kw_only=True)
    exclude: tuple[str, ...] = field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        refuse_unless(self.when in WHEN, f"when must be one of {', '.join(WHEN)}, got {self.when!r}.")

    @property
    @abstractmethod
    def name(self) -> str:
        """What it is called in tables and messages."""

    @property
    @abstractmethod
    def summary(self) -> str:
        """What it does, in one imperative sentence."""

    @property
    @abstractmethod
    def rewrites(self) -> tuple[Pass, ...]:
        """The passes that it is about."""

    @property
    def passes(self) -> tuple[Pass, ...]:
        """All passes that it may apply: those that it is about, and what follows them."""
        return self.rewrites

    @property
    def is_exact(self) -> bool:
        """Whether it leaves the outputs as they are: nothing has to be chosen or weighed."""
        return False

    def fields(self) -> Mapping[str, Any]:
        """What is set of its pass, or of the step: fields and their values."""
        return {}

    def stated(self) -> tuple[str, ...]:
        """Those of the fields that are not the default."""
        return tuple(self.fields())

    def parts(self) -> tuple[Part, ...]:
        """The steps inside. What is only tried where there are calibration data says so by its ``when``."""
        return ()

    def orders(self) -> Iterator[Order]:
        """Every two passes inside it of which the second may come after the first."""
        return iter(())

    def needy(self) -> Iterator[Step]:
        """What of it cannot do without calibration data."""
        if self.when == "always" and needs_data(self.rewrites):
            yield self

    def without_data(self) -> Step | None:
        """What is left of it where there are no calibration data."""
        return None if self.when == "calibration" else self

    def exact_part(self) -> Step | None:
        """What of it leaves the outputs as they are."""
        return self if self.is_exact else None

    def unrolled(self) -> Iterator[Step]:
        """What is judged one after the other, none of it a mere list of others."""
        yield self

    def in_turn(self) -> tuple[Apply, ...]:
        """Its passes in turn, where they can be judged together; raises RecipeError where they cannot."""
        raise RecipeError(f"{self.name} judges for itself, so it cannot be judged together with other steps.")

    def excluding(self, names: Iterable[str]) -> Self:
        """The step without these weights or nodes."""
        return dataclasses.replace(self, exclude=(*self.exclude, *map(glob.escape, names)))

    def within(self, outer: Step) -> Self:
        """The step as part of ``outer``, whose exclusions hold for it, too."""
        when = self.when if outer.when == "always" else outer.when
        return dataclasses.replace(self, when=when, exclude=(*outer.exclude, *self.exclude))


@dataclass(frozen=True)
class Apply(Step):
    """One pass at fixed fields."""

    rewrite: Pass

    @property
    def name(self) -> str:
        return self.rewrite.pass_name()

    @property
    def summary(self) -> str:
        return self.rewrite.summary()

    @property
    def rewrites(self) -> tuple[Pass, ...]:
        return (self.rewrite,)

    @property
    def is_exact(self) -> bool:
        return self.rewrite.effect.is_exact

    def fields(self) -> Mapping[str, Any]:
        return {each.name: getattr(self.rewrite, each.name) for each in parameters(type(self.rewrite))}

    def stated(self) -> tuple[str, ...]:
        given = self.fields()
        return tuple(each.name for each in parameters(type(self.rewrite)) if given[each.name] != each.default)

    def in_turn(self) -> tuple[Apply, ...]:
        return (self,)


def refuse_unless(holds: bool, words: str) -> None:
    """Raise RecipeError with these words for a step that cannot be."""
    if not holds:
        raise RecipeError(words)


def needs_data(rewrites: Iterable[Pass]) -> bool:
    """Whether one of the passes needs calibration data."""
    return any(each.needed() is Needs.CALIBRATION for each in rewrites)


def with_data(step: Step) -> Step:
    """The step, only where there are calibration data if it needs them."""
    return dataclasses.replace(step, when="calibration") if needs_data(step.rewrites) else step
