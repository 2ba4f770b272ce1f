"""What a pass prepares reaches its edits, of samples and of whole weights, wherever they are made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import pytest

from onnxcomp.contract import Context, Effect, Exact, Outcome, Structure
from onnxcomp.contract.context import AskedInEditError
from onnxcomp.contract.weight_pass import WeightPass
from onnxcomp.graph.ir.reader import Graph
from onnxcomp.graph.rounding.grid import GridSpec, round_to_grid
from onnxcomp.graph.weights.roles import Weight, weights
from onnxcomp.model import Model, load
from onnxcomp.pipeline.weight_search import candidates
from onnxcomp.pipeline.weight_search.candidates import Candidates

SIDE = 128


@dataclass(frozen=True, kw_only=True)
class Counting(WeightPass):
    """Round to 8 bits, and say how many weights there are where it was prepared."""

    effect = Effect(shrinks=("bytes",), exact=Exact.NOWHERE)
    paper = "https://example.org"
    makes = frozenset({Structure.LEVELS})
    destroys = frozenset({Structure.LEVELS})

    def prepare(self, graph: Graph, weights: Sequence[Weight], context: Context) -> Mapping[str, Any]:
        return {each.name: (len(all_weights(graph)), each.size) for each in weights}

    def edit(self, weight: Weight, known: tuple[int, int], context: Context, outcome: Outcome) -> None:
        count, size = known
        assert size == weight.size, "what was prepared is of another weight"
        rounded = round_to_grid(weight, GridSpec(bits=8), "nearest")
        assert rounded is not None
        weight.set(rounded.values, rounded.encoding)
        outcome.change(weight.name, f"one of {count}")


all_weights = weights


@dataclass(frozen=True, kw_only=True)
class Asking(Counting):
    """Round by data that are elsewhere."""

    def edit(self, weight: Weight, known: tuple[int, int], context: Context, outcome: Outcome) -> None:
        if context.calibration is not None:
            super().edit(weight, known, context, outcome)


def net() -> Model:
    text = f"g (float[N, {SIDE}] x) => (float[N, {SIDE}] y) {{ h = MatMul(x, u) r = Relu(h) y = MatMul(r, v) }}"
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    for seed, name in enumerate("uv"):
        values = np.random.default_rng(seed).standard_normal((SIDE, SIDE)).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    return load(proto)


@pytest.mark.parametrize("jobs", [1, 2])
def test_whole_weights_get_what_was_prepared_in_the_model(monkeypatch: pytest.MonkeyPatch, jobs: int) -> None:
    monkeypatch.setattr(candidates, "PROCESSES_FROM", 0)
    table = Candidates(net(), [Counting()], Context(jobs=jobs)).look()
    assert {name: fit.entry.what for (_, name), fit in table.fits.items()} == dict.fromkeys("uv", "one of 2")


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_edit_that_asks_for_data_is_named(monkeypatch: pytest.MonkeyPatch, jobs: int) -> None:
    monkeypatch.setattr(candidates, "PROCESSES_FROM", 0)
    with pytest.raises(AskedInEditError, match=r"^asking: edit asks for context\.calibration"):
        Candidates(net(), [Asking()], Context(jobs=jobs)).look()
