"""A constant matrix becomes two of lower rank, with the activation between them.

    y = x @ W            ->   y = (x @ L) @ R          W: (m, n), L: (m, r), R: (r, n)
    y = W @ x            ->   y = L @ (R @ x)
    y = a * x @ W + b    ->   y = a * (x @ L) @ R + b  (Gemm, in all transpositions)
    y = Conv1x1(x, W)    ->   y = Conv1x1(Conv1x1(x, R), L)
    y = W[ids]           ->   y = L[ids] @ R
    y = LSTM(x, W, ..)   ->   y = LSTM(x @ R, L, ..)   GRU and RNN too

Bytes and multiplications go from m * n to r * (m + n). The product of the factors is never formed:
ONNX Runtime would fold it back to W.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxcomp.contract import Context, Effect, Exact, Fields, Option, Outcome, Quantity, parameter
from onnxcomp.contract.factor_pass import FactorPass, SeenInputs, Splittable, shift_bias
from onnxcomp.contract.split_times import TimedWay
from onnxcomp.graph.factors.places import Place, place_of_weight, put_factors
from onnxcomp.graph.infer.shapes import infer_shapes
from onnxcomp.graph.ir.nodes import Array
from onnxcomp.graph.ir.reader import Graph
from onnxcomp.graph.report.macs import count_macs
from onnxcomp.graph.weights.roles import Weight
from onnxcomp.numerics.encodings.encoding import Encoding
from onnxcomp.numerics.encodings.storage_options import DECODER_BYTES, SCALE_BYTES
from onnxcomp.numerics.structure.coded_factors import (
    CodedFactor,
    coded_bytes,
    coded_factors,
    directions,
    mean_feedback,
    outer_bits,
    rounding_error,
)
from onnxcomp.numerics.structure.lowrank import (
    PlainSpectrum,
    Spectrum,
    TwoSidedSpectrum,
    rank_for,
    singular_values,
    truncated_svd,
)

RANK_STEP = 16  # a rank of C/4 + 1 costs 20 to 42% more time than C/4: the kernels work on 16 columns
ROUNDED_FROM = 4 * RANK_STEP  # full rank from which a rank is rounded; below, a step would be too coarse
MOST_RANKS = 16  # to choose from, evenly apart
FINE_BELOW = 512  # full rank up to which ranks within one share for all are finer than the step, so many in all:
FINE_RANKS = 48
LEAST_RANK = 4  # to which the least of these is halved: columns are wasted, bytes are not


@dataclass(frozen=True, kw_only=True)
class FactorizeLinear(FactorPass):
    """Split the weights of products, 1 x 1 convolutions, embeddings and recurrent inputs into two of lower rank.

    With calibration data the factors are those of least error at the node's outputs, and a bias makes up for what
    their means lose; without, and where inputs cannot be seen, of least error in the weight. Rows of an embedding
    count by how often they are looked up. A weight is left alone where the factors would not be smaller and where its
    nodes use it in different ways. ``rank``, ``energy``, ``weights``, ``macs`` or ``latency``, where given, takes the
    place of ``ratio``. With ``bits`` the factors are rounded to grids by output error, the second one anew for the
    first, and keep their codes; stacked factors stay floats. Deviations from the paper: the second moments are shrunk
    towards the identity, by as much as the number of samples asks for, and are those of the inputs around their mean
    where a bias can be moved.
    """

    effect = Effect(shrinks=("bytes", "latency"), exact=Exact.NOWHERE)
    paper = "https://arxiv.org/abs/2403.07378"

    ratio: float = parameter(
        0.25,
        low=0.0,
        high=1.0,
        strengths=(0.4375, 0.375, 0.3125, 0.25, 0.1875, 0.125),
        help="rank as a share of the full rank",
    )
    rank: int | None = parameter(None, low=1, help="rank of every factored matrix")
    energy: float | None = parameter(
        None, low=0.0, high=1.0, help="share of the squared singular values kept, weighed where errors are"
    )
    output_weighting: str = parameter(
        "alike",
        choices=("alike", "fisher"),
        help="how errors of a weight's outputs count: alike, or by what gradients say that the model minds of them",
    )
    bits: int | None = parameter(
        None, low=2, high=8, help="of the codes that factors are rounded to, two more for the one that reads the other"
    )

    @property
    def by_gradients(self) -> bool:
        return self.output_weighting == "fisher"

    def place(self, weight: Weight) -> Place | str | None:
        return place_of_weight(weight)

    def costs(self, places: Sequence[Splittable], graph: Graph) -> Mapping[str, Mapping[Quantity, float]]:
        return {
            each.name: {Quantity.BYTES: each.weight.size_bytes, Quantity.MACS: total}
            for each, (total, _) in _macs(places, graph)
        }

    def options(
        self,
        place: Splittable,
        costs: Mapping[Quantity, float],
        inputs: SeenInputs | None,
        context: Context,
        graph: Graph,
        *,
        fine: bool = False,
    ) -> list[Option]:
        assert isinstance(place, Place)
        most = place.largest_rank
        if self.rank is not None or self.energy is not None:
            wanted: dict[int, Fields] = {self._rank(place, inputs, graph): {}}
        else:
            step = _fine_step(place.full_rank) if fine or self.bits is not None else 0
            wanted = {rank: {"rank": rank} for rank in _ladder(most, place.full_rank, step=step)}
        able = {rank: fields for rank, fields in wanted.items() if rank <= most}
        if not able:
            return []
        spectrum = _spectrum(place, inputs, graph)
        [(_, (_, per_value))] = _macs([place], graph)
        added = (lambda rank: 0.0) if self.bits is None else _rounding(place, inputs, graph, self.bits)
        return [
            Option(
                fields,
                {Quantity.BYTES: self._bytes_of(place, rank), Quantity.MACS: per_value * place.values_of(rank)},
                spectrum.error(rank) + added(rank),
            )
            for rank, fields in able.items()
        ]

    def splits(
        self,
        place: Splittable,
        costs: Mapping[Quantity, float],
        inputs: SeenInputs | None,
        context: Context,
        graph: Graph,
    ) -> list[tuple[Option, TimedWay]]:
        options = self.options(place, costs, inputs, context, graph)
        return [(each, TimedWay("", each.fields["rank"], _putting(each.fields["rank"]))) for each in options]

    def split(
        self, graph: Graph, place: Splittable, inputs: SeenInputs | None, context: Context, outcome: Outcome
    ) -> None:
        assert isinstance(place, Place)
        weight, matrices = place.weight, place.matrices
        rank = self._rank(place, inputs, graph)
        if place.bytes_of(rank) >= weight.size_bytes:
            outcome.skip(weight.name, f"factors of rank {rank} are not smaller than {weight.shape}")
            return
        if inputs is None:
            left, right = _plain_factors(place, rank, context.seed, graph)
            error, how = _relative_error(matrices, left, right), ""
        else:
            spectrum = _spectrum(place, inputs, graph)
            left, right = spectrum.factors(matrices, rank)  # type: ignore[union-attr]
            error, how = float(np.sqrt(spectrum.error(rank))), ", by output error"
            if self.by_gradients:
                how += f", without gradients: {inputs.lack}" if inputs.outputs is None else " as gradients weigh it"
        if not (np.isfinite(left).all() and np.isfinite(right).all()):
            outcome.skip(weight.name, f"its factors are not finite in {weight.dtype}")
            return
        encodings: list[Encoding] = []
        if self.bits is not None and (coded := _coded(place, (left, right), inputs, self.bits)) is not None:
            encodings, (left, right) = [each.encoding for each in coded], (each.values[None] for each in coded)
            error, how = _error(place, left, right, inputs), f"{how}, in {self.bits} and {outer_bits(self.bits)} bits"
        put_factors(graph, place, left, right, encodings)
        if inputs is not None and inputs.is_centered:
            shift_bias(graph, place, inputs, matrices.astype(np.float64) - np.matmul(left, right, dtype=np.float64))
        outcome.change(
            weight.name,
            f"two factors of rank {rank}{how}",
            rank=rank,
            shape=list(weight.shape),
            relative_error=error,
            nodes=list(weight.node_names),
        )

    def _bytes_of(self, place: Place, rank: int) -> int:
        """What factors and their nodes take in the file, with the decoders where they are codes."""
        groups, outputs, length = place.matrices.shape
        if self.bits is None or groups > 1:
            return place.bytes_of(rank)
        return coded_bytes(outputs, length, rank, self.bits) + place.node_bytes + 2 * (DECODER_BYTES + SCALE_BYTES)

    def _rank(self, place: Place, inputs: SeenInputs | None, graph: Graph) -> int:
        full = place.full_rank
        if self.rank is not None:
            return min(self.rank, full)
        if self.energy is None:
            return _rounded(round(self.ratio * full), full)
        if inputs is not None:
            exact = _spectrum(place, inputs, graph).rank_for(self.energy)
        else:
            power = sum(np.square(singular_values(each).astype(np.float64)) for each in place.matrices)
            exact = rank_for(np.sqrt(power), energy=self.energy)
        return min(full, -(-exact // RANK_STEP) * RANK_STEP) if full >= ROUNDED_FROM else exact


def _putting(rank: int) -> Callable[[Graph], bool]:
    """What puts factors of a rank, of any values, into the graph of one node."""

    def put(graph: Graph) -> bool:
        found = [each for each in map(place_of_weight, _weights(graph)) if isinstance(each, Place)]
        for place in found[:1]:
            groups, outputs, length = place.matrices.shape
            sizes = (groups, outputs, rank), (groups, rank, length)
            left, right = (np.full(each, 1 / rank, place.weight.dtype) for each in sizes)
            put_factors(graph, place, left, right, [])
        return len(found) == 1

    return put


def _macs(places: Sequence[Splittable], graph: Graph) -> list[tuple[Place, tuple[float, float]]]:
    """Of each place the multiply-accumulates as it is, and those of one value of its factors."""
    key = count_macs, "factors"
    if key not in graph.model.memo:
        shapes = infer_shapes(graph, batch=1)
        counted = count_macs(graph, shapes)
        graph.model.memo[key] = {
            place.name: place.macs(counted, shapes)
            for place in map(place_of_weight, _weights(graph))
            if isinstance(place, Place)
        }
    known = graph.model.memo[key]
    return [(each, known[each.name]) for each in places if isinstance(each, Place)]


def _weights(graph: Graph) -> list[Weight]:
    from onnxcomp.graph.weights.roles import weights

    return weights(graph)


def _spectrum(place: Place, inputs: SeenInputs | None, graph: Graph) -> PlainSpectrum | Spectrum | TwoSidedSpectrum:
    """The decomposition of a place, which the model remembers."""
    key = _key(place, inputs)
    memo = graph.model.memo
    if key not in memo:
        most = place.largest_rank
        matrices = place.matrices
        if inputs is None:
            memo[key] = PlainSpectrum(matrices, most)
        elif inputs.outputs is None:
            memo[key] = Spectrum(matrices, inputs.weights, most)
        else:
            memo[key] = TwoSidedSpectrum(matrices, inputs.weights, inputs.outputs, most)
    found: PlainSpectrum | Spectrum | TwoSidedSpectrum = memo[key]
    return found


def _key(place: Place, inputs: SeenInputs | None) -> tuple[object, ...]:
    return Spectrum, place.name, None if inputs is None else inputs.key


def _moment(place: Place, inputs: SeenInputs | None) -> Array:
    """By what errors in the one matrix of a place are weighed."""
    return np.ones(place.matrices.shape[2]) if inputs is None else inputs.weights[0]


def _rounding(place: Place, inputs: SeenInputs | None, graph: Graph, bits: int) -> Callable[[int], float]:
    """What rounding factors of a rank to so many bits adds to the error."""
    if len(place.matrices) > 1:
        return lambda rank: 0.0  # they stay floats
    key = (_rounding, *_key(place, inputs))
    memo = graph.model.memo
    if key not in memo:
        moment = _moment(place, inputs)
        memo[key] = (*directions(place.matrices[0], moment), mean_feedback(moment))
    powers, norms, feedback = memo[key]
    return lambda rank: rounding_error(powers, norms, rank, feedback, bits)


def _coded(
    place: Place, factors: tuple[Array, Array], inputs: SeenInputs | None, bits: int
) -> list[CodedFactor] | None:
    """Both factors on grids; None where there are several of each, or a grid is too fine for their type."""
    left, right = factors
    if len(left) > 1:
        return None
    return coded_factors(place.matrices[0], (left[0], right[0]), _moment(place, inputs), bits)


def _error(place: Place, left: Array, right: Array, inputs: SeenInputs | None) -> float:
    """The relative error of the outputs by factors of a place's one matrix."""
    moment = _moment(place, inputs)
    old = place.matrices.astype(np.float64)[0]
    lost = old - np.matmul(left[0], right[0], dtype=np.float64)
    power, error = (
        float(np.sum((each * moment if moment.ndim == 1 else each @ moment) * each)) for each in (old, lost)
    )
    return float(np.sqrt(error / power)) if power > 0 else 0.0


