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

from onnxcomp.errors import OnnxcompError, ParameterError

Task = TypeVar("Task")
Result = TypeVar("Result")

LOCAL = "local"
OPENMP = "openmp"  # its limits are of a thread; those of BLAS are of the process


def cores() -> int:
    """The cores that this process may use, as cgroups and affinity leave them."""
    return int(joblib.cpu_count())


def in_threads(work: Callable[[Task], Result], tasks: Sequence[Task], jobs: int) -> Iterator[Result]:
    """What ``work`` makes of each task, in order, by ``jobs`` threads of this process.

    Products run on one thread meanwhile: sums in another order are other sums.
    """
    with threadpool_limits(1):
        if jobs == 1 or len(tasks) < 2:
            yield from map(work, tasks)
            return
        pool = joblib.Parallel(jobs, backend="threading", return_as="generator", batch_size=1)
        yield from pool(joblib.delayed(_on_one_thread)(work, each, OPENMP) for each in tasks)


def in_processes(work: Callable[[Task], Result], tasks: Sequence[Task], jobs: int) -> Iterator[Result]:
    """The same by as many processes, or by those of the cluster that the run is on: see ``on_cluster``.

    ``work`` and the tasks are sent there. A process that dies costs no more than its tasks: they are done again by half
    as many, since most die for lack of memory. Raises OnnxcompError for a task that kills one which works alone.
    """
    if not _is_on_cluster() and (jobs == 1 or len(tasks) < 2):
        yield from (_on_one_thread(work, each) for each in tasks)
        return
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
    if jobs == 1 and not _is_on_cluster():  # a pool of one would be this process
        for each in tasks:
            yield from _pooled(work, [each], 2)
        return
    options: dict[str, Any] = {} if _is_on_cluster() else {"n_jobs": jobs, "backend": "loky"}
    pool = joblib.Parallel(return_as="generator", batch_size=1, pre_dispatch="all", **options)
    yield from pool(joblib.delayed(_on_one_thread)(work, each) for each in tasks)


def _on_one_thread(work: Callable[[Task], Result], task: Task, api: str | None = None) -> Result:
    with threadpool_limits(1, api):
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
