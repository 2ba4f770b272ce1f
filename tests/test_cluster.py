"""A real Dask scheduler with two worker processes: the same bytes, whatever befalls the workers."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxcomp import cluster
from onnxcomp.cluster import current, on_cluster
from onnxcomp.errors import OnnxcompError, ParameterError, PassError
from onnxcomp.graph.stored.opening import open_plain
from onnxcomp.graph.weights.alone import LoneWeight
from onnxcomp.graph.weights.roles import weights
from onnxcomp.model import load
from onnxcomp.parallel import in_processes
from onnxcomp.pipeline.api import optimize
from onnxcomp.pipeline.weight_search import candidates
from onnxcomp.recipe import Recipe
from onnxcomp.tensors import is_mapped
from tests.graph.weighted import matrix

pytest.importorskip("distributed", reason="distributed is not installed: pip install 'onnxcomp[cluster]'")
RECIPE = Recipe.from_dict({"step": [{"choose": ["quantize-weights", "cluster-weights"]}]}, name="the test's")


@dataclass
class Dask:
    """A scheduler and workers, as processes of this machine."""

    folder: Path
    scheduler: subprocess.Popen[bytes]
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @classmethod
    @contextlib.contextmanager
    def started(cls, folder: Path, workers: int) -> Iterator[Dask]:
        found = cls(folder, start(folder, "scheduler", "--port", "0", "--host", "127.0.0.1", "--no-dashboard",
                                  "--scheduler-file", str(folder / "scheduler.json")))  # fmt: skip
        try:
            found.wait_for_address()
            for _ in range(workers):
                found.join()
            yield found
        finally:
            for each in [*found.workers, found.scheduler]:
                each.kill()
                each.wait()

    @property
    def address(self) -> str:
        return str(json.loads((self.folder / "scheduler.json").read_text())["address"])

    def wait_for_address(self) -> None:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            with contextlib.suppress(OSError, ValueError, KeyError):
                assert self.address
                return
            time.sleep(0.05)
        raise AssertionError((self.folder / "scheduler.log").read_text())

    def join(self, *first: str) -> subprocess.Popen[bytes]:
        """Start one more worker, which imports from these folders first."""
        worker = start(self.folder, "worker", self.address, "--nthreads", "1", "--no-nanny", "--no-dashboard",
                       "--memory-limit", "0", "--local-directory", str(self.folder), first=first)  # fmt: skip
        self.workers.append(worker)
        return worker

    def wait_for(self, workers: int) -> None:
        import distributed

        with distributed.Client(self.address, timeout=60, set_as_default=False) as client:
            client.wait_for_workers(workers, timeout=60)


def start(folder: Path, what: str, *arguments: str, first: Sequence[str] = ()) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", f"distributed.cli.dask_{what}", *arguments]
    with (folder / f"{what}.log").open("ab") as log:
        path = os.pathsep.join([*first, os.getcwd()])  # where these tests are, which workers import
        return subprocess.Popen(command, stderr=log, stdout=log, cwd=folder, env=os.environ | {"PYTHONPATH": path})


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine answers late."""
    monkeypatch.setattr(cluster, "ANSWER_S", 120.0)
    monkeypatch.setattr(cluster, "PATIENCE_S", 120.0)


@pytest.fixture(scope="module")
def dask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dask]:
    with Dask.started(tmp_path_factory.mktemp("dask"), 2) as found:
        found.wait_for(2)
        yield found


# --- tasks ---------------------------------------------------------------------------------------------


def square(value: int) -> tuple[int, int]:
    return value**2, os.getpid()


def fail(value: int) -> int:
    if value == 3:
        raise PassError("round-weights: failed on layer.3: ValueError: three")
    return value


def summed(task: tuple[Any, dict[int, Any]]) -> tuple[float, bool]:
    """What a weight holds, and whether it is a file's."""
    values = task[0].opened().values
    return float(values.sum(dtype=np.float64)), is_mapped(values)


def die_once(task: tuple[int, Path]) -> int:
    value, marker = task
    if value == 3 and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return value


def test_tasks_are_done_by_the_workers_in_order(dask: Dask) -> None:
    with on_cluster(dask.address, 1):
        found = list(in_processes(square, range(40), 1))
        assert list(in_processes(square, [], 1)) == []
    assert [value for value, _ in found] == [each**2 for each in range(40)]
    assert {process for _, process in found} == {each.pid for each in dask.workers}
    assert current() is None


