"""How often each row of a table is looked up while calibration data run: Gather(W, ids) -> counts of ids.

That is the second moment of a lookup's inputs, which are ones and zeros: a row that is never read costs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from onnxcomp.calibration.data.calibration_data import CalibrationData
from onnxcomp.calibration.statistics.watch import OpenSession, Progress, silent, watch
from onnxcomp.graph.ir.nodes import Array, Constant
from onnxcomp.graph.ir.reader import Graph
from onnxcomp.graph.weights.roles import Role, Weight
from onnxcomp.runtime import Session, Value


def lookup_counts(
    graph: Graph,
    weights: Sequence[Weight],
    data: CalibrationData,
    *,
    open_session: OpenSession = Session,
    progress: Progress = silent,
) -> Mapping[str, Array]:
    """For weights of ``graph.model`` that are only looked up, by name: how often each index of the axis was (n,).

    Left out are weights that are read otherwise too, along several axes, or in subgraphs and functions. Raises
    TargetError or VerificationError where the model does not load or run.
    """
    main = {id(node) for node in graph.main.graph.nodes}
    readers = {each.name: _readers(each) for each in weights if each.scope is graph.main}
    readers = {name: own for name, own in readers.items() if own and all(id(role.node) in main for role in own)}
    sizes = {each.name: each.shape[each.channel_axis] for each in weights if each.channel_axis is not None}
    counts = {name: np.zeros(sizes[name], np.int64) for name in readers}
    by_tensor: dict[str, list[str]] = {}
    for name, own in readers.items():
        for role in own:
            by_tensor.setdefault(role.node.inputs[1].name, []).append(name)

    def see(tensor: str, value: Value) -> None:
        for name in by_tensor[tensor]:
            if isinstance(value, np.ndarray) and value.dtype.kind in "iu":
                places = value.reshape(-1).astype(np.int64)
                places = np.where(places < 0, places + sizes[name], places)
                counts[name] += np.bincount(places, minlength=sizes[name])

    if by_tensor:
        watch(graph.model, list(by_tensor), data, see, open_session=open_session, progress=progress)
    return {name: found for name, found in counts.items() if found.any()}


def _readers(weight: Weight) -> list[Role]:
    """The lookups that read the weight, none where others read it, too, or what is looked up is constant."""
    if weight.kinds != {"embedding"} or weight.channel_axis is None:
        return []
    fixed = any(isinstance(role.node.inputs[1], Constant) for role in weight.roles)
    return [] if fixed else list(weight.roles)
