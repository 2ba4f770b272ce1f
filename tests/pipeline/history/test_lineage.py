"""What passes that repair are given to compare with, on the way of a model through passes."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from onnxcomp.contract import Context, Effect, Exact, Outcome, Pass
from onnxcomp.graph.ir.reader import Graph
from onnxcomp.graph.provenance import Origin
from onnxcomp.model import Model, load
from onnxcomp.pipeline.history.lineage import Lineage
from tests.passes.exactly import model


@dataclass(frozen=True, kw_only=True)
class Rounding(Pass):
    """Lose a little."""

    effect = Effect(shrinks=("bytes",), exact=Exact.NOWHERE)

    def apply(self, graph: Graph, context: Context) -> Outcome:
        return Outcome()


@dataclass(frozen=True, kw_only=True)
class Rescaling(Rounding):
    """Lose nothing."""

    effect = Effect(shrinks=("bytes",), exact=Exact.OUTPUTS)


@dataclass(frozen=True, kw_only=True)
class Cutting(Rounding):
    """Have others do what was cut."""

    renews_reference = True


def changed(**origins: Origin) -> Outcome:
    outcome = Outcome(origins=dict(origins))
    outcome.change("w", "changed")
    return outcome


@pytest.fixture
def models() -> list[Model]:
    return [load(model("g (float[2] x) => (float[2] y) { y = Relu(x) }")) for _ in range(4)]


def compared_with(line: Lineage) -> Model:
    reference = line.context(Context()).reference
    assert reference is not None
    return reference.model


def test_is_the_model_before_the_first_loss(models: list[Model]) -> None:
    line = Lineage.of(models[0]).after(Rescaling(), models[1], changed()).after(Rounding(), models[2], changed())
    assert compared_with(line) is models[1]
    assert compared_with(line.after(Rescaling(), models[3], changed())) is models[1]


def test_a_pass_that_moves_what_weights_do_is_where_it_begins_anew(models: list[Model]) -> None:
    line = Lineage.of(models[0]).after(Rounding(), models[1], changed(a=Origin(None)))
    line = line.after(Cutting(), models[2], changed(b=Origin(None)))
    reference = line.context(Context()).reference
    assert reference is not None and reference.model is models[2] and not reference.origins
    assert line.reference is models[0]
    later = line.after(Rounding(), models[3], changed(c=Origin(None)))
    assert compared_with(later) is models[2] and set(later.origins) == {"c"}
    assert compared_with(later.lost(models[3])) is models[2]


def test_it_does_not_where_the_pass_changed_nothing(models: list[Model]) -> None:
    line = Lineage.of(models[0]).after(Cutting(), models[1], Outcome())
    assert compared_with(line) is models[0]
