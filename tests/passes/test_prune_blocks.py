"""prune-blocks: which blocks there are, which go, what takes their place, and that the rest makes up for them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxcomp.graph.cutting.blocks import residual_blocks
from onnxcomp.graph.ir.reader import open_graph
from onnxcomp.model import Model, load
from onnxcomp.runtime import Session
from tests.passes.exactly import Rewrite, floats, rewrite
from tests.passes.test_prune_channels import built, context, inputs

TWO = """g (float[N, 12] x) => (float[N, 4] y) {
    a = Gemm(x, w0, b0) r = Relu(a) s = Add(x, r) c = MatMul(s, w1) d = Tanh(c) t = Add(d, s) y = Gemm(t, w2, b2) }"""
SHAPES = {"w0": (12, 12), "b0": (12,), "w1": (12, 12), "w2": (12, 4), "b2": (4,)}
CONVS = """g (float[N, 4, 6, 6] x) => (float[N, 4, 3, 3] y) {
    a = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, w0, b0) h = Relu(a)
    c = Conv <pads = [1, 1, 1, 1]> (h, w1) p = Conv <strides = [2, 2]> (x, w2) y = Add(p, c) }"""
CONV_SHAPES = {"w0": (6, 4, 3, 3), "b0": (6,), "w1": (4, 6, 3, 3), "w2": (4, 4, 1, 1)}


def ran(model: Model, samples: np.ndarray, output: str = "y") -> np.ndarray:
    return np.asarray(Session(model.to_bytes()).run({"x": samples})[output])


def value_of(proto: onnx.ModelProto, name: str, samples: np.ndarray) -> np.ndarray:
    other = onnx.ModelProto.FromString(proto.SerializeToString())
    other.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    return ran(load(other), samples, name)


def pruned(proto: onnx.ModelProto, folder: Path, samples: np.ndarray, **fields: object) -> Rewrite:
    return rewrite(proto, "prune-blocks", context=context(proto, folder, samples), **fields)


def gone(done: Rewrite) -> list[str]:
    return [each.name for each in done.outcome.changed]


def names(proto: onnx.ModelProto) -> dict[str, list[str]]:
    """By the sum's result: what nodes of the block make."""
    found, _ = residual_blocks(open_graph(load(proto)))
    return {each.sum.outputs[0].name: sorted(node.outputs[0].name for node in each.nodes) for each in found}


def test_a_block_is_all_that_is_there_for_one_operand_alone() -> None:
    assert names(built(TWO, SHAPES)) == {"s": ["a", "r"], "t": ["c", "d"]}
    assert names(built(CONVS, CONV_SHAPES)) == {"y": ["a", "c", "h"]}


@pytest.mark.parametrize(("body", "reason"), [
    ("a = MatMul(x, w0) s = Add(a, z) y = Relu(s)", "not computed from the same tensor"),
    ("a = Relu(x) s = Add(a, x) y = Relu(s)", "nothing that multiplies"),
    ("a = MatMul(x, w0) m = ReduceMean <axes = [0], keepdims = 1> (x) b = MatMul(m, w1) s = Add(a, b) y = Relu(s)",
     "its shape may be another one"),
])  # fmt: skip
def test_says_why_a_sum_has_no_block(body: str, reason: str) -> None:
    proto = built(
        f"g (float[N, 12] x, float[N, 12] z) => (float[N, 12] y) {{ {body} }}", {"w0": (12, 12), "w1": (12, 12)}
    )
    found, declined = residual_blocks(open_graph(load(proto)))
    assert not found
    assert reason in " ".join(declined.values())


def test_what_is_read_elsewhere_stays() -> None:
    proto = built(TWO.replace("float[N, 4] y)", "float[N, 4] y, float[N, 12] a)"), SHAPES)
    assert names(proto)["t"] == ["c", "d"]
    assert "s" not in names(proto)  # without the product that an output needs, nothing that multiplies would go


def test_the_mean_stands_in_its_place(tmp_path: Path) -> None:
    proto, samples = built(TWO, SHAPES), inputs(64, 12)
    done = pruned(proto, tmp_path, samples, ratio=1.0, repair=False)
    assert done.ops == ["Add", "Add", "Gemm"]
    means = [value_of(proto, name, samples).mean(axis=0) for name in ("r", "d")]
    weight, bias = (onnx.numpy_helper.to_array(each) for each in proto.graph.initializer[-2:])
    other = inputs(9, 12, seed=5)
    np.testing.assert_allclose(
        ran(done.after, other), (other + means[0] + means[1]) @ weight + bias, rtol=1e-4, atol=1e-5
    )


def test_without_a_mean_the_sum_goes_as_well(tmp_path: Path) -> None:
    proto, samples = built(TWO, SHAPES), inputs(64, 12)
    done = pruned(proto, tmp_path, samples, ratio=1.0, repair=False, mean=False)
    assert done.ops == ["Gemm"]
    weight, bias = (onnx.numpy_helper.to_array(each) for each in proto.graph.initializer[-2:])
    np.testing.assert_allclose(ran(done.after, samples), samples @ weight + bias, rtol=1e-4, atol=1e-5)
    repaired = pruned(proto, tmp_path, samples, ratio=1.0, mean=False)
    wanted = ran(load(proto), samples)
    off = [np.square(ran(each.after, samples) - wanted).mean() for each in (done, repaired)]
    assert off[1] < 0.8 * off[0]


