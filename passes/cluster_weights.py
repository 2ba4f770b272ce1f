"""Weights move to a few levels, which k-means chooses.

    w -> c[q]          one codebook c of at most 2^bits levels for the whole weight
    w -> s[i] * c[q]   the same with a scale for each output channel i
    (w1, .., wd) -> C[q]   vectors along the summed axis (product quantization)

The values stay floats, and the graph stays as it is. One codebook is near exactly optimal; the scales and
their codebook are set to their least-squares optimum in turn. With calibration data each value is weighed by what
its error costs at the node's output, and the error of the values that are rounded is made up for by the others.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from onnxcomp.calibration.observer import seen_in
from onnxcomp.calibration.statistics.moments import Moments
from onnxcomp.contract import Context, Effect, Exact, Needs, Outcome, Structure, parameter
from onnxcomp.contract.influence import GradientsSeen, gradients_seen
from onnxcomp.contract.weight_pass import WeightPass
from onnxcomp.errors import ParameterError
from onnxcomp.graph.ir.nodes import Array
from onnxcomp.graph.ir.reader import Graph
from onnxcomp.graph.pruning.problem import InputsSeen, PruningProblem
from onnxcomp.graph.rounding.codebook import round_to_codebook, round_to_vectors
from onnxcomp.graph.weights.roles import Weight
from onnxcomp.graph.weights.value_pass import NO_CHANNELS, decoded, has_levels, is_pruned
from onnxcomp.numerics.arrays.channel_rows import along_axis, rows_of
from onnxcomp.numerics.encodings.encoding import CodebookEncoding, Encoding, VectorEncoding, compute_dtype
from onnxcomp.numerics.metrics.weight_error import relative_error
from onnxcomp.numerics.quantizers.codebook import fit_codebook, fit_scaled_codebook, fit_vector_codebook, scale_gain
from onnxcomp.numerics.quantizers.weighted_levels import fit_weighted_codebook, fit_weighted_scaled_codebook
from onnxcomp.numerics.structure.patterns import ShareOfAll
from onnxcomp.numerics.structure.pruned_matrices import BY_GRADIENTS, Criterion

SCALE_BYTES = 4
SCALED_NODE_BYTES = 60  # what the Mul node and the header of its scales take in the file


@dataclass(frozen=True)
class KnownOfLevels:
    """What is known of a weight: its inputs' moments, and what gradients tell of it where these were asked for."""

    moments: Moments | None = None
    gradients: GradientsSeen = field(default_factory=GradientsSeen)

    @property
    def how(self) -> str:
        """Whether gradients were used, for the outcome."""
        if self.gradients.lack:
            return f", without gradients: {self.gradients.lack}"
        return "" if self.gradients.squares is None else ", levels by gradients"