def _plain_factors(place: Place, rank: int, seed: int, graph: Graph) -> tuple[Array, Array]:
    """Of least error in the weight; what a survey decomposed is taken where it reaches, and changes no bit."""
    known = graph.model.memo.get(_key(place, None))
    parts = [
        truncated_svd(each, rank, seed=seed, known=None if known is None else known.parts[at])
        for at, each in enumerate(place.matrices)
    ]
    left, right = (np.stack(each) for each in zip(*parts, strict=True))
    return left, right


def _ladder(most: int, full: int, *, step: int = 0) -> list[int]:
    """Ranks to choose from, the largest first: evenly apart, then halved. step: 0 for few of them."""
    if not step:
        step = RANK_STEP if full >= ROUNDED_FROM else 1
        step *= max(1, -(-most // (step * MOST_RANKS)))
    ranks = list(range(most // step * step, 0, -step)) or [step]
    while ranks[-1] > LEAST_RANK:
        ranks.append(ranks[-1] // 2)
    return ranks


def _fine_step(full: int) -> int:
    """Of ranks within one share for all: wide enough for the kernels where that costs little of the share."""
    return RANK_STEP if full >= FINE_BELOW else max(1, full // FINE_RANKS)


def _rounded(rank: int, full: int) -> int:
    if full < ROUNDED_FROM:
        return max(1, rank)
    return max(RANK_STEP, round(rank / RANK_STEP) * RANK_STEP)


def _relative_error(matrices: Array, left: Array, right: Array) -> float:
    """Norm of W - LR over the norm of W, some rows at a time."""
    error = power = 0.0
    step = max(1, 2**22 // max(1, matrices.shape[2]))
    for matrix, own, other in zip(matrices, left, right, strict=True):
        for start in range(0, matrix.shape[0], step):
            part = matrix[start : start + step].astype(np.float32)
            rest = part - own[start : start + step].astype(np.float32) @ other.astype(np.float32)
            error += float(np.sum(np.square(rest, dtype=np.float64)))
            power += float(np.sum(np.square(part, dtype=np.float64)))
    return float(np.sqrt(error / power)) if power else 0.0
