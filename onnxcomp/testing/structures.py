"""Checks of what tensors were and of what weights are made of: origins, and structures made and destroyed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import numpy as np

from onnxcomp.contract import Exact, Structure
from onnxcomp.errors import OnnxcompError
from onnxcomp.graph.extract import up_to
from onnxcomp.graph.ir.nodes import Array
from onnxcomp.graph.ir.reader import close_graph, open_graph
from onnxcomp.graph.provenance import Reference
from onnxcomp.graph.rounding.grid import GridSpec, round_to_grid
from onnxcomp.graph.weights.roles import Weight, weights
from onnxcomp.model import Model, load
from onnxcomp.numerics.encodings.encoding import MaskEncoding
from onnxcomp.runtime import Session
from onnxcomp.testing.applying import Applied, apply
from onnxcomp.testing.comparing import Feeds, differences, rounding_of
from onnxcomp.testing.promises import SHAPED_BY_VALUES
from onnxcomp.testing.results import constants_of
from onnxcomp.testing.rules import Rule
from onnxcomp.testing.trial import Sample, Trial, attempt

ORIGINS = Rule(
    "origins",
    "a tensor that keeps its name is what it was, but for what outcome.origins says of it",
    "note each tensor that is cut, widened or rescaled: outcome.origins[key] = Origin(key, rank, kept=..., factor=...) "
    "or Origin(None) where that cannot be said; or give the tensor another name",
)
TENSORS = Rule(
    "exact tensors",
    "effect.exact is TENSORS: every tensor that keeps its name holds what it held",
    "declare Exact.OUTPUTS and note the tensors in outcome.origins, or give them other names",
)
MADE = Rule(
    "structures made",
    "makes names what later passes could destroy: zeros behind a MaskEncoding, levels behind any other encoding",
    "name them on the class: makes = frozenset({Structure.ZEROS}), with Structure.LEVELS or both of them",
)
DESTROYED = Rule(
    "structures destroyed",
    "zeros and levels that an earlier pass made stay, unless destroys names them",
    "leave such weights alone or as they are (weight.encoding says how they are made), or declare "
    "destroys = frozenset({Structure.ZEROS}) or the like on the class",
)
BITS = 2  # of the grid that weights are put on, so that a pass can destroy it


def check_origins(trial: Trial) -> None:
    """Inner tensors and constants that keep their names are what they were, in the sizes and units of now."""
    for sample, done in trial.applications(7):
        if done.outcome.changed:
            before, after = (_tensors(each, sample.feeds) for each in (done.before, done.after))
            _expect_as_told(trial, sample, done, before, after)


def _expect_as_told(
    trial: Trial, sample: Sample, done: Applied, before: Mapping[str, Array], after: Mapping[str, Array]
) -> None:
    effect = trial.kind.effect
    reference = Reference(done.before, done.outcome.origins)
    told = {name: reference.as_now(name, value) for name, value in before.items() if name in after}
    known = {name: value for name, value in told.items() if value is not None}
    shaped_by_values = any(node.op_type in SHAPED_BY_VALUES for node in sample.proto.graph.node)
    if not effect.is_exact and not shaped_by_values:
        odd = [name for name, value in known.items() if value.shape != after[name].shape]
        ORIGINS.expect(not odd, trial.kind, f"{odd} have another shape, of which nothing is said, {sample.name}")
    elif effect.is_exact:
        now = {name: after[name] for name in known}
        odd = differences(known, now, rtol=rounding_of(sample.proto))
        rule = TENSORS if effect.exact is Exact.TENSORS else ORIGINS
        rule.expect(not odd, trial.kind, f"{odd} hold something else, of which nothing is said, {sample.name}")


def _tensors(model: Model, feeds: Feeds) -> dict[str, Array]:
    """What the tensors of the main graph hold, constants included; without sequences and optional values."""
    names = [name for node in model.proto.graph.node if node.op_type != "Constant" for name in node.output if name]
    try:
        found = Session(up_to(model, names).to_bytes(), optimization="none").run(feeds)
    except OnnxcompError:  # some operators do not run where all their outputs are asked for
        found = {}
    arrays = {name: value for name, value in found.items() if isinstance(value, np.ndarray)}
    return arrays | constants_of(model)


def check_structures_made(trial: Trial) -> None:
    """Encodings that the pass leaves behind are of structures that it says it makes."""
    for sample, done in trial.applications(3):
        for key, encoding in done.after.encodings.items():
            made = Structure.ZEROS if encoding.values_are_free else Structure.LEVELS
            found = f"the {encoding.kind} encoding of {key} is {made.name}, which makes does not name, {sample.name}"
            MADE.expect(made in trial.kind.makes, trial.kind, found)


def check_structures_destroyed(trial: Trial) -> None:
    """Weights that were pruned, or put on few levels, stay so."""
    for structure, prepare, is_kept in PREPARED:
        if structure in trial.kind.destroys:
            continue
        for sample in trial.some(11):
            prepared = _prepared(sample, prepare)
            done = attempt(trial.eagerest, sample.name, partial(apply, prepared, trial.eagerest, sample.feeds))
            now = constants_of(done.after)
            for key, old in _pairs(done, now):
                found = f"{key} had {structure.name} that are gone, {sample.name}"
                DESTROYED.expect(is_kept(key, old, now[key], done), trial.kind, found)


def _prepared(sample: Sample, prepare: Callable[[Weight], None]) -> Model:
    """The sample with a structure in all weights that can have it."""
    graph = open_graph(load(sample.proto))
    for weight in weights(graph):
        prepare(weight)
    return close_graph(graph)


def _pairs(done: Applied, now: Mapping[str, Array]) -> Iterator[tuple[str, Array]]:
    """The prepared weights that keep name and shape, with their values before."""
    before = constants_of(done.before)
    return ((key, before[key]) for key in done.before.encodings if key in now and now[key].shape == before[key].shape)


def _prune(weight: Weight) -> None:
    values = np.array(weight.values)
    values.reshape(-1)[::2] = 0
    weight.set(values, MaskEncoding(dtype=str(weight.dtype)))


def _put_on_levels(weight: Weight) -> None:
    grid = GridSpec(bits=BITS, granularity="tensor", search_range=False)
    if np.isfinite(weight.values).all():
        rounded = round_to_grid(weight, grid, "nearest")
        if rounded is not None:
            weight.set(rounded.values, rounded.encoding)


def _keeps_zeros(key: str, old: Array, new: Array, done: Applied) -> bool:
    return not np.any(new[old == 0])


def _keeps_levels(key: str, old: Array, new: Array, done: Applied) -> bool:
    """It has no more values than its levels were, or is on other levels, of which later passes know."""
    encoding = done.after.encodings.get(key)
    if encoding is not None and not encoding.values_are_free:
        return True
    return np.unique(new).size <= done.before.encodings[key].level_count


PREPARED = (
    (Structure.ZEROS, _prune, _keeps_zeros),
    (Structure.LEVELS, _put_on_levels, _keeps_levels),
)
