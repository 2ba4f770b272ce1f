"""What a receipt says of weights and graphs: held to models that a hand can count."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from onnxcomp import Context, Receipt, load, optimize
from onnxcomp.graph.ir import reader
from onnxcomp.graph.ir.reader import open_graph
from onnxcomp.model import Model
from onnxcomp.pipeline.apply import apply_pass
from onnxcomp.pipeline.history.accounts import MOST_NODES, describe
from onnxcomp.receipt import WeightAccount
from onnxcomp.registry import get_pass
from tests.report.accounts import old_account

NET = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[1,32] x) => (float[1,16] y) <float one = {1.0}> {
  [a] h = MatMul (x, W)
  [b] s = Add (h, B)
  [c] r = Relu (s)
  [d] n = Mul (r, one)
  [e] y = MatMul (n, V)
}
"""


RECIPE = """
[[step]]
choose = ["quantize-weights"]

[[step]]
pass = "store-compact"

[[step]]
pass = "strip-metadata"
shorten_names = true
"""


def net() -> Model:
    proto = parser.parse_model(NET)
    rng = np.random.default_rng(0)
    values = {"W": rng.standard_normal((32, 64)), "B": rng.standard_normal(64), "V": rng.standard_normal((64, 16))}
    values["V"][:16] = 0
    proto.graph.initializer.extend(numpy_helper.from_array(v.astype(np.float32), n) for n, v in values.items())
    return load(proto)


def described(source: Model, result: Model, known: dict[str, WeightAccount] | None = None) -> Receipt:
    receipt = old_account()
    receipt.weights = known or {}
    describe(receipt, source, open_graph(result))
    return receipt


def after(model: Model, *names: str, **fields: object) -> Model:
    for name in names:
        model = apply_pass(model, get_pass(name)(**fields), Context())[0]
    return model


def test_weights_are_listed_with_their_bytes_shapes_and_zeros() -> None:
    found = described(net(), net()).weights
    assert list(found) == ["W", "V", "B"], "the scalar is too small to be listed"
    assert {name: each.kind for name, each in found.items()} == {"W": "linear", "V": "linear", "B": "vector"}
    assert found["V"].shape == found["V"].shape_after == [64, 16]
    assert found["V"].bytes_before == found["V"].bytes_after == 4 * 64 * 16
    assert (found["V"].zeros, found["W"].zeros) == (0.25, 0.0)


def test_multiplications_of_a_node_and_of_what_was_made_of_it() -> None:
    """W of 32 x 64 becomes 32 x 8 and 8 x 64."""
    source = net()
    graphs = described(source, after(source, "factorize-linear", rank=8)).graphs
    assert {each.name: each.macs for each in graphs.nodes if each.macs} == {
        "a": [32 * 64, 8 * (32 + 64)],
        "e": [64 * 16, 8 * (64 + 16)],
    }


def test_what_a_pass_made_of_a_weight_counts_as_that_weight() -> None:
    result = after(net(), "factorize-linear")
    found = described(net(), result).weights
    stored = {each.name: len(each.raw_data) for each in result.proto.graph.initializer}
    assert "W" not in stored
    assert found["W"].bytes_after == stored["W_left"] + stored["W_right"]
    assert found["W"].bytes_before == 8192 and found["W"].stored == "float"
    assert found["W"].shape == [32, 64] and found["W"].shape_after is None
    assert set(found) == {"W", "V", "B"}


def test_a_weight_that_is_decoded_is_known_by_its_name_and_takes_what_is_stored() -> None:
    source = net()
    result = after(after(source, "quantize-weights", bits=4), "store-compact")
    found = described(source, result).weights["W"]
    assert found.stored == "compact" and found.shape_after == [32, 64]
    assert found.bytes_after is not None and 32 * 64 / 2 <= found.bytes_after < 32 * 64
    vectors = described(source, after(source, "shorten-vectors", "store-compact")).weights
    assert (vectors["B"].bytes_before, vectors["B"].bytes_after) == (256, 128)
    assert set(vectors) == {"W", "V", "B"}


