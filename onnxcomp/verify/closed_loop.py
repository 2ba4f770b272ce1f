"""Both models on their own state: what a model makes of one step is what it starts from at the next.

Open loop compares single steps from the original's states; an error that a model feeds back to itself, or makes in
every row of its own cache, shows in closed loop only. Inputs come from the data, in order where these are sequences.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from onnxcomp.calibration import Batch, CalibrationData
from onnxcomp.calibration.states.lanes import LaneBlock, Rows, blocks, sequences
from onnxcomp.calibration.states.states import GROWING, State, find_states
from onnxcomp.calibration.states.steps import Steps
from onnxcomp.errors import VerificationError
from onnxcomp.model import Model
from onnxcomp.runtime import Session, Value
from onnxcomp.target import Target
from onnxcomp.verify.reference import Layout, OutputStore, flatten, layout_of

MOST_SEQUENCES = 16
MOST_STEPS = 32
LONG_STEPS = 16  # what a sequence must have to be run by itself
LEAST_RUNS = 256  # of single steps, however few the samples are: they may take part in several sequences
LAST_POSITIONS = 16  # of a sample that is cut along its positions, how many are run one by one


class ClosedLoop:
    """Sequences of steps on the model's own state; the original's outputs are kept.

    layouts: of every step's batch, in the order of ``outputs``. reference: the original's outputs, likewise.
    states: what is fed back. sequences, steps: how many sequences, and how long the longest of them is.

    Raises VerificationError when the original does not run two steps of it, TargetError when it does not load.
    """

    def __init__(
        self, original: Model, data: CalibrationData, target: Target, seed: int = 0, *, states: Sequence[State] = ()
    ) -> None:
        self.data = data
        self.target = target
        self.layouts: list[Layout] = []
        self._grows_at_end: dict[str, bool] = {}  # of caches, as the original's show
        self.reference = OutputStore()
        with original.opened_on(target.session) as session:
            self.states = tuple(states) or find_states(original, session, data, seed=seed)
            if not any(state.kind != "fixed" for state in self.states):
                raise VerificationError("no output is the state of an input")
            parts = _parts(Steps.by_length(data, self.states, session.run, MOST_SEQUENCES))
        planned = _planned(parts, data, seed)
        failure: VerificationError | None = None
        for empty, total in _variants(parts[0]):
            self._plan = [(replace(steps, from_empty=empty, total_masks=total), block) for steps, block in planned]
            try:
                self._run_original(original)
            except VerificationError as error:
                failure = failure or error
            else:
                return
        raise failure or VerificationError("the samples are too few for two steps")

    @property
    def sequences(self) -> int:
        """How many sequences are run."""
        return sum(len(block.lanes) for _, block in self._plan)

    @property
    def steps(self) -> int:
        """How many steps the longest sequence has."""
        return max(block.steps for _, block in self._plan)

    def outputs(self, session: Session) -> Iterator[dict[str, Value]]:
        """A model's outputs of every step, with the sequences on the axis of the samples, as in any batch; of caches
        that grow the new rows only.

        Raises VerificationError where the model does not run.
        """
        for steps, block in self._plan:
            for batch, outputs in steps.run(session.run, block):
                yield flatten(self._new_rows(batch, outputs))

    def _new_rows(self, batch: Batch, outputs: Mapping[str, Value]) -> dict[str, Value]:
        """The outputs, of growing caches what this step added: the rest was an output of the steps before."""
        found = dict(outputs)
        for state in self.states:
            if state.kind == GROWING and state.axis is not None:
                old, whole = batch.feeds[state.input], outputs[state.output]
                length, total = old.shape[state.axis], whole.shape[state.axis]
                if length and state.output not in self._grows_at_end:
                    kept = np.take(whole, range(length), state.axis)
                    self._grows_at_end[state.output] = bool(np.array_equal(kept, old, equal_nan=True))
                places = range(length, total) if self._grows_at_end.get(state.output, True) else range(total)
                found[state.output] = np.take(whole, places, state.axis)
        return found

    def _run_original(self, original: Model) -> None:
        """Keep what the original makes of it; sequences that it cannot go on with end there."""
        self.layouts, self.reference = [], OutputStore()
        planned, self._plan = self._plan, []
        with original.opened_on(self.target.session) as session:
            for steps, block in planned:
                found = []
                try:
                    for batch, outputs in steps.run(session.run, block):
                        made = flatten(self._new_rows(batch, outputs))
                        found.append((layout_of(batch), made))
                except VerificationError:
                    if len(found) < 2:
                        raise
                self._plan.append((steps, _shortened(block, len(found))))
                self.layouts += [layout for layout, _ in found]
                self.reference.extend(outputs for _, outputs in found)
        if not self._plan:
            raise VerificationError("the samples are too few for two steps")


def closed_loop_for(
    original: Model, data: CalibrationData, target: Target, seed: int = 0
) -> tuple[ClosedLoop | None, str | None]:
    """The closed loop of a model, or None: with the reason where it has states and does not run on them.

    Raises TargetError when the original does not load.
    """
    with original.opened_on(target.session) as session:
        states = find_states(original, session, data, seed=seed)
    if all(state.kind == "fixed" for state in states):
        return None, None
    try:
        return ClosedLoop(original, data, target, seed, states=states), None
    except VerificationError as error:
        return None, f"not verified on its own states ({', '.join(state.input for state in states[:3])}): {error}"


def _parts(parts: list[Steps]) -> list[Steps]:
    """Those parts of the data that are run: whole sequences where there are any, else the shortest steps."""
    whole = [steps for steps in parts if steps.has_whole_sequences]
    return whole or [steps for steps in parts if steps.length == min(each.length for each in parts)]


def _variants(steps: Steps) -> list[tuple[bool, bool]]:
    """Ways to step that the model may take: caches from the first row on or not, masks over the cache or not."""
    return [(True, True), (True, False), (False, True), (False, False)] if steps.growing else [(False, True)]


def _planned(parts: list[Steps], data: CalibrationData, seed: int) -> list[tuple[Steps, LaneBlock]]:
    """The sequences to run, about as many single steps as there are samples."""
    rng = np.random.default_rng(seed)
    if parts[0].has_whole_sequences:
        return [each for steps in parts for each in _cut(steps, -(-MOST_SEQUENCES // len(parts)), rng)]
    order = np.concatenate([steps.data.order for steps in parts])
    steps = replace(parts[0], data=replace(data, order=order))
    runs = max(len(order), LEAST_RUNS)
    wanted = int(np.clip(runs // MOST_STEPS, 1, MOST_SEQUENCES))
    whole = sequences(steps.data)
    if data.are_sequences and max(map(len, whole)) >= LONG_STEPS:
        lanes = _pieces(whole, wanted, rng)
    else:  # short sequences follow one another
        lanes = _staggered([np.concatenate(whole)] if data.are_sequences else whole, wanted)
    return [(steps, block) for block in blocks(steps.data, [lane for lane in lanes if len(lane) > 1], _width(steps))]


def _cut(steps: Steps, most: int, rng: np.random.Generator) -> Iterator[tuple[Steps, LaneBlock]]:
    """Some samples, first all positions but the last ones, then these one by one."""
    first = steps.length - min(LAST_POSITIONS, steps.length // 2)
    windows = ((0, first), *((at, at + 1) for at in range(first, steps.length)))
    rows = steps.data.order[np.sort(rng.permutation(len(steps.data.order))[:most])]
    for block in blocks(steps.data, [row[None] for row in rows], _width(steps)):
        yield steps, replace(block, windows=windows)


def _width(steps: Steps) -> int:
    return min(steps.side_by_side, MOST_SEQUENCES)


def _pieces(whole: list[Rows], wanted: int, rng: np.random.Generator) -> list[Rows]:
    """Some stretches of the sequences, of up to 32 steps."""
    parts = [part for rows in whole for part in np.array_split(rows, -(-len(rows) // MOST_STEPS))]
    longest = max(len(part) for part in parts)
    parts = [part for part in parts if 2 * len(part) >= longest]
    chosen = np.sort(rng.permutation(len(parts))[: wanted * MOST_STEPS // longest])
    return [parts[i] for i in chosen[:MOST_SEQUENCES]]


def _staggered(whole: list[Rows], wanted: int) -> list[Rows]:
    """Sequences of neighbours: they start evenly spread over the samples, and go on at the first after the last."""
    lanes = []
    for rows in whole:
        count = max(1, round(wanted * len(rows) / sum(map(len, whole))))
        for i in range(min(count, len(rows))):
            lanes.append(rows[(i * len(rows) // count + np.arange(MOST_STEPS)) % len(rows)])
    return lanes[:MOST_SEQUENCES]


def _shortened(block: LaneBlock, steps: int) -> LaneBlock:
    if block.windows:
        return replace(block, windows=block.windows[:steps])
    return replace(block, lanes=tuple(lane[:steps] for lane in block.lanes))
