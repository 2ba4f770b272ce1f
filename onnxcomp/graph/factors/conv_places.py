"""Convolutions whose kernels can be taken apart into a chain of smaller ones: at which ranks, and at what cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxcomp.graph.factors.conv_chain import put_chain, strides_of
from onnxcomp.graph.factors.places import CONV_BYTES, convolutions, shiftable_bias
from onnxcomp.graph.ir.nodes import Array, Node
from onnxcomp.graph.ir.reader import Graph
from onnxcomp.graph.report.macs import Macs
from onnxcomp.graph.weights.bias import Bias
from onnxcomp.graph.weights.linear_op import LinearOp
from onnxcomp.graph.weights.roles import Weight
from onnxcomp.numerics.structure.conv_fit import kept_power
from onnxcomp.numerics.structure.conv_schemes import (
    SCHEMES,
    Kernel,
    Ranks,
    chained,
    full_ranks,
    is_apt,
    parts,
    share_of_macs,
)

RANK_STEP = 16  # the kernels work on 16 channels
ROUNDED_FROM = 4 * RANK_STEP  # full rank from which a rank is rounded
MOST_CP_WORK = 2**22  # values of the kernel times rank: a canonical decomposition of more takes minutes


@dataclass(frozen=True, eq=False)
class ConvPlace:
    """A kernel of several taps that convolutions read."""

    weight: Weight
    uses: tuple[LinearOp, ...]

    @property
    def name(self) -> str:
        """The weight's."""
        return self.weight.name

    @property
    def kernel(self) -> Kernel:
        """Its sizes."""
        use = self.uses[0]
        outputs, inputs, *extent = use.seen_shape
        return Kernel(use.groups, outputs // use.groups, inputs, tuple(extent))

    @property
    def target(self) -> Array:
        """Its values (groups, outputs, inputs, *extent) float64."""
        kernel = self.kernel
        seen = self.uses[0].seen(np.asarray(self.weight.values)).astype(np.float64)
        return seen.reshape(kernel.groups, kernel.outputs, kernel.inputs, *kernel.extent)

    def bias(self, graph: Graph) -> Bias | None:
        """The bias that can make up for a shift of the outputs' means, None where there is none."""
        return shiftable_bias(graph, self.uses[0]) if len(self.uses) == 1 else None

    def schemes(self, wanted: str) -> list[str]:
        """The ways that the kernel can be taken apart, of those that are wanted ("auto" for any)."""
        return [each for each in SCHEMES if wanted in ("auto", each) and is_apt(each, self.kernel)]

    def macs(self, counted: Mapping[Node, Macs | None]) -> float:
        """Multiply-accumulates as it is; a dimension that the model leaves open counts as 1, and an unknown one too."""
        found = [counted.get(each.node) for each in self.uses]
        return float(sum(self.weight.size if each is None else each.count for each in found))

    def macs_share(self, scheme: str, ranks: Ranks) -> float:
        """Of these, what a chain takes; of several nodes that share the kernel, the most."""
        kernel = self.kernel
        sizes = parts(scheme, kernel, ranks)
        return max(share_of_macs(sizes, kernel, strides_of(each)) for each in self.uses)

    def bytes_of(self, scheme: str, ranks: Ranks) -> int:
        """What a chain takes in the file."""
        sizes = parts(scheme, self.kernel, ranks)
        values = sum(each.size for each in sizes)
        return values * self.weight.dtype.itemsize + CONV_BYTES * (len(sizes) - 1) * len(self.uses)

    def is_smaller(self, scheme: str, ranks: Ranks) -> bool:
        """Whether a chain takes less than the kernel, of bytes and of multiply-accumulates."""
        return self.bytes_of(scheme, ranks) < self.weight.size_bytes and self.macs_share(scheme, ranks) < 1

    def ranks_within(self, scheme: str, share: float) -> Ranks | None:
        """The largest ranks at which a chain takes no more than a share of the multiply-accumulates and is smaller;
        None where it is not at any. Of a tucker's pairs, the one that keeps most of the kernel."""
        full = full_ranks(scheme, self.kernel)
        if scheme == "tucker":
            return self._tucker_ranks(share, full)
        low, high = 0, full[0]  # cost grows with the rank
        while low < high:
            middle = (low + high + 1) // 2
            if self._is_within(scheme, (middle,), share):
                low = middle
            else:
                high = middle - 1
        if not low or (scheme == "cp" and low * self.kernel.size > MOST_CP_WORK):
            return None
        return (_rounded_down(low, full[0]),)

    def _is_within(self, scheme: str, ranks: Ranks, share: float) -> bool:
        return self.macs_share(scheme, ranks) <= share * (1 + 1e-9) and self.is_smaller(scheme, ranks)

    def _tucker_ranks(self, share: float, full: Ranks) -> Ranks | None:
        kept = kept_power(self.target)
        best: tuple[float, Ranks] | None = None
        for first, second in self._pairs(full):
            if best is not None and kept[first - 1, second - 1] <= best[0]:
                continue
            if self._is_within("tucker", (first, second), share):
                best = float(kept[first - 1, second - 1]), (first, second)
        return None if best is None else best[1]

    def _pairs(self, full: Ranks) -> Iterator[Ranks]:
        for first in _steps(full[0]):
            for second in _steps(full[1]):
                yield first, second

    def put(self, graph: Graph, scheme: str, ranks: Ranks, factors: Sequence[Array]) -> None:
        """Let the nodes become chains; they share the constants."""
        base, dtype = self.weight.tensor.name, self.weight.dtype
        made = chained(scheme, self.kernel, ranks, factors)
        constants = [
            graph.constant(self.weight.scope, f"{base}_{at}", np.ascontiguousarray(each.astype(dtype)))
            for at, (each, _) in enumerate(made)
        ]
        for use in self.uses:
            put_chain(graph, use, constants, [groups for _, groups in made])


def conv_place(weight: Weight) -> ConvPlace | str | None:
    """Where the kernel can be taken apart, why it cannot, or None for what is no kernel of several taps."""
    if not weight.kinds & {"conv", "conv_transpose"} or len(weight.shape) < 3:
        return None
    if "conv" not in weight.kinds:
        return "what reads it is no Conv"
    if weight.kinds != {"conv"}:
        return f"it is also read as {', '.join(sorted(weight.kinds - {'conv'}))}"
    found = convolutions(weight)
    if isinstance(found, str):
        return found
    place = ConvPlace(weight, found)
    if set(place.kernel.extent) == {1}:
        return None
    return place if place.schemes("auto") else "its kernel has no parts"


def _steps(full: int) -> list[int]:
    """Ranks worth a look, the full one among them, which leaves that side as it is."""
    step = RANK_STEP if full >= ROUNDED_FROM else max(1, full // 16)
    return sorted({*range(step, full + 1, step), full})


def _rounded_down(rank: int, full: int) -> int:
    return rank // RANK_STEP * RANK_STEP if full >= ROUNDED_FROM and rank >= RANK_STEP else rank
