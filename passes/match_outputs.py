"""Weights take other codes on levels of their own, node after node, each making up for what came before it.

    original:  y = W x           changed so far:  y' = Q x'
    Q <- levels nearest to  W C G^-1  in the sense of G,   G = E[x' x'^T],  C = E[x x'^T]

A weight that was rounded or clustered keeps its form and its number of levels; codes, scales and the values of a
codebook are found anew. The nodes are taken in order, so that the errors of one are seen by the next. The other way
(``towards``) is  Q <- levels nearest to W  in the sense of the same G: it makes up for nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxcomp.calibration.statistics.paired import PairedMoments
from onnxcomp.calibration.statistics.paired_stages import Answer
from onnxcomp.contract import Context, Effect, Exact, Needs, Outcome, SelectingPass, Site, Structure, Survey, parameter
from onnxcomp.graph.ir.nodes import Array
from onnxcomp.graph.ir.reader import Graph
from onnxcomp.graph.provenance import Reference
from onnxcomp.graph.rounding.codebook import round_in_turn, round_to_vectors
from onnxcomp.graph.rounding.coded_grid import round_for_coding
from onnxcomp.graph.rounding.grid import Rounded
from onnxcomp.graph.weights.matrix_form import MatrixForm, matrix_form, worth_moments
from onnxcomp.graph.weights.roles import Weight, weights
from onnxcomp.graph.weights.value_pass import editable_weights, is_pruned
from onnxcomp.numerics.encodings.encoding import CodebookEncoding, Encoding, GridEncoding, VectorEncoding
from onnxcomp.numerics.metrics.weight_error import relative_error
from onnxcomp.numerics.rounding.gram import CAUTIOUS_SHRINKAGE, best_weights, relative_output_error, shrunk
from onnxcomp.numerics.structure.masked_least_squares import best_under_mask

UNLIKE = 1.0  # squared error relative to the original's weight: beyond, it is no rounded form of that
LEAST_CHANGE = 1e-9  # of the output's power: what a weight without levels is worth moving for
UNKNOWN = "its values from before are not known"
NO_NEARER = "no other choice of its levels brings its outputs nearer"
TOO_LATE = "the time budget was used up"
LEVELLED = (CodebookEncoding, GridEncoding, VectorEncoding)
MASKED_SHARE = 0.4  # of zeros: from here on they are what makes the weight small, and stay


@dataclass(frozen=True, kw_only=True)
class MatchOutputs(SelectingPass):
    """Round weights anew, in order, so that their nodes' outputs match the original's from inputs as they now are.

    Needs the model from before the weights were rounded, as the steps of a recipe have it. Weights without levels
    take whatever values match best; those that are pruned keep their zeros. Left alone are weights in subgraphs, whose
    inputs cannot be seen. Deviations from the paper: levels and scales are fitted along with the codes, and codes are
    improved by coordinate descent. Making up for what came before helps convolutional networks and hurts where its
    error also comes along beside the node, as in a transformer's residual stream: a search finds out by samples that it
    holds out.
    """

    needs = Needs.CALIBRATION
    effect = Effect(shrinks=("bytes",), exact=Exact.NOWHERE)
    paper = "https://arxiv.org/abs/2504.02692"
    makes = frozenset({Structure.LEVELS})
    destroys = frozenset({Structure.COMPACT})

    towards: str = parameter(
        "auto",
        choices=("auto", "outputs", "weights"),
        help="what values are to be near: those that give the original's outputs from inputs as they now are, or the "
        "original's; auto: in a search what is better on samples held out, else outputs",
    )
    free: bool = parameter(True, help="move weights that have no levels, too")
    trade: float = parameter(
        0.0, low=0.0, high=64.0, help="for packing, as of quantize-rate-distortion: error that a bit saved may cost"
    )
    rounds: int = parameter(1, low=1, high=8, help="times that all nodes are gone through")

    def ways(self) -> Sequence[MatchOutputs]:
        if self.towards != "auto":
            return (self,)
        return tuple(replace(self, towards=each) for each in ("outputs", "weights"))

    def sites(self, graph: Graph, context: Context) -> Survey:
        outcome = Outcome()
        if context.reference is None:
            outcome.skip(graph.model.name, "the model from before its weights were rounded is not known")
            return Survey((), tuple(outcome.skipped))
        found = self._candidates(graph, context.reference, context, outcome)
        return Survey(tuple(Site(each) for each in found), tuple(outcome.skipped))

    def edit(self, graph: Graph, context: Context) -> Outcome:
        outcome = Outcome()
        found = {} if context.reference is None else self._candidates(graph, context.reference, context, outcome)
        errors = self._matched(graph, found, context, outcome) if found else {}
        for name in found:
            if name in errors:
                outcome.change(name, "its levels chosen in turn", error=errors[name])
            else:
                outcome.skip(name, TOO_LATE if outcome.is_cut_short else NO_NEARER)
        return outcome

    def _matched(
        self, graph: Graph, found: Mapping[str, Array], context: Context, outcome: Outcome
    ) -> dict[str, float]:
        """Round weights anew, stage by stage, for what their nodes read by then; the errors of those that changed."""
        assert context.reference is not None
        stages = context.observe.paired_stages(context.reference, graph, found, jobs=context.jobs)
        present = {each.name: each for each in weights(graph)}
        turns = [index for index, names in enumerate(stages.by_stage) if names] * self.rounds
        errors: dict[str, float] = {}
        for done, index in enumerate(turns):
            if context.is_over():
                outcome.is_cut_short = True
                break
            context.progress(done, len(turns), f"matching {stages.by_stage[index][0]}")
            solve = Rounding(self.towards != "weights", self.trade)
            for name, answer in stages.solved(index, solve).items():
                if answer is not None and not np.array_equal(answer[0], present[name].values):
                    values, encoding, errors[name], _ = answer
                    present[name].set(values, encoding)
        return errors

    def _candidates(
        self, graph: Graph, reference: Reference, context: Context, outcome: Outcome
    ) -> Mapping[str, Array]:
        """The values from before of each weight that may move, by name; the others are skipped with the reason."""
        found: dict[str, Array] = {}
        for weight in editable_weights(graph, selects=context.selects, skip=outcome.skip, progress=context.progress):
            before = reference.constant(weight.name)
            reason = self._obstacle(weight, graph, before)
            if reason is not None or before is None:
                outcome.skip(weight.name, reason or UNKNOWN)
            else:
                found[weight.name] = before
        return found

    def _obstacle(self, weight: Weight, graph: Graph, before: Array | None) -> str | None:
        """Why the weight is left alone, or None. before: what it was in the original, None where there is none."""
        if not isinstance(weight.encoding, LEVELLED) and not (self.free and _is_free(weight)):
            return "it has no levels"
        if weight.scope is not graph.main or matrix_form(weight) is None:
            return "its inputs cannot be seen"
        if not worth_moments(weight):
            return "it has too many inputs for its size"
        if before is None or tuple(before.shape) != weight.shape or before.dtype != weight.dtype:
            return UNKNOWN
        if not relative_error(before, np.asarray(weight.values)) < UNLIKE:
            return "it is no rounded form of the original's weight of that name"
        return None


@dataclass(frozen=True)
class Rounding:
    """A weight rounded anew.

    compensates: towards what gives the original's outputs from the inputs as they now are; else towards the original's
    values, as the inputs now are, and weights without levels stay. trade: see ``likelier_codes``; 0 for least error.
    """

    compensates: bool
    trade: float

    def __call__(self, weight: Weight, before: Array, moments: PairedMoments) -> Answer:
        """Values on the weight's levels where it has some, with encoding and relative output error; None where there is
        nothing to gain."""
        form = matrix_form(weight)
        assert form is not None
        if self.compensates:
            wanted = best_weights(form.pack(before), moments.gram, moments.cross)
            return _nearest(weight, wanted, moments, self.trade)
        return None if weight.encoding is None else _nearest(weight, form.pack(before), moments, self.trade)


def _nearest(weight: Weight, wanted: Array, moments: PairedMoments, trade: float) -> Answer:
    """wanted: matrices (groups, outputs, K)."""
    form, encoding = matrix_form(weight), weight.encoding
    assert form is not None
    reference = form.unpack(wanted).astype(weight.dtype)
    if not np.isfinite(reference).all():
        return None
    if _is_free(weight):
        return _of_free_values(weight, form, wanted, moments.gram)
    assert encoding is not None
    found = _on_levels(weight, encoding, reference, moments.gram, trade)
    return None if found is None else (found.values, found.encoding, found.error, None)


def _is_free(weight: Weight) -> bool:
    """Whether its values, other than its zeros, may be any."""
    return weight.encoding is None or is_pruned(weight)


def _of_free_values(weight: Weight, form: MatrixForm, wanted: Array, gram: Array) -> Answer:
    """The values wanted, or the best of those that keep the zeros of a pruned weight."""
    present, moment = form.pack(np.asarray(weight.values)), shrunk(gram, CAUTIOUS_SHRINKAGE)
    kept = present != 0
    is_masked = is_pruned(weight) or kept.mean() < 1 - MASKED_SHARE
    found = best_under_mask(wanted, moment, kept) if is_masked else wanted
    power = relative_output_error(wanted, np.zeros_like(wanted), moment)
    gained = relative_output_error(wanted, present, moment) - relative_output_error(wanted, found, moment)
    if not gained > LEAST_CHANGE * power:
        return None
    values = form.unpack(found).astype(weight.dtype)
    return values, weight.encoding, relative_output_error(wanted, found, moment), None


def _on_levels(
    weight: Weight, encoding: Encoding, reference: Array, gram: Array, trade: float
) -> Rounded | None:
    if isinstance(encoding, VectorEncoding):
        return round_to_vectors(weight, encoding, gram, reference=reference)
    assert isinstance(encoding, CodebookEncoding | GridEncoding)
    zeros = np.asarray(weight.values) == 0
    if trade:
        return round_for_coding(weight, encoding, trade, gram, reference=reference)
    return round_in_turn(weight, encoding, reference, gram, keep=zeros if zeros.mean() > MASKED_SHARE else None)
