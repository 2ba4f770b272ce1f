"""quantize-weights: grids by hand, granularity, and what is left alone."""

from __future__ import annotations

import functools
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from onnxcomp.calibration import CalibrationData, Group
from onnxcomp.calibration.data.sample_axes import WHOLE
from onnxcomp.contract import Needs
from onnxcomp.errors import CalibrationError, ParameterError
from onnxcomp.model import load
from onnxcomp.numerics.encodings.encoding import GridEncoding, RescaledEncoding
from onnxcomp.registry import get_pass
from onnxcomp.runtime import Session
from tests.passes.revalued import Revalued, model_with, random_weight, revalue

NAME = "quantize-weights"
PLAIN = {"search_range": False}


def grid(done: Revalued) -> GridEncoding:
    assert isinstance(done.encoding, GridEncoding)
    return done.encoding


def test_symmetric_grid_for_each_output_channel() -> None:
    values = np.array([[7, 0.7], [-3.4, 0.14], [0.6, -0.36], [0, 0]], np.float32)
    done = revalue(values, (NAME, {"bits": 4, **PLAIN}))
    assert done.values == pytest.approx(np.array([[7, 0.7], [-3, 0.1], [1, -0.4], [0, 0]]), rel=1e-6)
    assert grid(done).scale is not None
    assert grid(done).scale == pytest.approx(np.array([[1, 0.1]]))
    assert np.array_equal(grid(done).zero_point, [[8, 8]])
    assert done.codes is not None
    assert done.codes.tolist() == [[15, 15], [5, 9], [9, 4], [8, 8]]


def test_asymmetric_grid_for_the_whole() -> None:
    values = np.array([[-5, 250], [20.4, 0]], np.float32)
    done = revalue(values, (NAME, {"bits": 8, "granularity": "tensor", "symmetric": False, **PLAIN}))
    assert done.values.tolist() == [[-5, 250], [20, 0]]
    assert done.codes is not None
    assert done.codes.tolist() == [[0, 255], [25, 5]]


def test_blocks_run_along_the_summed_axis() -> None:
    values = np.array([[3, 300], [1, 100], [30, 3], [10, 1]], np.float32)
    done = revalue(values, (NAME, {"bits": 3, "granularity": "block", "block_size": 2, **PLAIN}))
    assert grid(done).axis == 0
    assert grid(done).scale is not None
    assert np.squeeze(grid(done).scale).tolist() == [[1, 100], [10, 1]]
    assert done.values.tolist() == values.tolist()


def test_blocks_of_a_table_run_along_its_rows() -> None:
    done = revalue(random_weight(5, 8), (NAME, {"bits": 4, "granularity": "block", "block_size": 4}), op="Gather")
    assert grid(done).axis == 1


def test_search_makes_the_error_less() -> None:
    values = random_weight(4096, 4)
    plain = revalue(values, (NAME, {"bits": 3, **PLAIN})).details["error"]
    found = revalue(values, (NAME, {"bits": 3})).details["error"]
    assert found < 0.5 * plain
    # Eight equal steps for a normal distribution leave 0.0374 (Max 1960), there with zero between two levels.
    assert found == pytest.approx(0.044, rel=0.1)


@pytest.mark.parametrize("granularity", ["tensor", "channel", "block"])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_other_float_types_stay(bits: int, dtype: Any, granularity: str) -> None:
    fields = {"bits": bits, "granularity": granularity, "block_size": 8}
    done = revalue(random_weight(32, 8, dtype=dtype), (NAME, fields))
    assert done.values.dtype == dtype
    assert done.codes is not None
    assert done.details["bits"] == bits


def test_what_has_few_levels_is_left_alone() -> None:
    steps = (NAME, {"bits": 4}), (NAME, {"bits": 5})
    assert revalue(random_weight(32, 8), *steps).reason == "it already has no more than 32 levels"
    again = revalue(random_weight(32, 8), (NAME, {"bits": 4}), (NAME, {"bits": 3}))
    assert again.details["bits"] == 3


def test_reasons() -> None:
    blocks = {"granularity": "block", "block_size": 32}
    assert "channel axis" in revalue(random_weight(3, 4), (NAME, {}), op="Add").reason
    assert "summed axis" in revalue(random_weight(3, 4), (NAME, blocks), op="Add").reason
    assert revalue(random_weight(33, 4), (NAME, blocks)).reason == "blocks of 32 do not divide its axis of 33"


def test_excluded_weights_stay() -> None:
    values = random_weight(8, 8)
    assert np.array_equal(revalue(values, (NAME, {"bits": 2}), exclude=("w",)).values, values)


