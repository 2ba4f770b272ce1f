"""A Dask cluster that works on tasks: a scheduler, found by its address, and the workers that have joined it.

Tasks and results go by value, so that no folder has to be shared. What a worker had when it died is done again by
another. A worker has the same versions as this process, or is refused: others may make other bytes.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
import importlib.util
import logging
import os
import pickle
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from onnxcomp.errors import OnnxcompError, ParameterError

Task = TypeVar("Task")
Result = TypeVar("Result")
Made = TypeVar("Made")

LOCAL = "local"
EXTRA = "Install it with: pip install 'onnxcomp[cluster]'"
MATTERING = ("onnxcomp", "numpy", "scikit-learn", "ml_dtypes")  # to the bytes of results
ANSWER_S = 10.0  # for a scheduler
PATIENCE_S = 60.0  # for a worker, where there is none
POLL_S = 2.0
LOOP_STARTS = 3  # of an event loop
AHEAD = 2  # tasks that are at the cluster for each thread of it, so that none waits for the next


@functools.cache
def versions() -> Mapping[str, str]:
    """Of what results depend on, in this process."""
    return {name: importlib.metadata.version(name) for name in MATTERING}


def refuse_other(there: Mapping[str, Any], here: Mapping[str, str], worker: str) -> None:
    """Raise ParameterError where a worker has other versions than this process."""
    odd = [name for name in here if there.get(name) != here[name]]
    if odd:
        has = ", ".join(f"{name} {each}" if isinstance(each := there.get(name), str) else f"no {name}" for name in odd)
        own = ", ".join(f"{name} {here[name]}" for name in odd)
        raise ParameterError(f"cluster: {worker} has {has}, and here is {own}. Other versions may make other bytes.")


@dataclass(frozen=True)
class Cluster:
    """A cluster that a run is on. client: of Dask."""

    client: Any
    address: str

    def mapped(self, work: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[Result]:
        """What ``work`` makes of each task, in order. Raises what a task raises, and OnnxcompError where the cluster
        fails."""
        rest = enumerate(tasks)
        waiting: dict[Any, int] = {}
        found: dict[int, Result] = {}
        try:
            for index in range(len(tasks)):
                while index not in found:
                    with self._faults_told():
                        self._hand_out(work, rest, waiting)
                        for future, result in self._first_results(list(waiting)):
                            found[waiting.pop(future)] = _unpacked(result)
                yield found.pop(index)
        finally:
            if waiting:
                self.client.cancel(list(waiting))

    def refuse_others(self) -> None:
        """Raise ParameterError where there are no workers, or some have other versions than this process.

        They are asked by functions that every worker has: one that cannot read a message closes.
        """
        try:
            self.client.submit(os.getpid, pure=False).result(timeout=PATIENCE_S)
        except TimeoutError as error:
            raise ParameterError(f"cluster: no worker has joined {self.address} in {PATIENCE_S:.0f} s.") from error
        asked = {name: self.client.run(importlib.metadata.version, name, on_error="return") for name in MATTERING}
        for worker in asked[MATTERING[0]]:
            refuse_other({name: found.get(worker) for name, found in asked.items()}, versions(), worker)

    def _hand_out(self, work: Callable[[Task], Result], rest: Iterator[tuple[int, Task]], waiting: Any) -> None:
        most = AHEAD * max(1, sum(self.client.nthreads().values()))
        while len(waiting) < most and (following := next(rest, None)) is not None:
            index, task = following
            waiting[self.client.submit(_done, _packed((work, task)), versions(), pure=False)] = index

    @contextlib.contextmanager
    def _faults_told(self) -> Iterator[None]:
        """Turn what befalls a cluster into one line."""
        distributed = _distributed()
        try:
            yield
        except distributed.KilledWorker as error:
            raise OnnxcompError(
                "cluster: workers died one after another of the same task, which may need more memory than they have: "
                f"{error}"
            ) from error
        except (distributed.CancelledError, distributed.comm.CommClosedError) as error:
            raise OnnxcompError(f"cluster: the scheduler at {self.address} has been lost.") from error
        except ImportError as error:
            raise OnnxcompError(f"cluster: a worker lacks what is installed here: {error}.") from error

    def _first_results(self, futures: list[Any]) -> list[tuple[Any, Any]]:
        distributed, last_seen = _distributed(), time.monotonic()
        while True:
            done: Iterable[Any] = ()
            with contextlib.suppress(TimeoutError), self.client.as_current():
                done = distributed.wait(futures, timeout=POLL_S, return_when="FIRST_COMPLETED").done
            found = [(each, result) for each in done for result in self._there(each)]
            if found:
                return found
            if self.client.nthreads():
                last_seen = time.monotonic()
            elif time.monotonic() > last_seen + PATIENCE_S:
                raise OnnxcompError(f"cluster: all workers of {self.address} have gone.")

    def _there(self, future: Any) -> list[Any]:
        """The result, or none where the worker that has it is gone."""
        if future.status == "error":
            future.result()
        try:
            return [future.result(timeout=POLL_S)]
        except TimeoutError:
            return []


def _done(sent: NDArray[Any], expected: Mapping[str, str]) -> NDArray[Any]:
    """What a worker does: the work on the task, both packed; the result is packed, too."""
    refuse_other(versions(), expected, "a worker")
    work, task = _unpacked(sent)
    return _packed(work(task))


def _packed(content: Any) -> NDArray[Any]:
    """Pickled by value as bytes, in an array: Dask sends it as it is, and looks for nothing in it."""
    return np.frombuffer(importlib.import_module("distributed.protocol").pickle.dumps(content), np.uint8)


def _unpacked(packed: NDArray[Any]) -> Any:
    return pickle.loads(packed.data)


def _distributed() -> Any:
    """Of what is installed with an extra; it takes a second to import."""
    return importlib.import_module("distributed")


_current: ContextVar[Cluster | None] = ContextVar("cluster", default=None)


def current() -> Cluster | None:
    """The cluster that the run is on, None without."""
    return _current.get()


@contextlib.contextmanager
def on_cluster(address: str | None, jobs: int) -> Iterator[None]:
    """Have tasks that are for other processes done by a Dask cluster: that of the scheduler at an address, or one of
    ``jobs`` processes of this machine for "local"; none where the address is None.

    Raises ParameterError where Dask is not installed, where no scheduler or no worker answers, and where workers have
    other versions than this process.
    """
    if address is None:
        yield
        return
    if importlib.util.find_spec("distributed") is None:
        raise ParameterError(f"cluster: Dask is not installed. {EXTRA}")
    with contextlib.ExitStack() as stack:
        stack.enter_context(_quiet())
        cluster = Cluster(_client(address, jobs, stack), address)
        cluster.refuse_others()
        token = _current.set(cluster)
        stack.callback(_current.reset, token)
        yield


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What befalls a cluster is said once, by whoever waits for it, and not by Dask's log."""
    log = logging.getLogger("distributed")
    before = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(before)


def _client(address: str, jobs: int, stack: contextlib.ExitStack) -> Any:
    distributed = _distributed()
    config = importlib.import_module("dask").config
    stack.enter_context(config.set({"distributed.admin.large-graph-warning-threshold": "1 PB"}))  # tasks hold weights
    where: Any = address
    if address == LOCAL:
        options: dict[str, Any] = {"n_workers": jobs, "threads_per_worker": 1, "memory_limit": 0}
        options["dashboard_address"] = "127.0.0.1:0"
        where = stack.enter_context(_patiently(distributed.LocalCluster, **options))
    try:
        return stack.enter_context(_patiently(distributed.Client, where, timeout=ANSWER_S, set_as_default=False))
    except (OSError, ValueError, TimeoutError) as error:
        raise ParameterError(f"cluster: no scheduler answers at {address}: {error}") from error


def _patiently(make: Callable[..., Made], *arguments: Any, **options: Any) -> Made:
    """What Dask makes. It asserts that its event loop has started within ten seconds: where a machine stood still for
    as long, it is asked again.
    """
    for _ in range(LOOP_STARTS - 1):
        with contextlib.suppress(AssertionError):
            return make(*arguments, **options)
    return make(*arguments, **options)
