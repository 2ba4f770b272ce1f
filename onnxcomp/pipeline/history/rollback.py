"""Take back the part of a lossy step that breaks the budget, weight by weight or node by node.

Each weight or node that the step touched is changed alone and its own divergence measured. The least
harmful are kept, as many as the whole, measured together, tolerates: errors interact, so a sum of single
errors decides nothing.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from onnxcomp.contract import Choice, Context, Outcome, Pass, SitePass, own_choice
from onnxcomp.errors import TimeIsUp
from onnxcomp.graph.weights.roles import compose
from onnxcomp.model import Model
from onnxcomp.pipeline.apply import apply_choice, only_values
from onnxcomp.receipt import Entry
from onnxcomp.verify import Verdict, Verifier

LOG = logging.getLogger(__name__)

Evaluate = Callable[[Model], float]
Again = Callable[[Choice], tuple[Model, Outcome]]
"""Does a step once more at some sites."""

GROUPS = 64  # at most so many single measurements; more names share one
FEWER = 0.75  # of what did not verify, at most this share is kept: eight attempts come down to a tenth
VERIFY_ATTEMPTS = 8  # what fails on the verification part is tried again, stricter
STRICTER = 0.7
MOST_CULPRITS = 4  # of an exact step, whose other changes are kept


@dataclass(frozen=True)
class Remainder:
    """What is left of a step.

    kept, taken: names; own: name -> divergence when it alone is changed. ``by_value``: what a weight became depends on
    the others, so replaying applies the whole step and puts these back; else the step is applied at ``kept`` only.
    """

    model: Model
    outcome: Outcome
    kept: list[str]
    taken: list[str]
    own: dict[str, float]
    by_value: bool

    def taken_entries(self) -> list[Entry]:
        """What was taken back, with the divergence that each alone made, or that each alone fails."""
        return [
            Entry(name, "taken back", {"divergence_alone": self.own[name]})
            if math.isfinite(self.own[name])
            else Entry(name, "taken back, it fails alone")
            for name in self.taken
        ]


def divergence_of(verifier: Verifier) -> Evaluate:
    """What a search asks of a model: how far it is from the original, infinite for one that fails."""
    return lambda model: verifier.check(model).quadratic_divergence


def verified_part(
    before: Model,
    after: Model,
    outcome: Outcome,
    rewrite: Pass,
    context: Context,
    verifier: Verifier,
    tuner: Verifier | None,
    again: Again | None = None,
) -> tuple[Remainder, Verdict]:
    """The largest part of a step that verifies, chosen on the calibration part where there is one, and its verdict;
    nothing is kept where none does. again: see ``take_back``. Raises TimeIsUp at the context's deadline."""
    evaluator = tuner or verifier
    limit, evaluate = evaluator.limit, divergence_of(evaluator)
    rest = take_back(before, after, outcome, rewrite, context, evaluate, limit, again=again)
    verdict = verifier.check(rest.model)
    for _ in range(VERIFY_ATTEMPTS - 1):
        if verdict.passed or not rest.kept:
            break
        limit *= STRICTER
        rest = take_back(before, after, outcome, rewrite, context, evaluate, limit, rest, again=again)
        verdict = verifier.check(rest.model)
    if rest.kept and not verdict.passed:
        rest = dataclasses.replace(rest, model=before, kept=[], taken=[*rest.kept, *rest.taken])
    return rest, verdict


def culprits(
    names: Sequence[str], holds_without: Callable[[Sequence[str]], bool], *, most_checks: float = math.inf
) -> list[str]:
    """The few changes without which a step holds, each found by bisection; none where that takes more, or all.

    most_checks: of ``holds_without``; another culprit that would take more is not looked for.
    """
    left = list(names)
    found: list[str] = []
    while len(left) > 1 and len(found) < MOST_CULPRITS:
        most_checks -= math.ceil(math.log2(len(left))) + 1
        if most_checks < 0:
            break
        low, high = 0, len(left)  # with the first of them it holds, with the others not
        while high - low > 1:
            middle = (low + high) // 2
            if holds_without([*found, *left[middle:]]):
                low = middle
            else:
                high = middle
        found.append(left.pop(low))
        if holds_without(found):
            return found
    return []


