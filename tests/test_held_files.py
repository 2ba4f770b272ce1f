"""Files of the scratch folder go with the last array or model that refers to them."""

from __future__ import annotations

import gc

import numpy as np
from onnx import numpy_helper, parser

from onnxcomp.graph.ir.reader import close_graph, open_graph
from onnxcomp.graph.weights.roles import weights
from onnxcomp.model import Model, load
from onnxcomp.runtime import Session
from onnxcomp.tensors import held_file

SIZE = 256  # squared, in float32: more than what stays in memory


def product() -> Model:
    proto = parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> g (float[N,{SIZE}] x) => (float[N,{SIZE}] y) {{ y = MatMul(x, w) }}'
    )
    proto.graph.initializer.append(numpy_helper.from_array(np.zeros((SIZE, SIZE), np.float32), "w"))
    return load(proto)


def changed(model: Model, value: float) -> Model:
    graph = open_graph(model)
    (weight,) = weights(graph)
    weight.set(np.full((SIZE, SIZE), value, np.float32))
    return close_graph(graph)


def files(model: Model) -> set[str]:
    gc.collect()
    return {str(each) for each in model.scratch.folder.iterdir()}


def test_what_was_replaced_goes_and_what_is_referred_to_stays() -> None:
    original = product()
    before = files(original)
    first = changed(original, 1.0)
    (own,) = files(original) - before
    second = changed(first, 2.0)
    assert len(files(original) - before) == 2
    del first
    (other,) = files(original) - before
    assert other != own
    run = second.to_bytes()
    assert Session(run).run({"x": np.ones((1, SIZE), np.float32)})["y"][0, 0] == 2.0 * SIZE
    del second
    assert files(original) == before


def test_a_part_of_an_array_holds_its_file() -> None:
    model = changed(product(), 1.0)
    graph = open_graph(changed(model, 3.0))
    (other,) = weights(graph)
    other.tensor.values = np.arange(SIZE * SIZE, dtype=np.float32).reshape(SIZE, SIZE)
    part = other.tensor.values[10:20].T[3:]
    assert held_file(part) is held_file(other.tensor.values) is not None
    path = held_file(part).path  # type: ignore[union-attr]
    del graph, other
    gc.collect()
    assert float(part[0, 0]) == 10 * SIZE + 3
    assert path in files(model)
    del part
    assert path not in files(model)


def test_a_model_made_of_another_one_holds_what_it_took_from_it() -> None:
    model = changed(product(), 1.0)
    again = close_graph(open_graph(model))
    (held,) = model.files
    del model
    assert held in files(again) and list(again.files) == [held]
    assert again.read(again.proto.graph.initializer[0])[0, 0] == 1.0


def test_a_part_that_was_read_from_a_model_outlives_it() -> None:
    model = changed(product(), 1.0)
    (weight,) = weights(open_graph(model))
    graph = open_graph(changed(product(), 2.0))
    (other,) = weights(graph)
    other.tensor.values = weight.values.reshape(-1).reshape(SIZE, SIZE)
    del model, weight
    again = close_graph(graph)
    del graph, other
    gc.collect()
    assert again.read(again.proto.graph.initializer[0])[0, 0] == 1.0
