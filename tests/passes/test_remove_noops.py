"""remove-noops: what goes, what must stay, and that outputs are the same to the bit."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcomp.contract import Context
from tests.passes.exactly import check_same, floats, model, rewrite

X23 = {"x": floats(2, 3)}


@pytest.mark.parametrize(
    ("line", "opset"),
    [
        ("y = Identity(x)", 17),
        ("y = Dropout(x)", 13),
        ("y = Relu(x)", 13),
        ("y = Dropout <ratio = 0.3> (x)", 7),
        ("y = Cast <to = 1> (x)", 13),
        ("y = Transpose <perm = [0, 1]> (x)", 13),
        ("y = Flatten(x)", 13),
        ("y = Concat <axis = 0> (x)", 13),
        ("y = Sum(x)", 13),
        ("y = Max(x)", 13),
        ("y = Pad <pads = [0, 0, 0, 0]> (x)", 9),
        ("y = Slice <starts = [0], ends = [3], axes = [1]> (x)", 9),
        ("y = Slice <starts = [0], ends = [9223372036854775807], axes = [0]> (x)", 9),
        ("s = Constant <value_ints = [2, -1]> () y = Reshape(x, s)", 13),
        ("s = Constant <value_ints = [0, 3]> () y = Reshape(x, s)", 13),
        ("s = Constant <value_ints = [1, 1]> () y = Expand(x, s)", 13),
        ("s = Constant <value_ints = [1, 1]> () y = Tile(x, s)", 13),
        ("p = Constant <value_ints = [0, 0, 0, 0]> () y = Pad(x, p)", 13),
        ("one = Constant <value_float = 1.0> () y = Mul(one, x)", 13),
        ("one = Constant <value_float = 1.0> () y = Mul(x, one)", 13),
        ("one = Constant <value_float = 1.0> () y = Div(x, one)", 13),
        ("zero = Constant <value_float = 0.0> () y = Sub(x, zero)", 13),
        ("t = Cast <to = 11> (x) y = Cast <to = 1> (t)", 13),
        ("t = Transpose(x) y = Transpose(t)", 13),
        ("a = Constant <value_ints = [1]> () t = Unsqueeze(x, a) y = Squeeze(t, a)", 13),
        ("s = Constant <value_ints = [-1]> () r = Constant <value_ints = [2, 3]> () "
         "t = Reshape(x, s) y = Reshape(t, r)", 13),
    ],
)  # fmt: skip
def test_removes_what_changes_nothing(line: str, opset: int) -> None:
    # value_ints and value_float are of opset 12
    done = rewrite(model(f"g (float[2, 3] x) => (float[2, 3] z) {{ h = Relu(x) {_on(line, 'h')} z = Neg(y) }}",
                         opset=opset), "remove-noops")  # fmt: skip
    assert done.ops == ["Relu", "Neg"]
    check_same(done, X23)


def _on(line: str, tensor: str) -> str:
    return line.replace("(x", f"({tensor}").replace(", x)", f", {tensor})")


@pytest.mark.parametrize(
    "line",
    [
        "zero = Constant <value_float = 0.0> () y = Add(h, zero)",  # -0.0 would stay -0.0
        "zero = Constant <value_float = 0.0> () y = Sub(zero, h)",
        "one = Constant <value_float = 1.0> () y = Div(one, h)",
        "one = Constant <value = float[1, 1, 1] {1}> () y = Mul(h, one)",  # adds a dimension
        "t = Cast <to = 10> (h) y = Cast <to = 1> (t)",  # float16 between
        "t = Cast <to = 7> (h) y = Cast <to = 1> (t)",
        "s = Constant <value_ints = [3, 2]> () y = Reshape(h, s)",
        "s = Constant <value_ints = [2, 1, 1]> () y = Expand(h, s)",
        "yes = Constant <value = bool {1}> () r = Constant <value_float = 0.5> () y = Dropout(h, r, yes)",
        "p = Constant <value_ints = [0, -1, 0, 0]> () y = Pad(h, p)",
        "s = Constant <value_ints = [1]> () e = Constant <value_ints = [9]> () y = Slice(h, s, e)",
    ],
)
def test_keeps_what_changes_something(line: str) -> None:
    form = "a, b, c" if "1, 1" in line else "a, b"
    body = f"g (float[2, 3] x) => (float[{form}] z) {{ h = Relu(x) {line} z = Neg(y) }}"
    done = rewrite(model(body, opset=13), "remove-noops")
    assert not done.outcome.changed
    assert done.after.proto == done.before.proto


def test_keeps_the_names_of_outputs() -> None:
    body = "g (float[2, 3] x) => (float[2, 3] y, float[2, 3] z) { h = Relu(x) y = Identity(h) z = Neg(h) }"
    done = rewrite(model(body), "remove-noops")
    assert done.ops == ["Relu", "Neg"]
    assert [out.name for out in done.graph.output] == ["y", "z"]
    check_same(done, X23)


def test_keeps_an_identity_between_input_and_output() -> None:
    done = rewrite(model("g (float[2, 3] x) => (float[2, 3] y) { y = Identity(x) }"), "remove-noops")
    assert done.ops == ["Identity"] and "made by a node" in done.skipped("y")


def test_keeps_an_identity_between_two_outputs() -> None:
    body = "g (float[2, 3] x) => (float[2, 3] y, float[2, 3] z) { y = Relu(x) z = Identity(y) }"
    done = rewrite(model(body), "remove-noops")
    assert done.ops == ["Relu", "Identity"]


def test_keeps_dropout_whose_mask_is_read() -> None:
    body = "g (float[2, 3] x) => (float[2, 3] y, bool[2, 3] m) { h = Relu(x) y, m = Dropout(h) }"
    done = rewrite(model(body), "remove-noops")
    assert "Dropout" in done.ops and "second output" in done.skipped("y")


def test_shapes_that_only_the_model_states_prove_nothing() -> None:
    # the Slice is declared to keep the shape, and doesn't
    body = """g (float[2, 3] x, int64[1] s, int64[1] e) => (float[2, 3] y)
        <float[2, 3] t> { t = Slice(x, s, e) r = Relu(t) y = Neg(r) }"""
    assert rewrite(model(body), "remove-noops").ops == ["Slice", "Relu", "Neg"]


def test_a_slice_of_unknown_length_is_not_taken_for_the_whole() -> None:
    """Of constants around a branch shape inference learns nothing: the length stays open."""
    body = """g (float[8] x, bool c) => (float[N] y) <int64[1] s = {0}, int64[1] e = {3}> {
        y = If (c) <then_branch = t () => (float[K] p) { r = Slice(x, s, e, s) p = Relu(r) },
                    else_branch = f () => (float[L] q) { q = Neg(x) }> }"""
    done = rewrite(model(body), "remove-noops")
    assert not done.outcome.changed
    check_same(done, {"x": floats(8), "c": np.array(True)})


def test_open_batch_is_no_hindrance_to_reshape() -> None:
    body = """g (float[N, 4] x) => (float[N, 4] y) <int64[2] s = {-1, 4}>
        { h = Relu(x) t = Reshape(h, s) y = Neg(t) }"""
    done = rewrite(model(body), "remove-noops")
    assert done.ops == ["Relu", "Neg"] and not done.graph.initializer
    check_same(done, {"x": floats(5, 4)})


def test_merges_transposes_unless_the_first_is_read_elsewhere() -> None:
    body = """g (float[2, 3, 4] x) => (float[4, 2, 3] y)
        { t = Transpose <perm = [0, 2, 1]> (x) u = Transpose <perm = [1, 0, 2]> (t) y = Neg(u) }"""
    done = rewrite(model(body), "remove-noops")
    assert done.ops == ["Transpose", "Neg"]
    assert list(done.node("Transpose").attribute[0].ints) == [2, 0, 1]
    check_same(done, {"x": floats(2, 3, 4)})
    shared = body.replace("(float[4, 2, 3] y)", "(float[4, 2, 3] y, float[2, 4, 3] t)")
    assert rewrite(model(shared), "remove-noops").ops == ["Transpose", "Transpose", "Neg"]


def test_merges_reshapes_unless_a_zero_copies() -> None:
    body = """g (float[2, 12] x) => (float[a, b, c] y) <int64[3] s = {2, 3, 4}, int64[3] r = {4, 3, 2}>
        { t = Reshape(x, s) u = Reshape(t, r) y = Neg(u) }"""
    done = rewrite(model(body), "remove-noops")
    assert done.ops == ["Reshape", "Neg"]
    check_same(done, {"x": floats(2, 12)})
    copying = body.replace("{4, 3, 2}", "{4, 0, 2}")
    assert rewrite(model(copying), "remove-noops").ops == ["Reshape", "Reshape", "Neg"]


def test_merges_casts_that_lose_nothing() -> None:
    body = "g (float16[3] x) => (double[3] y) { t = Cast <to = 1> (x) u = Cast <to = 11> (t) y = Neg(u) }"
    done = rewrite(model(body), "remove-noops")
    assert done.ops == ["Cast", "Neg"]
    check_same(done, {"x": np.array([1.5, -0.0, np.inf], np.float16)})


def test_works_in_subgraphs_that_read_the_outer_scope() -> None:
    body = """g (bool c, float[2, 3] x) => (float[2, 3] y) { h = Relu(x) i = Identity(h) y = If (c) <
        then_branch = t () => (float[2, 3] a) { j = Identity(i) n = Neg(j) a = Identity(n) },
        else_branch = e () => (float[2, 3] b) { b = Identity(i) }> }"""
    done = rewrite(model(body), "remove-noops")
    assert done.counts == {"Relu": 1, "If": 1, "Neg": 1, "Identity": 1}  # an outer value needs one to get out
    for choice in (True, False):
        check_same(done, {"c": np.array(choice), **X23})


def test_works_in_functions_and_leaves_attribute_references() -> None:
    body = """g (float[2, 3] x) => (float[2, 3] y) { y = local.f <k = 1> (x) }
        <domain: "local", opset_import: ["" : 17]> f <k> (a) => (b)
        { h = Relu(a) i = Identity(h) j = Cast <to: int = @k> (i) b = Neg(j) }"""
    done = rewrite(model(body, more=', "local" : 1'), "remove-noops")
    assert done.counts == {"f": 1, "Relu": 1, "Cast": 1, "Neg": 1}
    check_same(done, X23)


def test_leaves_excluded_nodes() -> None:
    body = "g (float[2, 3] x) => (float[2, 3] y) { h = Relu(x) i = Identity(h) y = Neg(i) }"
    done = rewrite(model(body), "remove-noops", context=Context(exclude=("i",)))
    assert done.ops == ["Relu", "Identity", "Neg"]


@pytest.mark.parametrize("name", ["remove-noops", "fold-constants"])
def test_range_keeps_a_vector_computed_that_it_would_refuse_as_a_constant(name: str) -> None:
    body = """g (int64[4] k) => (int64[4] y) <int64 zero = {0}, int64[1] four = {4}, int64 one = {1}>
        { i = Identity(four) r = Range(zero, i, one) y = Add(r, k) }"""
    check_same(rewrite(model(body), name), {"k": np.arange(4)})


def test_identity_of_a_sequence_goes() -> None:
    body = """g (float[2] x) => (float[2] y) <int64 at = {0}>
        { s = SequenceConstruct(x) t = Identity(s) y = SequenceAt(t, at) }"""
    done = rewrite(model(body), "remove-noops")
    assert done.ops == ["SequenceConstruct", "SequenceAt"]
    check_same(done, {"x": floats(2)})
