"""What of a pass's work has to be undone since the samples show nothing of the weights that it touched.

A change is safe without data where the weight is about as near to what it was as 8 bits per channel would leave it.
What is computed by ranges of the data's activations is safe only where the data reach.
"""

from __future__ import annotations

import dataclasses
import glob
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxcomp.clock import clock
from onnxcomp.contract import Change, Choice, Context, Outcome, Pass, Skip
from onnxcomp.errors import TimeIsUp
from onnxcomp.graph.ir.nodes import Constant
from onnxcomp.graph.ir.query import constants_by_key, node_key
from onnxcomp.graph.ir.reader import Graph
from onnxcomp.graph.stored.opening import open_plain
from onnxcomp.graph.weights.roles import Weight, weights
from onnxcomp.model import Model
from onnxcomp.pipeline.apply import apply_choice, only_values
from onnxcomp.pipeline.safety.noise_bound import NoiseBound
from onnxcomp.pipeline.safety.reach import FEW_FACTOR, Reach, unreached_note
from onnxcomp.receipt import Entry
from onnxcomp.tensors import FLOAT_TYPES

LOOKED_S = 2.0  # at what samples reach, even after the deadline: else what was done would be lost
ERRORS = ("error", "relative_error")  # what passes call a weight's own error in the details of a change


@dataclass(frozen=True)
class Held:
    """A pass applied, without what the samples do not license.

    context: how to apply it again. left: changes that were left out. unreached: the weights among what these concern
    that no sample reaches; where there are none, the samples are too few.
    """

    model: Model
    outcome: Outcome
    context: Context
    left: tuple[str, ...] = ()
    unreached: tuple[str, ...] = ()

    @property
    def reason(self) -> str:
        """Why changes were left out."""
        return "no sample reaches it" if self.unreached else "so few samples license little of it"

    def entries(self) -> list[Entry]:
        """What was left out, for the receipt."""
        return [Entry(name, self.reason) for name in self.left]

    def notes(self) -> list[str]:
        """What to tell a reader."""
        return [*self.outcome.notes, *([unreached_note(self.unreached, "left as before")] if self.unreached else [])]


def apply_safely(
    model: Model, rewrite: Pass, context: Context, reach: Reach | None, choice: Choice | None = None
) -> Held:
    """Apply a pass, at a choice of sites or at all; where that harms weights that no sample reaches, apply it to the
    others only. reach: None for a run without data, whose user knows. What it gets wrong by its own account is left as
    it was."""
    after, outcome = apply_choice(model, rewrite, choice, context)
    wrong = [] if after is model else rewrite.faults(model, after)
    if wrong:
        choice, context = _without(wrong, choice, context)
        after, outcome = apply_choice(model, rewrite, choice, context)
        outcome.skipped += [Skip(name, "it came out with other values") for name in wrong]
    if reach is None or rewrite.effect.is_exact or not outcome.changed:
        return Held(after, outcome, context)
    try:
        left, unreached = _unsafe(model, after, outcome, rewrite, context, reach)
    except TimeIsUp:  # what was not looked at may not be changed
        return Held(model, Outcome(skipped=outcome.skipped, is_cut_short=True), context)
    if not left:
        return Held(after, outcome, context)
    choice, context = _without((*left, *unreached), choice, context)
    after, outcome = apply_choice(model, rewrite, choice, context)
    if set(left).intersection(each.name for each in outcome.changed):  # nothing of it can be left out
        after, outcome = model, Outcome(skipped=outcome.skipped)
    return Held(after, outcome, context, left, unreached)


def _without(names: Sequence[str], choice: Choice | None, context: Context) -> tuple[Choice | None, Context]:
    """The choice and the context without these names."""
    left = frozenset(names)
    fewer = None if choice is None else {name: fields for name, fields in choice.items() if name not in left}
    return fewer, dataclasses.replace(context, exclude=(*context.exclude, *map(glob.escape, names)))


def _unsafe(
    before: Model, after: Model, outcome: Outcome, rewrite: Pass, context: Context, reach: Reach
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The changes to leave out and the weights that no sample reaches among what they concern.

    Only weights that became worse than is safe are tried, and all that a pass rewrote by ranges of activations.
    """
    on_data = rewrite.draws_on_data(calibration=context.calibration is not None)
    by_ranges = on_data and not only_values(before, after, [each.name for each in outcome.changed])
    touched = _touched(open_plain(before), outcome, beyond=by_ranges)
    constants = constants_by_key(open_plain(after))
    factor = FEW_FACTOR if reach.few else 1.0
    doubtful = {
        change.name: [
            weight.name
            for weight in touched[change.name]
            if by_ranges or not _is_safe(weight, constants.get(weight.name), change, factor)
        ]
        for change in outcome.changed
    }
    names = {name for several in doubtful.values() for name in several}
    until = max(context.deadline, clock() + LOOKED_S)
    if reach.few and not by_ranges:
        return tuple(name for name, several in doubtful.items() if several), ()
    unreached = set() if reach.few else reach.unreached(before, sorted(names), lambda: clock() > until)
    left = tuple(name for name, several in doubtful.items() if unreached.intersection(several))
    return left, tuple(sorted(unreached))


def _touched(graph: Graph, outcome: Outcome, *, beyond: bool) -> dict[str, list[Weight]]:
    """For each change the weights that it concerns: the one of its name, those that the node of its name reads, and
    those that it names. beyond: also those of the nodes right before that node."""
    by_name = {each.name: each for each in weights(graph)}
    read: dict[int, list[Weight]] = {}
    for weight in by_name.values():
        for role in weight.roles:
            read.setdefault(id(role.node), []).append(weight)
    by_node: dict[str, list[Weight]] = {}
    for scope, node in graph.nodes():
        makers = [each for tensor in node.inputs if beyond for each in tensor.inputs]
        by_node[node_key(scope, node)] = [each for one in (node, *makers) for each in read.get(id(one), [])]
    found = {}
    for change in outcome.changed:
        named = change.details.get("weight", ())
        names = [change.name, *([named] if isinstance(named, str) else named)]
        found[change.name] = [by_name[name] for name in names if name in by_name] + by_node.get(change.name, [])
    return found


def _is_safe(weight: Weight, left: Constant | None, change: Change, factor: float) -> bool:
    """Whether the weight is about as near as 8 bits per channel: by its values, else by the pass's word. What changes a
    node whose weight stays does something that neither tells."""
    bound = NoiseBound.of(weight)
    if left is not None and left.data_type in FLOAT_TYPES and tuple(left.shape) == weight.shape:
        values = np.asarray(left.values)
        if change.name == weight.name or not np.array_equal(values, weight.values):
            return bound.allows(values.astype(weight.dtype), factor)
    error = next((change.details[key] for key in ERRORS if key in change.details), None)
    return error is not None and bound.allows_error(float(error), factor)
