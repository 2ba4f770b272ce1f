"""What every step that may lose something is held to: the time budget, its nodes' own outputs, the speed it claims."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol, TypeVar

from onnxcomp.clock import clock
from onnxcomp.contract import Pass
from onnxcomp.model import Model
from onnxcomp.pipeline.costs import latency_ratio
from onnxcomp.pipeline.model_search.tournament import MIN_SPEEDUP
from onnxcomp.pipeline.run import Run
from onnxcomp.receipt import StepReport
from onnxcomp.recipe import Step
from onnxcomp.verify import DEFAULT_MAX_DIVERGENCE
from onnxcomp.verify.guard import MAX_NODE_ERROR, Guard

NAMED_NODES = 3  # whose errors a step's account shows

S = TypeVar("S", bound=Step)
S_contra = TypeVar("S_contra", bound=Step, contravariant=True)
Once = Callable[[S, Run, float], None]
"""Does a step; its last argument is when the step began."""


class Mildly(Protocol[S_contra]):
    """Does a step as ``Once`` does, with little error in each of the named weights."""

    def __call__(self, step: S_contra, run: Run, started: float, /, *, held: Collection[str]) -> None: ...


def judged(
    step: S, run: Run, once: Once[S], *, even_late: bool = False, mildly: Mildly[S] | None = None
) -> None:
    """Do a step that may lose something, if there is time; where it makes the outputs of single nodes wrong, once more
    with little error in the weights of these nodes, where the step can be done so (``mildly``), and then without them.
    Where nodes are wrong whose weights have little error already, what they read is: all weights get little error then.
    even_late: it does what there is always time for where there is none."""
    run.progress(0, 1, step.name)
    started = clock()
    if started > run.deadline and not even_late:
        run.receipt.missed.append(f"time: {step.name} was left out, the time budget was used up")
        return
    kept = len(run.ledger.kept)
    once(step, run, started)
    over = _off_nodes(run, kept)
    again, held = once, set[str]()
    if over and mildly is not None:
        held = set(over)
        again, over = _once_more(step, run, mildly, kept, over, held, "done once more, with little error in each")
        if over and over.keys() <= held:
            held |= _changed(run)
            fate = "done once more, with little error in all weights, since what these read is off"
            again, over = _once_more(step, run, mildly, kept, over, held, fate)
    if not over:
        return
    changed = _changed(run)
    why = _take_back(step, run, kept, over, "left as before")
    step = step.excluding(over)
    again(step, run, started)
    over = _off_nodes(run, kept)
    if over and mildly is not None and not changed - over.keys() <= held:
        fate = "done once more, with little error in all weights"
        _, over = _once_more(step, run, mildly, kept, over, held | changed, fate)
    if over:
        run.ledger.take_back(kept, why)


def _once_more(
    step: S, run: Run, mildly: Mildly[S], kept: int, over: Mapping[str, float], held: Collection[str], fate: str
) -> tuple[Once[S], dict[str, float]]:
    """Do a step anew with little error in the weights that are held: how, and whose nodes it still makes wrong."""
    _take_back(step, run, kept, over, fate)
    again: Once[S] = functools.partial(mildly, held=tuple(sorted(held)))
    again(step, run, clock())
    return again, _off_nodes(run, kept)


def _changed(run: Run) -> set[str]:
    """The weights that the last step changed."""
    return {each.name for each in run.ledger.kept[-1].report.changed}


def _take_back(step: Step, run: Run, kept: int, over: Mapping[str, float], fate: str) -> str:
    """Undo a step for the nodes that it made wrong, and say so and what becomes of them. The reason."""
    ranked = sorted(over, key=lambda name: -over[name])
    more = f" and {len(ranked) - NAMED_NODES} more" if len(ranked) > NAMED_NODES else ""
    names = ", ".join(f"{name} ({over[name]:.2f})" for name in ranked[:NAMED_NODES]) + more
    why = f"the outputs of the nodes of {names} are off by over {_most_node_error(run):.2g} of their variance"
    run.ledger.take_back(kept, why)
    run.receipt.notes.append(f"{step.name}: {why}: {fate}")
    return why


def _most_node_error(run: Run) -> float:
    """What a node's own output may be off by: more where the user allows more."""
    scale = run.verifier.limit / DEFAULT_MAX_DIVERGENCE if run.verifier.metric == "divergence" else 1.0
    return MAX_NODE_ERROR * max(1.0, scale)


def _off_nodes(run: Run, kept: int) -> dict[str, float]:
    """The weights whose nodes' own outputs became wrong by a step, which the model's outputs may not show.

    kept: how many steps were kept before it.
    """
    if run.reach is None or len(run.ledger.kept) == kept or not run.verifier.evidence.is_enough:
        return {}
    errors = Guard(run.ledger.line.watched, run.verifier.data, run.target).errors(run.current)
    report = run.ledger.kept[-1].report
    worst = sorted(errors, key=lambda name: -errors[name])[:NAMED_NODES]
    report.node_errors = {name: errors[name] for name in worst}
    touched = {each.name for each in report.changed}
    over = {name: error for name, error in errors.items() if not error <= _most_node_error(run)}
    return {name: error for name, error in over.items() if name in touched} or over


def check_speed(rewrites: Sequence[Pass], run: Run, before: Model, report: StepReport) -> None:
    """A step asked for speed that gives none on the target is taken back, whatever bytes it saves."""
    claims = [each.effect.shrinks for each in rewrites if "latency" in each.effect.shrinks]
    if not claims or not report.decision.startswith("kept"):
        return
    if run.recipe.goal != "latency" and all("bytes" in shrinks for shrinks in claims):
        return
    report.latency_ratio = latency_ratio(before, run.current, run.data, run.context.target)
    if report.latency_ratio > MIN_SPEEDUP:
        reason = f"no faster on {run.receipt.target}: latency ratio {report.latency_ratio:.2f}"
        run.ledger.take_back(len(run.ledger.kept) - 1, reason)
