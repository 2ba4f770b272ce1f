"""Leave nodes out of a rewrite that are slower by it, as measured: in the profile first, then as a whole.

A profile says what each node takes before and after, but not what the conversions at the border of integers and
floats would take if the border were elsewhere. So it only proposes: the nodes that gain least at a border, and
all that gain little. Each proposal is built and timed; the fastest is the next start, until none is faster.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from onnxcomp.clock import clock
from onnxcomp.graph.ir.reader import open_graph
from onnxcomp.graph.report.profile_segments import Segments, with_names
from onnxcomp.model import Model
from onnxcomp.pipeline.model_search.timing import Course
from onnxcomp.pipeline.model_search.tuning import Ablation

Rebuild = Callable[[Sequence[str]], Model | None]
"""The model with the rewrite at these nodes only; None where nothing is left of it."""
Tell = Callable[[int, int, str], None]


def faster_nodes(
    before: Model,
    after: Model,
    names: Sequence[str],
    rebuild: Rebuild,
    course: Course,
    tell: Tell,
    tuning: Ablation,
    deadline: float = math.inf,
) -> list[str]:
    """Those of ``names`` at which the rewrite that made ``after`` pays; all of them where leaving none out helps."""
    left = tuning.most(before.size_bytes)
    tell(0, tuning.rounds, "profiling nodes")
    segments, shares = _profiled(before, after, names, course)
    kept, model = list(names), after
    for index in range(tuning.rounds):
        proposals = _proposals(kept, segments, shares, tuning, first=index == 0)[:left]
        left -= len(proposals)
        built: dict[str, Model] = {}
        for number, proposal in enumerate(proposals):
            if clock() > deadline:
                break
            tell(number, len(proposals), "leaving out nodes that gain nothing")
            made = rebuild(proposal)
            if made is not None and course.fault(made) is None:
                built[str(number)] = made
        if not built:
            break
        ratios = course.race(model, built)
        fit = [each for each in ratios if ratios[each] <= _enough(model, built[each], tuning)]
        if not fit:
            break
        best = min(fit, key=lambda each: ratios[each])
        kept, model = proposals[int(best)], built[best]
    return kept


def _enough(model: Model, made: Model, tuning: Ablation) -> float:
    """The latency ratio to which a proposal must come down: leaving out what is stored small costs bytes."""
    return tuning.better if made.size_bytes <= tuning.growing * model.size_bytes else tuning.better_growing


def _profiled(before: Model, after: Model, names: Sequence[str], course: Course) -> tuple[Segments, dict[str, float]]:
    """The graph cut at ``names``, and for each the time of its segment after over that before."""
    segments = Segments(open_graph(before), names)
    old, new = with_names(before), with_names(after)
    spent = segments.seconds(course.profile(old))
    left = Segments(open_graph(new), names).seconds(course.profile(new))
    return segments, {name: left.get(name, 0.0) / spent[name] for name in spent if spent[name] > 0}


def _proposals(
    kept: Sequence[str], segments: Segments, shares: Mapping[str, float], tuning: Ablation, *, first: bool
) -> list[list[str]]:
    """What to keep instead of ``kept``, in several ways that differ."""
    inside = set(kept)
    slow = sorted((each for each in kept if shares.get(each, 0.0) > tuning.least_gain), key=lambda each: -shares[each])
    bordering = [each for each in slow if _is_at_border(each, inside, segments)][: tuning.bordering]
    worst = [each for each in slow if shares[each] > 1 and each not in bordering][: tuning.worst]
    behind = [group for each in slow if (group := _up_to_border(each, inside, segments))][: tuning.behind]
    out: list[set[str]] = [{each} for each in (*bordering, *worst)] + behind
    if first:
        out += [{each for each in slow if shares[each] > gain} for gain in tuning.little_gains]
    distinct = {frozenset(each): None for each in out if each}
    return [rest for each in distinct if (rest := [name for name in kept if name not in each])]


def _up_to_border(name: str, inside: set[str], segments: Segments) -> set[str]:
    """A node with the one between it and a border; empty where there is none or more."""
    for beside in (segments.sources.get(name, set()), segments.readers.get(name, set())):
        between = beside & inside
        if len(between) == 1 and all(_is_at_border(each, inside, segments) for each in between):
            return {name, *between}
    return set()


def _is_at_border(name: str, inside: set[str], segments: Segments) -> bool:
    """Whether it takes its data from nodes outside, or hands its results to such, alone."""
    return not segments.sources.get(name, set()) & inside or not segments.readers.get(name, set()) & inside
