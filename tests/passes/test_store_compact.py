"""store-compact: the smallest exact storage of each constant, and plain where nothing is smaller."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnxcomp.contract import Context, Outcome
from onnxcomp.errors import PassError
from onnxcomp.graph.ir.reader import close_graph, open_graph
from onnxcomp.graph.storage.expand import differing_constants
from onnxcomp.graph.weights.roles import weights
from onnxcomp.model import Model, load
from onnxcomp.numerics.encodings.encoding import CodebookEncoding, GridEncoding
from onnxcomp.registry import get_pass
from onnxcomp.runtime import Session
from tests.graph.weighted import KINDS, PLACES, feeds_of, matrix, model_with
from tests.graphs.running import kernels


def stored(model: Model, *, context: Context | None = None, **values: Any) -> tuple[Model, Outcome]:
    graph = open_graph(model)
    outcome = get_pass("store-compact")(**values).apply(graph, context or Context())
    return close_graph(graph), outcome


def reason(outcome: Outcome) -> str:
    (skip,) = outcome.skipped
    assert not outcome.changed
    return skip.reason


@pytest.mark.parametrize("prefer", ["bytes", "load"])
@pytest.mark.parametrize("kind", KINDS)
def test_is_exact_smaller_and_folded(kind: str, prefer: str) -> None:
    proto = model_with(matrix(kind))
    before = load(proto)
    after, outcome = stored(before, prefer=prefer)
    assert differing_constants(before, after) == []
    if not outcome.changed:
        assert (kind, prefer) == ("few zeros", "load") or (kind, prefer) == ("zeros", "load")
        return
    assert after.size_bytes < before.size_bytes
    assert kernels(after.to_bytes(), level="ORT_ENABLE_BASIC") == kernels(before.to_bytes(), level="ORT_ENABLE_BASIC")
    assert {node.op_type for node in after.proto.graph.node if node.name} == {"MatMul"}


@pytest.mark.parametrize(
    ("kind", "bits"),
    [("2 levels", 1), ("3 levels", 1.6), ("8 levels", 3), ("16 levels", 4), ("zeros and 16 levels", 1)],
)
def test_large_weights_take_the_bits_of_their_codes(kind: str, bits: float) -> None:
    values = matrix(kind, (512, 512))
    after, outcome = stored(load(model_with(values)))
    assert after.size_bytes * 8 < values.size * bits * 1.03 + 12000
    details = outcome.changed[0].details
    assert details["bytes_before"] > values.nbytes and details["bits_per_value"] < bits * 1.03 + 0.5


@pytest.mark.parametrize("place", PLACES)
def test_running_twice_and_running_again_change_nothing(place: str) -> None:
    model = load(model_with(matrix("16 levels"), place=place))
    once, outcome = stored(model)
    again, _ = stored(model)
    assert outcome.changed and once.to_bytes() == again.to_bytes()
    twice, outcome = stored(load(once.to_bytes()))
    assert not outcome.changed and twice.to_bytes() == once.to_bytes()


def test_uses_the_attached_encoding_and_drops_it() -> None:
    scale = np.random.default_rng(0).uniform(1, 2, (96, 1)).astype(np.float32)
    book = np.array([-2, -0.5, 0, 0.5, 1, 3], np.float32)
    encoding = CodebookEncoding(dtype="float32", codebook=book, scale=scale, axis=0)
    codes = np.random.default_rng(1).integers(0, 6, (96, 140)).astype(np.uint8)
    model = load(model_with(encoding.decode(codes, codes.shape)))
    graph = open_graph(model)
    (weight,) = weights(graph)
    weight.set(weight.values, encoding)
    with_encoding = close_graph(graph)
    after, outcome = stored(with_encoding)
    assert outcome.changed[0].what.startswith("codebook") and not after.encodings
    assert after.size_bytes < 0.5 * stored(model)[0].size_bytes
    assert differing_constants(model, after) == []


def test_an_untrue_encoding_is_ignored() -> None:
    model = load(model_with(matrix("half")))
    grid = GridEncoding(dtype="float32", levels=16, zero_point=np.array(8), scale=np.array(0.1, np.float32))
    model.encodings["W"] = grid
    after, outcome = stored(model)
    assert outcome.changed[0].what == "float16" and differing_constants(model, after) == []


def test_an_encoding_of_another_shape_is_ignored() -> None:
    model = load(model_with(matrix("half")))
    ones = np.ones((95, 1), np.float32)
    model.encodings["W"] = GridEncoding(dtype="float32", levels=16, zero_point=np.array(8), scale=ones, axis=0)
    after, outcome = stored(model)
    assert outcome.changed[0].what == "float16" and differing_constants(model, after) == []


def test_leaves_a_weight_without_structure_and_says_so() -> None:
    values = np.random.default_rng(0).normal(size=(40, 40)).astype(np.float32)
    model = load(model_with(values))
    after, outcome = stored(model)
    assert reason(outcome) == "no storage is smaller than the plain tensor"
    assert after.proto == model.proto


@pytest.mark.parametrize("shape", [(2, 2), (8, 8), (12, 10)])
def test_small_weights_stay_plain_when_the_decoder_is_larger(shape: tuple[int, int]) -> None:
    model = load(model_with(matrix("16 levels", shape)))
    after, outcome = stored(model)
    assert not outcome.changed and after.size_bytes == model.size_bytes


def small_weights(count: int, side: int) -> Model:
    """A chain of square weights of 16 levels."""
    tensors = [numpy_helper.from_array(matrix("16 levels", (side, side), seed), f"W{seed}") for seed in range(count)]
    nodes = [helper.make_node("MatMul", [f"x{i}", f"W{i}"], [f"x{i + 1}"]) for i in range(count)]
    ends = [helper.make_tensor_value_info(name, 1, [1, side]) for name in ("x0", f"x{count}")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    return load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def test_many_small_weights_share_what_one_would_not_pay_for() -> None:
    model = small_weights(20, 11)
    after, outcome = stored(model)
    assert len(outcome.changed) == 20 and after.size_bytes < 0.8 * model.size_bytes
    assert not stored(small_weights(1, 11))[1].changed


@pytest.mark.parametrize("count", [2, 5])
def test_few_small_weights_do_not_lean_on_what_all_of_them_do_not_pay_for(count: int) -> None:
    """Each would gain by tables that the others have already, and all together would not."""
    model = small_weights(count, 9)
    after, outcome = stored(model)
    assert not outcome.changed and after.size_bytes == model.size_bytes
    assert stored(small_weights(9, 9))[0].size_bytes < small_weights(9, 9).size_bytes


def test_leaves_what_is_excluded_or_not_included() -> None:
    model = load(model_with(matrix("16 levels")))
    for context in (Context(exclude=("W",)), Context(exclude=("prod*",)), Context(include=frozenset({"V"}))):
        assert reason(stored(model, context=context)[1]) == "excluded"


def test_leaves_outputs_overridable_initializers_and_old_opsets_alone() -> None:
    proto = model_with(matrix("16 levels"))
    proto.graph.output.append(helper.make_tensor_value_info("W", 1, [96, 140]))
    assert reason(stored(load(proto))[1]) == "it is an output of its graph"
    proto = model_with(matrix("16 levels"))
    proto.graph.input.append(helper.make_tensor_value_info("W", 1, [96, 140]))
    after, outcome = stored(load(proto))
    assert not outcome.changed and not outcome.skipped and after.proto == proto
    proto = model_with(matrix("16 levels"))
    proto.opset_import[0].version = 6
    assert "opset" in reason(stored(load(proto))[1])


def test_leaves_what_onnx_runtime_would_not_compute_beforehand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxcomp.passes.store_compact.FOLDED_BYTES", 1000)
    assert "1 GiB" in reason(stored(load(model_with(matrix("16 levels"))))[1])


def test_min_saving_keeps_small_gains_plain() -> None:
    model = load(model_with(matrix("half")))
    assert stored(model, min_saving=0.4)[1].changed
    assert not stored(model, min_saving=0.6)[1].changed


def test_prefer_load_takes_bytes_where_bits_are_slow() -> None:
    model = load(model_with(matrix("128 levels", (512, 512))))
    small, fast = stored(model), stored(model, prefer="load")
    assert small[1].changed[0].what == "distinct values, 7 bits"
    assert fast[1].changed[0].what == "distinct values, 8 bits"


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.bool_, np.uint8])
def test_large_constants_of_other_types_are_stored_too(kind: type) -> None:
    values = np.arange(3000).reshape(60, 50) % (2 if kind is np.bool_ else 5)
    table = numpy_helper.from_array(values.astype(kind), "T")
    nodes = [helper.make_node("Gather", ["T", "i"], ["t"]), helper.make_node("Cast", ["t"], ["y"], to=1)]
    index = helper.make_tensor_value_info("i", 7, [2])
    graph = helper.make_graph(nodes, "g", [index], [helper.make_tensor_value_info("y", 1, [2, 50])], [table])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)
    model = load(proto)
    after, outcome = stored(model)
    assert outcome.changed and after.size_bytes < model.size_bytes and differing_constants(model, after) == []
    result = Session(after.to_bytes()).run({"i": np.array([3, 59])})["y"]
    assert np.array_equal(result, values[[3, 59]].astype(np.float32))


def test_a_shared_weight_is_stored_once_for_all_its_readers() -> None:
    body = """<ir_version: 8, opset_import: ["" : 17]> g (float[n, 64] x) => (float[n, 64] y) {
        h = MatMul(x, W) t = Transpose(W) k = Add(h, t) y = MatMul(k, W) }"""
    proto = onnx.parser.parse_model(body)
    proto.graph.initializer.append(numpy_helper.from_array(matrix("16 levels", (64, 64)), "W"))
    after, outcome = stored(load(proto))
    assert [change.name for change in outcome.changed] == ["W"]
    x = np.ones((64, 64), np.float32)
    expected, got = (Session(each).run({"x": x})["y"] for each in (proto.SerializeToString(), after.to_bytes()))
    assert np.array_equal(expected, got)


def test_a_sparse_initializer_is_weighed_at_its_own_size() -> None:
    dense = matrix("zeros and 16 levels")
    flat = np.flatnonzero(dense)
    values = numpy_helper.from_array(dense.reshape(-1)[flat], "W")
    sparse = helper.make_sparse_tensor(values, numpy_helper.from_array(flat, "at"), dense.shape)
    proto = model_with(dense)
    del proto.graph.initializer[:]
    proto.graph.sparse_initializer.append(sparse)
    before = load(proto)
    after, outcome = stored(before)
    assert outcome.changed and after.size_bytes < before.size_bytes and not after.proto.graph.sparse_initializer
    feeds = feeds_of(proto)
    expected, got = (Session(each.to_bytes()).run(feeds)["y"] for each in (load(model_with(dense)), after))
    assert np.array_equal(expected, got)


def test_never_writes_a_decoder_that_gives_other_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxcomp.passes.store_compact.evaluate", lambda term: np.zeros(term.shape, term.dtype))
    with pytest.raises(PassError, match="would decode to other values"):
        stored(load(model_with(matrix("16 levels"))))


def test_prune_cluster_store_compose() -> None:
    values = np.random.default_rng(0).normal(size=(96, 140)).astype(np.float32)
    model = load(model_with(values))
    for name, given in (("prune-weights", {"sparsity": 0.9}), ("cluster-weights", {"bits": 4})):
        graph = open_graph(model)
        assert get_pass(name)(**given).apply(graph, Context()).changed
        model = close_graph(graph)
    after, outcome = stored(model)
    assert outcome.changed[0].what == "codebook, mask and 4 bits"
    assert after.size_bytes < 0.06 * values.nbytes and differing_constants(model, after) == []


@pytest.mark.parametrize("kind", ["16 levels", "64 levels", "200 levels", "scales", "grid"])
@pytest.mark.parametrize("ids_shape", [(), (4,), (2, 3)])
def test_a_table_too_large_to_decode_is_looked_up_first(
    kind: str, ids_shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxcomp.passes.store_compact.FOLDED_BYTES", 30000 if kind == "64 levels" else 60000)
    rng = np.random.default_rng(0)
    encoding: Any = None
    values = matrix(kind if "levels" in kind else "half", (200, 120))
    if kind == "scales":
        scale = rng.uniform(1, 2, (200, 1)).astype(np.float32)
        book = np.arange(-3, 4).astype(np.float32)
        encoding = CodebookEncoding(dtype="float32", codebook=book, scale=scale, axis=0)
        values = encoding.decode(rng.integers(0, 7, values.shape).astype(np.uint8), values.shape)
    if kind == "grid":
        scale = rng.uniform(1, 2, (1, 120)).astype(np.float32)
        points = rng.integers(0, 255, (1, 120))
        encoding = GridEncoding(dtype="float32", levels=256, zero_point=points, scale=scale, axis=1)
        values = encoding.decode(rng.integers(0, 256, values.shape).astype(np.uint8), values.shape)
    rank = len(ids_shape)
    nodes = [helper.make_node("Gather", ["T", "i"], ["a"]), helper.make_node("Gather", ["T", "j"], ["b"])]
    inputs = [helper.make_tensor_value_info(name, 7, [None] * rank) for name in ("i", "j")]
    outputs = [helper.make_tensor_value_info(name, 1, [*[None] * rank, 120]) for name in ("a", "b")]
    table = numpy_helper.from_array(values, "T")
    imports = [helper.make_opsetid("", 17)]
    model = load(helper.make_model(helper.make_graph(nodes, "g", inputs, outputs, [table]), opset_imports=imports,
                                   ir_version=8))  # fmt: skip
    if encoding is not None:
        model.encodings["T"] = encoding
    after, outcome = stored(model)
    assert outcome.changed[0].what.endswith("rows looked up before")
    assert after.size_bytes < (0.2 if kind in ("16 levels", "scales") else 0.35) * values.nbytes
    feeds = {name: rng.integers(0, 200, ids_shape) for name in ("i", "j")}
    result = Session(after.to_bytes()).run(feeds)
    assert all(np.array_equal(result[out], values[feeds[name]]) for out, name in (("a", "i"), ("b", "j")))
    assert not stored(load(after.to_bytes()))[1].changed
