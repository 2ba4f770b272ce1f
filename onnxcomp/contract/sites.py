"""Passes that say where they could act, and act on any subset: each site at a strength of its own.

    sites(graph)             -> where, and what each place could become at which cost
    rewrite(graph, choice)   -> the places in ``choice``, each with the fields that it names
    apply(graph)             =  rewrite(graph, all sites at the pass's own fields)

What is taken back, what a receipt repeats and what a search tries are choices, whether a site is a weight whose values
change or a node that becomes several.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from onnxcomp.contract.context import Context
from onnxcomp.contract.outcome import Outcome, Skip
from onnxcomp.contract.passes import Pass
from onnxcomp.errors import ParameterError

if TYPE_CHECKING:
    from onnxcomp.graph.ir.reader import Graph

Fields = Mapping[str, Any]
"""Fields of a pass and the values that they are to have."""

Choice = Mapping[str, Fields]
"""Sites by name, each with the fields to set for it; none of them: the pass's own."""


class Quantity(enum.StrEnum):
    """What a site takes, and what a whole model does."""

    BYTES = "bytes"  # of the file, where store-compact stores what is changed
    MACS = "macs"  # multiply-accumulate operations of one run
    LATENCY = "latency"  # milliseconds of one run on the target


@dataclass(frozen=True)
class Option:
    """What a site can become.

    fields: of the pass, to set for it. costs: of the site then, as far as they are known before it is rewritten.
    error: relative and squared, of what it computes, where that is known.
    """

    fields: Fields = field(default_factory=dict)
    costs: Mapping[Quantity, float] = field(default_factory=dict)
    error: float | None = None


@dataclass(frozen=True)
class Site:
    """A place where a pass can act.

    name: by which it is chosen, taken back and excluded. touches: further names that exclude it, such as those of the
    nodes that read a weight. costs: as it is now. options: what it can become, mildest first.
    """

    name: str
    touches: tuple[str, ...] = ()
    costs: Mapping[Quantity, float] = field(default_factory=dict)
    options: tuple[Option, ...] = (Option(),)


@dataclass(frozen=True)
class Survey:
    """The sites of a pass in a graph, and what it leaves alone with the reason."""

    sites: tuple[Site, ...]
    skipped: tuple[Skip, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SitePass(Pass):
    """A pass that acts at sites. ``context.include`` does not limit ``rewrite``: the choice does."""

    @abstractmethod
    def sites(self, graph: Graph, context: Context) -> Survey:
        """Where it can act, within what the context selects. Leaves the graph as it is."""

    @abstractmethod
    def rewrite(self, graph: Graph, choice: Choice, context: Context) -> Outcome:
        """Act at the chosen sites and no others; says why where one cannot be rewritten after all."""

    def apply(self, graph: Graph, context: Context) -> Outcome:
        survey = self.sites(graph, context)
        outcome = self.rewrite(graph, own_choice(survey.sites), context)
        outcome.skipped[:0] = survey.skipped
        return outcome

    def composes(self) -> bool:
        """Whether choices can be made apart and put together weight by weight: a site becomes other values of a weight,
        whatever is chosen elsewhere. It saves rewriting the model for each choice that a search tries."""
        return False

    def at(self, fields: Fields) -> Self:
        """The pass with these fields set."""
        return dataclasses.replace(self, **fields) if fields else self

    def strengths(self) -> list[tuple[Fields, Self]]:
        """What "auto" chooses from, mildest first: fields, and the pass with them; none that other fields rule out."""
        found = []
        for fields in self.choices():
            with contextlib.suppress(ParameterError):
                found.append((fields, self.at(fields)))
        return found

    def by_fields(self, choice: Choice) -> Iterator[tuple[Self, frozenset[str]]]:
        """The passes of a choice, each with the names of its sites, in the order in which they first occur."""
        groups: dict[tuple[tuple[str, Any], ...], list[str]] = {}
        for name, fields in choice.items():
            groups.setdefault(tuple(sorted(fields.items())), []).append(name)
        for key, names in groups.items():
            yield self.at(dict(key)), frozenset(names)


@dataclass(frozen=True, kw_only=True)
class SelectingPass(SitePass):
    """A pass at sites that is written as one edit of all that its context selects."""

    @abstractmethod
    def edit(self, graph: Graph, context: Context) -> Outcome:
        """Act at all sites that the context selects."""

    def rewrite(self, graph: Graph, choice: Choice, context: Context) -> Outcome:
        outcome = Outcome()
        for own, names in self.by_fields(choice):
            outcome.add(own.edit(graph, context.limited_to(names)))
        return outcome


def is_composed(rewrite: Pass) -> bool:
    """Whether models with other choices of the pass are put together by values; one that has no sites can be chosen
    for in no other way."""
    return not isinstance(rewrite, SitePass) or rewrite.composes()


def own_choice(sites: Iterable[Site | str]) -> dict[str, Fields]:
    """These sites, all at the pass's own fields."""
    return {each if isinstance(each, str) else each.name: {} for each in sites}