@dataclass(frozen=True, kw_only=True)
class ClusterWeights(WeightPass):
    """Give every weight at most 2^bits different values, chosen by k-means.

    The zeros of a pruned weight stay zero. Deviations from the paper: optimal one-dimensional k-means instead
    of Lloyd's iterations from linear centroids, and no retraining here. With calibration data the codes are found
    column by column as GPTQ does (Frantar et al. 2022, https://arxiv.org/abs/2210.17323), vectors as GPTVQ does (van
    Baalen et al. 2024, https://arxiv.org/abs/2402.15319), and levels and scales are fitted to the node's outputs. By
    gradients (fisher) levels lie where values count (SqueezeLLM, Kim et al. 2023, https://arxiv.org/abs/2306.07629),
    then values and outputs are fitted as without.
    """

    effect = Effect(shrinks=("bytes",), exact=Exact.NOWHERE)
    paper = "https://arxiv.org/abs/1510.00149"
    makes = frozenset({Structure.LEVELS})
    destroys = frozenset({Structure.LEVELS, Structure.COMPACT})

    # From 4 bits a value down, pairs of values in one codebook leave less error than single values do, and so
    # does a mask of zeros beside the codes of the others where most values matter little.
    variants = tuple(
        {"bits": bits, "vector_size": vector_size, "sparsity": sparsity, "granularity": granularity}
        for bits, vector_size, sparsity, granularity in (
            (8.0, 1, 0.0, "tensor"), (7.0, 1, 0.0, "tensor"),
            (6.0, 1, 0.0, "channel"), (5.5, 1, 0.0, "channel"), (5.0, 1, 0.0, "channel"), (5.0, 1, 0.0, "tensor"),
            (4.5, 1, 0.0, "channel"), (4.0, 1, 0.0, "channel"), (4.0, 1, 0.0, "tensor"), (8.0, 2, 0.0, "auto"),
            (3.5, 1, 0.0, "channel"), (3.5, 1, 0.0, "tensor"), (4.0, 1, 0.5, "auto"), (3.0, 1, 0.0, "channel"),
            (3.0, 1, 0.0, "tensor"), (6.0, 2, 0.0, "auto"), (3.0, 1, 0.6, "auto"), (2.6, 1, 0.0, "channel"),
            (2.4, 1, 0.0, "channel"), (2.0, 1, 0.6, "auto"), (8.0, 4, 0.0, "auto"), (2.0, 1, 0.0, "channel"),
            (4.0, 1, 0.65, "auto"), (2.0, 1, 0.75, "auto"), (4.0, 1, 0.75, "auto"), (1.6, 1, 0.0, "channel"),
            (4.0, 1, 0.82, "auto"), (4.0, 1, 0.88, "auto"), (4.0, 1, 0.93, "auto"),
        )
    )  # fmt: skip

    bits: float = parameter(
        5.0,
        low=1,
        high=8,
        strengths=(8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0),
        help="bits of a code, halves too (3.5 bits are 11 levels); the most, with target_error",
    )
    target_error: float | None = parameter(
        None, low=0.0, high=1.0, help="take the fewest bits whose squared error, relative to the weight's, is no more"
    )
    granularity: str = parameter(
        "auto",
        choices=("auto", "tensor", "channel"),
        help="one codebook, or the same with a scale for each output channel; auto takes scales where they pay",
    )
    algorithm: str = parameter(
        "auto",
        choices=("auto", "nearest", "output", BY_GRADIENTS),
        help="nearest level; least output error on calibration data; fisher: this, with levels where values count by "
        "what gradients say the model loses by them; auto: output where there are data",
    )
    keep_zero: bool = parameter(False, help="keep zero among the levels, so that exact zeros stay")
    vector_size: int = parameter(1, low=1, high=64, help="values of a vector along the summed axis; 1 for none")
    sparsity: float = parameter(
        0.0, low=0.0, high=0.99, help="share of the values set to zero first; zero is then a level more"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.vector_size > 1 and (self.keep_zero or self.sparsity or self.granularity == "channel"):
            raise ParameterError(
                f"{self.pass_name()}: vector_size must be 1 with keep_zero, sparsity or granularity = channel, "
                f"got {self.vector_size}. Leave these out for vectors."
            )
        if self.vector_size > 1 and self.algorithm == BY_GRADIENTS:
            raise ParameterError(
                f"{self.pass_name()}: vector_size must be 1 with algorithm = fisher, got {self.vector_size}. "
                "Take algorithm = output for vectors."
            )

    def needed(self) -> Needs:
        return Needs.CALIBRATION if self.algorithm in ("output", BY_GRADIENTS) else Needs.NOTHING

    def draws_on_data(self, *, calibration: bool) -> bool:
        return calibration and self.algorithm != "nearest"

    def obstacle(self, weight: Weight) -> str | None:
        if has_levels(weight, levels_of(self.bits)):
            return f"it already has no more than {levels_of(self.bits)} levels"
        if weight.size <= 2 * self.vector_size:
            return f"{weight.size} values are too few"
        if self.granularity == "channel" and weight.channel_axis is None:
            return NO_CHANNELS
        if self.vector_size > 1:
            if is_pruned(weight):
                return "it is pruned, and vectors would not keep its zeros"
            if weight.input_axis is None:
                return "its readers have no summed axis in common"
            if weight.shape[weight.input_axis] % self.vector_size:
                return f"vectors of {self.vector_size} do not divide its axis of {weight.shape[weight.input_axis]}"
        return None

    def prepare(self, graph: Graph, weights: Sequence[Weight], context: Context) -> Mapping[str, KnownOfLevels]:
        if not self.draws_on_data(calibration=context.calibration is not None) and self.needed() is Needs.NOTHING:
            return {}
        moments = context.observe.moments(graph, weights)
        if self.algorithm != BY_GRADIENTS:
            return {name: KnownOfLevels(each) for name, each in moments.items()}
        gradients = gradients_seen(graph, weights, context)
        return {name: KnownOfLevels(moments.get(name), each) for name, each in gradients.items()}

    def edit(self, weight: Weight, known: KnownOfLevels | None, context: Context, outcome: Outcome) -> None:
        known = known or KnownOfLevels()
        old = np.asarray(weight.values)
        kept = self._without_smallest(weight, known)
        best: tuple[Array, Encoding] | None = None
        error = math.inf
        for bits in self._bit_widths(weight):
            best = self._fitted(weight, kept, levels_of(bits) + (self.sparsity > 0), context, known.gradients.squares)
            error = relative_error(old, best[0])
            if self.target_error is not None and error <= self.target_error:
                break
        if best is None:
            outcome.skip(weight.name, f"{weight.size} values are too few for {levels_of(self.bits)} levels")
            return
        if self.target_error is not None and error > self.target_error:
            outcome.skip(weight.name, f"{self.bits:g} bits leave a relative error of {error:.2g}")
            return
        values, encoding = best
        how = known.how
        if known.moments is not None:
            found = self._by_output(weight, encoding, kept, known)
            if found is not None:
                values, encoding, error = found
                how = f", by output error{how}"
        weight.set(values, encoding)
        outcome.change(weight.name, _description(encoding) + how, bits=bits, error=error)

    def _by_output(
        self, weight: Weight, encoding: Encoding, kept: Array, known: KnownOfLevels
    ) -> tuple[Array, Encoding, float] | None:
        """Values, encoding and relative output error of the codes that cost the outputs least."""
        assert known.moments is not None
        gram = known.moments.gram
        if isinstance(encoding, VectorEncoding):
            found = round_to_vectors(weight, encoding, gram)
        else:
            assert isinstance(encoding, CodebookEncoding)
            zeros = kept == 0 if self.keep_zero or self.sparsity or is_pruned(weight) else None
            found = round_to_codebook(weight, encoding, gram, keep=zeros, reference=kept)
        if found is None or not math.isfinite(found.error):
            return None
        return found.values, found.encoding, found.error

    def _without_smallest(self, weight: Weight, known: KnownOfLevels) -> Array:
        """The values with the asked share at zero: those of smallest magnitude (Deep Compression's first step), or,
        where the inputs are known, those that the outputs miss least; the others then make up for them."""
        if not self.sparsity:
            return np.asarray(weight.values)
        seen = InputsSeen() if known.moments is None else seen_in(known.moments)
        seen = dataclasses.replace(seen, squares=known.gradients.squares)
        criterion = Criterion("auto" if seen.squares is None else BY_GRADIENTS)
        return PruningProblem(weight, seen).pruned(criterion, ShareOfAll(self.sparsity)).values

    def _bit_widths(self, weight: Weight) -> Iterator[float]:
        """The widths to try, fewest first; none for which there are more levels than values."""
        widths = [float(whole) for whole in range(1, math.ceil(self.bits))] if self.target_error is not None else []
        for bits in (*widths, self.bits):
            if levels_of(bits) < weight.size // self.vector_size:
                yield bits

    def _fitted(
        self, weight: Weight, old: Array, k: int, context: Context, counts: Array | None
    ) -> tuple[Array, Encoding]:
        """The best values at most k levels, vectors or scaled levels make of the old ones. counts: how much the error
        of each counts, None: alike."""
        if self.vector_size > 1:
            return _by_vectors(weight, old, k, self.vector_size, context)
        keep_zero = self.keep_zero or self.sparsity > 0 or is_pruned(weight)
        if self._takes_scales(weight, old, k, keep_zero):
            axis = weight.channel_axis
            assert axis is not None
            scaled = _by_scaled_levels(old, k, keep_zero, axis, counts)
            if scaled is not None:
                return scaled
        return _by_levels(old, k, keep_zero, counts)

    def _takes_scales(self, weight: Weight, old: Array, k: int, keep_zero: bool) -> bool:
        """Whether to take a scale for each channel: as asked, or where they gain more than their bytes."""
        axis = weight.channel_axis
        if self.granularity != "auto" or axis is None:
            return self.granularity == "channel"
        cost_bytes = SCALE_BYTES * weight.shape[axis] + SCALED_NODE_BYTES
        gain_bytes = scale_gain(rows_of(old, axis), k, keep_zero=keep_zero) * weight.size / 8
        return gain_bytes > cost_bytes


def levels_of(bits: float) -> int:
    """The levels that so many bits tell apart: 3.5 -> 11. Several such codes are stored as one number."""
    return int(2**bits + 1e-9)


def _by_levels(old: Array, k: int, keep_zero: bool, counts: Array | None) -> tuple[Array, Encoding]:
    compute = compute_dtype(old.dtype)
    if counts is None:
        found = fit_codebook(old, k, keep_zero=keep_zero)
    else:
        found = fit_weighted_codebook(old, counts, k, keep_zero=keep_zero)
    levels = found.astype(old.dtype).astype(compute)
    encoding = CodebookEncoding(dtype=str(old.dtype), codebook=np.unique(levels).astype(old.dtype))
    return encoding.decode(encoding.nearest(old), old.shape), encoding


def _by_scaled_levels(
    old: Array, k: int, keep_zero: bool, axis: int, counts: Array | None
) -> tuple[Array, Encoding] | None:
    """None where the type is too coarse for the codes to be found again."""
    rows = rows_of(old, axis)
    if counts is None:
        scale, levels = fit_scaled_codebook(rows, k, keep_zero=keep_zero)
    else:
        scale, levels = fit_weighted_scaled_codebook(rows, rows_of(counts, axis), k, keep_zero=keep_zero)
    encoding = CodebookEncoding(
        dtype=str(old.dtype), codebook=levels, scale=along_axis(scale, axis, old.ndim), axis=axis
    )
    values = decoded(encoding, old)
    return None if values is None else (values, encoding)


def _by_vectors(weight: Weight, old: Array, k: int, vector_size: int, context: Context) -> tuple[Array, Encoding]:
    axis = weight.input_axis
    assert axis is not None
    rows = np.moveaxis(old, axis, -1).reshape(-1, vector_size)
    seed = int(context.rng(weight.name).integers(2**31))
    book = fit_vector_codebook(rows, k, seed=seed).astype(old.dtype)
    distinct = np.unique(book.astype(compute_dtype(old.dtype)), axis=0).astype(old.dtype)
    encoding = VectorEncoding(dtype=str(old.dtype), codebook=distinct, axis=axis)
    return encoding.decode(encoding.nearest(old), old.shape), encoding


def _description(encoding: Encoding) -> str:
    if isinstance(encoding, VectorEncoding):
        return f"{encoding.level_count} vectors of {encoding.codebook.shape[1]}"
    scaled = isinstance(encoding, CodebookEncoding) and encoding.scale is not None
    return f"{encoding.level_count} levels{' times a scale per channel' if scaled else ''}"
