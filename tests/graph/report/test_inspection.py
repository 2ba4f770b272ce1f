"""inspect: plain, noted and compactly stored weights are told apart."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from onnxcomp.contract import Context
from onnxcomp.graph.report.inspection import COMPACT, inspect
from onnxcomp.model import Model, load
from onnxcomp.pipeline.apply import apply_pass
from onnxcomp.registry import get_pass


def plain() -> Model:
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 13]>
        g (float[N, 64] x) => (float[N, 64] y) { y = MatMul (x, w) }""")
    values = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(values, "w"))
    return load(model)


def clustered(bits: int) -> Model:
    return apply_pass(plain(), get_pass("cluster-weights")(bits=bits, granularity="tensor"), Context())[0]


def test_a_plain_weight_has_estimates_near_its_codes() -> None:
    [found] = inspect(plain()).tensors
    assert (found.size_bytes, found.encoding, found.kind) == (64 * 64 * 4, "", "linear")
    for bits, size in found.bits_bytes.items():
        codes = 64 * 64 * bits / 8
        assert codes <= size <= 1.1 * codes + 4 * 2**bits + 200, bits  # whole bytes hold no whole number of some codes


def test_the_note_of_a_clustering_is_shown() -> None:
    found = inspect(clustered(4))
    assert (found.encoded_weights, found.compact_tensors) == (1, 0)
    assert found.tensors[0].encoding == "codebook, 16 levels"


def test_a_compactly_stored_weight_is_shown_as_what_it_decodes_to() -> None:
    stored, _ = apply_pass(clustered(4), get_pass("store-compact")(), Context())
    found = inspect(stored)
    [weight] = [each for each in found.tensors if each.encoding]
    assert (weight.name, weight.shape, weight.kind, weight.encoding) == ("w", (64, 64), "linear", "compact")
    assert 64 * 64 / 2 <= weight.size_bytes < found.size_bytes
    assert found.compact_tensors == 1
    assert found.constant_bytes <= found.size_bytes


def test_the_nodes_of_compact_storage_are_one_row() -> None:
    stored, _ = apply_pass(clustered(4), get_pass("store-compact")(), Context())
    assert {each.name for each in inspect(stored).operators} == {COMPACT, "MatMul"}


def test_what_is_computed_from_as_many_bytes_is_not_compact() -> None:
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 13]>
        g (float[2] x) => (float[2] y) <float[2] _0 = {1, 2}, float[2] _1 = {3, 4}> {
          c = Add (_0, _1)
          y = Mul (x, c)
        }""")
    assert inspect(model).compact_tensors == 0


def test_the_users_own_computations_are_not_compact() -> None:
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 13]>
        g (float[64] x) => (float[64] y) <int64 s = {0}, int64 l = {64}, int64 d = {1}> {
          i = Range (s, l, d)
          c = Cast <to = 1> (i)
          y = Mul (x, c)
        }""")
    found = inspect(model)
    assert found.compact_tensors == 0
    assert {each.name for each in found.operators} == {"Range", "Cast", "Mul"}
