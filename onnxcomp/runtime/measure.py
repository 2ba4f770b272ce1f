"""How fast models run: alternated in one process, so that whatever slows the machine slows them all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onnxcomp.model_source import ModelSource
from onnxcomp.runtime.session import Feeds, Session

WARM_UP_RUNS = 2
MOST_RUNS = 5000  # where a time is given
LONG_S, LONG_RUNS = 0.1, 5  # a run that takes longer is a mean of many kernels, and fills the caches for itself
FINE_S = 1e-6  # a clock that ticks more slowly cannot time small models


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one run of one model over ``runs`` alternated runs."""

    median_ms: float
    best_ms: float
    runs: int


def measure_latency(
    models: Mapping[str, ModelSource],
    feeds: Feeds,
    *,
    runs: int = 20,
    seconds: float = 0.0,
    warm: bool = False,
    threads: int = 1,
    provider: str = "CPUExecutionProvider",
    provider_options: Mapping[str, str] | None = None,
    custom_ops: Sequence[Path] = (),
) -> dict[str, Latency]:
    """Latency of each model on the same feeds; the ratio of two medians is what to compare.

    On one thread of the CPU it is the thread's own processor time, so that other work on the machine does not
    count: at a load of 8 on two cores ratios of medians then repeat within 1%, by the wall clock within 30%.

    The models take turns (A B A B ...), after two unmeasured runs each: ``runs`` each, and as many as fit into
    ``seconds`` in all, at most ``MOST_RUNS``. All of them are open at once. warm: each turn is two runs of which
    the second counts, as of a model that runs alone; else the caches hold what the model before has left. Where each
    run takes over ``LONG_S``, turns are one run after one unmeasured run each, and ``LONG_RUNS`` are enough.
    Raises TargetError or VerificationError when one does not load or run.
    """
    sessions = {
        name: Session(
            model, provider=provider, provider_options=provider_options, threads=threads, custom_ops=custom_ops
        )
        for name, model in models.items()
    }
    return in_turns(sessions, feeds, runs=runs, seconds=seconds, warm=warm, clock=clock_for(provider, threads))


def in_turns(
    sessions: Mapping[str, Session],
    feeds: Feeds,
    *,
    runs: int,
    seconds: float = 0.0,
    warm: bool = False,
    clock: Callable[[], float],
) -> dict[str, Latency]:
    """What ``measure_latency`` measures of models that are open."""
    fed = {name: (session, feeds) for name, session in sessions.items()}
    return fed_in_turns(fed, runs=runs, seconds=seconds, warm=warm, clock=clock)


def fed_in_turns(
    sessions: Mapping[str, tuple[Session, Feeds]],
    *,
    runs: int,
    seconds: float = 0.0,
    warm: bool = False,
    clock: Callable[[], float],
) -> dict[str, Latency]:
    """The same of models that each have feeds of their own."""
    warming = [_warmed_up(session, feeds, clock) for session, feeds in sessions.values()]
    if min(warming, default=0.0) > LONG_S:
        runs, warm = min(runs, LONG_RUNS), False
    prepared = {name: session.prepared(feeds) for name, (session, feeds) in sessions.items()}
    spent: dict[str, list[float]] = {name: [] for name in sessions}
    begun = time.perf_counter()
    done = 0
    while done < runs or (done < MOST_RUNS and time.perf_counter() - begun < seconds):
        done += 1
        for name, run in prepared.items():
            if warm:
                run()
            started = clock()
            run()
            spent[name].append(1e3 * (clock() - started))
    return {name: Latency(float(np.median(took)), min(took), done) for name, took in spent.items()}


def _warmed_up(session: Session, feeds: Feeds, clock: Callable[[], float]) -> float:
    """The seconds of the last of some runs that count for nothing; of a long one the first is enough."""
    took = 0.0
    for _ in range(WARM_UP_RUNS):
        started = clock()
        session.run(feeds)
        took = clock() - started
        if took > LONG_S:
            break
    return took


def clock_for(provider: str, threads: int) -> Callable[[], float]:
    """Seconds of this thread's work where that is all the work and the system counts it finely, else of the wall."""
    alone = provider == "CPUExecutionProvider" and threads == 1
    fine = time.get_clock_info("thread_time").resolution <= FINE_S
    return time.thread_time if alone and fine else time.perf_counter