def test_a_weight_that_is_gone_and_one_that_is_new_are_both_listed() -> None:
    proto = onnx.ModelProto()
    proto.CopyFrom(net().proto)
    for tensor in proto.graph.initializer:
        tensor.name = {"V": "U"}.get(tensor.name, tensor.name)
    proto.graph.node[4].input[1] = "U"
    found = described(net(), load(proto)).weights
    assert found["V"].bytes_after is None and found["U"].bytes_before is None
    assert found["U"].bytes_after == 4096


def test_what_a_search_said_stays() -> None:
    known = WeightAccount("", influence=2.5)
    assert described(net(), net(), {"W": known, "nowhere": known}).weights["W"].influence == 2.5
    assert "nowhere" not in described(net(), net(), {"nowhere": known}).weights


def test_operators_and_nodes_before_and_after() -> None:
    graphs = described(net(), after(net(), "remove-noops")).graphs
    assert graphs.operators == {"MatMul": [2, 2], "Add": [1, 1], "Mul": [1, 0], "Relu": [1, 1]}
    assert graphs.macs == [32 * 64 + 64 * 16] * 2
    assert [each.name for each in graphs.nodes] == ["a", "b", "c", "d", "e"]
    assert [each.operator for each in graphs.nodes] == ["MatMul", "Add", "Relu", "Mul", "MatMul"]
    assert [each.now for each in graphs.nodes] == ["MatMul", "Add", "Relu", "", "MatMul"]
    assert [each.reads for each in graphs.nodes] == [["W"], ["B"], [], [], ["V"]]


def test_long_graphs_are_outlined_by_the_nodes_that_read_weights() -> None:
    lines = [f"  [r{n}] t{n} = Relu ({'x' if n == 0 else f't{n - 1}'})\n" for n in range(MOST_NODES)]
    text = NET.replace("  [a] h = MatMul (x, W)", "".join(lines) + f"  [a] h = MatMul (t{MOST_NODES - 1}, W)")
    proto = parser.parse_model(text)
    proto.graph.initializer.extend(each for each in net().proto.graph.initializer if each.name != "one")
    graphs = described(load(proto), load(proto)).graphs
    assert [each.name for each in graphs.nodes] == ["a", "b", "e"] and graphs.more == MOST_NODES + 2


@pytest.fixture
def run(tmp_path: Path) -> Callable[[], Receipt]:
    """Search, store and shorten names, without measuring."""
    data, recipe = tmp_path / "calib.npz", tmp_path / "recipe.toml"
    np.savez(data, x=np.random.default_rng(1).standard_normal((64, 32)).astype(np.float32))
    recipe.write_text(RECIPE)
    return lambda: optimize(net(), recipe=recipe, calibration=data, measure=False).receipt


def test_names_that_were_shortened_last_are_still_those_of_the_source(run: Callable[[], Receipt]) -> None:
    receipt = run()
    assert receipt.steps[-1].rewrite == "strip-metadata" and receipt.steps[-1].decision == "kept"
    assert set(receipt.weights) == {"W", "V", "B"}
    assert all(each.bytes_after for each in receipt.weights.values())
    assert receipt.weights["W"].alternatives and receipt.weights["W"].influence
    assert receipt.machine["threads"] == 1 and receipt.date.endswith("+00:00")
    assert receipt.data["shapes"] == {"x": [1, 32]}


def test_receipts_of_the_same_run_say_the_same_of_weights(run: Callable[[], Receipt]) -> None:
    first, second = run(), run()
    assert first.weights == second.weights and first.graphs == second.graphs


def test_each_model_is_opened_once_and_its_stored_weights_once(monkeypatch: pytest.MonkeyPatch) -> None:
    source, result = net(), after(after(net(), "quantize-weights", bits=4), "store-compact")
    opened: list[Model] = []
    whole = reader._opened

    def counting(model: Model) -> Any:
        opened.append(model)
        return whole(model)

    monkeypatch.setattr(reader, "_opened", counting)
    described(source, result)
    assert [opened.count(source), opened.count(result)] == [1, 3]  # with its decoders, without, and for their names