def take_back(
    before: Model,
    after: Model,
    outcome: Outcome,
    rewrite: Pass,
    context: Context,
    evaluate: Evaluate,
    limit: float,
    previous: Remainder | None = None,
    *,
    again: Again | None = None,
) -> Remainder:
    """The largest part of the step, least harmful first, whose measured divergence is at most ``limit``.

    Values are put back where a step changed no more than these: what they became alone need not be computed.
    again: does the step at some sites, where it is more than the pass alone; then no value is put back.
    previous: what an earlier call with a looser limit left and did not verify. Its single measurements are
    used again, and at most ``FEWER`` of what it kept is kept.
    """
    names = list(dict.fromkeys(each.name for each in outcome.changed))
    swapped = again is None and only_values(before, after, names)
    # Statistics of fewer tensors may differ in the last bit: what is fitted to data is repeated whole, and put back.
    fitted = rewrite.draws_on_data(calibration=context.calibration is not None)
    by_value = swapped and (fitted or not (isinstance(rewrite, SitePass) and rewrite.composes()))

    def apply(kept: Sequence[str]) -> tuple[Model, Outcome]:
        choice = own_choice(kept)
        return apply_choice(before, rewrite, choice, context) if again is None else again(choice)

    def partial(kept: Sequence[str]) -> Model:
        if not kept:
            return before
        if swapped:
            return compose(before, dict.fromkeys(kept, after))
        return apply(kept)[0]

    groups = _groups(names)
    own = _alone(groups, partial, evaluate, context) if previous is None else previous.own
    groups.sort(key=lambda group: own[group[0]])
    most = len(groups) - 1
    if previous is not None:
        most = int(FEWER * sum(group[0] in set(previous.kept) for group in groups))
    keep = _longest_prefix(groups[: most + 1], partial, evaluate, limit, context)
    kept = [name for group in groups[:keep] for name in group]
    taken = [name for group in groups[keep:] for name in group]
    LOG.info("%s: %d of %d hold within %.3g; taken back: %s", rewrite.pass_name(), len(kept), len(names), limit, taken)
    if swapped or not kept:
        return Remainder(partial(kept), outcome, kept, taken, own, by_value)
    model, rerun = apply(kept)
    return Remainder(model, rerun, kept, taken, own, by_value)


def _alone(
    groups: Sequence[Sequence[str]], partial: Callable[[Sequence[str]], Model], evaluate: Evaluate, context: Context
) -> dict[str, float]:
    """The divergence of each group's change alone, by name."""
    own: dict[str, float] = {}
    for index, group in enumerate(groups):
        _refuse_late(context)
        context.progress(index, len(groups), f"measuring {group[0]} alone")
        own |= dict.fromkeys(group, evaluate(partial(group)))
        LOG.debug("taking back: %s alone: divergence %.3g", ", ".join(group), own[group[0]])
    return own


def _refuse_late(context: Context) -> None:
    if context.is_over():
        raise TimeIsUp("the time budget was used up before the part of a step was found that holds")


def _groups(names: Sequence[str]) -> list[list[str]]:
    size = math.ceil(len(names) / GROUPS)
    return [list(names[start : start + size]) for start in range(0, len(names), size)]


def _longest_prefix(
    groups: Sequence[Sequence[str]],
    partial: Callable[[Sequence[str]], Model],
    evaluate: Evaluate,
    limit: float,
    context: Context,
) -> int:
    """By bisection: how many groups can be kept. All of them are not an answer: the whole broke the limit."""
    low, high = 0, len(groups)
    steps = max(1, math.ceil(math.log2(high + 1)))
    done = 0
    while high - low > 1:
        _refuse_late(context)
        context.progress(done, steps, "taking back what breaks the budget")
        done += 1
        middle = (low + high) // 2
        if evaluate(partial([name for group in groups[:middle] for name in group])) <= limit:
            low = middle
        else:
            high = middle
    return low
