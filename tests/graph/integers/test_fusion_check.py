"""What a target left in float, by optimized models written by hand."""

from onnx import parser

from onnxcomp.graph.integers.fusion_check import idle_keys
from onnxcomp.graph.integers.qdq_insertion import Mark

MARKS = {
    "fused": Mark(frozenset({"W_int8"}), frozenset({"r1"})),
    "decoded": Mark(frozenset({"V_int8"}), frozenset()),
    "product": Mark(frozenset(), frozenset({"r2"})),
    "handed out": Mark(frozenset({"U_int8"}), frozenset({"y"})),
    "inner": Mark(frozenset({"T_int8"}), frozenset()),
}


def test_idle_are_nodes_that_read_decoded_codes_or_make_floats_of_them() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>
        g (uint8[4] q, float s, uint8 z, bool c) => (float[4] y, uint8[4] p, float[4] o)
            <int8[4] W_int8, int8[4] V_int8, int8[4] U_int8, int8[4] T_int8> {
        p = com.microsoft.QLinearMul(q, s, z, W_int8, s, z)
        v = DequantizeLinear(V_int8, s)
        d = DequantizeLinear(q, s, z)
        m = Sub(d, v)
        r2 = MatMul(d, d)
        q2 = QuantizeLinear(r2, s, z)
        y = com.microsoft.MatMulIntegerToFloat(q, U_int8, s, s)
        o = If (c) <
            then_branch = a () => (float[4] a1) { t = DequantizeLinear(T_int8, s) a1 = Add(t, m) },
            else_branch = b () => (float[4] b1) { b1 = Identity(m) }>
    }"""
    assert idle_keys(parser.parse_model(text), MARKS) == {"decoded", "product", "inner"}
