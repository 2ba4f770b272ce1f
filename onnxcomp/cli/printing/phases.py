"""How far a run has come, in words that its user knows: ``[3/5] choosing bits for each weight: fitting fc1.weight``.

A run has a phase for reading the model and running it, one for each step that may lose something, one for the exact
steps between two of these, and one for measuring the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnxcomp.recipe import Choose, Race, Recipe, Repeat, Step

FIRST = "running the original"
LAST = "measuring the result"
TIDYING = "tidying the graph"
MEASURING = "measuring load time and latency"


@dataclass
class Phase:
    """A part of a run. names: of the recipe's steps that belong to it."""

    words: str
    names: tuple[str, ...] = ()


@dataclass
class Phases:
    """The phases of a run in order, and the one that is under way."""

    phases: Sequence[Phase]
    at: int = 0

    @classmethod
    def of(cls, recipe: Recipe) -> Phases:
        """Those of a recipe."""
        found = [Phase(FIRST)]
        for step in recipe.unrolled():
            words = _words(step)
            if found[-1].words == words == TIDYING:
                found[-1].names += (_key(step.name),)
            else:
                rounds = step.rounds if isinstance(step, Repeat) else ()
                found.append(Phase(words, tuple(dict.fromkeys(_key(each.name) for each in (step, *rounds)))))
        return cls([*found, Phase(LAST)])

    def told(self, what: str) -> str:
        """What the pipeline says that it does, after its phase; the phases only go on."""
        said, _, detail = what.partition(": ")
        name = _key(said)
        self.at = self._place(what, name)
        phase = self.phases[self.at]
        where = f"[{self.at + 1}/{len(self.phases)}] {phase.words}"
        if what in (FIRST, MEASURING):
            return where
        own = name in phase.names
        more = (said if phase.words == TIDYING else detail) if own else what
        return f"{where}: {more}" if more and more != phase.words else where

    def _place(self, what: str, name: str) -> int:
        """The number of the phase that something belongs to: the one under way, or the next that has its name."""
        if what == MEASURING:
            return len(self.phases) - 1
        later = (at for at in range(self.at, len(self.phases)) if name in self.phases[at].names)
        return next(later, self.at)


def _key(name: str) -> str:
    """A step's name without how much there is to try, which is less without data."""
    return name.rstrip("0123456789")


def _words(step: Step) -> str:
    if step.is_exact and not any(each.stores_encodings for each in step.rewrites):
        return TIDYING
    if isinstance(step, Choose):
        return "choosing bits for each weight" if len(step.among) > 1 else f"choosing a strength for {step.name}"
    if isinstance(step, Race):
        return "looking for what runs fastest"
    if any(each.stores_encodings for each in step.rewrites):
        return "storing weights in fewer bytes"
    return step.name