def test_refuses_nine_bits() -> None:
    with pytest.raises(ParameterError, match="quantize-weights: bits must be"):
        get_pass(NAME)(bits=9)


# --- on calibration data ---

SHRINKAGE = 0.02  # of the second moments towards the identity


def data_for(values: np.ndarray, inputs: np.ndarray, op: str = "MatMul") -> CalibrationData:
    """The inputs as one sample for the model of ``revalue``."""
    specs = Session(load(model_with(values, op)).to_bytes()).inputs
    groups = (Group("0", functools.partial(dict, {"x": inputs}), WHOLE),)
    return CalibrationData(source="test", inputs=specs, groups=groups, order=np.array([[0, 0]], np.int64))


def correlated(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """Inputs as nets have them: a few directions carry most, and some channels are ten times the others."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((rows, columns // 3)) @ rng.standard_normal((columns // 3, columns))
    size = np.exp(rng.normal(size=columns))
    return ((mixed + 0.3 * rng.standard_normal((rows, columns))) * size).astype(np.float32)


def second_moment(inputs: np.ndarray) -> np.ndarray:
    gram = inputs.astype(np.float64).T @ inputs / len(inputs)
    return (1 - SHRINKAGE) * gram + SHRINKAGE * np.trace(gram) / len(gram) * np.eye(len(gram))


def output_error(old: np.ndarray, new: np.ndarray, moment: np.ndarray) -> float:
    """For (K, N) operands of MatMul, summed column by column."""
    error = power = 0.0
    for column in range(old.shape[1]):
        wanted = old[:, column].astype(np.float64)
        difference = new[:, column] - wanted
        error += float(difference @ moment @ difference)
        power += float(wanted @ moment @ wanted)
    return error / power


def optimal_brain_quantization(old: np.ndarray, scale: np.ndarray, moment: np.ndarray, bits: int) -> np.ndarray:
    """Rows in order of their inputs' power, rounded, their error made up for by the inverse of what is left of H."""
    left = old.astype(np.float64)
    result = np.zeros_like(left)
    order = sorted(range(len(old)), key=lambda k: -moment[k, k])
    for at, k in enumerate(order):
        low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        result[k] = np.clip(np.round(left[k] / scale[0]), low, high) * scale[0]
        inverse = np.linalg.inv(moment[np.ix_(order[at:], order[at:])])
        for position, row in enumerate(order[at:]):
            left[row] = (
                left[row] - (left[k] - result[k]) * inverse[position, 0] / inverse[0, 0] if row != k else left[row]
            )
    return result


def test_gptq_rounds_as_optimal_brain_quantization_does() -> None:
    values, inputs = random_weight(24, 6), correlated(400, 24)
    moment = second_moment(inputs)
    nearest = revalue(values, (NAME, {"bits": 4, "algorithm": "nearest"}))
    done = revalue(values, (NAME, {"bits": 4, "algorithm": "gptq"}), calibration=data_for(values, inputs))
    scale = grid(nearest).scale
    assert scale is not None
    expected = optimal_brain_quantization(values, scale, moment, 4)
    assert done.codes is not None
    assert np.array_equal(done.codes.astype(int) - 8, np.round(expected / scale))
    for column in range(6):  # the scale that fits the outputs of these codes best, as float16 holds it
        codes, wanted = expected[:, column] / scale[0, column], values[:, column].astype(np.float64)
        best = (codes @ moment @ wanted) / (codes @ moment @ codes)
        assert grid(done).scale[0, column] == pytest.approx(best, rel=2**-11 + 1e-4)  # type: ignore[index]


@pytest.mark.parametrize("granularity", ["tensor", "channel", "block"])
@pytest.mark.parametrize("op", ["MatMul", "Gemm"])
def test_gptq_leaves_less_error_at_the_output(op: str, granularity: str) -> None:
    values, inputs = random_weight(48, 16), correlated(300, 48)
    stored = np.ascontiguousarray(values.T) if op == "Gemm" else values
    data = data_for(stored, inputs, op)
    fields = {"bits": 3, "granularity": granularity, "block_size": 16}
    found = {}
    for algorithm in ("nearest", "gptq"):
        done = revalue(stored, (NAME, fields | {"algorithm": algorithm}), op=op, calibration=data)
        new = done.values.T if op == "Gemm" else done.values
        found[algorithm] = output_error(values, new, second_moment(inputs))
        if algorithm == "gptq":
            assert done.details["error"] == pytest.approx(found[algorithm], rel=1e-3)
    assert found["gptq"] < 0.5 * found["nearest"]


def test_gptq_for_convolutions() -> None:
    values = random_weight(6, 4, 3, 3)
    inputs = np.cumsum(np.random.default_rng(3).standard_normal((8, 4, 12, 12)), axis=3).astype(np.float32)
    data = data_for(values, inputs, "Conv")
    errors = {}
    for algorithm in ("nearest", "gptq", "awq"):
        done = revalue(values, (NAME, {"bits": 3, "algorithm": algorithm}), op="Conv", calibration=data)
        errors[algorithm] = outputs_apart(values, done.values, inputs)
    assert errors["gptq"] < 0.5 * errors["nearest"]
    assert errors["awq"] < errors["nearest"]


def outputs_apart(old: np.ndarray, new: np.ndarray, inputs: np.ndarray) -> float:
    both = [Session(load(model_with(each, "Conv")).to_bytes()).run({"x": inputs})["y"] for each in (old, new)]
    return float(np.square(both[1] - both[0]).sum() / np.square(both[0]).sum())


def test_zeros_stay_zero_whatever_is_compensated() -> None:
    values, inputs = random_weight(48, 16), correlated(300, 48)
    values[np.abs(values) < 0.5] = 0
    done = revalue(values, (NAME, {"bits": 4, "algorithm": "gptq"}), calibration=data_for(values, inputs))
    assert (done.values[values == 0] == 0).all()


def test_awq_scales_the_input_channels() -> None:
    values, inputs = random_weight(48, 16), random_weight(300, 48, seed=1)
    inputs[:, :3] *= 10  # what the method is for: few channels that are much louder than the others
    data = data_for(values, inputs)
    done = revalue(values, (NAME, {"bits": 3, "algorithm": "awq"}), calibration=data)
    encoding = done.encoding
    assert isinstance(encoding, RescaledEncoding)
    assert encoding.factor.shape == (48, 1)
    loud = np.square(inputs).mean(axis=0).argsort()
    assert encoding.factor[loud[-1], 0] < encoding.factor[loud[0], 0]  # finer steps for the largest inputs
    nearest = revalue(values, (NAME, {"bits": 3, "algorithm": "nearest"}))
    moment = second_moment(inputs)
    assert done.details["error"] == pytest.approx(output_error(values, done.values, moment), rel=1e-3)
    assert done.details["error"] < 0.7 * output_error(values, nearest.values, moment)


def test_hqq_needs_no_data_and_cares_less_about_outliers() -> None:
    values = np.random.default_rng(0).standard_t(2.5, (256, 8)).astype(np.float32)
    plain = revalue(values, (NAME, {"bits": 4, "algorithm": "nearest", **PLAIN}))
    robust = revalue(values, (NAME, {"bits": 4, "algorithm": "hqq"}))
    assert np.abs(robust.values - values).mean() < np.abs(plain.values - values).mean()


def test_auto_compensates_where_data_show_the_inputs() -> None:
    values, inputs = random_weight(48, 16), correlated(300, 48)
    with_data = revalue(values, (NAME, {"bits": 4}), calibration=data_for(values, inputs))
    gptq = revalue(values, (NAME, {"bits": 4, "algorithm": "gptq"}), calibration=data_for(values, inputs))
    without = revalue(values, (NAME, {"bits": 4}))
    nearest = revalue(values, (NAME, {"bits": 4, "algorithm": "nearest"}))
    assert np.array_equal(with_data.values, gptq.values)
    assert np.array_equal(without.values, nearest.values)
    table = revalue(values, (NAME, {"bits": 4}), op="Gather", calibration=data_for(values, np.arange(9), "Gather"))
    assert "gptq" not in table.outcome.changed[0].what


def test_says_what_it_needs() -> None:
    quantize = get_pass(NAME)
    assert quantize(algorithm="gptq").needed() is quantize(algorithm="awq").needed() is Needs.CALIBRATION
    assert quantize().needed() is quantize(algorithm="hqq").needed() is Needs.NOTHING
    assert quantize().draws_on_data(calibration=True)
    assert not quantize().draws_on_data(calibration=False)
    assert not quantize(algorithm="nearest").draws_on_data(calibration=True)
    with pytest.raises(CalibrationError, match="needs calibration data"):
        revalue(random_weight(8, 8), (NAME, {"algorithm": "awq"}))


def test_a_wide_weight_of_few_rows_is_not_worth_the_moments_of_its_inputs() -> None:
    values, inputs = random_weight(6000, 2), random_weight(3, 6000)
    done = revalue(values, (NAME, {"bits": 4}), calibration=data_for(values, inputs))
    assert "gptq" not in done.outcome.changed[0].what