def test_a_sum_that_an_output_needs_adds_nothing(tmp_path: Path) -> None:
    proto = built("g (float[N, 12] x) => (float[N, 12] y) { a = MatMul(x, w1) y = Add(x, a) }", {"w1": (12, 12)})
    done = pruned(proto, tmp_path, inputs(64, 12), ratio=1.0, repair=False, mean=False)
    assert done.ops == ["Add"]
    np.testing.assert_array_equal(ran(done.after, inputs(5, 12)), inputs(5, 12))


def test_channels_of_convolutions_have_a_mean_each(tmp_path: Path) -> None:
    proto, samples = built(CONVS, CONV_SHAPES), inputs(32, 4, 6, 6)
    done = pruned(proto, tmp_path, samples, ratio=1.0, repair=False)
    mean = value_of(proto, "c", samples).mean(axis=(0, 2, 3))
    other = inputs(3, 4, 6, 6, seed=5)
    wanted = value_of(proto, "p", other) + mean[:, None, None]
    np.testing.assert_allclose(ran(done.after, other), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("least", [0, 1])
def test_the_block_that_does_least_goes(least: int, tmp_path: Path) -> None:
    weak = floats(12, 12, seed=7) * 1e-3
    proto = built(TWO, SHAPES, **{f"w{least}": weak, "b0": np.zeros(12)})
    done = pruned(proto, tmp_path, inputs(64, 12), ratio=0.5)
    kept = [name for name in ("w0", "w1") if any(each.name == name for each in done.graph.initializer)]
    assert kept == [f"w{1 - least}"]


def test_the_models_divergence_decides_where_it_is_measured(tmp_path: Path) -> None:
    proto, samples = built(TWO, SHAPES), inputs(64, 12)

    def without(other: Model) -> float:
        present = {each.name for each in other.proto.graph.initializer}
        return 0.5 if "w0" not in present else 0.01

    found = dataclasses.replace(context(proto, tmp_path, samples), divergence=without)
    for fields, expected in (
        ({"ratio": 0.5}, ["t"]),
        ({"harm": 0.001}, []),
        ({"harm": 0.1}, ["t"]),
        ({"harm": 1.0}, ["s", "t"]),
    ):
        assert gone(rewrite(proto, "prune-blocks", context=found, **fields)) == expected


def test_blocks_go_until_so_many_macs_are_left(tmp_path: Path) -> None:
    proto, samples = built(TWO, SHAPES), inputs(64, 12)  # 144, 144 and 48 MACs
    assert len(gone(pruned(proto, tmp_path, samples, macs=0.99))) == 1
    assert len(gone(pruned(proto, tmp_path, samples, macs=0.5))) == 2
    assert len(gone(pruned(proto, tmp_path, samples, macs=1.0))) == 0


def test_what_follows_makes_up_for_it(tmp_path: Path) -> None:
    proto, samples = built(TWO, SHAPES), inputs(256, 12)
    other = inputs(64, 12, seed=8)
    wanted = ran(load(proto), other)
    errors = [
        np.square(ran(pruned(proto, tmp_path, samples, ratio=0.5, repair=repair).after, other) - wanted).mean()
        for repair in (True, False)
    ]
    assert errors[0] < 0.5 * errors[1]


def test_a_block_inside_another_goes_with_it(tmp_path: Path) -> None:
    proto = built(
        """g (float[N, 12] x) => (float[N, 12] y) {
        a = MatMul(x, w0) b = MatMul(a, w1) c = Add(a, b) y = Add(x, c) }""",
        {"w0": (12, 12), "w1": (12, 12)},
    )
    done = pruned(proto, tmp_path, inputs(64, 12), ratio=1.0)
    assert done.ops == ["Add"]
    assert gone(done) == ["y"]
    assert "another block" in " ".join(each.reason for each in done.outcome.skipped)


def test_a_choice_of_some_is_the_same_blocks(tmp_path: Path) -> None:
    proto, samples = built(TWO, SHAPES), inputs(64, 12)
    whole = gone(pruned(proto, tmp_path, samples, ratio=0.5))
    limited = dataclasses.replace(context(proto, tmp_path, samples), include=frozenset({"s", "t"} - set(whole)))
    assert gone(rewrite(proto, "prune-blocks", context=limited, ratio=0.5)) == []


def test_excluded_weights_keep_their_block(tmp_path: Path) -> None:
    proto, samples = built(TWO, SHAPES), inputs(64, 12)
    limited = dataclasses.replace(context(proto, tmp_path, samples), exclude=("w1",))
    assert gone(rewrite(proto, "prune-blocks", context=limited, ratio=1.0)) == ["s"]
