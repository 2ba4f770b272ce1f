"""A model of an assignment: its weights are decoded one at a time."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper, parser

from onnxcomp.graph.ir.reader import open_graph
from onnxcomp.graph.weights.roles import weights
from onnxcomp.model import Model, load
from onnxcomp.pipeline.weight_search.assembly import with_values
from onnxcomp.pipeline.weight_search.candidates import Table, WeightOption
from onnxcomp.pipeline.weight_search.fits import Fit
from onnxcomp.tensors import SPILL_BYTES
from tests.pipeline.weight_search.fits import put_in

WIDTH = 256  # of weights that go to the folder


def chain(seed: int) -> Model:
    proto = parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> g (float[N,{WIDTH}] x) => (float[N,{WIDTH}] y)'
        " { a = MatMul(x, u) b = MatMul(a, v) y = MatMul(b, w) }"
    )
    rng = np.random.default_rng(seed)
    for name in "uvw":
        proto.graph.initializer.append(numpy_helper.from_array(rng.standard_normal((WIDTH, WIDTH), np.float32), name))
    return load(proto)


def test_weights_are_decoded_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model, other = chain(0), chain(1)
    table = Table({})
    put_in(table, 0, other)
    made: list[weakref.ref[Any]] = []

    def values(fit: Fit) -> Any:
        assert not any(each() is not None for each in made), "what was decoded before is on disk by now"
        array = np.array(fit.held)
        made.append(weakref.ref(array))
        return array

    monkeypatch.setattr(Fit, "values", values)
    assert WIDTH * WIDTH * 4 >= SPILL_BYTES
    after = with_values(model, table, {name: WeightOption(0, 0, 0.0) for name in "uvw"})
    assert len(made) == 3
    gc.collect()
    wanted = {each.name: np.asarray(each.values) for each in weights(open_graph(other))}
    for each in weights(open_graph(after)):
        assert np.array_equal(each.values, wanted[each.name])
