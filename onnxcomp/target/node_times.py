"""How long nodes take on the target at sizes that they do not have yet: a few are timed, each once.

    (1, 32, 16, 16) by (64, 32, 3, 3)     0.049 ms        asked again, or of another node of that geometry: 0.049 ms

Nothing is guessed from counts: where channels do not fill the blocks of a kernel, fewer of them take no less.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from onnx import TensorProto, helper

from onnxcomp.errors import ModelError, TargetError, VerificationError
from onnxcomp.graph.excerpts import Excerpt
from onnxcomp.model import Model, load
from onnxcomp.runtime import Feeds, Session
from onnxcomp.runtime.measure import clock_for, fed_in_turns
from onnxcomp.target.place import Target

LOG = logging.getLogger(__name__)

FEWEST_RUNS = 7
HEAT_S = 0.03  # for each node by itself
MODEL_S = 0.5  # for each whole model
MOST_OPEN = 24  # models that take turns
OPEN_BYTES = 200 * 10**6
IDLE_NODE = "Identity"  # what a run takes that does nothing: Python, ONNX Runtime's own steps

Fed = tuple[Model, Feeds]
Timer = Callable[[Sequence[Fed], Target, float], list[float | None]]
"""Milliseconds of one run of each of the models, which take turns for so many seconds each; None of one that the target
does not load or run."""


def timed_in_turns(models: Sequence[Fed], target: Target, seconds: float) -> list[float | None]:
    """By ONNX Runtime, warm, on the processor time of the one thread where there is one (see ``measure_latency``)."""
    with contextlib.ExitStack() as stack:
        opened: dict[str, tuple[Session, Feeds]] = {}
        for at, (model, feeds) in enumerate(models):
            try:
                session = stack.enter_context(model.opened_on(target.session))
                session.run(feeds)
                opened[str(at)] = session, feeds
            except (TargetError, VerificationError, ModelError) as error:
                LOG.info("not timed: %s", error)
        clock = clock_for(target.provider, target.threads)
        took = fed_in_turns(opened, runs=FEWEST_RUNS, seconds=seconds * len(opened), warm=True, clock=clock)
    return [took[str(at)].median_ms if str(at) in took else None for at in range(len(models))]


@dataclass(eq=False)
class NodeTimes:
    """What was timed in a run, by what it is. timer: ONNX Runtime, if nothing else is given."""

    timer: Timer = timed_in_turns
    _known: dict[tuple[str, Excerpt], float | None] = field(default_factory=dict)
    idle_ms: float = 0.0  # of a run that does nothing, as last timed

    def milliseconds(self, excerpts: Sequence[Excerpt], target: Target | None) -> list[float | None]:
        """Of one run of each, beyond what a node takes that does nothing; None of what the target does not run.

        Those that are not known yet take turns, in the order in which they stand: what is to be compared belongs
        together.
        """
        where = target or Target.of()
        missing = [each for each in dict.fromkeys(excerpts) if (where.provider, each) not in self._known]
        for group in _groups(missing):
            fed: list[Fed] = [_idle(), *((load(each.filled()), each.feeds()) for each in group)]
            idle, *took = self.timer(fed, where, HEAT_S)
            self.idle_ms = idle or 0.0
            for each, own in zip(group, took, strict=True):
                self._known[where.provider, each] = None if own is None else max(0.0, own - self.idle_ms)
                LOG.info("timed: %s: %s", each.label, "not run" if own is None else f"{own:.4g} ms")
        return [self._known[where.provider, each] for each in excerpts]

    def whole(self, models: Sequence[Model], feeds: Feeds, target: Target | None) -> list[float | None]:
        """Milliseconds of one run of whole models, which take turns."""
        return self.timer([(each, feeds) for each in models], target or Target.of(), MODEL_S)


def _idle() -> Fed:
    """A model that hands on one number, with what it is fed."""
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node(IDLE_NODE, ["x"], ["y"])], "idle", value[:1], value[1:])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)
    return load(proto), {"x": np.zeros(1, np.float32)}


def _groups(excerpts: Sequence[Excerpt]) -> Iterator[list[Excerpt]]:
    """Those that may be open together."""
    group: list[Excerpt] = []
    size = 0
    for each in excerpts:
        if group and (len(group) == MOST_OPEN or size + each.nbytes > OPEN_BYTES):
            yield group
            group, size = [], 0
        group.append(each)
        size += each.nbytes
    if group:
        yield group
