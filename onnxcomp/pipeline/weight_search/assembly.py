"""The model that an assignment of options makes: first what changes the graph, pass after pass, then the values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from onnxcomp.contract import Choice, Context, Fields, Outcome, SitePass
from onnxcomp.graph.ir.nodes import Array
from onnxcomp.graph.weights.roles import with_weights
from onnxcomp.model import Model
from onnxcomp.numerics.encodings.encoding import Encoding
from onnxcomp.pipeline.apply import apply_choice
from onnxcomp.pipeline.weight_search.candidates import Rewrite, Table, WeightOption
from onnxcomp.pipeline.weight_search.fits import Fit


def build(model: Model, table: Table, assignment: Mapping[str, WeightOption]) -> Model:
    """The model with each weight at its assigned strength."""
    return with_values(rewritten(model, table, assignment)[0], table, assignment)


def with_values(model: Model, table: Table, assignment: Mapping[str, WeightOption]) -> Model:
    """The model with the chosen values alone."""
    return with_weights(model, _Decoded({name: table.fits[key] for name, key in _value_choices(table, assignment)}))


@dataclass(frozen=True)
class _Decoded(Mapping[str, tuple[Array, Encoding | None]]):
    """Values and encodings of fits, decoded when they are asked for: all at once take what the model takes."""

    fits: Mapping[str, Fit]

    def __getitem__(self, name: str) -> tuple[Array, Encoding | None]:
        return self.fits[name].values(), self.fits[name].encoding

    def __contains__(self, name: object) -> bool:
        return name in self.fits

    def __iter__(self) -> Iterator[str]:
        return iter(self.fits)

    def __len__(self) -> int:
        return len(self.fits)


def chosen_values(table: Table, assignment: Mapping[str, WeightOption]) -> dict[str, Array]:
    """The values of the weights that an assignment changes in place."""
    return {name: table.fits[key].values() for name, key in _value_choices(table, assignment)}


def _value_choices(table: Table, assignment: Mapping[str, WeightOption]) -> Iterator[tuple[str, tuple[int, str]]]:
    for name, option in assignment.items():
        if option.choice is not None and option.choice not in table.rewrites:
            yield name, (option.choice, name)


@dataclass(frozen=True)
class Written:
    """A pass that rewrote the graph, and where."""

    rewrite: SitePass
    context: Context
    choice: Choice
    outcome: Outcome


def rewritten(model: Model, table: Table, assignment: Mapping[str, WeightOption]) -> tuple[Model, list[Written]]:
    """The model with what changes the graph alone, pass after pass. The last one is kept: a search tries many values
    beside the same rewritten weights."""
    key = rewriting_key(model, table, assignment)
    held = table.last_rewritten.get(None)
    if held is None or held[0] != key:
        held = key, _rewritten(model, table, assignment)
        if key[1:]:
            table.last_rewritten[None] = held
    found: tuple[Model, list[Written]] = held[1]
    return found


def rewriting_key(model: Model, table: Table, assignment: Mapping[str, WeightOption]) -> tuple[object, ...]:
    """What the rewritten model depends on: which weights are rewritten how, fitted to what."""
    chosen = ((name, option.choice) for name, option in sorted(assignment.items()) if option.choice in table.rewrites)
    return id(model), *((name, choice, id(table.rewrites[choice or 0].context.calibration)) for name, choice in chosen)


def _rewritten(model: Model, table: Table, assignment: Mapping[str, WeightOption]) -> tuple[Model, list[Written]]:
    groups: dict[int, tuple[Rewrite, dict[str, Fields]]] = {}
    for name, option in sorted(assignment.items()):
        if option.choice in table.rewrites:
            made = table.rewrites[option.choice]
            groups.setdefault(option.family, (made, {}))[1][name] = made.fields
    done = []
    for _, (made, choice) in sorted(groups.items(), key=lambda group: group[0]):
        model, outcome = apply_choice(model, made.rewrite, choice, made.context)
        done.append(Written(made.rewrite, made.context, choice, outcome))
    return model, done
