"""Independent tasks on all cores, or on a cluster: results come in the order of the tasks, whoever computed them.

Threads where a task spends its time in ONNX Runtime, which lets other threads run; processes where it is Python and
small arrays. What a task computes depends on its arguments only, so that the results are the same for any number of
workers.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import joblib
from joblib.externals.loky.process_executor import BrokenProcessPool
from threadpoolctl import threadpool_limits

from onnxcomp.errors import ParameterError

Task = TypeVar("Task")
Result = TypeVar("Result")

LOCAL = "local"


def cores() -> int:
    """The cores that this process may use, as cgroups and affinity leave them."""
    return int(joblib.cpu_count())


def in_threads(work: Callable[[Task], Result], tasks: Sequence[Task], jobs: int) -> Iterator[Result]:
    """What ``work`` makes of each task, in order, by ``jobs`` threads of this process."""
    if jobs == 1 or len(tasks) < 2:
        yield from map(work, tasks)
        return
    pool = joblib.Parallel(jobs, backend="threading", return_as="generator", batch_size=1)
    yield from pool(joblib.delayed(work)(each) for each in tasks)


def in_processes(work: Callable[[Task], Result], tasks: Sequence[Task], jobs: int) -> Iterator[Result]:
    """The same by as many processes, or by those of the cluster that the run is on: see ``on_cluster``.

    ``work`` and the tasks are sent there. A process that dies costs its task only: what is missing is done again, one
    task at a time.
    """
    if not _is_on_cluster() and (jobs == 1 or len(tasks) < 2):
        yield from map(work, tasks)
        return
    done = 0
    try:
        for result in _pooled(work, tasks, jobs):
            yield result
            done += 1
    except BrokenProcessPool:
        for each in tasks[done:]:
            yield from _pooled(work, [each], 1 if _is_on_cluster() else 2)


def _pooled(work: Callable[[Task], Result], tasks: Sequence[Task], jobs: int) -> Iterator[Result]:
    options: dict[str, Any] = {} if _is_on_cluster() else {"n_jobs": jobs, "backend": "loky"}
    pool = joblib.Parallel(return_as="generator", batch_size=1, pre_dispatch="all", **options)
    yield from pool(joblib.delayed(_on_one_thread)(work, each) for each in tasks)


def _on_one_thread(work: Callable[[Task], Result], task: Task) -> Result:
    with threadpool_limits(1):
        return work(task)


def _is_on_cluster() -> bool:
    backend, _ = joblib.parallel.get_active_backend()
    return type(backend).__name__ == "DaskDistributedBackend"


@contextlib.contextmanager
def on_cluster(address: str | None, jobs: int) -> Iterator[None]:
    """Have ``in_processes`` use a Dask cluster: the scheduler at an address, or one of ``jobs`` processes on this
    machine for "local"; none where the address is None.

    Raises ParameterError where Dask is not installed or the scheduler does not answer.
    """
    if address is None:
        yield
        return
    if importlib.util.find_spec("distributed") is None:
        raise ParameterError("cluster: Dask is not installed. Install it with: pip install 'onnxcomp[cluster]'")
    import distributed

    with contextlib.ExitStack() as stack:
        try:
            where: Any = address
            if address == LOCAL:
                options = {"n_workers": jobs, "threads_per_worker": 1, "dashboard_address": None}
                where = stack.enter_context(distributed.LocalCluster(**options))
            stack.enter_context(distributed.Client(where, timeout="30s"))
        except (OSError, ValueError, TimeoutError) as error:
            raise ParameterError(f"cluster: no scheduler answers at {address}: {error}") from error
        stack.enter_context(joblib.parallel_config(backend="dask"))
        yield