def test_an_error_of_a_task_reaches_the_caller(dask: Dask) -> None:
    with on_cluster(dask.address, 1):
        with pytest.raises(PassError) as caught:
            list(in_processes(fail, range(9), 1))
        assert str(caught.value) == "round-weights: failed on layer.3: ValueError: three"
        assert [value for value, _ in in_processes(square, range(3), 1)] == [0, 1, 4]


def test_mapped_arrays_go_by_value(dask: Dask) -> None:
    proto = net(side=256)
    lone = [LoneWeight.of(each) for each in weights(open_plain(load(proto.SerializeToString())))]
    mapped = [each for each in lone if is_mapped(each.values)]
    assert mapped, "this is about weights in the scratch folder"
    with on_cluster(dask.address, 1):
        found = list(in_processes(summed, [(each, {}) for each in mapped], 1))
    assert found == [(float(each.values.sum(dtype=np.float64)), False) for each in mapped]


# --- whole runs ----------------------------------------------------------------------------------------


def net(side: int = 48, depth: int = 4) -> onnx.ModelProto:
    """A chain of matrices of a spread that calls for different strengths."""
    names = [f"w{each}" for each in range(depth)]
    nodes = "".join(f"h{each} = MatMul({'x' if not each else f'r{each - 1}'}, w{each}) r{each} = Tanh(h{each}) "
                    for each in range(depth - 1))  # fmt: skip
    text = f"g (float[N, {side}] x) => (float[N, {side}] y) {{ {nodes} y = MatMul(r{depth - 2}, w{depth - 1}) }}"
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    for at, name in enumerate(names):
        values = matrix("plain", (side, side), seed=at) / np.float32(side**0.5)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    return proto


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "calib.npz"
    np.savez(path, x=np.random.default_rng(0).standard_normal((64, 48)).astype(np.float32))
    return path


@pytest.fixture
def small_is_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "PROCESSES_FROM", 0)


def made(data: Path | None, progress: Any = None, **options: Any) -> bytes:
    told = {} if progress is None else {"progress": progress}
    result = optimize(net(), recipe=RECIPE, calibration=None if data is None else str(data), measure=False,
                      **told, **options)  # fmt: skip
    return result.model.to_bytes()


@pytest.fixture(scope="module")
def alone(data: Path) -> dict[bool, bytes]:
    """What one process makes, with data and without."""
    return {with_data: made(data if with_data else None, jobs=1) for with_data in (False, True)}


@pytest.mark.usefixtures("small_is_worth_it")
@pytest.mark.parametrize("with_data", [False, True])
def test_the_bytes_are_those_of_one_process(
    dask: Dask, data: Path, alone: dict[bool, bytes], with_data: bool
) -> None:
    given = data if with_data else None
    assert made(given, cluster=dask.address, jobs=1) == alone[with_data]
    assert made(given, jobs=2) == alone[with_data]


@pytest.mark.usefixtures("small_is_worth_it")
def test_a_worker_that_dies_in_the_middle_changes_nothing(
    tmp_path: Path, data: Path, alone: dict[bool, bytes]
) -> None:
    killed = []
    with Dask.started(tmp_path, 2) as dask:
        dask.wait_for(2)

        def kill(done: int, total: int, what: str) -> None:
            if "trying strengths" in what and not killed:
                dask.workers[0].kill()
                killed.append(what)

        assert made(data, kill, cluster=dask.address, jobs=1) == alone[True]
    assert killed


def test_a_task_that_dies_with_its_worker_is_done_by_another(tmp_path: Path) -> None:
    with Dask.started(tmp_path, 2) as dask:
        dask.wait_for(2)
        with on_cluster(dask.address, 1):
            tasks = [(each, tmp_path / "marker") for each in range(8)]
            assert list(in_processes(die_once, tasks, 1)) == list(range(8))


# --- what cannot be done is said on one line -----------------------------------------------------------


def refusal(address: str) -> str:
    """Why a run cannot be on a cluster."""
    with pytest.raises(ParameterError) as caught, on_cluster(address, 1):
        pass
    return str(caught.value)


