"""Tasks by threads and processes: the same results in order for any number of workers, whatever befalls these."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from threadpoolctl import threadpool_info

from onnxcomp import parallel
from onnxcomp.errors import OnnxcompError, PassError
from onnxcomp.numerics.quantizers.codebook import fit_vector_codebook
from onnxcomp.parallel import end_processes, in_processes, in_threads, in_threads_ahead

WAYS = pytest.mark.parametrize("way", [in_threads, in_threads_ahead, in_processes])
JOBS = (1, 2, 3)


def product(seed: int) -> bytes:
    """What depends on the threads that BLAS has, on some machines."""
    values = np.random.default_rng(seed).standard_normal((300, 300))
    return (values @ values.T).tobytes()


def codebook(seed: int) -> bytes:
    """What depends on the threads that OpenMP has: partial sums are added as they come."""
    rows = np.random.default_rng(seed).standard_normal((3000, 2)).astype(np.float32)
    return fit_vector_codebook(rows, 64, seed=0).tobytes()


def most_threads(_: Any) -> int:
    return max(each["num_threads"] for each in threadpool_info())


def square(value: int) -> tuple[int, int]:
    return value**2, os.getpid()


def wait_until(is_so: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.05)


def fail(value: int) -> int:
    if value == 3:
        raise PassError("round-weights: failed on layer.3: ValueError: three")
    return value


def die_once(task: tuple[int, Path]) -> int:
    """Kills its process where the marker is not yet there."""
    value, marker = task
    if value in (2, 7) and not (own := marker / str(value)).exists():
        own.touch()
        os._exit(9)
    return value


def die(value: int) -> int:
    if value == 3:
        os._exit(9)
    return value


def wait_for_the_next(task: tuple[int, list[threading.Event]]) -> int:
    """Ends after the task that follows it, and so last of all."""
    value, done = task
    if value + 1 < len(done):
        assert done[value + 1].wait(60)
    done[value].set()
    return value


@WAYS
@pytest.mark.parametrize("jobs", JOBS)
@pytest.mark.parametrize("count", [0, 1, 2, 9])
def test_results_come_in_the_order_of_the_tasks(way: Callable[..., Any], jobs: int, count: int) -> None:
    assert [value for value, _ in way(square, range(count), jobs)] == [each**2 for each in range(count)]


def test_results_wait_for_those_before_them() -> None:
    events = [threading.Event() for _ in range(4)]
    assert list(in_threads(wait_for_the_next, [(each, events) for each in range(4)], 4)) == [0, 1, 2, 3]


@pytest.mark.parametrize("jobs", JOBS)
def test_tasks_are_taken_no_further_ahead_than_there_are_jobs(jobs: int) -> None:
    taken = []

    def tasks() -> Iterator[int]:
        for value in range(20):
            taken.append(value)
            yield value

    for done, (value, _) in enumerate(in_threads_ahead(square, tasks(), jobs)):
        assert value == done**2
        assert len(taken) <= done + 1 + (jobs if jobs > 1 else 0)


@pytest.mark.parametrize("jobs", [2, 4])
def test_tasks_that_wait_for_each_other_run_side_by_side(jobs: int) -> None:
    together = threading.Barrier(jobs)
    assert len(list(in_threads_ahead(lambda _: together.wait(60), range(2 * jobs), jobs))) == 2 * jobs


def test_processes_are_other_ones_and_threads_are_not() -> None:
    assert os.getpid() not in {each for _, each in in_processes(square, range(4), 2)}
    assert {each for _, each in in_threads(square, range(4), 2)} == {os.getpid()}


@pytest.mark.parametrize("work", [product, codebook])
def test_any_number_of_workers_gives_the_same_bytes(work: Callable[[int], bytes]) -> None:
    expected = list(in_threads(work, range(4), 1))
    for way in (in_threads, in_threads_ahead, in_processes):
        for jobs in JOBS:
            assert list(way(work, range(4), jobs)) == expected, (way, jobs)


@WAYS
@pytest.mark.parametrize("jobs", JOBS)
def test_a_task_has_one_thread(way: Callable[..., Any], jobs: int) -> None:
    fit_vector_codebook(np.ones((2, 2), np.float32), 1, seed=0)  # has OpenMP loaded
    before = most_threads(None)
    assert set(way(most_threads, range(4), jobs)) == {1}
    assert most_threads(None) == before


@WAYS
@pytest.mark.parametrize("jobs", JOBS)
def test_an_error_of_a_task_reaches_the_caller(way: Callable[..., Any], jobs: int) -> None:
    with pytest.raises(PassError) as caught:
        list(way(fail, range(6), jobs))
    assert str(caught.value) == "round-weights: failed on layer.3: ValueError: three"
    assert list(way(fail, range(3), jobs)) == [0, 1, 2], "workers are there for what comes after"


@pytest.mark.parametrize("jobs", [2, 4])
def test_a_process_that_dies_costs_its_task_only(tmp_path: Path, jobs: int) -> None:
    tasks = [(each, tmp_path) for each in range(10)]
    assert list(in_processes(die_once, tasks, jobs)) == list(range(10))
    assert {each.name for each in tmp_path.iterdir()} == {"2", "7"}


@pytest.mark.parametrize("jobs", [2, 4])
def test_a_task_that_kills_its_process_every_time_is_told(jobs: int) -> None:
    found = []
    with pytest.raises(OnnxcompError, match="killed while it worked on task 4 of 6, which may need more memory"):
        found.extend(in_processes(die, range(6), jobs))
    assert list(in_processes(die, range(3), jobs)) == [0, 1, 2]


def test_processes_that_are_ended_are_made_anew() -> None:
    first = {each for _, each in in_processes(square, range(4), 2)}
    end_processes()
    second = {each for _, each in in_processes(square, range(4), 2)}
    assert second and not first & second
    wait_until(lambda: not any(psutil.pid_exists(each) and psutil.Process(each).status() != "zombie" for each in first))


@WAYS
def test_results_that_nobody_wants_any_more_do_no_harm(way: Callable[..., Any]) -> None:
    results = way(square, range(9), 2)
    assert next(results)[0] == 0
    results.close()
    assert [value for value, _ in way(square, range(3), 2)] == [0, 1, 4]


def test_libraries_are_looked_for_once_until_more_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = 0
    controller = parallel.ThreadpoolController

    def counting() -> Any:
        nonlocal looked
        looked += 1
        return controller()

    monkeypatch.setattr(parallel, "ThreadpoolController", counting)
    parallel._libraries.cache_clear()
    try:
        for _ in range(3):
            assert list(in_threads(most_threads, [0], 1)) == [1]
        assert looked == 1
        monkeypatch.setitem(sys.modules, "onnxcomp_one_more", parallel)
        assert list(in_threads(most_threads, [0], 1)) == [1]
        assert looked == 2
    finally:
        parallel._libraries.cache_clear()
