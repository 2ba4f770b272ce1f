"""drop-quantization: pairs and decoders that nothing takes in go, and what a grid cuts off stays cut off."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import numpy_helper

from onnxcomp.contract import Context
from onnxcomp.errors import RecipeError
from onnxcomp.recipe import Recipe
from onnxcomp.registry import get_pass
from tests.graphs.running import run
from tests.passes.exactly import model, rewrite

X = np.array([[-3.0, -0.2, 0.3, 9.0]], np.float32)


def quantized(zero: int, kind: str = "uint8", *, domain: str = "") -> str:
    """x on a grid of steps of 0.1 and back; opset 21 takes 16 bits in the default domain."""
    return f"""g (float[1,4] x) => (float[1,4] y) <float s = {{0.1}}, {kind} z = {{{zero}}}> {{
        q = {domain}QuantizeLinear(x, s, z)
        d = {domain}DequantizeLinear(q, s, z)
        y = Neg(d)
    }}"""


def values(proto: bytes) -> np.ndarray:
    return next(iter(run(proto, {"x": X}).values()))  # type: ignore[no-any-return]


@pytest.mark.parametrize(("kind", "zero", "opset"), [("uint8", 128, 17), ("int8", 0, 17), ("uint16", 32768, 21)])
def test_a_pair_goes(kind: str, zero: int, opset: int) -> None:
    done = rewrite(model(quantized(zero, kind), opset=opset, ir=10 if opset == 21 else 8), "drop-quantization")
    assert done.ops == ["Neg"] and not done.graph.initializer
    np.testing.assert_array_equal(values(done.after.to_bytes()), -X)


def test_the_pair_of_onnx_runtimes_own_domain_goes() -> None:
    text = quantized(32768, "uint16", domain="com.microsoft.")
    done = rewrite(model(text, more=', "com.microsoft" : 1'), "drop-quantization")
    assert done.ops == ["Neg"]


def test_a_grid_that_begins_at_zero_cuts_off_what_is_negative() -> None:
    done = rewrite(model(quantized(0)), "drop-quantization")
    assert done.ops == ["Clip", "Neg"]
    np.testing.assert_allclose(values(done.after.to_bytes()), -np.clip(X, 0, 25.5), rtol=1e-6)


def test_at_opset_10_the_bounds_are_attributes() -> None:
    done = rewrite(model(quantized(0), opset=10, ir=5), "drop-quantization")
    np.testing.assert_allclose(values(done.after.to_bytes()), -np.clip(X, 0, 25.5), rtol=1e-6)


def test_what_is_not_negative_needs_no_bound() -> None:
    text = quantized(0).replace("q = QuantizeLinear(x,", "r = Relu(x) q = QuantizeLinear(r,")
    assert rewrite(model(text), "drop-quantization").ops == ["Relu", "Neg"]


def test_codes_of_weights_become_the_floats_that_onnx_runtime_makes_of_them() -> None:
    rng = np.random.default_rng(0)
    codes, scales = rng.integers(-128, 128, (4, 3)).astype(np.int8), rng.random(3).astype(np.float32)
    zeros = rng.integers(-9, 9, 3).astype(np.int8)
    proto = model("g (float[1,4] x) => (float[1,3] y) { w = DequantizeLinear<axis = 1>(c, s, z) y = MatMul(x, w) }")
    held = {"c": codes, "s": scales, "z": zeros}
    proto.graph.initializer.extend(numpy_helper.from_array(each, name) for name, each in held.items())
    done = rewrite(proto, "drop-quantization")
    assert done.ops == ["MatMul"]
    expected = (codes.astype(np.float64) - zeros) * scales
    np.testing.assert_allclose(numpy_helper.to_array(done.graph.initializer[0]), expected, rtol=1e-6)


def test_blocks_of_codes_too() -> None:
    codes, scales = np.arange(8, dtype=np.uint8).reshape(4, 2), np.array([[1, 2], [3, 4]], np.float32)
    nodes = "w = DequantizeLinear<axis = 0, block_size = 2>(c, s) y = MatMul(x, w)"
    proto = model(f"g (float[1,4] x) => (float[1,2] y) {{ {nodes} }}", opset=21, ir=10)
    proto.graph.initializer.extend([numpy_helper.from_array(codes, "c"), numpy_helper.from_array(scales, "s")])
    done = rewrite(proto, "drop-quantization")
    np.testing.assert_array_equal(
        numpy_helper.to_array(done.graph.initializer[0]), codes * np.repeat(scales, 2, axis=0)
    )


def test_what_it_cannot_take_apart_is_named() -> None:
    moved = quantized(128).replace("d = DequantizeLinear(q,", "t = Reshape(q, n) d = DequantizeLinear(t,")
    proto = model(moved)
    proto.graph.initializer.append(numpy_helper.from_array(np.array([1, 4]), "n"))
    done = rewrite(proto, "drop-quantization")
    assert not done.outcome.changed and "do not come from QuantizeLinear" in done.skipped("d")
    other = quantized(128).replace("d = DequantizeLinear(q, s, z)", "d = DequantizeLinear(q, s, o)")
    proto = model(other)
    proto.graph.initializer.append(numpy_helper.from_array(np.uint8(3), "o"))
    assert "not the one of its QuantizeLinear" in rewrite(proto, "drop-quantization").skipped("d")
    assert "cuts off what is positive" in rewrite(model(quantized(255)), "drop-quantization").skipped("d")


def test_an_output_in_integers_stays() -> None:
    text = """g (float[1,4] x) => (uint8[1,4] q, float[1,4] y) <float s = {0.1}, uint8 z = {128}> {
        q = QuantizeLinear(x, s, z)
        y = DequantizeLinear(q, s, z)
    }"""
    done = rewrite(model(text), "drop-quantization")
    assert "QuantizeLinear" in done.ops and {each.name for each in done.graph.output} == {"q", "y"}


def test_an_excluded_pair_stays() -> None:
    done = rewrite(model(quantized(128)), "drop-quantization", context=Context(exclude=("d",)))
    assert done.ops == ["QuantizeLinear", "DequantizeLinear", "Neg"]


def test_after_integers_were_written_it_is_refused() -> None:
    made = [get_pass(name)() for name in ("quantize-static", "drop-quantization")]
    with pytest.raises(RecipeError, match="would destroy its integers"):
        Recipe.of(*made)
    Recipe.of(*reversed(made))


def test_bodies_are_looked_into() -> None:
    inner = """t () => (float[1,4] a) { k = QuantizeLinear(x, s, z) l = DequantizeLinear(k, s, z) a = Neg(l) },"""
    text = f"""g (bool c, float[1,4] x) => (float[1,4] y) <float s = {{0.1}}, uint8 z = {{128}}> {{
        y = If (c) <then_branch = {inner} else_branch = e () => (float[1,4] b) {{ b = Relu(x) }}>
    }}"""
    done = rewrite(model(text), "drop-quantization")
    assert done.counts["QuantizeLinear"] == 0 and done.counts["Neg"] == 1
