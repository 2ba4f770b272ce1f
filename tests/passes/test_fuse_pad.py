"""fuse-pad against the same model with its Pad."""

import numpy as np
import pytest

from tests.passes.exactly import check_same, floats, model, rewrite

WEIGHT = "w = Constant<value=float[1,1,2,2]{1.,2.,3.,4.}>()"


def padded(conv: str, pads: str = "0,0,1,2,0,0,3,4", extra: str = "", outputs: str = "float[N,1,H,W] y") -> str:
    return f"""g (float[1,1,4,5] x) => ({outputs}) {{ {WEIGHT}
        p = Constant<value=int64[8]{{{pads}}}>() k = Pad(x, p) y = Conv<{conv}>(k, w) {extra} }}"""


@pytest.mark.parametrize("conv", ["kernel_shape=[2,2]", "pads=[1,0,0,2]", 'auto_pad="VALID"', "strides=[2,3]"])
def test_padding_goes_into_the_convolution(conv: str) -> None:
    done = rewrite(model(padded(conv)), "fuse-pad")
    assert done.ops == ["Conv"]
    check_same(done, {"x": floats(1, 1, 4, 5)}, rtol=1e-6, atol=1e-6)  # sums of four products


def test_padding_of_older_opsets_is_an_attribute() -> None:
    body = (
        f"g (float[1,1,4,5] x) => (float[N,1,H,W] y) {{ {WEIGHT} k = Pad<pads=[0,0,1,0,0,0,1,0]>(x) y = Conv(k, w) }}"
    )
    done = rewrite(model(body, opset=9), "fuse-pad")
    assert done.ops == ["Conv"]
    check_same(done, {"x": floats(1, 1, 4, 5)}, rtol=1e-6, atol=1e-6)


def test_all_convolutions_that_read_it_take_it() -> None:
    body = padded("kernel_shape=[2,2]", extra="z = Conv(k, w)", outputs="float[N,1,H,W] y, float[N,1,H,W] z")
    done = rewrite(model(body), "fuse-pad")
    assert done.ops == ["Conv", "Conv"]
    check_same(done, {"x": floats(1, 1, 4, 5)}, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (padded('auto_pad="SAME_UPPER"'), "own padding"),
        (padded("kernel_shape=[2,2]", "0,0,-1,0,0,0,0,0"), "cuts"),
        (padded("kernel_shape=[2,2]", "1,0,1,0,0,0,0,0"), "batch"),
        (padded("kernel_shape=[2,2]", extra="z = Relu(k)", outputs="float[N,1,H,W] y, float[N,1,H,W] z"), "Relu"),
        (padded("kernel_shape=[2,2]", outputs="float[N,1,H,W] y, float[N,1,H,W] k"), "output"),
        (padded("kernel_shape=[2,2]").replace("Pad(x, p)", 'Pad<mode="edge">(x, p)'), "zeros"),
    ],
)
def test_says_why_it_leaves_a_pad(body: str, reason: str) -> None:
    done = rewrite(model(body), "fuse-pad")
    assert not done.outcome.changed and reason in done.outcome.skipped[0].reason
    assert done.after.proto.SerializeToString() == done.before.proto.SerializeToString()
    check_same(done, {"x": np.zeros((1, 1, 4, 5), np.float32)})


def test_a_value_other_than_zero_stays() -> None:
    body = padded("kernel_shape=[2,2]").replace("k = Pad(x, p)", "v = Constant<value_float=1.0>() k = Pad(x, p, v)")
    assert not rewrite(model(body), "fuse-pad").outcome.changed
