"""What the machine can do at best, measured: products in floats and in integers, and bytes moved.

A roofline (Williams, Waterman and Patterson 2009, https://doi.org/10.1145/1498765.1498785) has one bandwidth, that of
memory. What fits into a cache is faster, so bytes are moved here in several sizes, and an operator is held against the
size of what it touches (Ilic, Pratas and Sousa 2014, https://doi.org/10.1109/L-CA.2013.6).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcomp.runtime.measure import clock_for
from onnxcomp.runtime.session import CPU, Session

if TYPE_CHECKING:
    import onnx

SIZE = 512  # rows, columns and length of the sum of the products
MAP = (64, 32, 32)  # channels, height and width of the convolution, 3 x 3
MOVED = (2**16, 2**19, 2**22, 2**26)  # bytes, read and written together
FEWEST = 7
ENOUGH_S = 0.1  # of repetitions of each
OPSET = 13
FLOAT, UINT8, INT8 = 1, 2, 3  # onnx.TensorProto.DataType


@dataclass(frozen=True)
class MachinePeaks:
    """Multiply-accumulates a second in float32 and in 8-bit integers, the better of MatMul and Conv, and bytes a second
    by bytes touched."""

    float32_macs: float
    int8_macs: float
    bytes_moved: tuple[tuple[int, float], ...]

    def bandwidth(self, size_bytes: int) -> float:
        """Bytes a second of what touches so many: the most of any size measured that is not smaller, since what fits
        into less is no slower; else that of the largest."""
        return max((rate for size, rate in self.bytes_moved if size >= size_bytes), default=self.bytes_moved[-1][1])


@dataclass(frozen=True)
class IntegerGain:
    """Seconds of one operator in float32 and with uint8 activations and int8 weights, and its multiply-accumulates."""

    operator: str
    float32_s: float
    int8_s: float
    macs: int

    @property
    def times_faster(self) -> float:
        """How much faster integers are."""
        return self.float32_s / self.int8_s


def measure_peaks(*, threads: int = 1) -> MachinePeaks:
    """The machine's peaks on the CPU with so many threads; it takes a second."""
    products = measure_gains(threads=threads)
    moved = tuple((size, size / _moving_s(size, threads)) for size in MOVED)
    floats, integers = ([each.macs / getattr(each, kind) for each in products] for kind in ("float32_s", "int8_s"))
    return MachinePeaks(max(floats), max(integers), moved)


def measure_gains(*, threads: int = 1, operators: Sequence[str] = ("MatMul", "Conv")) -> list[IntegerGain]:
    """What integers gain here on a product of 512 x 512 x 512 and on a 3 x 3 convolution of 64 channels, 32 x 32."""
    clock = clock_for(CPU, threads)
    found = []
    for operator in operators:
        took = []
        for is_integer in (False, True):
            feeds = {"x": _values(_shape_of(operator), is_integer)}
            session = Session(_model(operator, is_integer).SerializeToString(), threads=threads)
            session.run(feeds)
            took.append(_best_s(session.prepared(feeds), clock))
        found.append(IntegerGain(operator, took[0], took[1], _macs(operator)))
    return found


def _best_s(run: Callable[[], object], clock: Callable[[], float]) -> float:
    """The least seconds of some repetitions."""
    spent: list[float] = []
    begun = time.perf_counter()
    while len(spent) < FEWEST or time.perf_counter() - begun < ENOUGH_S:
        started = clock()
        run()
        spent.append(clock() - started)
    return max(min(spent), 1e-9)


def _moving_s(size_bytes: int, threads: int) -> float:
    """The least seconds in which all threads together move so many bytes, half of them read and half written."""
    pairs = [np.zeros((2, size_bytes // 8 // threads), np.float32) for _ in range(threads)]
    times = max(1, 2**22 // size_bytes)  # small ones often, so that calling is little of it

    def copies(pair: Any) -> None:
        for _ in range(times):
            np.copyto(pair[0], pair[1])

    if threads == 1:
        return _best_s(lambda: copies(pairs[0]), clock_for(CPU, 1)) / times
    with ThreadPoolExecutor(threads) as pool:
        return _best_s(lambda: list(pool.map(copies, pairs)), time.perf_counter) / times


def _shape_of(operator: str) -> tuple[int, ...]:
    return (SIZE, SIZE) if operator == "MatMul" else (1, *MAP)


def _macs(operator: str) -> int:
    channels, height, width = MAP
    return SIZE**3 if operator == "MatMul" else channels * channels * 9 * height * width


def _values(shape: tuple[int, ...], is_integer: bool) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, shape).astype(np.uint8) if is_integer else rng.random(shape, np.float32)


def _model(operator: str, is_integer: bool) -> onnx.ModelProto:
    """One node with a constant weight: MatMul or Conv, QLinearMatMul or QLinearConv."""
    from onnx import helper, numpy_helper  # late: processes that measure import this package, too

    shape = _shape_of(operator)
    weight_shape = shape if operator == "MatMul" else (MAP[0], MAP[0], 3, 3)
    weight = np.random.default_rng(1).standard_normal(weight_shape).astype(np.float32)
    attributes: Mapping[str, Any] = {} if operator == "MatMul" else {"pads": [1, 1, 1, 1]}
    constants: dict[str, Any] = {"w": weight}
    inputs, kind, name = ["x", "w"], FLOAT, operator
    if is_integer:
        code = np.clip(np.rint(40 * weight), -127, 127).astype(np.int8)
        scale, middle = np.float32(0.01), np.uint8(128)
        constants = {"w": code, "s": scale, "z": middle, "zero": np.int8(0)}
        inputs, kind, name = ["x", "s", "z", "w", "s", "zero", "s", "z"], UINT8, f"QLinear{operator}"
    graph = helper.make_graph(
        [helper.make_node(name, inputs, ["y"], **attributes)],
        "peak",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", kind, None)],
        [numpy_helper.from_array(np.asarray(value), each) for each, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
