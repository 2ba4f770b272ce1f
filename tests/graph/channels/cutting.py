"""The oracle of cutting: a model without some channels computes what it does when their readers are blind to them.

The slices of weights that read the channels are set to zero, and the channels are cut: the outputs are equal to
rounding, and so is every inner tensor that is left, as far as it is left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from onnxcomp.contract import Context
from onnxcomp.graph.channels.dependencies import Dependencies, dependencies
from onnxcomp.graph.channels.ids import Numbers
from onnxcomp.graph.channels.owners import ChannelCut
from onnxcomp.graph.channels.removal import remove_units
from onnxcomp.graph.ir.reader import close_graph, open_graph
from onnxcomp.graph.provenance import Origins, Reference
from onnxcomp.model import Model
from onnxcomp.registry import get_pass
from onnxcomp.runtime import Session
from tests.passes.exactly import inner_values

PREPARED_BY = ("inline-functions", "fold-constants", "fuse-batch-norm", "fuse-pad")
LEAST = 1e-2  # smaller values are compared as if the largest were this
SHARES = (1 / 3, 1.0, 0.0)  # of a group's units
Pick = Callable[[Dependencies], Numbers]


def prepared(model: Model) -> Model:
    """As a pass that cuts channels gets it."""
    for name in PREPARED_BY:
        graph = open_graph(model)
        get_pass(name)().apply(graph, Context())
        model = close_graph(graph)
    return model


def dependencies_of(model: Model) -> Dependencies:
    return dependencies(open_graph(model))


def blind(model: Model, pick: Pick) -> Model:
    """The model with zeros where weights read the channels."""
    graph = open_graph(model)
    found = dependencies(graph)
    cut = ChannelCut(found.sets, pick(found))
    for each in found.slices:
        kept = each.taken(cut) if each.is_read else {}
        if not kept:
            continue
        values = np.array(each.constant.values)
        for axis, index in kept.items():
            gone = np.setdiff1d(np.arange(values.shape[axis]), index)
            values[(slice(None),) * axis + (gone,)] = 0
        each.constant.values = values
    return close_graph(graph)


def without(model: Model, pick: Pick) -> tuple[Model, Origins]:
    """The model without the channels, and what its tensors were."""
    graph = open_graph(model)
    found = dependencies(graph)
    origins = remove_units(found, pick(found))
    return close_graph(graph), origins


def check_cut(model: Model, pick: Pick, feeds: Mapping[str, np.ndarray], *, tolerance: float = 1e-4) -> Model:
    """Hold the cut model against the blind one, unoptimized; tolerance: of the largest value of each tensor."""
    expected, (cut, origins) = blind(model, pick), without(model, pick)
    outputs = [Session(each.to_bytes(), optimization="none").run(feeds) for each in (expected, cut)]
    _check_close(outputs[0], outputs[1], tolerance)
    before, after = inner_values(expected, feeds), inner_values(cut, feeds)
    reference = Reference(expected, origins)
    as_now = {name: reference.as_now(name, value) for name, value in before.items() if name in after}
    _check_close({name: value for name, value in as_now.items() if value is not None}, after, tolerance)
    return cut


def _check_close(expected: Mapping[str, np.ndarray], got: Mapping[str, np.ndarray], tolerance: float) -> None:
    for name, value in expected.items():
        if not isinstance(value, np.ndarray):
            continue
        assert got[name].dtype == value.dtype and got[name].shape == value.shape, name
        if value.dtype.kind in "fiu" and value.size:
            one, other = value.astype(np.float64), got[name].astype(np.float64)
            finite = np.isfinite(one)
            np.testing.assert_array_equal(np.isfinite(other), finite, err_msg=name)
            scale = max(float(np.abs(one[finite]).max(initial=0.0)), LEAST)
            np.testing.assert_allclose(other[finite], one[finite], rtol=0, atol=tolerance * scale, err_msg=name)
        else:
            np.testing.assert_array_equal(got[name], value, err_msg=name)


def some_units(found: Dependencies, units: Numbers, share: float, seed: int) -> Numbers:
    """A share of the units, drawn, at least one; fewer where an axis would be left with nothing."""
    rng = np.random.default_rng(seed)
    limit, gone = max(1, round(share * units.size)), set()
    left = [dict.fromkeys(np.unique(each).tolist(), 0) for each in found.counts()]
    for unit in rng.permutation(units).tolist():
        if len(gone) == limit:
            break
        if all(len(each) > 1 or unit not in each for each in left):
            gone.add(unit)
            for each in left:
                each.pop(unit, None)
    return np.array(sorted(gone), np.int64)


def picks(found: Dependencies, *, seed: int = 0, thorough: bool = False) -> dict[str, Pick]:
    """For each group one unit, a third, and as many as can go, in turn but for thorough tests; then a third of all
    groups at once."""
    made: dict[str, Pick] = {}
    for index, group in enumerate(found.groups):
        for share in SHARES if thorough else (SHARES[(index + seed) % len(SHARES)],):
            made[f"{group.name} {share:.2f}"] = lambda now, index=index, share=share: some_units(
                now, now.groups[index].units, share, seed
            )
    if len(found.groups) > 1:
        made["all groups"] = lambda now: np.concatenate([
            some_units(now, each.units, 1 / 3, seed) for each in now.groups
        ])  # fmt: skip
    return made
