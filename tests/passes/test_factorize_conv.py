"""factorize-conv against the convolution itself: kernels of known rank come through, errors are the chains'."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from onnxcomp.contract import Context, Outcome, Quantity
from onnxcomp.errors import ParameterError
from onnxcomp.graph.ir.reader import close_graph, open_graph
from onnxcomp.graph.report.macs import count_macs
from onnxcomp.model import Model
from onnxcomp.registry import get_pass
from onnxcomp.runtime import Session
from tests.passes.test_factorize_linear import assert_same, drawn, model_of, operators
from tests.passes.test_factorize_places import calibrated

Array = NDArray[Any]
FactorizeConv = get_pass("factorize-conv")
TEXT = "g (float[N,8,12,11] x) => (float[N,C,H,V] y) { y = Conv<pads=[1,1,1,1]>(x, W, b) }"


def factorized(model: Model, context: Context | None = None, **fields: Any) -> tuple[Model, Outcome]:
    graph = open_graph(model)
    outcome = FactorizeConv(**fields).apply(graph, context or Context())
    result = close_graph(graph)
    onnx.checker.check_model(result.proto, full_check=True)
    return result, outcome


def separable(outputs: int, inputs: int, rank: int) -> Array:
    """A kernel (outputs, inputs, 3, 3) that is a sum of so many k x 1 times 1 x k."""
    random = np.random.default_rng(0)
    parts = random.standard_normal((rank, outputs, 3)), random.standard_normal((rank, inputs, 3))
    return np.einsum("roy,rix->oixy", *parts).astype(np.float32)


def test_finds_the_way_that_loses_nothing() -> None:
    model = model_of(TEXT, W=separable(24, 8, 4), b=drawn(24))
    result, outcome = factorized(model, ratio=0.5)
    assert operators(result) == ["Conv", "Conv"]
    [change] = outcome.changed
    assert change.details["decomposition"] == "spatial"
    assert change.details["relative_error"] < 1e-5
    assert all(error > 0.1 for error in change.details["runners_up"].values())
    assert len(change.details["runners_up"]) >= 3
    assert_same(model, result, x=drawn(2, 8, 12, 11))


@pytest.mark.parametrize("way", ["channel", "spatial", "tucker", "cp", "depthwise"])
def test_errors_are_those_of_the_kernel_that_the_chain_makes(way: str) -> None:
    """The kernel is read off the chain's answers to unit impulses."""
    weight = drawn(24, 8, 3, 3)
    model = model_of(TEXT, W=weight, b=np.zeros(24, np.float32))
    result, outcome = factorized(model, decomposition=way, ratio=0.5)
    impulses = np.zeros((8, 8, 12, 11), np.float32)
    impulses[range(8), range(8), 5, 5] = 1
    answer = Session(result.to_bytes()).run({"x": impulses})["y"]  # (inputs, outputs, H, W)
    made = answer[:, :, 4:7, 4:7][:, :, ::-1, ::-1].swapaxes(0, 1)
    error = float(np.linalg.norm(made - weight) / np.linalg.norm(weight))
    assert outcome.changed[0].details["relative_error"] == pytest.approx(error, rel=1e-3)
    assert 0.05 < error < 1


def test_the_plain_channel_error_is_the_tail_of_singular_values() -> None:
    weight = drawn(24, 8, 3, 3)
    model = model_of(TEXT, W=weight, b=drawn(24))
    _, outcome = factorized(model, decomposition="channel", rank=9)
    values = np.linalg.svd(weight.reshape(24, -1).astype(np.float64), compute_uv=False)
    best = np.sqrt(np.sum(values[9:] ** 2) / np.sum(values**2))  # Eckart and Young
    assert outcome.changed[0].details["relative_error"] == pytest.approx(best, rel=1e-4)


@pytest.mark.parametrize("way", ["channel", "spatial", "tucker", "cp", "depthwise"])
def test_calibration_lessens_the_error_at_the_outputs(way: str, tmp_path: Path) -> None:
    """Smooth images: patches of few directions, in which the fitted chain errs less, on images not seen too."""
    random = np.random.default_rng(0)

    def images(count: int) -> Array:
        rough = random.standard_normal((count, 8, 16, 15)).cumsum(axis=2).cumsum(axis=3)[:, :, 2:14, 2:13]
        return (rough / np.abs(rough).max()).astype(np.float32)

    model = model_of(TEXT, W=drawn(24, 8, 3, 3), b=drawn(24))
    context = calibrated(model, tmp_path, x=images(64))
    fresh = images(32)
    wanted = Session(model.to_bytes()).run({"x": fresh})["y"]
    errors = []
    for weighted in (True, False):
        made, _ = factorized(model, context, decomposition=way, ratio=0.4, weighted=weighted)
        errors.append(float(np.linalg.norm(Session(made.to_bytes()).run({"x": fresh})["y"] - wanted)))
    assert errors[0] < 0.75 * errors[1]


