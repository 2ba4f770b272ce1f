"""Independent tasks on all cores, or on a cluster: results come in the order of the tasks, whoever computed them.

Threads where a task spends its time in ONNX Runtime, which lets other threads run; processes where it is Python and
small arrays. What a task computes depends on its arguments only, so that the results are the same for any number of
workers.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import joblib
from joblib.externals.loky import get_reusable_executor
from joblib.externals.loky.process_executor import BrokenProcessPool
from threadpoolctl import ThreadpoolController

from onnxcomp.cluster import current
from onnxcomp.errors import OnnxcompError

Task = TypeVar("Task")
Result = TypeVar("Result")

OPENMP = "openmp"  # its limits are of a thread; those of BLAS are of the process


def cores() -> int:
    """The cores that this process may use, as cgroups and affinity leave them."""
    return int(joblib.cpu_count())


def one_thread(api: str | None = None) -> contextlib.AbstractContextManager[Any]:
    """Have the libraries of numerics, or those of one kind, use one thread from now on, until the context ends."""
    limited: contextlib.AbstractContextManager[Any] = _libraries(len(sys.modules)).limit(limits=1, user_api=api)
    return limited


@functools.lru_cache(1)
def _libraries(modules: int) -> ThreadpoolController:
    """What is loaded: looking for it takes milliseconds, and nothing is loaded but by importing more modules."""
    return ThreadpoolController()


def in_threads(work: Callable[[Task], Result], tasks: Sequence[Task], jobs: int) -> Iterator[Result]:
    """What ``work`` makes of each task, in order, by ``jobs`` threads of this process.

    Products run on one thread meanwhile: sums in another order are other sums.
    """
    with one_thread():
        if jobs == 1 or len(tasks) < 2:
            yield from map(work, tasks)
            return
        pool = joblib.Parallel(jobs, backend="threading", return_as="generator", batch_size=1)
        yield from pool(joblib.delayed(_on_one_thread)(work, each, OPENMP) for each in tasks)


def in_threads_ahead(work: Callable[[Task], Result], tasks: Iterable[Task], jobs: int) -> Iterator[Result]:
    """The same of tasks that need not be there all at once: they are taken as results are, ``jobs`` ahead of these."""
    with one_thread():
        if jobs == 1:
            yield from map(work, tasks)
            return
        waiting: deque[Future[Result]] = deque()
        with ThreadPoolExecutor(jobs, initializer=one_thread, initargs=(OPENMP,)) as pool:
            for each in tasks:
                waiting.append(pool.submit(work, each))
                if len(waiting) > jobs:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()


def in_processes(work: Callable[[Task], Result], tasks: Sequence[Task], jobs: int) -> Iterator[Result]:
    """The same by as many processes, or by those of the cluster that the run is on (see ``onnxcomp.cluster``).

    ``work`` and the tasks are sent there. A process that dies costs no more than its tasks: they are done again by half
    as many, since most die for lack of memory. Raises OnnxcompError for a task that kills one which works alone.
    """
    cluster = current()
    if cluster is not None:
        yield from cluster.mapped(functools.partial(_on_one_thread, work), tasks)
    elif jobs == 1 or len(tasks) < 2:
        yield from (_on_one_thread(work, each) for each in tasks)
    else:
        yield from _in_own_processes(work, tasks, jobs)


def end_processes() -> None:
    """Let go of the processes that tasks had, each of which holds some hundred MB; tasks to come get new ones."""
    get_reusable_executor().shutdown(wait=False)


def _in_own_processes(work: Callable[[Task], Result], tasks: Sequence[Task], jobs: int) -> Iterator[Result]:
    done, killed = 0, -1
    while done < len(tasks):
        try:
            for result in _pooled(work, tasks[done:], jobs):
                yield result
                done += 1
        except BrokenProcessPool as error:
            if jobs == 1 and killed == done:
                raise OnnxcompError(
                    f"a process was killed while it worked on task {done + 1} of {len(tasks)}, which may need more "
                    "memory than there is."
                ) from error
            killed, jobs = done, max(1, jobs // 2)


def _pooled(work: Callable[[Task], Result], tasks: Sequence[Task], jobs: int) -> Iterator[Result]:
    if jobs == 1:  # a pool of one would be this process
        for each in tasks:
            yield from _pooled(work, [each], 2)
        return
    pool = joblib.Parallel(jobs, backend="loky", return_as="generator", batch_size=1, pre_dispatch="all")
    yield from pool(joblib.delayed(_on_one_thread)(work, each) for each in tasks)


def _on_one_thread(work: Callable[[Task], Result], task: Task, api: str | None = None) -> Result:
    with one_thread(api):
        return work(task)
