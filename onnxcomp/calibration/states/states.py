"""Pairs of inputs and outputs that carry a state from step to step: h0 and hn, past.0.key and present.0.key.

A pair has the same element type, the same rank and dimensions as far as they are declared, and its output depends on
its input (but for an encoder's cache of the same name, see ``_is_of_encoder``). That alone would take every denoiser
(x -> y of the same shape) for a cell, so one of these must hold, too:

- names: input and output are called alike but for words of time or direction, and like a state, cache or memory
  (see ``state_names``);
- nodes: the input is the first state of an LSTM, GRU or RNN node, and the output holds its last one;
- copies: fed with noise, the output is the input with new rows along one axis that is left open (a growing cache), or
  the input shifted along one axis (a sliding one), while another output depends on the input, too;
- data: the input is empty and the output is longer, or the input is zero in all samples; other outputs depend on it,
  and do so through this output alone;
- one half of a name: the input is called like a state, and is the only one (or one of as many in the same order)
  whose shape is that of outputs that pair with nothing else and of no input that carries data.

What remains of the inputs must carry data: without an input that is no state, mask, position or rate, nothing is a
state, and neither is an input whose pair could be two outputs. So an autoencoder, a denoiser with a noise level and a
network of two images have none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcomp.calibration.data.calibration_data import CalibrationData
from onnxcomp.calibration.states.flow import StateFlow
from onnxcomp.calibration.states.names import ENCODER, FLAG, MINOR, is_exact_pair, is_pair, is_state
from onnxcomp.errors import VerificationError
from onnxcomp.model import Model
from onnxcomp.runtime import Feeds, Session, Value, ValueSpec

Array = NDArray[Any]
PROBED_LENGTH = 3  # of an empty cache, to see what becomes of its rows

RECURRENT = "recurrent"
SLIDING = "sliding"
GROWING = "growing"
FIXED = "fixed"


@dataclass(frozen=True)
class State:
    """One pair. kind: ``recurrent`` (computed anew), ``sliding`` (shifted along ``axis``), ``growing`` (longer along
    ``axis`` after each step) or ``fixed`` (handed on as it is, or not at all: a cache of the encoder's)."""

    input: str
    output: str
    kind: str = RECURRENT
    axis: int | None = None


def named_states(model: Model, session: Session) -> tuple[State, ...]:
    """The pairs that names and nodes tell before anything is run; their kinds are not known yet."""
    search = _Search(model, session)
    search.by_names()
    search.by_nodes()
    return search.found


def find_states(model: Model, session: Session, data: CalibrationData, *, seed: int = 0) -> tuple[State, ...]:
    """The pairs of the model, with their kinds as runs of it on a sample of the data show them.

    session: the model, opened. None where the data are random, or the model does not run on them.
    """
    if data.is_random or not data.sample_count:
        return ()
    search = _Search(model, session)
    if not search.candidates:
        return ()
    feeds = data.first_sample()
    try:
        probe = _Probe.of(session, feeds, [name for name, _ in search.candidates], seed)
    except VerificationError:
        return ()
    search.by_names()
    search.by_nodes()
    search.by_copies(probe)
    search.by_data(data, probe)
    search.by_half_names(probe)
    return tuple(state for each in search.found if (state := probe.judged(each)) is not None)


@dataclass
class _Probe:
    """What the model makes of one sample, and of the same with noise for states."""

    feeds: Feeds
    outputs: Mapping[str, Value]
    noise: Feeds
    noised: Mapping[str, Value]

    @classmethod
    def of(cls, session: Session, feeds: Feeds, names: Iterable[str], seed: int) -> _Probe:
        outputs = session.run(feeds)
        rng = np.random.default_rng(seed)
        flags = {name: np.ones_like(feeds[name]) for name in feeds if is_flag(name, feeds[name])}
        unique = [name for name in dict.fromkeys(names) if name in feeds]
        for lengthened in (True, False):
            noise = {**feeds, **flags, **{name: _noise(feeds[name], rng, lengthened=lengthened) for name in unique}}
            try:
                return cls(feeds, outputs, noise, session.run(noise))
            except VerificationError:
                continue
        return cls(feeds, outputs, feeds, outputs)

    def judged(self, state: State) -> State | None:
        """The pair with its kind; None where the run shows that it is none."""
        for fed, made in ((self.noise, self.noised), (self.feeds, self.outputs)):
            copied = _copied(fed.get(state.input), made.get(state.output))
            if copied is not None:
                return replace(state, kind=copied[0], axis=copied[1])
        before, after = np.shape(self.feeds[state.input]), np.shape(self.outputs[state.output])
        if before == after:
            return state
        axis = _grown_axis(before, after)
        if axis is not None and not ENCODER.search(state.input):
            return replace(state, kind=GROWING, axis=axis)
        return replace(state, kind=FIXED) if len(before) == len(after) else None

    def same_shape(self, before: str, after: str) -> bool:
        return np.shape(self.feeds[before]) == np.shape(self.outputs[after])


@dataclass
class _Search:
    """The pairs found so far; each kind of evidence adds what is unambiguous among those that are left."""

    model: Model
    session: Session
    found: tuple[State, ...] = ()
    candidates: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        graph = self.model.proto.graph
        self.inputs = {spec.name: spec for spec in self.session.inputs}
        self.outputs = {spec.name: spec for spec in self.session.outputs}
        self.bits = {name: 1 << i for i, name in enumerate(self.inputs)}
        self.flow = StateFlow.of(graph, list(self.inputs))
        self.candidates = [
            (before.name, after.name)
            for before in self.session.inputs
            for after in self.session.outputs
            if _may_pair(before, after)
            and (self._depends(after.name, before.name) or _is_of_encoder(before.name, after.name))
        ]

    def by_names(self) -> None:
        for alike in (is_exact_pair, is_pair):
            self._take(pair for pair in self._left() if alike(*pair))

    def by_nodes(self) -> None:
        links = self.flow.links
        self._take(
            (before, after)
            for before, after in self._left()
            if any(links[i] & self.bits[before] for i in self.flow.ends.get(after, ()))
        )

    def by_copies(self, probe: _Probe) -> None:
        def is_copy(before: str, after: str) -> bool:
            found = _copied(probe.noise.get(before), probe.noised.get(after))
            if found is None or found[0] == FIXED or found[1] is None:
                return False
            is_open = not isinstance(self.inputs[before].shape[found[1]], int)
            return (found[0] == SLIDING or is_open) and self._others_depend(before, {after})

        self._take(pair for pair in self._left() if is_copy(*pair))

    def by_data(self, data: CalibrationData, probe: _Probe) -> None:
        if not self._left():
            return
        blank = {name for name in blank_inputs(data) if not MINOR.search(name)}
        pairs = [(before, after) for before, after in self._left() if before in blank]
        empty = [pair for pair in pairs if 0 in np.shape(probe.feeds[pair[0]])]
        self._take([pair for pair in empty if self._grows(pair, probe)], in_order=True)
        pairs = [pair for pair in self._left() if pair in pairs and probe.same_shape(*pair)]
        pairs = [pair for pair in pairs if not self._is_shape_of_data(pair[0], probe)]
        after = {name for _, name in pairs} | {state.output for state in self.found}
        cut = StateFlow.of(self.model.proto.graph, list(self.inputs), cut=after)
        around = {name: cut.reads.get(name, 0) for name in self.outputs if name not in after}

        def is_gate(before: str) -> bool:
            return self._others_depend(before, after) and not any(bits & self.bits[before] for bits in around.values())

        self._take(pair for pair in pairs if is_gate(pair[0]))

    def by_half_names(self, probe: _Probe) -> None:
        pairs = [pair for pair in self._left() if is_state(pair[0]) and probe.same_shape(*pair)]
        self._take([pair for pair in pairs if not self._is_shape_of_data(pair[0], probe)], in_order=True)

    def _take(self, pairs: Iterable[tuple[str, str]], *, in_order: bool = False) -> None:
        """Add the pairs that nothing contests; in_order: as many inputs as outputs of one shape are paired in turn.

        Nothing is added that leaves no input to carry data.
        """
        listed = list(pairs)
        partners = {name: [b for a, b in listed if a == name] for name, _ in listed}
        chosen = []
        for before, after in partners.items():
            rivals = [name for name, own in partners.items() if set(own) & set(after)]
            if len(after) == 1 and len(rivals) == 1:
                chosen.append(State(before, after[0]))
            elif in_order and len(rivals) == len(after) and all(partners[each] == after for each in rivals):
                chosen.append(State(before, after[rivals.index(before)]))
        if self._carriers({state.input for state in (*self.found, *chosen)}):
            self.found += tuple(chosen)

    def _left(self) -> list[tuple[str, str]]:
        used = {state.input for state in self.found}, {state.output for state in self.found}
        return [(a, b) for a, b in self.candidates if a not in used[0] and b not in used[1]]

    def _carriers(self, states: set[str]) -> list[str]:
        return [
            spec.name
            for spec in self.inputs.values()
            if spec.name not in states and not MINOR.search(spec.name) and (spec.shape or not spec.is_tensor)
        ]

    def _depends(self, after: str, before: str) -> bool:
        return bool(self.flow.reads.get(after, 0) & self.bits[before])

    def _others_depend(self, before: str, own: set[str]) -> bool:
        return any(self._depends(name, before) for name in self.outputs if name not in own)

    def _is_shape_of_data(self, before: str, probe: _Probe) -> bool:
        """Whether an input that carries data, or could, has the shape of this one."""
        states = {state.input for state in self.found} | {a for a, _ in self._left() if is_state(a)} | {before}
        shape = np.shape(probe.feeds[before])
        carriers = [name for name in self._carriers(states) if name in probe.feeds]
        return any(np.shape(probe.feeds[name]) == shape for name in carriers)

    def _grows(self, pair: tuple[str, str], probe: _Probe) -> bool:
        return _grown_axis(np.shape(probe.feeds[pair[0]]), np.shape(probe.outputs[pair[1]])) is not None


def blank_inputs(data: CalibrationData) -> set[str]:
    """The inputs that are empty, or hold one and the same number in all samples."""
    seen: dict[str, set[Any]] = {}
    for feeds in data.batches():
        for name, value in feeds.items():
            own = seen.setdefault(name, set())
            if not _is_plain(value):
                own |= {0, 1}
            elif len(own) < 2 and value.size:
                own |= {value.min().item(), value.max().item()}
    return {name for name, own in seen.items() if len(own) < 2}


def unvaried_inputs(data: CalibrationData) -> set[str]:
    """The inputs that hold the same in all samples."""
    first: dict[str, Array] = {}
    varied: set[str] = set()
    for batch in data.labelled_batches():
        for name, value in batch.feeds.items():
            if not _is_plain(value):
                varied.add(name)
            if name in varied:
                continue
            axis = batch.axes.get(name)
            samples = value[None] if axis is None else np.moveaxis(value, axis, 0)
            own = first.setdefault(name, samples[0])
            if own.shape != samples.shape[1:] or not (samples == own).all():
                varied.add(name)
    return first.keys() - varied


def _is_plain(value: Value) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind in "biuf" and value.ndim > 0


def is_flag(name: str, value: Value) -> bool:
    """Whether an input says whether there is a cache yet."""
    return isinstance(value, np.ndarray) and value.dtype == np.bool_ and value.size == 1 and bool(FLAG.search(name))


def _is_of_encoder(before: str, after: str) -> bool:
    """Whether it is a cache of the encoder's: merged decoders fill it in one branch and give a dummy in the other."""
    return bool(ENCODER.search(before)) and is_exact_pair(before, after)


def _may_pair(before: ValueSpec, after: ValueSpec) -> bool:
    if not (before.is_tensor and after.is_tensor and before.type == after.type and before.shape):
        return False
    if not after.shape:  # an unknown rank is shown like this, too
        return True
    fixed = zip(before.shape, after.shape, strict=False)
    is_alike = all(not isinstance(a, int) or not isinstance(b, int) or a == b for a, b in fixed)
    return len(before.shape) == len(after.shape) and is_alike


def _noise(value: Value, rng: np.random.Generator, *, lengthened: bool) -> Value:
    """Noise like an array of floats; with a few rows where it is empty. Other arrays stay."""
    if not isinstance(value, np.ndarray) or value.dtype.kind != "f":
        return value
    shape = tuple(size or PROBED_LENGTH for size in value.shape) if lengthened else value.shape
    return rng.standard_normal(shape).astype(value.dtype)


def _copied(before: Value, after: Value) -> tuple[str, int | None] | None:
    """The kind and axis of a pair whose output holds rows of its input; None where it does not, or none can be told."""
    if not isinstance(before, np.ndarray) or not isinstance(after, np.ndarray) or before.ndim != after.ndim:
        return None
    if before.size < 2 or before.dtype != after.dtype or (before == before.flat[0]).all():
        return None
    if before.shape == after.shape:
        return (FIXED, None) if np.array_equal(before, after) else _slid(before, after)
    axis = _grown_axis(before.shape, after.shape)
    if axis is None:
        return None
    length = before.shape[axis]
    rows = np.moveaxis(after, axis, 0)
    kept = np.moveaxis(before, axis, 0)
    is_kept = np.array_equal(rows[:length], kept) or np.array_equal(rows[-length:], kept)
    return (GROWING, axis) if is_kept else None


def _slid(before: Array, after: Array) -> tuple[str, int] | None:
    for axis, length in enumerate(before.shape):
        ahead, behind = np.moveaxis(before, axis, 0), np.moveaxis(after, axis, 0)
        is_first = (ahead == behind[:1]).reshape(length, -1).all(axis=1)
        for shift in np.flatnonzero(is_first):
            if shift and np.array_equal(ahead[shift:], behind[: length - shift]):
                return SLIDING, axis
    return None


def _grown_axis(before: Sequence[int], after: Sequence[int]) -> int | None:
    """The one axis along which the second shape is longer, where the others are the same."""
    if len(before) != len(after):
        return None
    other = [axis for axis, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
    return other[0] if len(other) == 1 and after[other[0]] > before[other[0]] else None