def test_no_scheduler_is_said(tmp_path: Path) -> None:
    onnx.save(net(), tmp_path / "m.onnx")
    command = ["optimize", str(tmp_path / "m.onnx"), "--cluster", "tcp://127.0.0.1:9", "-q"]
    done = subprocess.run([sys.executable, "-m", "onnxcomp", *command], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("onnxcomp: --cluster: no scheduler answers at tcp://127.0.0.1:9")
    assert done.stderr.count("\n") == 1
    assert not done.stdout


@pytest.mark.parametrize("address", ["nowhere", "tcp://:-1", "ftp://127.0.0.1:9"])
def test_what_is_no_address_is_said(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setattr(cluster, "ANSWER_S", 1.0)
    assert refusal(address).startswith(f"cluster: no scheduler answers at {address}")


def test_no_worker_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cluster, "PATIENCE_S", 1.0)
    with Dask.started(tmp_path, 0) as dask:
        assert refusal(dask.address) == f"cluster: no worker has joined {dask.address} in 1 s."


def at_first(value: int) -> int:
    """The first task ends at once, and the others not before the test does."""
    if value:
        time.sleep(600)
    return value


def test_the_loss_of_all_workers_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cluster, "POLL_S", 0.2)
    with Dask.started(tmp_path, 1) as dask, on_cluster(dask.address, 1):
        monkeypatch.setattr(cluster, "PATIENCE_S", 1.0)
        results = in_processes(at_first, range(50), 1)
        assert next(results) == 0
        dask.workers[0].kill()
        with pytest.raises(OnnxcompError, match=r"all workers of tcp:.* have gone"):
            list(results)


def test_the_loss_of_the_scheduler_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cluster, "ANSWER_S", 5.0)  # for which Dask tries to reach it again
    with Dask.started(tmp_path, 1) as dask, on_cluster(dask.address, 1):
        results = in_processes(at_first, range(50), 1)
        assert next(results) == 0
        dask.scheduler.kill()
        with pytest.raises(OnnxcompError, match=r"the scheduler at tcp:.* has been lost"):
            list(results)


def die(value: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return value


def test_a_task_that_kills_every_worker_is_said(tmp_path: Path) -> None:
    with Dask.started(tmp_path, 5) as dask:
        dask.wait_for(5)
        with on_cluster(dask.address, 1), pytest.raises(OnnxcompError, match="may need more memory than they have"):
            list(in_processes(die, [1], 1))


METADATA = "Metadata-Version: 2.1\nName: onnxcomp\nVersion: 99.0\n"


@pytest.mark.parametrize(("metadata", "said"), [(METADATA, "onnxcomp 99.0"), ("", "no onnxcomp")])
def test_another_onnxcomp_is_refused(tmp_path: Path, metadata: str, said: str) -> None:
    path = tmp_path / "site" / "onnxcomp-99.0.dist-info" / "METADATA"
    path.parent.mkdir(parents=True)
    path.write_text(metadata)
    with Dask.started(tmp_path, 0) as dask:
        dask.join(str(tmp_path / "site"))
        assert re.match(rf"cluster: tcp://.* has {said}, and here is onnxcomp \d", refusal(dask.address))


def test_a_plug_in_that_a_worker_lacks_is_said(dask: Dask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "only_here.py").write_text("def work(task):\n    return task\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    work = importlib.import_module("only_here").work
    with on_cluster(dask.address, 1):
        with pytest.raises(OnnxcompError, match="a worker lacks what is installed here: No module named 'only_here'"):
            list(in_processes(work, range(4), 1))
        assert [value for value, _ in in_processes(square, range(3), 1)] == [0, 1, 4]


def test_an_event_loop_that_starts_late_is_no_error(dask: Dask, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = importlib.import_module("distributed.utils").LoopRunner
    start, late = runner.start, iter([True, True])

    def started(loop: Any) -> None:
        assert not next(late, False)
        start(loop)

    monkeypatch.setattr(runner, "start", started)
    with on_cluster(dask.address, 1):
        assert [value for value, _ in in_processes(square, range(3), 1)] == [0, 1, 4]
    assert not list(late)


def test_without_dask_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert refusal("local") == "cluster: Dask is not installed. Install it with: pip install 'onnxcomp[cluster]'"


def test_local_starts_processes_of_its_own() -> None:
    with on_cluster("local", 2):
        found = list(in_processes(square, range(8), 1))
    assert [value for value, _ in found] == [each**2 for each in range(8)]
    assert os.getpid() not in {process for _, process in found}