def test_leaves_what_no_chain_makes_smaller() -> None:
    model = model_of(TEXT, W=drawn(24, 8, 3, 3), b=drawn(24))
    result, outcome = factorized(model, ratio=0.001)
    assert "no chain" in outcome.skipped[0].reason
    assert result.proto.SerializeToString() == model.proto.SerializeToString()


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("y = ConvTranspose(x, W)", "no Conv"),
        ("f = Flatten(W) s = Constant<value_ints=[8,8,3,3]>() w = Reshape(f, s) y = Conv(x, w)", "Reshape"),
        ("z = Conv<dilations=[2,2]>(x, W) y = ConvTranspose(z, W)", "also"),
    ],
)
def test_says_why_a_kernel_stays(body: str, reason: str) -> None:
    model = model_of(f"g (float[1,8,12,11] x) => (float[A,B,C,D] y) {{ {body} }}", W=drawn(8, 8, 3, 3))
    _, outcome = factorized(model)
    assert not outcome.changed
    assert reason in " ".join(each.reason for each in outcome.skipped)


def test_leaves_kernels_of_one_tap_to_the_other_pass() -> None:
    model = model_of("g (float[1,8,12,11] x) => (float[A,B,C,D] y) { y = Conv(x, W) }", W=drawn(8, 8, 1, 1))
    _, outcome = factorized(model)
    assert not outcome.changed and not outcome.skipped


def test_options_cost_what_they_say() -> None:
    model = model_of(TEXT.replace("N,8", "1,8"), W=drawn(24, 8, 3, 3), b=drawn(24))
    [site] = FactorizeConv().sites(open_graph(model), Context()).sites
    assert len(site.options) > 3
    before = sum(each.count for each in count_macs(open_graph(model)).values() if each)
    assert site.costs[Quantity.MACS] == before
    for option in site.options:
        graph = open_graph(model)
        outcome = FactorizeConv().rewrite(graph, {"W": option.fields}, Context())
        result = close_graph(graph)
        assert outcome.changed[0].details["relative_error"] ** 2 == pytest.approx(option.error, rel=1e-6)
        after = sum(each.count for each in count_macs(open_graph(result)).values() if each)
        assert option.costs[Quantity.MACS] == pytest.approx(after)
        size = result.size_bytes - model.size_bytes + site.costs[Quantity.BYTES]
        assert abs(option.costs[Quantity.BYTES] - size) < 300


def test_energy_takes_the_least_that_keeps_it() -> None:
    model = model_of(TEXT, W=separable(24, 8, 2), b=drawn(24))
    _, outcome = factorized(model, energy=0.999)
    [change] = outcome.changed
    assert change.details["relative_error"] ** 2 <= 0.001
    assert change.details["macs_share"] < 0.2


def test_a_share_of_all_multiplications_is_met() -> None:
    text = """g (float[1,8,12,12] x) => (float[1,16,12,12] y) {
        h = Conv<pads=[1,1,1,1]>(x, A) r = Relu(h) y = Conv<pads=[1,1,1,1]>(r, B) }"""
    model = model_of(text, A=separable(16, 8, 2), B=drawn(16, 16, 3, 3))
    result, outcome = factorized(model, macs=0.7)
    counts = [
        sum(each.count for each in count_macs(open_graph(one)).values() if each) for one in (model, result)
    ]
    assert counts[1] <= 0.7 * counts[0]
    assert "A" in {each.name for each in outcome.changed}  # it loses nothing


def test_works_inside_subgraphs() -> None:
    model = model_of(
        """g (bool c, float[N,8,12,11] x) => (float[N,C,H,V] y) {
          y = If(c) <
            then_branch = t () => (float[N,C,H,V] a) { a = Conv<pads=[1,1,1,1]>(x, W) },
            else_branch = e () => (float[N,C,H,V] b) { b = Conv<strides=[1,1], pads=[1,1,1,1]>(x, W) }>
        }""",
        W=separable(24, 8, 4),
    )
    result, outcome = factorized(model)
    assert len(outcome.changed) == 1
    for flag in (True, False):
        assert_same(model, result, x=drawn(2, 8, 12, 11), c=np.array(flag))


def test_refuses_two_ways_to_say_how_far() -> None:
    with pytest.raises(ParameterError, match="energy"):
        FactorizeConv(rank=3, energy=0.9)
    with pytest.raises(ParameterError, match="macs"):
        FactorizeConv(weights=0.5, macs=0.5)


def test_factors_of_half_floats_stay_half_floats() -> None:
    weight = separable(24, 8, 4).astype(np.float16)
    text = "g (float16[N,8,12,11] x) => (float16[N,C,H,V] y) { y = Conv<pads=[1,1,1,1]>(x, W) }"
    result, _ = factorized(model_of(text, W=weight))
    assert {numpy_helper.to_array(each).dtype for each in result.proto.graph.initializer} == {np.dtype(np.float16)}
