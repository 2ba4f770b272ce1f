"""Apply a pass to a model, at all its sites or at a choice of them: open the graph, let the pass edit it, close it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from numpy.typing import NDArray

from onnxcomp.contract import Choice, Context, Needs, Outcome, Pass, SitePass, Survey
from onnxcomp.contract.context import AskedInEditError
from onnxcomp.errors import CalibrationError, OnnxcompError, ParameterError, PassError, TimeIsUp
from onnxcomp.graph.ir.query import constants_by_key
from onnxcomp.graph.ir.reader import Graph, close_graph, open_graph
from onnxcomp.graph.ir.untouched import GraphState, state_of
from onnxcomp.graph.stored.opening import is_stored, open_plain, show_stored
from onnxcomp.graph.weights.roles import compose
from onnxcomp.memory import uncollected
from onnxcomp.model import Model
from onnxcomp.parallel import one_thread
from onnxcomp.room import is_full
from onnxcomp.runtime import one_line

Array = NDArray[Any]

OPENED = "opened"  # what a model remembers its graph by, where a pass has left that as it was


def apply_pass(model: Model, rewrite: Pass, context: Context) -> tuple[Model, Outcome]:
    """The model after the pass, and what the pass says it did. The model handed in stays as it is.

    It sees stored weights as the constants that they decode to, unless it works on storage (``as_stored``).
    What a storing pass may store and leaves plain is plain for good: its encoding would only take bytes.
    Products run on one thread: most are so small that threads wait for each other, longer the busier the machine is.
    Where the deadline comes in the middle of what cannot be had in part, it changes nothing.
    Raises PassError, which names the pass, for whatever it does not foresee.
    """
    return _edited(model, rewrite, context, lambda graph: rewrite.apply(graph, context))


def apply_choice(model: Model, rewrite: Pass, choice: Choice | None, context: Context) -> tuple[Model, Outcome]:
    """The same with the chosen sites only, each at its fields; None: all sites at the pass's own.

    A pass without sites is limited to what the names name, and has its own fields everywhere.
    """
    if choice is None:
        return apply_pass(model, rewrite, context)
    limited = context.limited_to(choice)
    if isinstance(rewrite, SitePass):
        return _edited(model, rewrite, limited, lambda graph: rewrite.rewrite(graph, choice, context))
    if any(choice.values()):
        raise ParameterError(
            f"{rewrite.pass_name()}: fields must be the same at all sites. It has none to choose from."
        )
    return apply_pass(model, rewrite, limited)


def survey(model: Model, rewrite: SitePass, context: Context) -> Survey:
    """Where the pass can act on the model, computed as ``apply_pass`` does."""
    with foreseen(model.name, rewrite), one_thread():
        return rewrite.sites(opened_for(rewrite, model), context)


def opened_for(rewrite: Pass, model: Model) -> Graph:
    """The model opened as the pass is to see it."""
    return open_graph(model) if rewrite.as_stored else open_plain(model)


def _reopened(rewrite: Pass, model: Model) -> tuple[Graph, GraphState | None]:
    """The model opened as the pass is to see it, or what an exact pass before it opened and left as it was.

    Of an exact pass also the state, to tell whether it leaves the graph as it is; None where stored weights are shown.
    """
    graph, before = model.memo.pop(OPENED, (None, None))
    if graph is None:
        graph = open_graph(model)
    if not rewrite.as_stored:
        show_stored(graph)
    if not rewrite.effect.is_exact or graph.stored is not None:
        return graph, None
    return graph, before or state_of(graph)


def _edited(model: Model, rewrite: Pass, context: Context, edit: Callable[[Graph], Outcome]) -> tuple[Model, Outcome]:
    if rewrite.needed() is Needs.CALIBRATION and context.calibration is None:
        raise CalibrationError(f"{rewrite.pass_name()}: needs calibration data. Give it with --calib-data.")
    with uncollected() if rewrite.effect.is_exact else contextlib.nullcontext():
        graph, before = _reopened(rewrite, model)
        try:
            with foreseen(model.name, rewrite), one_thread():
                outcome = edit(graph)
        except TimeIsUp:
            return model, Outcome(is_cut_short=True)
        after = close_graph(graph) if outcome.changed else model
        if before is not None and not outcome.changed and state_of(graph) == before:
            model.memo[OPENED] = graph, before
    if rewrite.stores_encodings and after.encodings:
        kept = {name: each for name, each in after.encodings.items() if not context.selects(name)}
        after = after.with_proto(after.proto, kept)
    return after, outcome


@contextlib.contextmanager
def foreseen(where: str, rewrite: Pass) -> Iterator[None]:
    """Turn what a pass did not foresee into an error that names it."""
    try:
        yield
    except AskedInEditError as error:
        raise AskedInEditError(f"{rewrite.pass_name()}: {error}") from error
    except (OnnxcompError, MemoryError):
        raise
    except Exception as error:
        if is_full(error):
            raise
        name = rewrite.pass_name()
        raise PassError(f"{name}: failed on {where}: {type(error).__name__}: {one_line(error)}") from error


def only_values(before: Model, after: Model, names: Iterable[str]) -> bool:
    """Whether a rewrite changed these weights' values and left the graph as it was, with no more of them stored."""
    old, new = constants_by_key(open_plain(before)), constants_by_key(open_plain(after))
    return old.keys() == new.keys() and all(
        name in new
        and tuple(new[name].shape) == tuple(old[name].shape)
        and new[name].data_type == old[name].data_type
        and is_stored(new[name]) <= is_stored(old[name])
        for name in names
    )


def put_back(after: Model, before: Model, names: Iterable[str], changed: Iterable[str]) -> Model:
    """What a step left that changed values only, with the named weights as they were, and stored as they were.

    changed: all weights that the step changed.
    """
    left = set(names)
    return compose(before, {each: after for each in changed if each not in left})
