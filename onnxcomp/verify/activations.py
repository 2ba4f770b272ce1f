"""What a model makes of the samples at some of its tensors, kept so that the nodes before them need not run again.

    x -> 1 -> 2 -> 3 -> y        kept after 1 and 2, within a room: a change at 3 starts from 2's output

They lie in memory as far as that has been set aside, and in files of the scratch folder beyond it.

Which tensors: those that all of what comes after a weight needs, for weights at a few depths. Running from them must
give the outputs that the whole model gives, which is tried on all samples: where ONNX Runtime computes otherwise once
a tensor is handed out (rounded to integers or to short floats at other places), nothing is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, ValueInfoProto, helper

from onnxcomp.calibration import CalibrationData
from onnxcomp.calibration.statistics.series import Room, Series
from onnxcomp.graph.slices import Slices
from onnxcomp.runtime import Session, Value
from onnxcomp.verify.reference import flatten

Array = NDArray[Any]
OpenSession = Callable[[ModelProto], Session]
Form = tuple[np.dtype[Any], tuple[int, ...]]

ROOM_BYTES = 256 * 2**20
DEPTHS = 64  # of weights whose surroundings are looked at
SAME = 2e-5  # of an output's largest magnitude: products of other shapes add in another order
FED = frozenset("fiub")  # kinds of arrays that may be kept; float16 is left out by its name


@dataclass
class Activations:
    """Tensors by name, batch after batch, and what type and shapes they have there."""

    series: dict[str, Series] = field(default_factory=dict)
    forms: dict[str, list[Form]] = field(default_factory=dict)

    @property
    def known(self) -> frozenset[str]:
        """The tensors that are kept."""
        return frozenset(self.series)

    def infos(self) -> dict[str, ValueInfoProto]:
        """Type and shape of each tensor; sizes that differ between batches are open."""
        return {name: _info(name, forms) for name, forms in self.forms.items()}

    def add(self, values: Mapping[str, Array]) -> None:
        """Take in a batch."""
        for name, series in self.series.items():
            series.append(values[name])
            self.forms.setdefault(name, []).append((values[name].dtype, values[name].shape))

    def drop(self, names: Set[str]) -> None:
        """Give up some tensors."""
        for name in names:
            self.series.pop(name, None)
            self.forms.pop(name, None)


def keep_activations(
    slices: Slices,
    weights: Sequence[str],
    data: CalibrationData,
    open_session: OpenSession,
    memory: Room,
    *,
    room: int = ROOM_BYTES,
) -> Activations:
    """What is worth keeping of a model for changes of ``weights``. memory: what of it lies there; room: bytes of all.

    Raises TargetError or VerificationError where the model does not load or run.
    """
    depths = _depths(slices, weights)
    wanted = frozenset().union(*(needed for _, needed in depths))
    batch = next(data.labelled_batches(limit=1), None)
    if not wanted or batch is None:
        return Activations()
    seen = open_session(_showing(slices, wanted)).run(batch.feeds, sorted(wanted))
    share = data.sample_count / max(batch.count, 1)
    sizes = {name: share * each.nbytes for name, each in seen.items() if _can_be_fed(each)}
    order = _worth_keeping(depths, sizes, room)
    kept = Activations({name: Series(memory) for name in frozenset().union(*order)})
    if not kept.known:
        return kept
    plain, showing = open_session(slices.proto), open_session(_showing(slices, kept.known))
    for feeds in data.batches():
        outputs = plain.run(feeds)
        found = showing.run(feeds, sorted({*outputs, *kept.known}))
        if not _same(flatten(outputs), flatten({name: found[name] for name in outputs})):
            return Activations()
        kept.add(found)
        _fit(kept, order, room)
    return kept


def _depths(slices: Slices, weights: Sequence[str]) -> list[tuple[int, frozenset[str]]]:
    """How many weights come before, and what must be known there to run the rest: at some places, in order."""
    ranked = sorted(weights, key=slices.first_reader)
    step = max(1, -(-len(ranked) // DEPTHS))
    found = []
    for before in range(0, len(ranked), step):
        needed = frozenset(slices.beside(slices.after([ranked[before]])))
        if needed:
            found.append((before, needed))
    return found


def _worth_keeping(
    depths: list[tuple[int, frozenset[str]]], sizes: Mapping[str, float], room: float
) -> list[frozenset[str]]:
    """The tensors to keep, depth after depth: first those that spare most nodes for their bytes.

    A depth spares the nodes between it and the one before to all weights between it and the next; nodes are counted by
    the weights that they read, since they are what takes time.
    """
    waiting = {before: needed for before, needed in depths if needed <= sizes.keys()}
    last = max(waiting, default=0) + 1
    chosen: list[int] = []
    order: list[frozenset[str]] = []
    kept: set[str] = set()

    def price(before: int) -> float:
        earlier = max((each for each in chosen if each < before), default=0)
        later = min((each for each in chosen if each > before), default=last)
        spared = (before - earlier) * (later - before)
        return sum(sizes[name] for name in waiting[before] - kept) / spared if spared else float("inf")

    while waiting:
        best = min(waiting, key=lambda before: (price(before), before))
        needed = waiting.pop(best) - kept
        bytes_more = sum(sizes[name] for name in needed)
        if bytes_more <= room:
            chosen.append(best)
            order.append(needed)
            kept |= needed
            room -= bytes_more
    return order


def _fit(kept: Activations, order: list[frozenset[str]], room: int) -> None:
    """Give up the depths that were taken last while there is no room: samples may differ in size."""
    while order and sum(each.size_bytes for each in kept.series.values()) > room:
        kept.drop(order.pop())


def _showing(slices: Slices, names: Set[str]) -> ModelProto:
    """The model with these tensors as further outputs."""
    proto = ModelProto()
    proto.CopyFrom(slices.proto)
    for name in sorted(names - set(slices.outputs)):
        proto.graph.output.add(name=name)
    return proto


def _can_be_fed(value: Value) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind in FED and value.dtype != np.float16


def _same(first: Mapping[str, Array], second: Mapping[str, Array]) -> bool:
    """Whether all outputs are equal, those of floats to rounding."""
    return first.keys() == second.keys() and all(_alike(first[name], second[name]) for name in first)


def _alike(one: Array, other: Array) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    if one.dtype.kind not in "fV" or not one.size:
        return bool(np.array_equal(one, other))
    left, right = one.astype(np.float64), other.astype(np.float64)
    scale = float(np.max(np.abs(left), where=np.isfinite(left), initial=0.0))
    return bool(np.allclose(left, right, rtol=0.0, atol=SAME * scale, equal_nan=True))


def _info(name: str, forms: Sequence[Form]) -> ValueInfoProto:
    kind = helper.np_dtype_to_tensor_dtype(forms[0][0])
    if len({len(shape) for _, shape in forms}) > 1:
        return helper.make_tensor_value_info(name, kind, None)
    sizes = [set(dims) for dims in zip(*(shape for _, shape in forms), strict=True)]
    return helper.make_tensor_value_info(name, kind, [each.pop() if len(each) == 1 else None for each in sizes])
