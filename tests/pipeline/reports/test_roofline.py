"""How far operators are from the machine's limit, on figures that a hand can check."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import helper, numpy_helper

from onnxcomp.model import load
from onnxcomp.pipeline.reports.bench import bench
from onnxcomp.pipeline.reports.roofline import kernel_macs, least_seconds, operator_shares
from onnxcomp.runtime import ExecutedNode, MachinePeaks
from tests.cli.conftest import small_model

# 1000 MACs a second in floats, 4000 in integers; 100 bytes a second up to 1000 bytes, 10 beyond.
PEAKS = MachinePeaks(1000.0, 4000.0, ((1000, 100.0), (10**6, 10.0)))


def kernel(operator: str, reads: list[Any], writes: list[Any], seconds: float = 1.0, name: str = "n") -> ExecutedNode:
    return ExecutedNode(name, operator, "CPUExecutionProvider", seconds, tuple(reads), tuple(writes))


F, U8, S8 = "float", "uint8", "int8"
PRODUCT = kernel("MatMul", [(F, (2, 10)), (F, (10, 5))], [(F, (2, 5))])


@pytest.mark.parametrize(
    ("ran", "macs"),
    [
        (PRODUCT, 2 * 10 * 5),
        (kernel("Conv", [(F, (1, 3, 8, 8)), (F, (4, 3, 3, 3)), (F, (4,))], [(F, (1, 4, 8, 8))]), 4 * 64 * 27),
        (kernel("Gemm", [(F, (10, 2)), (F, (10, 5))], [(F, (2, 5))]), 100),  # the left one turned
        (kernel("Gemm", [(F, (4, 4)), (F, (4, 5))], [(F, (4, 5))]), 80),
        (kernel("MatMulNBits", [(F, (2, 64)), (U8, (5, 2, 16)), (F, (10,))], [(F, (2, 5))]), 2 * 64 * 5),
        (
            kernel(
                "QLinearConv",
                [(U8, (1, 8, 8, 3)), (F, ()), (U8, ()), (S8, (4, 3, 3, 3)), (F, ()), (S8, ()), (F, ()), (U8, ())],
                [(U8, (1, 8, 8, 4))],
            ),
            4 * 64 * 27,
        ),
        (
            kernel("DynamicQuantizeLSTM", [(F, (7, 1, 4)), (S8, (1, 4, 12)), (S8, (1, 3, 12))], [(F, (7, 1, 1, 3))]),
            7 * (48 + 36),
        ),
        (kernel("Relu", [(F, (2, 10))], [(F, (2, 10))]), 0),
        (kernel("Attention", [(F, (1, 4, 8))], [(F, (1, 4, 8))]), None),
    ],
)
def test_multiply_accumulates_follow_from_shapes(ran: ExecutedNode, macs: int | None) -> None:
    assert kernel_macs(ran) == macs


def test_a_product_is_bound_by_what_takes_longer() -> None:
    # 100 MACs at 1000 a second; 4 * (20 + 50 + 10) = 320 bytes at 100 a second
    assert least_seconds(PRODUCT, PEAKS) == {"float32": 0.1, "bytes": 3.2}
    integers = kernel("MatMulInteger", [(U8, (2, 10)), (S8, (10, 5))], [("int32", (2, 5))])
    assert least_seconds(integers, PEAKS) == {"int8": 0.025, "bytes": (20 + 50 + 40) / 100}
    assert least_seconds(kernel("Attention", [], []), PEAKS) == {}


def test_bytes_move_as_fast_as_in_any_larger_size() -> None:
    assert PEAKS.bandwidth(10) == 100.0 and PEAKS.bandwidth(1001) == 10.0 and PEAKS.bandwidth(10**9) == 10.0
    assert MachinePeaks(1.0, 1.0, ((10, 5.0), (100, 8.0), (1000, 2.0))).bandwidth(7) == 8.0


def test_operators_are_summed_up_the_longest_first() -> None:
    relu = kernel("Relu", [(F, (25,))], [(F, (25,))], seconds=4.0)
    ran = [PRODUCT, relu, PRODUCT, kernel("If", [], [], seconds=99.0)]
    first, second = operator_shares(ran, PEAKS)
    assert (first.operator, first.nodes, first.seconds, first.macs, first.size_bytes) == ("Relu", 1, 4.0, 0, 200)
    assert first.share_of_peak == pytest.approx(2.0 / 4.0) and first.bound == "bytes"
    assert (second.operator, second.nodes, second.macs) == ("MatMul", 2, 200)
    assert second.share_of_peak == pytest.approx(3.2) and second.share_of_time == pytest.approx(2 / 6)


def test_what_is_not_known_has_no_share_of_the_peak() -> None:
    (unknown,) = operator_shares([kernel("Attention", [(F, (1, 4, 8))], [(F, (1, 4, 8))])], PEAKS)
    assert unknown.share_of_peak is None and unknown.macs is None and unknown.bound == ""
    (elsewhere,) = operator_shares([PRODUCT], None)
    assert elsewhere.share_of_peak is None and elsewhere.macs == 100


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """MachinePeaks by few repetitions: how high they are is not looked at."""
    monkeypatch.setattr("onnxcomp.runtime.peaks.ENOUGH_S", 0.0)
    monkeypatch.setattr("onnxcomp.runtime.peaks.MOVED", (2**16,))


@pytest.mark.usefixtures("hasty")
def test_bench_counts_what_the_model_multiplies() -> None:
    found = bench(load(small_model()), runs=1)
    (cost,) = found.models
    counted = {each.operator: each for each in cost.operators}
    assert sum(each.macs or 0 for each in counted.values()) == 16 * 64 + 64 * 10
    assert sum(each.share_of_time for each in counted.values()) == pytest.approx(1.0)
    assert found.peaks is not None and found.peaks.float32_macs > 0
    assert all(each.share_of_peak is not None and each.share_of_peak > 0 for each in cost.operators)


@pytest.mark.usefixtures("hasty")
def test_weights_that_a_kernel_keeps_are_counted_too() -> None:
    """ONNX Runtime's profile leaves out constants that it holds in a form of its own."""
    weight = np.ones((16, 8), np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "product")],
        "g",
        [helper.make_tensor_value_info("x", 1, [2, 16])],
        [helper.make_tensor_value_info("y", 1, [2, 8])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (cost,) = bench(load(model), runs=1).models
    (product,) = cost.operators
    assert product.macs == 2 * 16 * 8 and product.size_bytes == 4 * (2 * 16 + 16 * 8 + 2 * 8)
