"""fuse-activations against the chains of arithmetic that it replaces."""

import numpy as np
import pytest

from tests.passes.exactly import Rewrite, check_same, model, rewrite

THREE, SIX = "c3 = Constant<value_float=3.0>()", "c6 = Constant<value_float=6.0>()"
ZERO = "c0 = Constant<value_float=0.0>()"
INPUT = {"x": np.linspace(-5, 5, 41, dtype=np.float32).reshape(1, 41)}


def chain(body: str, outputs: str = "float[1,41] y") -> str:
    return f"g (float[1,41] x) => ({outputs}) {{ {THREE} {SIX} {ZERO} {body} }}"


def check_hard(done: Rewrite) -> None:
    """The same up to two roundings of numbers below six."""
    check_same(done, INPUT, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "body",
    [
        "a = Add(x, c3) b = Clip(a, c0, c6) m = Mul(x, b) y = Div(m, c6)",
        "a = Add(c3, x) b = Clip(a, c0, c6) m = Mul(b, x) y = Div(m, c6)",
        "a = Add(x, c3) b = Clip(a, c0, c6) s = Constant<value=float[1]{0.16666667}>() h = Mul(s, b) y = Mul(h, x)",
        "a = Add(x, c3) b = Clip(a, c0, c6) d = Div(b, c6) y = Mul(x, d)",
        "a = Add(x, c3) b = Clip(a, c0, c6) d = Div(x, c6) y = Mul(d, b)",
    ],
)
def test_a_hard_swish_becomes_two_nodes(body: str) -> None:
    done = rewrite(model(chain(body)), "fuse-activations")
    assert sorted(done.ops) == ["HardSigmoid", "Mul"]
    node = done.node("HardSigmoid")
    values = {each.name: each.f for each in node.attribute}
    assert values["alpha"] == pytest.approx(1 / 6) and values["beta"] == pytest.approx(0.5)
    check_hard(done)


@pytest.mark.parametrize(
    "body",
    [
        "a = Add(x, c3) b = Clip(a, c0, c6) y = Div(b, c6)",
        "m = Mul(x, c6) a = Sub(m, c3) c1 = Constant<value_float=1.0>() y = Clip(a, c0, c1)",
        "d = Div(x, c3) a = Sub(c3, d) b = Clip(a, c0, c6) y = Div(b, c6)",
    ],
)
def test_lines_between_two_bounds_become_one_node(body: str) -> None:
    done = rewrite(model(chain(body)), "fuse-activations")
    assert done.ops == ["HardSigmoid"]
    check_hard(done)


def test_bounds_of_older_opsets_are_attributes() -> None:
    body = "a = Add(x, c3) b = Clip<min=0.0, max=6.0>(a) m = Mul(x, b) y = Div(m, c6)"
    text = (
        chain(body)
        .replace(THREE, "c3 = Constant<value=float {3.0}>()")
        .replace(SIX, "c6 = Constant<value=float {6.0}>()")
        .replace(ZERO, "")
    )
    done = rewrite(model(text, opset=9, ir=4), "fuse-activations")
    assert sorted(done.ops) == ["HardSigmoid", "Mul"]
    check_hard(done)


def test_a_chain_inside_a_branch_is_fused() -> None:
    inner = "a = Add(x, c3) b = Clip(a, c0, c6) m = Mul(x, b) y = Div(m, c6)"
    body = f"""g (float[1,41] x, bool p) => (float[1,41] z) {{ {THREE} {SIX} {ZERO}
        z = If<then_branch = t () => (float[1,41] y) {{ {inner} }},
               else_branch = e () => (float[1,41] w) {{ w = Neg(x) }}>(p) }}"""
    done = rewrite(model(body), "fuse-activations")
    assert done.counts["HardSigmoid"] == 1 and not done.counts["Clip"]
    check_same(done, INPUT | {"p": np.array(True)}, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "body",
    [
        "y = Clip(x, c0, c6)",  # no line before it
        "a = Add(x, c3) b = Clip(a, c0, c6) y = Div(b, c3)",  # comes to two
        "a = Add(x, c3) y = Clip(a, c3, c6)",
        "a = Add(x, c3) b = Clip(a, c0, c6) d = Div(b, c6) y = Add(b, d)",  # another node needs what is on the way
    ],
)
def test_other_chains_stay(body: str) -> None:
    done = rewrite(model(chain(body)), "fuse-activations")
    assert not done.outcome.changed
    assert done.after.proto.SerializeToString() == done.before.proto.SerializeToString()


def test_what_the_model_hands_out_stays() -> None:
    body = "a = Add(x, c3) b = Clip(a, c0, c6) m = Mul(x, b) y = Div(m, c6)"
    done = rewrite(model(chain(body, "float[1,41] y, float[1,41] m")), "fuse-activations")
    assert not done.outcome.changed


def test_a_vector_of_offsets_stays() -> None:
    body = "v = Constant<value=float[2]{3.0,3.0}>() a = Add(x, v) b = Clip(a, c0, c6) y = Div(b, c6)"
    text = chain(body).replace("float[1,41] x", "float[1,2] x").replace("float[1,41] y", "float[1,2] y")
    assert not rewrite(model(text), "fuse-activations").outcome.changed
