"""How far each operator is from what the machine can do: its least possible time over the time that it took.

    least time of a node = max(multiply-accumulates / the machine's most a second, bytes / the machine's most a second)
    share of the peak of an operator = sum of least times / sum of times

The most a second are measured (``runtime.peaks``): products in float32 and in 8 bits, bytes by the size of what is
touched. An operator at a tenth is bound by something else: calls, kernels of few channels, a layout, one thread.
(Roofline: Williams, Waterman and Patterson 2009, https://doi.org/10.1145/1498765.1498785)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from onnxcomp.graph.report.macs import Macs, is_multiplying, macs_of
from onnxcomp.runtime import ExecutedNode, MachinePeaks

INTEGERS = frozenset({"uint8", "int8", "uint4", "int4"})
CONTAINERS = frozenset({"If", "Loop", "Scan"})  # the time of what is in them is told of each node there
LEAST_S = 1e-12


@dataclass(frozen=True)
class OperatorShare:
    """All nodes of one operator in one run, as ONNX Runtime made them.

    share_of_time: of the run. macs: None where they are not known. share_of_peak: None where neither is, or the target
    is none whose peak was measured; bound: "float32", "int8" or "bytes", whatever takes most of the least time.
    """

    operator: str
    nodes: int
    seconds: float
    share_of_time: float
    macs: int | None
    size_bytes: int
    share_of_peak: float | None
    bound: str


def operator_shares(kernels: Sequence[ExecutedNode], peaks: MachinePeaks | None) -> tuple[OperatorShare, ...]:
    """The operators by the time they take, the longest first. peaks: None where the machine's are not those of the
    target."""
    kernels = [each for each in kernels if each.operator not in CONTAINERS]
    whole = max(sum(each.seconds for each in kernels), LEAST_S)
    by_operator: dict[str, list[ExecutedNode]] = defaultdict(list)
    for each in kernels:
        by_operator[each.operator].append(each)
    found = [_share(operator, own, whole, peaks) for operator, own in by_operator.items()]
    return tuple(sorted(found, key=lambda each: -each.seconds))


def kernel_macs(kernel: ExecutedNode) -> int | None:
    """Multiply-accumulates of one turn, 0 for what does not multiply; None where its shapes do not tell."""
    if not is_multiplying(kernel.operator):
        return 0
    found = _count(kernel)
    return None if found is None or found.is_partial else found.count


def least_seconds(kernel: ExecutedNode, peaks: MachinePeaks) -> dict[str, float]:
    """What a node takes at least, by what it is bound by; no entry for what is not known."""
    moved = {"bytes": kernel.size_bytes / peaks.bandwidth(kernel.size_bytes)}
    macs = kernel_macs(kernel)
    if macs is None:
        return {}
    if not macs:
        return moved
    kind = "int8" if _in_integers(kernel) else "float32"
    return {kind: macs / (peaks.int8_macs if kind == "int8" else peaks.float32_macs), **moved}


def _share(operator: str, kernels: Sequence[ExecutedNode], whole: float, peaks: MachinePeaks | None) -> OperatorShare:
    seconds = sum(each.seconds for each in kernels)
    counted = [kernel_macs(each) for each in kernels]
    macs = None if None in counted else sum(filter(None, counted))
    least = [] if peaks is None else [least_seconds(each, peaks) for each in kernels]
    known = bool(least) and all(least) and seconds > 0
    sums: dict[str, float] = defaultdict(float)
    for each in least:
        if each:
            bound = max(each, key=lambda kind: each[kind])
            sums[bound] += each[bound]
    return OperatorShare(
        operator,
        len(kernels),
        seconds,
        seconds / whole,
        macs,
        sum(each.size_bytes for each in kernels),
        sum(sums.values()) / seconds if known else None,
        max(sums, key=lambda kind: sums[kind]) if known else "",
    )


def _in_integers(kernel: ExecutedNode) -> bool:
    """Whether a node multiplies integers: of what it reads, two are; MatMulNBits and dynamic products have one."""
    kinds = [kind for kind, shape in kernel.reads if len(shape) > 1]
    return any(kind in INTEGERS for kind in kinds)


def _count(kernel: ExecutedNode) -> Macs | None:
    inputs = [shape for _, shape in kernel.reads]
    output = kernel.writes[0][1] if kernel.writes else None
    attributes: dict[str, Any] = {}
    left = inputs[0] if inputs else ()
    if kernel.operator == "MatMulNBits":
        attributes["K"] = left[-1] if left else 0
    elif _is_turned(left, output):
        attributes["transA"] = 1
    return macs_of(kernel.operator, inputs, output, attributes)


def _is_turned(left: Iterable[int], output: Iterable[int] | None) -> bool:
    """Whether the left operand of a product was turned: its rows are not the result's, and its columns are."""
    rows, columns = (*(() if output is None else output),)[-2:-1], tuple(left)[-2:]
    return len(columns) == 2 and bool(rows) and columns[0] != rows[0] and columns[1] == rows[0]
